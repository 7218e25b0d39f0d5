package schedule

import "time"

// Known is a message as the Scheduler knows it.
type Known struct {
	ID    uint64
	Birth time.Time // in whole seconds
	Held  bool
	Plans []Plan
}

// Page appends up to most messages to dst, in no order, and returns where the next call is to go on, 0 at the end. The
// first call is for 0. It takes little time, and anything may be done between two calls: a message that is here all the
// while comes exactly once.
func (s *Scheduler) Page(dst []Known, from uint32, most int) ([]Known, uint32) {
	room, slots, recipients := most, 64*most, 64*most
	for n := max(from, 1); n < s.messages.used; n++ {
		if room <= 0 || slots <= 0 || recipients <= 0 {
			return dst, n
		}
		slots--
		k := s.messages.at(n)
		if k.first == 0 {
			continue
		}
		known := Known{ID: k.id, Birth: time.Unix(k.birth, 0), Held: k.held, Plans: s.Plans(k.id)}
		for _, p := range known.Plans {
			recipients -= len(p.Recipients)
		}
		dst = append(dst, known)
		room--
	}
	return dst, 0
}

// Has reports whether a message is known.
func (s *Scheduler) Has(id uint64) bool {
	_, ok := s.byID[id]
	return ok
}
