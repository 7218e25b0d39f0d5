package schedule

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Errors of Add and Done: the caller's bookkeeping is wrong, and nothing was changed.
var (
	ErrKnown   = errors.New("schedule: message is already here")
	ErrMessage = errors.New("schedule: malformed message")
	ErrJob     = errors.New("schedule: no such job")
)

const (
	// batch is how many due units are looked at before each job.
	batch = 64
	// leap is how far the wall clock must run ahead of the monotonic one to be doubted,
	leap = time.Minute
	// and trust is for how long, in seconds.
	trust = 3600
	// slack is how far, in seconds, it may go back before plans are made anew.
	slack = 60
	// maxTime bounds the times of a message, in seconds since 1970.
	maxTime = 1 << 40
)

// Scheduler is the state of one qmail-send. It is not for concurrent use.
type Scheduler struct {
	options  Options
	channels [channels]channel
	messages slab[message]
	units    slab[unit]
	lists    slab[list]
	dests    slab[destination]
	flows    slab[flow]
	byID     map[uint64]uint32
	jobs     map[uint64]*running
	spare    []*running
	serial   uint64 // of jobs
	stamp    uint64 // of calls of Add
	seq      uint32 // of places in queues

	wheels [2]wheel
	wheel  int // the one units are put into; the other empties after an Alarm

	last     time.Time // with its monotonic part
	now      int64     // never goes back but by rewind
	doubtful int64     // until then nothing is dying
	resting  uint32    // a ring of destinations without mail, oldest first
	rested   int

	flowMoved, destMoved func(id uint32, at int)
	due                  func(n uint32)
}

// running is a job that was handed out.
type running struct {
	unit  uint32
	r     []uint32
	doubt bool // it went where nobody had been seen to answer
}

// New makes an empty Scheduler.
func New(o Options, now time.Time) *Scheduler {
	s := &Scheduler{options: o, byID: map[uint64]uint32{}, jobs: map[uint64]*running{}, last: now, now: now.Unix(), doubtful: math.MinInt64}
	for i := range s.channels {
		s.channels[i].limits = o.Channels[i]
		s.channels[i].limits.PerJob = max(o.Channels[i].PerJob, 1)
		s.channels[i].dests = map[string]uint32{}
	}
	s.wheels[0].now, s.wheels[1].now = s.now, s.now
	s.flowMoved = func(id uint32, at int) { s.flows.at(id).place = int32(at) }
	s.destMoved = func(id uint32, at int) { s.dests.at(id).place = int32(at) }
	s.due = s.join
	return s
}

// Add takes a message that was accepted, or found in the queue after a start. A message without recipients
// is not kept: it is finished.
func (s *Scheduler) Add(m Message, now time.Time) error {
	s.clock(now)
	if _, ok := s.byID[m.ID]; ok {
		return fmt.Errorf("%w: %d", ErrKnown, m.ID)
	}
	for i, r := range m.Recipients {
		if r.Channel >= channels || i > 0 && r.Index <= m.Recipients[i-1].Index {
			return fmt.Errorf("%w: %d", ErrMessage, m.ID)
		}
	}
	if len(m.Recipients) == 0 {
		return nil
	}
	n, k := s.messages.take()
	*k = message{id: m.ID, birth: min(seconds(m.Birth), s.now), flow: s.fold(m.Source), alone: m.Alone, held: m.Held}
	s.byID[m.ID] = n
	s.stamp++
	for i := range m.Recipients {
		s.gather(n, &m.Recipients[i])
	}
	s.around(n, s.settle)
	return nil
}

// gather puts a recipient of a new message into the unit of its destination.
func (s *Scheduler) gather(n uint32, r *Recipient) {
	k := s.messages.at(n)
	k.open[r.Channel]++
	s.channels[r.Channel].open++
	next := s.now
	if !r.Next.IsZero() {
		next = s.sane(seconds(r.Next), k.birth, r.Channel)
	}
	dn := s.destination(r.Channel, r.Destination)
	d := s.dests.at(dn)
	if d.stamp == s.stamp {
		u := s.units.at(d.stampUnit)
		u.next = min(u.next, next)
		s.add(u, r.Index)
		return
	}
	un, u := s.units.take()
	*u = unit{next: next, msg: n, dest: dn, rcpt: r.Index, state: Waiting}
	if !r.Next.IsZero() {
		u.set(tried)
	}
	d.stamp, d.stampUnit = s.stamp, un
	if d.units == 0 {
		s.wake(dn)
		s.channels[r.Channel].mailed++
	}
	d.units++
	s.link(k, un)
}

