package schedule

// message is what is kept of a message while recipients are open.
type message struct {
	id    uint64
	birth int64
	open  [channels]uint32
	first uint32 // of its units, which stand in a ring; 0 in a free message
	flow  uint8  // its source, folded
	alone bool
	held  bool
}

// unit is the recipients of one message at one destination. The only recipient stands in rcpt itself; of
// several, rcpt is the number of their list.
type unit struct {
	next       int64 // when it is due; of a pass that runs, when the next one is
	msg, dest  uint32
	kin, kith  uint32 // next and previous unit of the message
	fore, back uint32 // in a slot of the wheel, or in a flow
	rcpt       uint32
	slot       uint16 // in the wheel
	jobs       uint16 // outstanding
	state      State  // Ready also while jobs of it run, if there is more to hand out
	lost       uint8  // deliverers that died with it, in a row
	bits       bits8
}

type bits8 uint8

const (
	many   bits8 = 1 << iota // rcpt is a list
	handed                   // the only recipient has been handed out in this pass
	kept                     // and is put off
	inPass                   // a pass is on
	dying                    // and is the last
	tried                    // a pass is over: first attempts and retries take turns apart
	broken                   // a deliverer died in this pass
)

func (u *unit) is(b bits8) bool { return u.bits&b != 0 }
func (u *unit) set(b bits8)     { u.bits |= b }
func (u *unit) clear(b bits8)   { u.bits &^= b }

// list is recipients in three parts: those put off in this pass; those handed out in it, of which jobs have
// copies; and those to do.
type list struct {
	r        []uint32
	kept, at int
}

// todo is how many recipients the pass has still to hand out; between passes, all.
func (s *Scheduler) todo(u *unit) int {
	if u.is(many) {
		l := s.lists.at(u.rcpt)
		return len(l.r) - l.at
	}
	if u.is(handed) {
		return 0
	}
	return 1
}

// hand takes up to limit recipients of those to do.
func (s *Scheduler) hand(u *unit, dst []uint32, limit int) []uint32 {
	if !u.is(many) {
		u.set(handed)
		return append(dst, u.rcpt)
	}
	l := s.lists.at(u.rcpt)
	n := min(limit, len(l.r)-l.at)
	dst = append(dst, l.r[l.at:l.at+n]...)
	l.at += n
	return dst
}

// keep puts off a recipient that was handed out.
func (s *Scheduler) keep(u *unit, index uint32) {
	if !u.is(many) {
		u.set(kept)
		return
	}
	l := s.lists.at(u.rcpt)
	if l.kept < l.at {
		l.r[l.kept] = index
	} else { // the rest of the pass was put off together, so nothing is to do
		l.r = append(l.r, index)
		l.at++
	}
	l.kept++
}

// keepRest puts off what is still to do in the pass.
func (s *Scheduler) keepRest(u *unit) {
	if !u.is(many) {
		u.set(handed | kept)
		return
	}
	l := s.lists.at(u.rcpt)
	l.r = append(l.r[:l.kept], l.r[l.at:]...)
	l.kept, l.at = len(l.r), len(l.r)
}

// renew makes what was put off what is to do, and says how many that are.
func (s *Scheduler) renew(u *unit) int {
	if !u.is(many) {
		left := 0
		if u.is(kept) {
			left = 1
		}
		u.clear(handed | kept)
		return left
	}
	l := s.lists.at(u.rcpt)
	left := l.kept
	l.r, l.kept, l.at = l.r[:left], 0, 0
	s.shrink(u)
	return left
}

// shrink gives back the memory of a list that became short; there must be no pass on.
func (s *Scheduler) shrink(u *unit) {
	l := s.lists.at(u.rcpt)
	switch {
	case len(l.r) == 1:
		only := l.r[0]
		s.lists.free(u.rcpt)
		u.rcpt = only
		u.clear(many)
	case len(l.r) > 0 && len(l.r) < cap(l.r)/2:
		l.r = append(make([]uint32, 0, len(l.r)), l.r...)
	}
}

// add puts a recipient into a unit that has no pass on.
func (s *Scheduler) add(u *unit, index uint32) {
	if !u.is(many) {
		n, l := s.lists.take()
		l.r = []uint32{u.rcpt}
		u.rcpt = n
		u.set(many)
	}
	l := s.lists.at(u.rcpt)
	l.r = append(l.r, index)
}

// strike removes recipients that no job has, and returns how many are left in any state but running.
func (s *Scheduler) strike(u *unit, gone func(index uint32) bool) int {
	if !u.is(many) {
		if u.is(handed) || !gone(u.rcpt) {
			return s.todo(u)
		}
		u.set(handed) // and not kept: nothing is left
		return 0
	}
	l := s.lists.at(u.rcpt)
	l.kept = filter(l.r[:l.kept], gone)
	rest := filter(l.r[l.at:], gone)
	l.r = l.r[:l.at+rest]
	return l.kept + rest
}

// filter moves what is not gone to the front of r and returns its count.
func filter(r []uint32, gone func(uint32) bool) int {
	n := 0
	for _, index := range r {
		if !gone(index) {
			r[n] = index
			n++
		}
	}
	return n
}
