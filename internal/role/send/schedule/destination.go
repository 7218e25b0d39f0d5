package schedule

import (
	"math"
	"math/bits"
	"strings"
)

const (
	// sources is how many groups of senders take turns; first attempts and retries are groups of their own.
	sources = 64
	flows   = 2 * sources
	// idle0 and idle1 are the buckets of destinations with nothing running, unproven and proven.
	idle0, idle1 = 0, 1
	// buckets of destinations by jobs running: two for none, then 1, 2, 3 ...; the last has all above.
	buckets = 34
	// despair is how many failures in a row it takes to put off even what was never tried.
	despair = 10
)

// flow is what one group of senders has ready at one destination.
type flow struct {
	first uint32 // of its units, oldest first: a ring through fore and back
	place int32  // in the destination's heap
	group uint8
}

// destination shares a window of simultaneous jobs. It stands in a bucket of its channel while it has
// something ready and room in the window; else it costs nothing.
type destination struct {
	name     string
	channel  Channel
	ready    heap // flows, by the key each has paid for its next turn
	due      int  // units in them
	units    int
	jobs     int
	window   int
	failures int
	failed   int64 // when it last did
	proven   bool  // it answered since

	bucket uint8  // plus one; 0 for none
	place  int32  // in the bucket's heap
	key    uint64 // there

	stamp     uint64 // of the Add that last had a unit here,
	stampUnit uint32 // which is this

	fore, back uint32 // in the ring of those without mail
}

// channel is one way out.
type channel struct {
	limits Limits
	jobs   int
	busy   int // destinations with jobs
	doubts int // jobs begun at destinations that were not proven
	inward int // recipients in running jobs
	open   int
	ready  int // units
	mailed int // destinations with mail
	dests  map[string]uint32
	line   [buckets]heap
	filled uint64        // buckets in use, a bit each
	v      uint64        // the highest key that was served
	turns  [flows]uint64 // what each group pays next
}

// cap is how far the window of a destination may grow.
func (c *channel) cap() int {
	if c.limits.PerDestination > 0 {
		return min(c.limits.PerDestination, math.MaxUint16)
	}
	return min(max(c.limits.Concurrency, 1), math.MaxUint16)
}

// pay is the key of a group's next turn at some destination. Turns are served by their keys, lowest first, and
// each costs the group one: start-time fair queueing. Who comes new begins with the lowest that waits,
// so that nobody gains by having been away.
func (c *channel) pay(group uint8) uint64 {
	least, some := uint64(math.MaxUint64), false
	for left := c.filled; left != 0; left &= left - 1 {
		least, some = min(least, c.line[bits.TrailingZeros64(left)][0].key), true
	}
	if !some {
		least = c.v
	}
	key := max(least, c.turns[group])
	c.turns[group] = key + 1
	return key
}

// pick is the destination whose turn it is in a channel. A few places are never taken by second, third ...
// jobs of a destination, and half of those never by jobs to destinations that were not seen to answer: so
// neither a slow destination nor many dead ones fill the channel.
func (c *channel) pick() (n uint32, ok bool) {
	most := c.limits.Concurrency
	if c.jobs >= most || c.filled == 0 {
		return 0, false
	}
	reserve := (most + 12) / 16
	a, b := c.line[idle0], c.line[idle1]
	if len(a) > 0 && c.doubts < most-reserve/2 && (len(b) == 0 || a[0].before(b[0])) {
		return a[0].id, true
	}
	if len(b) > 0 {
		return b[0].id, true
	}
	busy := c.filled >> (idle1 + 1) << (idle1 + 1)
	if busy == 0 || c.jobs-c.busy >= most-reserve {
		return 0, false
	}
	return c.line[bits.TrailingZeros64(busy)][0].id, true
}

// destination finds or makes a destination.
func (s *Scheduler) destination(ch Channel, name string) uint32 {
	c := &s.channels[ch]
	if n, ok := c.dests[name]; ok {
		return n
	}
	n, d := s.dests.take()
	d.name, d.channel = strings.Clone(name), ch // it may be part of something much larger
	d.window = min(max(c.limits.Initial, 1), c.cap())
	c.dests[d.name] = n
	s.rest(n) // until it gets a unit
	return n
}

// rest puts a destination without mail into the ring of those remembered, and forgets the oldest of too many.
func (s *Scheduler) rest(n uint32) {
	d := s.dests.at(n)
	if s.resting == 0 {
		d.fore, d.back = n, n
		s.resting = n
	} else {
		first := s.dests.at(s.resting)
		d.fore, d.back = s.resting, first.back
		s.dests.at(first.back).fore = n
		first.back = n
	}
	s.rested++
	if oldest := s.resting; s.rested > s.options.Idle && oldest != n {
		s.wake(oldest)
		d := s.dests.at(oldest)
		delete(s.channels[d.channel].dests, d.name)
		s.dests.free(oldest)
	}
}

// wake takes a destination out of that ring.
func (s *Scheduler) wake(n uint32) {
	d := s.dests.at(n)
	if d.fore == n {
		s.resting = 0
	} else {
		if s.resting == n {
			s.resting = d.fore
		}
		s.dests.at(d.back).fore = d.fore
		s.dests.at(d.fore).back = d.back
	}
	d.fore, d.back = 0, 0
	s.rested--
}

