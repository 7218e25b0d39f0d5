package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// recipient names one in the model.
type recipient struct {
	message uint64
	index   uint32
}

// model is the Scheduler's promise, kept the simple way: which recipients are open, and which of them a job has.
type model struct {
	*testing.T
	s       *Scheduler
	r       *rand.Rand
	now     time.Time
	next    uint64
	open    map[recipient]Channel
	flying  map[recipient]uint64
	jobs    []Job
	held    map[uint64]bool
	alone   map[uint64]bool
	attempt map[recipient]int
}

func newModel(t *testing.T, seed uint64) *model {
	o := Defaults()
	r := rand.New(rand.NewPCG(seed, 17))
	o.Channels[Remote].PerJob = 1 + r.IntN(5)
	o.Channels[Remote].Concurrency = 1 + r.IntN(30)
	o.Channels[Remote].PerDestination = r.IntN(10)
	o.Channels[Local].Concurrency = 1 + r.IntN(12)
	o.Idle = r.IntN(5)
	return &model{T: t, s: New(o, epoch), r: r, now: epoch, open: map[recipient]Channel{}, flying: map[recipient]uint64{},
		held: map[uint64]bool{}, alone: map[uint64]bool{}, attempt: map[recipient]int{}}
}

// step does one thing at random.
func (m *model) step() {
	switch p := m.r.IntN(100); {
	case p < 25:
		m.add()
	case p < 50:
		m.start()
	case p < 80:
		m.finish()
	case p < 90:
		m.now = m.now.Add(time.Duration(m.r.IntN(1000)) * time.Millisecond << m.r.IntN(12))
	case p < 93:
		id := m.r.Uint64N(m.next + 1)
		if m.s.Hold(id) {
			m.held[id] = true
		}
	case p < 96:
		for id := range m.held {
			m.s.Release(id, m.now)
			delete(m.held, id)
			break
		}
	case p < 97:
		m.s.Alarm(m.now)
	case p < 98:
		m.remove()
	case p < 99:
		m.s.SetConcurrency(Channel(m.r.IntN(2)), m.r.IntN(20))
	default:
		m.now = m.now.Add(time.Duration(m.r.IntN(2_000_000)-1_000_000) * time.Second) // somebody sets the clock
	}
}

func (m *model) add() {
	m.next++
	msg := Message{ID: m.next, Birth: m.now.Add(-time.Duration(m.r.IntN(10000)) * time.Second), Source: m.r.Uint64N(4), Alone: m.r.IntN(4) == 0}
	n := 1 << m.r.IntN(5)
	for range m.r.IntN(n + 1) {
		r := Recipient{Index: uint32(len(msg.Recipients)), Channel: Channel(m.r.IntN(2)), Destination: fmt.Sprint("d", m.r.IntN(6))}
		if m.r.IntN(5) == 0 {
			r.Next = m.now.Add(time.Duration(m.r.IntN(100000)-1000) * time.Second)
		}
		msg.Recipients = append(msg.Recipients, r)
		m.open[recipient{msg.ID, r.Index}] = r.Channel
	}
	msg.Held = m.r.IntN(20) == 0
	m.held[msg.ID] = msg.Held && len(msg.Recipients) > 0
	m.alone[msg.ID] = msg.Alone
	if !m.held[msg.ID] {
		delete(m.held, msg.ID)
	}
	m.s.mustAdd(m, msg, m.now)
}

func (m *model) start() {
	for j, ok := m.s.Next(m.now); ok; j, ok = m.s.Next(m.now) {
		if m.held[j.Message] {
			m.Fatalf("job %+v of a held message", j)
		}
		if len(j.Recipients) == 0 || (j.Channel == Local || m.alone[j.Message]) && len(j.Recipients) > 1 {
			m.Fatalf("job %+v", j)
		}
		for _, index := range j.Recipients {
			r := recipient{j.Message, index}
			if ch, ok := m.open[r]; !ok || ch != j.Channel {
				m.Fatalf("job %+v: %v is not open", j, r)
			}
			if other, ok := m.flying[r]; ok {
				m.Fatalf("%v is in jobs %d and %d", r, other, j.ID)
			}
			m.flying[r] = j.ID
			m.attempt[r]++
		}
		j.Recipients = slices.Clone(j.Recipients)
		m.jobs = append(m.jobs, j)
	}
}