// fold makes a flow of a source; the seed keeps strangers from choosing whose.
func (s *Scheduler) fold(source uint64) uint8 {
	x := (source ^ s.options.Seed) * 0x9e3779b97f4a7c15
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	return uint8(x >> 56)
}

// seconds are what the formula counts in.
func seconds(t time.Time) int64 { return min(max(t.Unix(), -maxTime), maxTime) }

// sane cuts a plan to what the formula gives for an attempt now: only a wrong clock plans further ahead.
func (s *Scheduler) sane(next, birth int64, c Channel) int64 {
	return min(next, retry(birth, s.now, c))
}

// link adds a unit at the end of its message's ring.
func (s *Scheduler) link(k *message, n uint32) {
	u := s.units.at(n)
	if k.first == 0 {
		k.first, u.kin, u.kith = n, n, n
		return
	}
	first := s.units.at(k.first)
	u.kin, u.kith = k.first, first.kith
	s.units.at(first.kith).kin = n
	first.kith = n
}

// around calls f with each unit of a message; f may drop the unit it gets.
func (s *Scheduler) around(n uint32, f func(un uint32)) {
	first := s.messages.at(n).first
	last := s.units.at(first).kith
	for un := first; ; {
		next := s.units.at(un).kin
		f(un)
		if un == last {
			return
		}
		un = next
	}
}

// drop forgets a unit without recipients that is in no queue, and with its last unit the message.
func (s *Scheduler) drop(n uint32) {
	u := s.units.at(n)
	k := s.messages.at(u.msg)
	if u.kin == n {
		delete(s.byID, k.id)
		s.messages.free(u.msg)
	} else {
		if k.first == n {
			k.first = u.kin
		}
		s.units.at(u.kith).kin = u.kin
		s.units.at(u.kin).kith = u.kith
	}
	if u.is(many) {
		s.lists.free(u.rcpt)
	}
	d := s.dests.at(u.dest)
	if d.units--; d.units == 0 {
		s.channels[d.channel].mailed--
		s.rest(u.dest)
	}
	s.units.free(n)
}

// settle puts a unit that is in no queue where it belongs. A pass with nothing to do and nobody out is over.
func (s *Scheduler) settle(n uint32) {
	u := s.units.at(n)
	if u.is(inPass) && s.todo(u) == 0 {
		if u.jobs > 0 {
			u.state = Running
			return
		}
		if s.end(u) == 0 {
			s.drop(n)
			return
		}
	}
	k := s.messages.at(u.msg)
	switch {
	case k.held:
		u.state = Held
	case u.is(inPass) || u.next <= s.now:
		s.join(n)
	default:
		u.state = Waiting
		u.next = s.sane(u.next, k.birth, s.dests.at(u.dest).channel)
		s.put(s.wheel, n)
	}
}

// begin starts a pass: what comes after it is fixed here.
func (s *Scheduler) begin(u *unit) {
	u.set(inPass)
	if s.late(u) {
		u.set(dying)
	}
	u.next = retry(s.messages.at(u.msg).birth, s.now, s.dests.at(u.dest).channel)
}

// late reports whether a pass that started now would be the last.
func (s *Scheduler) late(u *unit) bool {
	return s.now-s.messages.at(u.msg).birth > int64(s.options.Lifetime/time.Second) && s.now >= s.doubtful
}

// end is the end of a pass; it says how many recipients are left. A dead deliverer says nothing about the
// recipients, so they are tried again soon, unless that goes on.
func (s *Scheduler) end(u *unit) (left int) {
	const patience = 7 // after 2, 4, ... 128 seconds the formula
	if !u.is(broken) {
		u.lost = 0
	} else if u.lost < patience {
		u.lost++
		u.next = min(u.next, s.now+1<<u.lost)
	}
	u.clear(inPass | dying | broken)
	u.set(tried)
	return s.renew(u)
}

// Next gives out a job that shall start now, if there is one. It must be called until there is none.
func (s *Scheduler) Next(now time.Time) (Job, bool) {
	s.clock(now)
	for s.room() {
		done := s.turn(1-s.wheel, math.MaxInt64, batch, s.due) && s.turn(s.wheel, s.now, batch, s.due)
		for i := range s.channels {
			for n, ok := s.channels[i].pick(); ok; n, ok = s.channels[i].pick() {
				if job, ok := s.start(n); ok {
					return job, true
				}
			}
		}
		if done {
			break
		}
	}
	return Job{}, false
}

