package schedule

import (
	stdheap "container/heap"
	"fmt"
	"strings"
	"testing"
	"time"
)

// world plays the destinations in virtual time: how long a job takes, and what it finds.
type world struct {
	t     *testing.T
	s     *Scheduler
	now   time.Time
	takes func(j Job) (time.Duration, Contact)
	ended func(j Job)
	runs  flights
}

// flight is a job that ends at a time.
type flight struct {
	at   time.Time
	job  Job
	what Contact
}

type flights []flight

func (f flights) Len() int           { return len(f) }
func (f flights) Less(i, j int) bool { return f[i].at.Before(f[j].at) }
func (f flights) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)        { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}

func newWorld(t *testing.T, local, remote int) *world {
	o := Defaults()
	o.Channels[Local].Concurrency = local
	o.Channels[Remote].Concurrency = remote
	return &world{t: t, s: New(o, epoch), now: epoch, ended: func(Job) {},
		takes: func(Job) (time.Duration, Contact) { return 10 * time.Millisecond, Answered }}
}

func (w *world) start() {
	for j, ok := w.s.Next(w.now); ok; j, ok = w.s.Next(w.now) {
		d, what := w.takes(j)
		stdheap.Push(&w.runs, flight{w.now.Add(d), j, what})
	}
}

// run plays for a while, or until stop.
func (w *world) run(d time.Duration, stop func() bool) {
	w.start()
	for end := w.now.Add(d); len(w.runs) > 0 && w.runs[0].at.Before(end) && !stop(); w.start() {
		f := stdheap.Pop(&w.runs).(flight)
		w.now = f.at
		letter := byte('K')
		if f.what != Answered {
			letter = 'Z'
		}
		w.s.mustDone(w.t, f.job, letter, f.what, w.now)
		w.ended(f.job)
	}
}

func never() bool { return false }

// list is a message of its own sender per recipient, n at each of some destinations.
func listTo(id uint64, n, destinations int) Message {
	m := Message{ID: id, Birth: epoch, Source: id, Alone: true}
	for i := range n * destinations {
		m.Recipients = append(m.Recipients, Recipient{uint32(i), Remote, fmt.Sprint("d", i%destinations), time.Time{}})
	}
	return m
}

func TestStalledDestination(t *testing.T) { // one of 500 takes less than 2 per cent off the others' rate
	const destinations, each = 500, 40
	others := func(bad string, stall time.Duration, what Contact) time.Duration {
		w := newWorld(t, 10, 200)
		left := each * (destinations - 1)
		w.takes = func(j Job) (time.Duration, Contact) {
			if j.Destination == bad {
				return stall, what
			}
			return 20 * time.Millisecond, Answered
		}
		w.ended = func(j Job) {
			if j.Destination != "d7" {
				left--
			}
		}
		w.s.mustAdd(t, listTo(1, each, destinations), epoch)
		w.run(time.Hour, func() bool { return left == 0 })
		if left != 0 {
			t.Fatalf("%d are left", left)
		}
		return w.now.Sub(epoch)
	}
	healthy := others("", 0, Answered)
	tests := []struct {
		name  string
		stall time.Duration
		what  Contact
	}{
		{"one that never answers", time.Minute, Unreachable},
		{"one that is slow", time.Second, Answered},
		{"one that is very slow", 20 * time.Second, Answered},
		{"one that refuses at once", time.Millisecond, Unreachable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := others("d7", tt.stall, tt.what)
			if loss := float64(got-healthy) / float64(got); loss > 0.02 {
				t.Errorf("%v, without it %v: %.1f %% less", got, healthy, 100*loss)
			} else {
				t.Logf("%v, without it %v: %.2f %% less", got, healthy, 100*loss)
			}
		})
	}
}

func TestBurst(t *testing.T) { // of one sender does not delay another's single message
	tests := []struct {
		name  string
		burst func(s *Scheduler)
		dest  string
		ch    Channel
	}{
		{"to the same domain", func(s *Scheduler) {
			for id := range uint64(20000) {
				m := one(1000+id, Remote, "d0")
				m.Source = 1
				s.mustAdd(t, m, epoch)
			}
		}, "d0", Remote},
		{"to 5,000 other domains", func(s *Scheduler) { s.mustAdd(t, listTo(1, 4, 5000), epoch) }, "elsewhere", Remote},
		{"to 5,000 domains and this one", func(s *Scheduler) { s.mustAdd(t, listTo(1, 4, 5000), epoch) }, "d4999", Remote},
		{"of a list to one domain", func(s *Scheduler) { s.mustAdd(t, listTo(1, 50000, 1), epoch) }, "d0", Remote},
		{"to one local user", func(s *Scheduler) { s.mustAdd(t, mail(1, 1, 20000, Local, "joe"), epoch) }, "joe", Local},
	}
	for _, tt := range tests {
		for _, lead := range []time.Duration{0, 700 * time.Millisecond, 3 * time.Second} {
			t.Run(fmt.Sprint(tt.name, " for ", lead), func(t *testing.T) {
				w := newWorld(t, 10, 20)
				w.takes = func(Job) (time.Duration, Contact) { return 100 * time.Millisecond, Answered }
				tt.burst(w.s)
				w.run(lead, never)
				single := one(7, tt.ch, tt.dest)
				single.Source = 2
				w.s.mustAdd(t, single, w.now)
				sent, arrived := w.now, false
				w.ended = func(j Job) { arrived = arrived || j.Message == 7 }
				w.run(time.Hour, func() bool { return arrived })
				if d := w.now.Sub(sent); !arrived || d > time.Second {
					t.Errorf("it took %v", d)
				}
			})
		}
	}
}