func (m *model) finish() {
	if len(m.jobs) == 0 {
		return
	}
	i := m.r.IntN(len(m.jobs))
	j := m.jobs[i]
	m.jobs = slices.Delete(m.jobs, i, i+1)
	result := make([]byte, m.r.IntN(len(j.Recipients)+1))
	for i := range result {
		result[i] = "KKDZZZ"[m.r.IntN(6)]
	}
	for i, index := range j.Recipients {
		r := recipient{j.Message, index}
		delete(m.flying, r)
		if i < len(result) && result[i] != 'Z' {
			delete(m.open, r)
		}
	}
	p, err := m.s.Done(j.ID, result, Contact(m.r.IntN(4)), m.now)
	if err != nil {
		m.Fatal(err)
	}
	m.compare(j.Message, p)
}

func (m *model) remove() {
	id := m.r.Uint64N(m.next + 1)
	var which []uint32
	if m.r.IntN(2) == 0 {
		which = []uint32{0, 1, 2, 5}
	}
	removed, p := m.s.Remove(id, which)
	for _, index := range removed {
		r := recipient{id, index}
		if _, ok := m.open[r]; !ok || m.flying[r] != 0 {
			m.Fatalf("removed %v", r)
		}
		delete(m.open, r)
	}
	m.compare(id, p)
	for r := range m.open {
		if r.message == id && m.flying[r] == 0 && (which == nil || slices.Contains(which, r.index)) {
			m.Fatalf("%v was not removed", r)
		}
	}
}

// compare checks the count of open recipients.
func (m *model) compare(id uint64, p Progress) {
	var want Progress
	for r, ch := range m.open {
		if r.message == id {
			want.Open[ch]++
		}
	}
	if p != want {
		m.Fatalf("message %d: open %v, want %v", id, p, want)
	}
	if p.Finished() {
		delete(m.held, id)
	}
}

// check is the invariant: every open recipient is in exactly one place, waits have an end, counts agree.
func (m *model) check() {
	seen := map[recipient]bool{}
	for p := range m.s.All() {
		for _, index := range p.Recipients {
			r := recipient{p.Message, index}
			if _, ok := m.open[r]; !ok || seen[r] {
				m.Fatalf("%v: twice, or not open: %+v", r, p)
			}
			seen[r] = true
			if (m.flying[r] != 0) != (p.State == Running) {
				m.Fatalf("%v is %v, and in job %d", r, p.State, m.flying[r])
			}
			if p.State != Running && m.held[p.Message] != (p.State == Held) {
				m.Fatalf("%v is %v", r, p.State)
			}
			if limit := m.s.now + 1<<31; p.Next.Unix() > limit {
				m.Fatalf("%v waits until %v", r, p.Next)
			}
		}
	}
	if len(seen) != len(m.open) {
		m.Fatalf("%d recipients are open, %d are planned", len(m.open), len(seen))
	}
	m.structures()
}

