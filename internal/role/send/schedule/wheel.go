package schedule

import "math/bits"

// A wheel holds units until their time: a hierarchical timing wheel of one-second ticks. Level l has a slot
// for each value of the l-th six bits of a time; a unit stands at the level of the highest bits in which its
// time differs from the wheel's, and moves down as the wheel turns, at most once per level. To add, to
// take out and to expire is O(1), whatever is in it.
type wheel struct {
	now  int64
	n    int
	used [levels]uint64         // slots, a bit each
	head [levels * slots]uint32 // a unit of each slot; the others stand in a ring, by fore and back
}

const (
	slotBits = 6
	slots    = 1 << slotBits
	levels   = 11 // times six bits: all of int64
	// wheelBit tells in a unit's slot which of the two wheels it is in.
	wheelBit = 1 << 15
)

// slot is where a time later than now belongs.
func (w *wheel) slot(at int64) uint16 {
	level := (bits.Len64(uint64(at^w.now)) - 1) / slotBits
	return uint16(level*slots + int(at>>(slotBits*level))&(slots-1))
}

// put adds unit n, whose next must be later than the wheel's now.
func (s *Scheduler) put(which int, n uint32) {
	w, u := &s.wheels[which], s.units.at(n)
	slot := w.slot(u.next)
	if first := w.head[slot]; first == 0 {
		w.head[slot], u.fore, u.back = n, n, n
		w.used[slot/slots] |= 1 << (slot % slots)
	} else {
		f := s.units.at(first)
		u.fore, u.back = first, f.back
		s.units.at(f.back).fore = n
		f.back = n
	}
	u.slot = slot | uint16(which)*wheelBit
	w.n++
}

// cut takes unit n out of its wheel.
func (s *Scheduler) cut(n uint32) {
	u := s.units.at(n)
	w, slot := &s.wheels[u.slot/wheelBit], u.slot%wheelBit
	if u.fore == n {
		w.head[slot] = 0
		w.used[slot/slots] &^= 1 << (slot % slots)
	} else {
		if w.head[slot] == n {
			w.head[slot] = u.fore
		}
		s.units.at(u.back).fore = u.fore
		s.units.at(u.fore).back = u.back
	}
	u.fore, u.back = 0, 0
	w.n--
}

// upcoming is the next slot in use, and when it is due: at the lowest level the time of its units, above it the
// time to move them down.
func (w *wheel) upcoming() (slot uint16, at int64, ok bool) {
	for level, used := range w.used {
		if used == 0 {
			continue
		}
		i := bits.TrailingZeros64(used)
		window := w.now >> (slotBits * (level + 1)) << slotBits
		return uint16(level*slots + i), (window | int64(i)) << (slotBits * level), true
	}
	return 0, 0, false
}

// turn moves a wheel on to a time and gives up to limit of the units due by then to due, which may not put
// anything back into it. It reports whether it got there.
func (s *Scheduler) turn(which int, to int64, limit int, due func(n uint32)) bool {
	w := &s.wheels[which]
	for {
		slot, at, ok := w.upcoming()
		if !ok || at > to {
			w.now = max(w.now, to)
			return true
		}
		w.now = max(w.now, at)
		for w.used[slot/slots]&(1<<(slot%slots)) != 0 {
			if slot < slots && limit <= 0 { // only there: a slot that moves down must be emptied at once
				return false
			}
			n := w.head[slot]
			s.cut(n)
			if s.units.at(n).next <= w.now {
				limit--
				due(n)
			} else {
				s.put(which, n)
			}
		}
	}
}

// each calls f with every unit in a wheel; f may not touch the wheel.
func (s *Scheduler) each(which int, f func(n uint32)) {
	w := &s.wheels[which]
	for slot, first := range w.head {
		if w.used[slot/slots]&(1<<(slot%slots)) == 0 {
			continue
		}
		for n, next := first, uint32(0); next != first; n = next {
			next = s.units.at(n).fore
			f(n)
		}
	}
}