func TestSendersTakeTurns(t *testing.T) { // at one destination, whatever each has there
	w := newWorld(t, 10, 2)
	for source, n := range map[uint64]int{1: 3000, 2: 300, 3: 40} {
		for i := range n {
			m := one(source*10000+uint64(i), Remote, "x")
			m.Source = source
			w.s.mustAdd(t, m, epoch)
		}
	}
	count := map[uint64]int{}
	w.ended = func(j Job) { count[j.Message/10000]++ }
	w.run(time.Hour, func() bool { return count[1]+count[2]+count[3] == 90 })
	for source := range uint64(3) {
		if n := count[source+1]; n < 28 || n > 32 {
			t.Errorf("of 90 turns sender %d had %d", source+1, n)
		}
	}
}

func TestRetriesDoNotHoldBackNewMail(t *testing.T) {
	w := newWorld(t, 10, 1)
	for id := range uint64(10000) {
		m := one(1000+id, Remote, "x")
		m.Source = 1
		m.Recipients[0].Next = epoch
		w.s.mustAdd(t, m, epoch)
	}
	w.run(time.Second, never)
	m := one(7, Remote, "x")
	m.Source = 1
	w.s.mustAdd(t, m, w.now)
	turns, arrived := 0, false
	w.ended = func(j Job) { turns++; arrived = arrived || j.Message == 7 }
	w.run(time.Minute, func() bool { return arrived })
	if turns > 3 {
		t.Errorf("new mail waited for %d retries", turns)
	}
}

func TestListSharesWithItsOwnSender(t *testing.T) { // a long list does not hold back a short message of the same sender
	w := newWorld(t, 10, 1)
	w.s.mustAdd(t, listTo(1, 5000, 1), epoch)
	w.run(time.Second, never)
	m := one(7, Remote, "d0")
	m.Source = 1
	w.s.mustAdd(t, m, w.now)
	turns, arrived := 0, false
	w.ended = func(j Job) { turns++; arrived = arrived || j.Message == 7 }
	w.run(time.Minute, func() bool { return arrived })
	if turns > 3 {
		t.Errorf("it waited for %d jobs", turns)
	}
}

func TestDeadDestinationsLeaveRoom(t *testing.T) { // however many there are, those that answer go on
	w := newWorld(t, 10, 20)
	dead := func(j Job) bool { return strings.HasPrefix(j.Destination, "dead") }
	w.takes = func(j Job) (time.Duration, Contact) {
		if dead(j) {
			return time.Minute, Unreachable
		}
		return 10 * time.Millisecond, Answered
	}
	next := uint64(0)
	feed := func(Job) {
		next++
		m := one(next, Remote, fmt.Sprint("good", next%3))
		w.s.mustAdd(t, m, w.now)
	}
	for range 3 {
		feed(Job{})
	}
	good := 0
	w.ended = func(j Job) {
		if !dead(j) {
			good++
			feed(j)
		}
	}
	w.run(time.Second, never)
	for id := range uint64(300) {
		w.s.mustAdd(t, one(1_000_000+id, Remote, fmt.Sprint("dead", id)), w.now)
	}
	good = 0
	w.run(30*time.Second, never)
	if good < 1000 {
		t.Errorf("while dead destinations are tried, %d went to living ones in 30 s", good)
	}
}

func TestNewDestinationUnderLoad(t *testing.T) { // gets its turn though known ones fill the channel
	w := newWorld(t, 10, 20)
	id := uint64(100)
	feed := func(j Job) {
		id++
		m := one(id, Remote, j.Destination)
		m.Source = 1
		w.s.mustAdd(t, m, w.now)
	}
	for i := range 400 {
		feed(Job{Destination: fmt.Sprint("d", i%100)})
	}
	w.ended = feed
	w.run(time.Second, never)
	w.s.mustAdd(t, one(7, Remote, "new"), w.now)
	sent, arrived := w.now, false
	w.ended = func(j Job) { feed(j); arrived = arrived || j.Message == 7 }
	w.run(time.Hour, func() bool { return arrived })
	if d := w.now.Sub(sent); d > 100*time.Millisecond {
		t.Errorf("it took %v", d)
	}
}