// room reports whether any channel may start a job.
func (s *Scheduler) room() bool {
	for i := range s.channels {
		if c := &s.channels[i]; c.jobs < c.limits.Concurrency {
			return true
		}
	}
	return false
}

// start makes a job of the unit whose turn it is at a destination, or finds that there is none but what can
// be put off.
func (s *Scheduler) start(dn uint32) (Job, bool) {
	d := s.dests.at(dn)
	c := &s.channels[d.channel]
	defer s.queue(dn)
	s.putOff(d)
	if d.due == 0 {
		return Job{}, false
	}
	turn := d.ready[0]
	c.v = max(c.v, turn.key)
	n := s.flows.at(turn.id).first
	s.part(d, turn.id, n)
	u := s.units.at(n)
	k := s.messages.at(u.msg)
	if !u.is(inPass) {
		s.begin(u)
	}
	limit := c.limits.PerJob
	if k.alone {
		limit = 1
	}
	r := s.takeRunning()
	r.unit, r.r, r.doubt = n, s.hand(u, r.r[:0], limit), !d.proven
	s.serial++
	s.jobs[s.serial] = r
	u.jobs++
	s.count(d, r, 1)
	job := Job{
		ID: s.serial, Message: k.id, Channel: d.channel, Destination: d.name,
		Recipients: r.r, Dying: u.is(dying), Next: time.Unix(u.next, 0),
	}
	s.settle(n) // behind its like, if it has more
	s.served(d, turn.id)
	return job, true
}

// count follows the start (1) and the end (-1) of a job.
func (s *Scheduler) count(d *destination, r *running, by int) {
	c := &s.channels[d.channel]
	if d.jobs == 0 || d.jobs+by == 0 {
		c.busy += by
	}
	if r.doubt {
		c.doubts += by
	}
	d.jobs += by
	c.jobs += by
	c.inward += by * len(r.r)
}

func (s *Scheduler) takeRunning() *running {
	if last := len(s.spare) - 1; last >= 0 {
		r := s.spare[last]
		s.spare = s.spare[:last]
		return r
	}
	return &running{}
}

// Done ends a job. letters are by the job's recipients: K and D close one, anything else, a missing letter
// included, puts it off. (For a dying job the caller makes D of Z.)
func (s *Scheduler) Done(id uint64, letters []byte, what Contact, now time.Time) (Progress, error) {
	s.clock(now)
	r, ok := s.jobs[id]
	if !ok {
		return Progress{}, fmt.Errorf("%w: %d", ErrJob, id)
	}
	delete(s.jobs, id)
	u := s.units.at(r.unit)
	k, dn := s.messages.at(u.msg), u.dest
	d := s.dests.at(dn)
	c := &s.channels[d.channel]
	for i, index := range r.r {
		if i < len(letters) && (letters[i] == 'K' || letters[i] == 'D') {
			k.open[d.channel]--
			c.open--
		} else {
			s.keep(u, index)
		}
	}
	if what == Lost {
		u.set(broken)
	}
	u.jobs--
	s.count(d, r, -1)
	p := k.progress()
	n := r.unit
	s.spare = append(s.spare, r)
	s.contact(d, what)
	if u.state == Running { // else more of it is ready, or held
		s.settle(n)
	}
	s.queue(dn)
	return p, nil
}

func (k *message) progress() Progress {
	return Progress{Open: [channels]int{int(k.open[Local]), int(k.open[Remote])}}
}

// Wake is when the next job may start if nothing happens before; without ok only an event can change that.
// It may be early, by less than the time to go.
func (s *Scheduler) Wake(now time.Time) (at time.Time, ok bool) {
	if !s.room() {
		return time.Time{}, false
	}
	for i := range s.channels {
		if _, ok := s.channels[i].pick(); ok {
			return now, true
		}
	}
	if s.wheels[1-s.wheel].n > 0 {
		return now, true
	}
	_, next, ok := s.wheels[s.wheel].upcoming()
	if !ok {
		return time.Time{}, false
	}
	if at := time.Unix(next, 0); at.After(now) {
		return at, true
	}
	return now, true
}
