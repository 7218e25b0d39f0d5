package schedule

import (
	"math"
	"time"
)

// Alarm makes everything that waits due now (qmail-send's ALRM). What is in a job, and what is held, is not
// affected.
func (s *Scheduler) Alarm(now time.Time) {
	s.clock(now)
	s.turn(1-s.wheel, math.MaxInt64, math.MaxInt, s.due) // of an Alarm before
	s.wheel = 1 - s.wheel
	s.wheels[s.wheel] = wheel{now: s.now}
}

// Hold stops attempts of a message, but not those that run, and says whether it is known.
func (s *Scheduler) Hold(id uint64) bool {
	n, ok := s.byID[id]
	if !ok {
		return false
	}
	s.messages.at(n).held = true
	s.around(n, func(un uint32) {
		u := s.units.at(un)
		switch u.state {
		case Waiting:
			s.cut(un)
			u.state = Held
		case Ready:
			s.leave(un)
			u.state = Held
		}
	})
	return true
}

// Release undoes Hold.
func (s *Scheduler) Release(id uint64, now time.Time) bool {
	s.clock(now)
	n, ok := s.byID[id]
	if !ok {
		return false
	}
	s.messages.at(n).held = false
	s.around(n, func(un uint32) {
		if s.units.at(un).state == Held {
			s.settle(un)
		}
	})
	return true
}

// Due makes what waits of one message due now, as Alarm does for all.
func (s *Scheduler) Due(id uint64, now time.Time) bool {
	s.clock(now)
	n, ok := s.byID[id]
	if !ok {
		return false
	}
	s.around(n, func(un uint32) {
		if s.units.at(un).state == Waiting {
			s.cut(un)
			s.join(un)
		}
	})
	return true
}

// Remove closes recipients of a message that are not in a job, all of them if recipients is nil, and returns
// which they were. The caller has made that durable; those in a job can be removed when it is done.
func (s *Scheduler) Remove(id uint64, recipients []uint32) (removed []uint32, p Progress) {
	n, ok := s.byID[id]
	if !ok {
		return nil, Progress{}
	}
	var wanted map[uint32]bool
	if recipients != nil {
		wanted = make(map[uint32]bool, len(recipients))
		for _, index := range recipients {
			wanted[index] = true
		}
	}
	k := *s.messages.at(n)
	s.around(n, func(un uint32) {
		ch := s.dests.at(s.units.at(un).dest).channel
		before := len(removed)
		s.removeFrom(un, func(index uint32) bool {
			if wanted != nil && !wanted[index] {
				return false
			}
			removed = append(removed, index)
			return true
		})
		k.open[ch] -= uint32(len(removed) - before)
		s.channels[ch].open -= len(removed) - before
		s.messages.at(n).open = k.open // of a free message, too: take clears it
	})
	if _, ok := s.byID[id]; !ok {
		*s.messages.at(n) = message{}
	}
	return removed, k.progress()
}

// removeFrom strikes recipients off a unit and puts it where it then belongs.
func (s *Scheduler) removeFrom(un uint32, gone func(uint32) bool) {
	u := s.units.at(un)
	left := s.strike(u, gone)
	switch {
	case s.todo(u) > 0 || u.state == Running && left > 0:
		if u.is(many) && !u.is(inPass) {
			s.shrink(u)
		}
		return // it stays where it is
	case u.state == Waiting:
		s.cut(un)
	case u.state == Ready:
		s.leave(un)
	}
	if u.jobs > 0 {
		u.state = Running
		return
	}
	if left == 0 {
		s.drop(un)
		return
	}
	s.settle(un) // the pass is over, since what was to do is gone
}

// SetConcurrency changes a channel's limit: 0 holds it. Jobs that run are not affected.
func (s *Scheduler) SetConcurrency(c Channel, n int) { s.channels[c].limits.Concurrency = n }

// SetLifetime changes after what age a pass is the last.
func (s *Scheduler) SetLifetime(d time.Duration) { s.options.Lifetime = d }