// structures checks what the queues must be like.
func (m *model) structures() {
	s := m.s
	var stats [channels]ChannelStats
	waiting := 0
	for n := uint32(1); n < s.units.used; n++ {
		u := s.units.at(n)
		if u.msg == 0 {
			continue
		}
		d := s.dests.at(u.dest)
		switch u.state {
		case Waiting:
			waiting++
			if u.jobs != 0 || u.is(inPass) {
				m.Fatalf("a unit waits in its pass")
			}
		case Ready:
			stats[d.channel].Ready++
			if fn, ok := s.flowOf(d, s.group(u)); !ok || s.todo(u) == 0 || d.ready[s.flows.at(fn).place].id != fn {
				m.Fatal("a ready unit is lost, or has nothing to do")
			}
		case Running:
			if u.jobs == 0 {
				m.Fatal("a unit runs without a job")
			}
		}
	}
	if n := s.wheels[0].n + s.wheels[1].n; n != waiting {
		m.Fatalf("%d units wait, %d in wheels", waiting, n)
	}
	for n := uint32(1); n < s.dests.used; n++ {
		d := s.dests.at(n)
		if d.name == "" {
			continue
		}
		c := &s.channels[d.channel]
		could := d.due > 0 && d.jobs < d.window
		if could != (d.bucket != 0) {
			m.Fatalf("%s: ready %d, jobs %d, window %d, bucket %d", d.name, d.due, d.jobs, d.window, d.bucket)
		}
		if could && c.line[d.bucket-1][d.place].id != n {
			m.Fatal("a destination is lost")
		}
		due := 0
		for _, e := range d.ready {
			f := s.flows.at(e.id)
			if f.first == 0 {
				m.Fatalf("%s: an empty flow", d.name)
			}
			for u := f.first; ; u = s.units.at(u).fore {
				if s.units.at(u).state != Ready || s.group(s.units.at(u)) != f.group || due > d.due {
					m.Fatalf("%s: a foreign unit in a flow", d.name)
				}
				due++
				if s.units.at(u).fore == f.first {
					break
				}
			}
		}
		if due != d.due {
			m.Fatalf("%s: %d units are due, counted %d", d.name, due, d.due)
		}
		if d.units > 0 {
			stats[d.channel].Destinations++
		}
	}
	for _, j := range m.jobs {
		stats[j.Channel].Jobs++
		stats[j.Channel].InFlight += len(j.Recipients)
	}
	for _, ch := range m.open {
		stats[ch].Open++
	}
	for i, got := range s.Stats().Channels {
		stats[i].Concurrency = got.Concurrency
		if got != stats[i] {
			m.Fatalf("%v: stats %+v, want %+v", Channel(i), got, stats[i])
		}
		busy, c := 0, &s.channels[i]
		for d := range s.Destinations() {
			if d.Channel == Channel(i) && d.Jobs > 0 {
				busy++
			}
		}
		if busy != c.busy || c.doubts < 0 || c.doubts > c.jobs {
			m.Fatalf("%v: %d busy, counted %d; %d doubts", Channel(i), busy, c.busy, c.doubts)
		}
	}
}

// drain plays on without new mail until all is closed: nothing may be stuck.
func (m *model) drain() {
	for id := range m.held {
		m.s.Release(id, m.now)
		delete(m.held, id)
	}
	m.s.SetConcurrency(Local, 3)
	m.s.SetConcurrency(Remote, 3)
	for step := 0; len(m.open) > 0; step++ {
		m.start()
		for len(m.jobs) > 0 {
			m.finish()
			m.start()
		}
		if len(m.open) == 0 {
			break
		}
		next, ok := m.s.Wake(m.now)
		if !ok || !next.After(m.now) && next.Unix() > m.s.now || step > 1_000_000 {
			m.Fatalf("stuck at %v: wake %v %v, %d open", m.now, next, ok, len(m.open))
		}
		m.now = next.Add(time.Second)
	}
	m.check()
	if s := m.s; s.messages.live() != 0 || s.units.live() != 0 || s.lists.live() != 0 || s.flows.live() != 0 || len(s.byID) != 0 || len(s.jobs) != 0 {
		m.Fatalf("left over: %d messages, %d units, %d lists", s.messages.live(), s.units.live(), s.lists.live())
	}
}

// play is a life of the model.
func play(t *testing.T, seed uint64) {
	m := newModel(t, seed)
	for step := range 400 {
		m.step()
		if step%8 == 0 {
			m.check()
		}
	}
	m.check()
	m.drain()
}

func TestModel(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { play(t, seed) })
	}
}

func FuzzModel(f *testing.F) { // no life leads to a recipient that is lost, stuck, or in two jobs
	f.Add(uint64(4711))
	f.Fuzz(play)
}