// group is whose turns a unit takes.
func (s *Scheduler) group(u *unit) uint8 {
	g := s.messages.at(u.msg).flow % sources
	if u.is(tried) {
		g += sources
	}
	return g
}

// flowOf finds the flow of a group at a destination. There are few, mostly one.
func (s *Scheduler) flowOf(d *destination, group uint8) (n uint32, ok bool) {
	for _, e := range d.ready {
		if s.flows.at(e.id).group == group {
			return e.id, true
		}
	}
	return 0, false
}

// join makes a unit ready, as the last of its flow.
func (s *Scheduler) join(n uint32) {
	u := s.units.at(n)
	d := s.dests.at(u.dest)
	c := &s.channels[d.channel]
	group := s.group(u)
	fn, ok := s.flowOf(d, group)
	if !ok {
		var f *flow
		fn, f = s.flows.take()
		f.group = group
		s.seq++
		d.ready.push(entry{c.pay(group), s.seq, fn}, s.flowMoved)
	}
	f := s.flows.at(fn)
	if f.first == 0 {
		f.first, u.fore, u.back = n, n, n
	} else {
		first := s.units.at(f.first)
		u.fore, u.back = f.first, first.back
		s.units.at(first.back).fore = n
		first.back = n
	}
	u.state = Ready
	d.due++
	c.ready++
	s.queue(u.dest)
}

// leave takes a ready unit out of its flow, and an empty flow out of its destination.
func (s *Scheduler) leave(n uint32) {
	u := s.units.at(n)
	d := s.dests.at(u.dest)
	fn, _ := s.flowOf(d, s.group(u))
	s.part(d, fn, n)
	if s.flows.at(fn).first == 0 {
		s.close(d, fn)
	}
	s.queue(u.dest)
}

// part takes a unit out of a flow, and no more.
func (s *Scheduler) part(d *destination, fn, n uint32) {
	u, f := s.units.at(n), s.flows.at(fn)
	if u.fore == n {
		f.first = 0
	} else {
		if f.first == n {
			f.first = u.fore
		}
		s.units.at(u.back).fore = u.fore
		s.units.at(u.fore).back = u.back
	}
	u.fore, u.back = 0, 0
	d.due--
	s.channels[d.channel].ready--
}

// close takes an empty flow out of a destination.
func (s *Scheduler) close(d *destination, fn uint32) {
	d.ready.remove(int(s.flows.at(fn).place), s.flowMoved)
	s.flows.free(fn)
	if len(d.ready) == 0 && cap(d.ready) > 4 {
		d.ready = nil
	}
}

// served follows a flow's turn: it pays for the next, if it has any use for it.
func (s *Scheduler) served(d *destination, fn uint32) {
	f := s.flows.at(fn)
	if f.first == 0 {
		s.close(d, fn)
		return
	}
	d.ready.remove(int(f.place), s.flowMoved)
	s.seq++
	d.ready.push(entry{s.channels[d.channel].pay(f.group), s.seq, fn}, s.flowMoved)
}

// queue puts a destination where it belongs in its channel's line: into a bucket if it could start a job.
func (s *Scheduler) queue(n uint32) {
	d := s.dests.at(n)
	c := &s.channels[d.channel]
	var bucket uint8
	key := d.key
	if d.due > 0 && d.jobs < d.window {
		switch {
		case d.jobs > 0:
			bucket = uint8(min(d.jobs+1, buckets-1)) + 1
		case d.proven:
			bucket = idle1 + 1
		default:
			bucket = idle0 + 1
		}
		key = d.ready[0].key
	}
	if bucket == d.bucket && key == d.key {
		return
	}
	if d.bucket != 0 {
		h := &c.line[d.bucket-1]
		h.remove(int(d.place), s.destMoved)
		if len(*h) == 0 {
			c.filled &^= 1 << (d.bucket - 1)
		}
	}
	d.bucket, d.key = bucket, key
	if bucket != 0 {
		s.seq++
		c.line[bucket-1].push(entry{key, s.seq, n}, s.destMoved)
		c.filled |= 1 << (bucket - 1)
	}
}

// contact adapts a destination to what a job found there.
func (s *Scheduler) contact(d *destination, what Contact) {
	switch what {
	case Answered:
		d.proven, d.failures = true, 0
		d.window = min(d.window+1, s.channels[d.channel].cap())
	case Unreachable:
		d.proven = false
		d.failures++
		d.failed = s.now
		d.window = max(d.window/2, 1)
	}
}

// dead reports whether a destination is down to probes.
func (d *destination) dead() bool { return d.failures > 0 && d.window == 1 }

// putOff ends the passes of what was ready at a dead destination when it last failed, as if it had been tried,
// up to the first that is worth a probe: one that came later, one that would die of it, or, as
// long as the failures are few, one that was never tried.
func (s *Scheduler) putOff(d *destination) {
	for d.due > 0 && d.dead() {
		n := s.flows.at(d.ready[0].id).first
		u := s.units.at(n)
		switch {
		case u.is(dying):
			return
		case u.is(inPass):
		case u.next > d.failed, s.late(u), !u.is(tried) && d.failures < despair:
			return
		default:
			s.begin(u)
		}
		s.leave(n)
		s.keepRest(u)
		s.settle(n)
	}
}
