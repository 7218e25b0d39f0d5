package schedule

import "time"

// clock takes the time of an event.
func (s *Scheduler) clock(now time.Time) {
	ahead := now.Round(0).Sub(s.last.Round(0)) - now.Sub(s.last) // 0 without a monotonic part
	s.last = now
	s.tick(now.Unix(), ahead)
}

// tick is clock in seconds; ahead is how far the wall clock outran the monotonic one.
func (s *Scheduler) tick(t int64, ahead time.Duration) {
	if ahead > leap {
		s.doubtful = t + trust
	}
	switch {
	case t >= s.now:
		s.now = t
	case s.now-t > slack:
		s.rewind(t)
	}
	// Within the slack our time stands until the clock comes by again.
}

// rewind follows a clock that was set back: births after now and plans beyond the formula are its work.
func (s *Scheduler) rewind(now int64) {
	s.now = now
	s.doubtful = min(s.doubtful, now+trust)
	for n := uint32(1); n < s.messages.used; n++ {
		k := s.messages.at(n)
		k.birth = min(k.birth, now)
	}
	for n := uint32(1); n < s.dests.used; n++ {
		d := s.dests.at(n)
		d.failed = min(d.failed, now)
	}
	var waiting []uint32
	s.each(s.wheel, func(n uint32) { waiting = append(waiting, n) })
	s.wheels[s.wheel] = wheel{now: now}
	for _, n := range waiting {
		s.settle(n)
	}
}
