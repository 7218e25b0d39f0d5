package schedule

import (
	"iter"
	"time"
)

// Stats counts, in no time.
func (s *Scheduler) Stats() Stats {
	out := Stats{Messages: len(s.byID)}
	for i := range s.channels {
		c := &s.channels[i]
		out.Channels[i] = ChannelStats{
			Concurrency: c.limits.Concurrency, Jobs: c.jobs, InFlight: c.inward,
			Open: c.open, Ready: c.ready, Destinations: c.mailed,
		}
	}
	return out
}

// Destinations lists those with mail, in no order. Nothing else may be called meanwhile.
func (s *Scheduler) Destinations() iter.Seq[DestinationStats] {
	return func(yield func(DestinationStats) bool) {
		for n := uint32(1); n < s.dests.used; n++ {
			d := s.dests.at(n)
			if d.units == 0 {
				continue
			}
			if !yield(DestinationStats{d.channel, d.name, d.units, d.due, d.jobs, d.window, d.failures}) {
				return
			}
		}
	}
}

// Plans says what is planned for the open recipients of a message.
func (s *Scheduler) Plans(id uint64) []Plan {
	n, ok := s.byID[id]
	if !ok {
		return nil
	}
	var out []Plan
	s.around(n, func(un uint32) { out = s.plan(out, un) })
	return out
}

// All is Plans of all messages, in no order: what to write down before an end. Nothing else may be called
// meanwhile.
func (s *Scheduler) All() iter.Seq[Plan] {
	return func(yield func(Plan) bool) {
		var plans []Plan
		for n := uint32(1); n < s.units.used; n++ {
			if s.units.at(n).msg == 0 {
				continue
			}
			plans = s.plan(plans[:0], n)
			for _, p := range plans {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// plan appends the plans of a unit: up to three, in a pass.
func (s *Scheduler) plan(out []Plan, n uint32) []Plan {
	u := s.units.at(n)
	d := s.dests.at(u.dest)
	base := Plan{Message: s.messages.at(u.msg).id, Channel: d.channel, Destination: d.name, Next: time.Unix(u.next, 0)}
	part := func(state State, r ...uint32) {
		if len(r) > 0 {
			p := base
			p.State, p.Recipients = state, append([]uint32(nil), r...)
			out = append(out, p)
		}
	}
	rest := u.state
	if rest == Waiting && int(u.slot/wheelBit) != s.wheel { // an Alarm made it due
		rest = Ready
	}
	off := Waiting
	if s.messages.at(u.msg).held {
		off = Held
	}
	if u.is(many) {
		l := s.lists.at(u.rcpt)
		part(off, l.r[:l.kept]...)
		part(rest, l.r[l.at:]...)
	} else if !u.is(handed) {
		part(rest, u.rcpt)
	}
	if u.jobs > 0 {
		for _, r := range s.jobs {
			if r.unit == n {
				part(Running, r.r...)
			}
		}
	}
	return out
}
