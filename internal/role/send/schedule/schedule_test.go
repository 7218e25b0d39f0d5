package schedule

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var epoch = time.Unix(1_800_000_000, 0)

func at(seconds int64) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }

// one is a message to one recipient, born at the epoch.
func one(id uint64, c Channel, destination string) Message {
	return Message{ID: id, Birth: epoch, Source: id, Recipients: []Recipient{{0, c, destination, time.Time{}}}}
}

// many is a message to n recipients at each of some destinations.
func mail(id uint64, source uint64, n int, c Channel, destinations ...string) Message {
	m := Message{ID: id, Birth: epoch, Source: source}
	for _, d := range destinations {
		for range n {
			m.Recipients = append(m.Recipients, Recipient{uint32(len(m.Recipients)), c, d, time.Time{}})
		}
	}
	return m
}

func letters(j Job, letter byte) []byte { return slices.Repeat([]byte{letter}, len(j.Recipients)) }

func (s *Scheduler) mustAdd(t testing.TB, m Message, now time.Time) {
	t.Helper()
	if err := s.Add(m, now); err != nil {
		t.Fatal(err)
	}
}

func (s *Scheduler) mustDone(t testing.TB, j Job, letter byte, c Contact, now time.Time) Progress {
	t.Helper()
	p, err := s.Done(j.ID, letters(j, letter), c, now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// take starts all that can start now.
func (s *Scheduler) take(now time.Time) (jobs []Job) {
	for j, ok := s.Next(now); ok; j, ok = s.Next(now) {
		j.Recipients = slices.Clone(j.Recipients)
		jobs = append(jobs, j)
	}
	return jobs
}

// attempts plays a message in virtual time, by Wake alone, until it is finished, and returns the ages of its
// attempts. The last is dying.
func attempts(t *testing.T, c Channel, contact Contact) (ages []int64) {
	t.Helper()
	s := New(Defaults(), epoch)
	s.mustAdd(t, one(1, c, "x"), epoch)
	now := epoch
	for range 100000 {
		for _, j := range s.take(now) {
			ages = append(ages, now.Unix()-epoch.Unix())
			letter := byte('Z')
			if j.Dying {
				letter = 'D'
			}
			if p := s.mustDone(t, j, letter, contact, now); p.Finished() {
				if !j.Dying {
					t.Fatal("finished too early")
				}
				return ages
			}
		}
		next, ok := s.Wake(now)
		if !ok || !next.After(now) {
			t.Fatalf("at %v: wake %v %v", now, next, ok)
		}
		now = next
	}
	t.Fatal("never finished")
	return nil
}

func TestAttemptAges(t *testing.T) {
	tests := []struct {
		channel Channel
		skip    int64
		count   int
	}{
		{Local, 10, 79}, {Remote, 20, 40},
	}
	for _, tt := range tests {
		for _, contact := range []Contact{Answered, Unreachable, Neutral} {
			t.Run(fmt.Sprint(tt.channel, contact), func(t *testing.T) {
				ages := attempts(t, tt.channel, contact)
				if len(ages) != tt.count || ages[len(ages)-1] != 608400 {
					t.Fatalf("%d attempts, the last at %d", len(ages), ages[len(ages)-1])
				}
				for k, age := range ages {
					if want := int64(k) * tt.skip * int64(k) * tt.skip; age != want {
						t.Errorf("attempt %d at age %d, want %d", k, age, want)
					}
				}
			})
		}
	}
}

func TestIsqrt(t *testing.T) {
	for n := int64(0); n < 2000; n++ {
		for x := max(n*n-1, 0); x <= n*n+1; x++ {
			r := isqrt(x)
			if r*r > x || (r+1)*(r+1) <= x {
				t.Fatalf("isqrt(%d) = %d", x, r)
			}
		}
	}
	if isqrt(-5) != 0 || isqrt(1<<62) != 1<<30 {
		t.Error("the ends")
	}
}

func TestPassAfterItsTime(t *testing.T) { // a pass that outlasts its next is followed at once, and counts from its own start
	s := New(Defaults(), epoch)
	s.mustAdd(t, one(1, Remote, "x"), epoch)
	j := s.take(epoch)[0]
	if !j.Next.Equal(at(400)) {
		t.Errorf("next at %v", j.Next)
	}
	s.mustDone(t, j, 'Z', Answered, at(1000))
	again := s.take(at(1000))
	if len(again) != 1 || !again[0].Next.Equal(at((31+20)*(31+20))) {
		t.Errorf("got %+v", again)
	}
}

func TestOutcomes(t *testing.T) {
	s := New(Defaults(), epoch)
	m := mail(7, 1, 4, Remote, "x")
	m.Recipients = append(m.Recipients, Recipient{9, Local, "joe", time.Time{}})
	s.mustAdd(t, m, epoch)
	jobs := s.take(epoch)
	if len(jobs) != 2 || jobs[0].Channel != Local || !slices.Equal(jobs[1].Recipients, []uint32{0, 1, 2, 3}) {
		t.Fatalf("jobs %+v", jobs)
	}
	p, err := s.Done(jobs[1].ID, []byte("KZD"), Answered, epoch) // the fourth has no letter: later
	if err != nil || p.Open != [2]int{1, 2} || p.Finished() {
		t.Errorf("progress %+v %v", p, err)
	}
	if p = s.mustDone(t, jobs[0], 'K', Answered, epoch); p.Open != [2]int{0, 2} {
		t.Errorf("progress %+v", p)
	}
	if _, err := s.Done(jobs[0].ID, nil, Answered, epoch); !errors.Is(err, ErrJob) {
		t.Errorf("a job ends twice: %v", err)
	}
	if len(s.take(at(399))) != 0 {
		t.Error("tried too early")
	}
	again := s.take(at(400))
	if len(again) != 1 || !slices.Equal(again[0].Recipients, []uint32{1, 3}) {
		t.Fatalf("again %+v", again)
	}
	if p = s.mustDone(t, again[0], 'x', Answered, at(400)); p.Finished() {
		t.Error("an unknown letter closed a recipient")
	}
	last := s.take(at(2000))
	if p = s.mustDone(t, last[0], 'D', Answered, at(2000)); !p.Finished() || s.Stats().Messages != 0 {
		t.Errorf("left: %+v", s.Stats())
	}
}

func TestAddRefuses(t *testing.T) {
	s := New(Defaults(), epoch)
	s.mustAdd(t, one(1, Local, "x"), epoch)
	if err := s.Add(one(1, Local, "x"), epoch); !errors.Is(err, ErrKnown) {
		t.Errorf("twice: %v", err)
	}
	twice := one(2, Local, "x")
	twice.Recipients = append(twice.Recipients, twice.Recipients[0])
	if err := s.Add(twice, epoch); !errors.Is(err, ErrMessage) {
		t.Errorf("a recipient twice: %v", err)
	}
	if err := s.Add(one(2, channels, "x"), epoch); !errors.Is(err, ErrMessage) {
		t.Errorf("no such channel: %v", err)
	}
	s.mustAdd(t, Message{ID: 3}, epoch)
	if got := s.Stats().Messages; got != 1 {
		t.Errorf("%d messages", got)
	}
}

func TestGrouping(t *testing.T) {
	s := New(Defaults(), epoch)
	s.mustAdd(t, mail(1, 1, 250, Remote, "x"), epoch)
	s.mustAdd(t, mail(2, 2, 3, Local, "joe"), epoch)
	verp := mail(3, 3, 3, Remote, "y")
	verp.Alone = true
	s.mustAdd(t, verp, epoch)
	got := map[uint64][]int{}
	for _, j := range s.take(epoch) {
		got[j.Message] = append(got[j.Message], len(j.Recipients))
	}
	want := map[uint64][]int{1: {100, 100, 50}, 2: {1, 1, 1}, 3: {1, 1, 1}}
	for id, sizes := range want {
		if !slices.Equal(got[id], sizes) {
			t.Errorf("message %d: jobs of %v, want %v", id, got[id], sizes)
		}
	}
}

func TestConcurrency(t *testing.T) {
	s := New(Defaults(), epoch)
	for id := range uint64(100) {
		s.mustAdd(t, one(id, Remote, fmt.Sprint("d", id%50)), epoch)
		s.mustAdd(t, one(1000+id, Local, fmt.Sprint("u", id%50)), epoch)
	}
	s.SetConcurrency(Remote, 0)
	jobs := s.take(epoch)
	if len(jobs) != 10 || s.Stats().Channels[Local].Jobs != 10 {
		t.Fatalf("%d local jobs", len(jobs))
	}
	if _, ok := s.Wake(epoch); ok {
		t.Error("a full and a held channel want to be woken")
	}
	s.SetConcurrency(Remote, 30)
	if at, ok := s.Wake(epoch); !ok || !at.Equal(epoch) {
		t.Error("a released channel does not start at once")
	}
	if n := len(s.take(epoch)); n < 28 || n > 30 {
		t.Errorf("%d remote jobs", n)
	}
	s.SetConcurrency(Local, 5)
	for i, j := range jobs {
		s.mustDone(t, j, 'K', Answered, epoch)
		if n := len(s.take(epoch)); n != 0 && i < 5 {
			t.Errorf("%d started above the new limit", n)
		}
	}
	if n := s.Stats().Channels[Local].Jobs; n != 5 {
		t.Errorf("%d run", n)
	}
}

func TestWindow(t *testing.T) {
	o := Defaults()
	o.Channels[Remote].Concurrency = 100
	s := New(o, epoch)
	for id := range uint64(200) {
		s.mustAdd(t, one(id, Remote, "x"), epoch)
	}
	jobs := s.take(epoch)
	if len(jobs) != 5 {
		t.Fatalf("starts with %d", len(jobs))
	}
	for want := 6; want < 30; want++ {
		s.mustDone(t, jobs[0], 'K', Answered, epoch)
		jobs = append(jobs[1:], s.take(epoch)...)
		if len(jobs) != min(want, 20) {
			t.Fatalf("%d run, want %d", len(jobs), want)
		}
	}
	for _, want := range []int{10, 5, 2, 1, 1} {
		s.mustDone(t, jobs[0], 'Z', Unreachable, epoch)
		jobs = jobs[1:]
		for d := range s.Destinations() {
			if d.Window != want {
				t.Errorf("window %d, want %d", d.Window, want)
			}
		}
	}
}

func TestDeadDestination(t *testing.T) { // one probe at a time; what has been tried waits for its own time without one
	s := New(Defaults(), epoch)
	for id := range uint64(30) {
		s.mustAdd(t, one(id, Remote, "dead"), epoch)
	}
	tries := 0
	for jobs := s.take(epoch); len(jobs) > 0; jobs = s.take(epoch) {
		for _, j := range jobs {
			tries++
			s.mustDone(t, j, 'Z', Unreachable, epoch)
		}
		if tries > 2 && len(jobs) > 5 {
			t.Fatalf("%d at once", len(jobs))
		}
	}
	if tries != despair {
		t.Errorf("%d were tried before the destination was given up", tries)
	}
	for k := int64(1); k < 5; k++ {
		now := at(400 * k * k)
		jobs := s.take(now)
		if len(jobs) != 1 {
			t.Fatalf("%d probes", len(jobs))
		}
		if !jobs[0].Next.Equal(at(400 * (k + 1) * (k + 1))) {
			t.Errorf("next %v", jobs[0].Next)
		}
		s.mustDone(t, jobs[0], 'Z', Unreachable, now)
		if n := len(s.take(now)); n != 0 {
			t.Errorf("%d more after the probe failed", n)
		}
		for p := range s.All() {
			if p.State != Waiting || !p.Next.Equal(at(400*(k+1)*(k+1))) {
				t.Fatalf("plan %+v", p)
			}
		}
	}
	now := at(400 * 25)
	total := 0
	for jobs := s.take(now); len(jobs) > 0; jobs = s.take(now) {
		for _, j := range jobs {
			total++
			s.mustDone(t, j, 'K', Answered, now)
		}
	}
	if total != 30 {
		t.Errorf("when it is back, %d of 30 get through", total)
	}
}

func TestDyingAreTried(t *testing.T) { // each over-age message gets an attempt of its own, however dead the destination
	s := New(Defaults(), epoch)
	for id := range uint64(20) {
		s.mustAdd(t, one(id, Remote, "dead"), epoch)
	}
	now := at(700000)
	seen := map[uint64]int{}
	for jobs := s.take(now); len(jobs) > 0; jobs = s.take(now) {
		for _, j := range jobs {
			if !j.Dying {
				t.Fatal("not dying")
			}
			seen[j.Message]++
			s.mustDone(t, j, 'D', Unreachable, now)
		}
	}
	if len(seen) != 20 || s.Stats().Messages != 0 {
		t.Errorf("%d were tried, %d are left", len(seen), s.Stats().Messages)
	}
}

func TestLost(t *testing.T) { // a deliverer that dies costs seconds, not minutes, unless it goes on
	s := New(Defaults(), epoch)
	s.mustAdd(t, one(1, Remote, "x"), epoch)
	var waits []int64
	now := epoch
	for job := s.take(now)[0]; len(waits) < 9; {
		s.mustDone(t, job, 'Z', Lost, now)
		began := now
		for {
			next, ok := s.Wake(now)
			if !ok || !next.After(now) {
				t.Fatalf("wake %v %v", next, ok)
			}
			now = next
			if jobs := s.take(now); len(jobs) > 0 {
				job = jobs[0]
				break
			}
		}
		waits = append(waits, int64(now.Sub(began)/time.Second))
	}
	if want := []int64{2, 4, 8, 16, 32, 64, 128}; !slices.Equal(waits[:7], want) || waits[7] < 400 {
		t.Errorf("waits %v", waits)
	}
}

func TestAlarm(t *testing.T) {
	s := New(Defaults(), epoch)
	for id := range uint64(8) {
		s.mustAdd(t, one(id, Remote, fmt.Sprint("d", id)), epoch)
	}
	jobs := s.take(epoch)
	for _, j := range jobs[1:] {
		s.mustDone(t, j, 'Z', Answered, epoch)
	}
	s.Hold(7)
	if n := len(s.take(epoch)); n != 0 {
		t.Fatal(n)
	}
	s.Alarm(epoch)
	if at, ok := s.Wake(epoch); !ok || !at.Equal(epoch) {
		t.Error("an alarm does not wake")
	}
	if got := s.Plans(3)[0].State; got != Ready {
		t.Errorf("after an alarm a message is %v", got)
	}
	s.Alarm(epoch) // twice is as once
	if n := len(s.take(epoch)); n != 6 {
		t.Errorf("%d of 6 started", n)
	}
	if s.Plans(0)[0].State != Running || s.Plans(7)[0].State != Held {
		t.Error("an alarm touched what runs or is held")
	}
}

func TestHold(t *testing.T) {
	s := New(Defaults(), epoch)
	m := mail(1, 1, 300, Remote, "x")
	s.mustAdd(t, m, epoch)
	first, _ := s.Next(epoch)
	if !s.Hold(1) || s.Hold(2) {
		t.Error("Hold knows the wrong messages")
	}
	if n := len(s.take(epoch)); n != 0 {
		t.Fatalf("%d jobs of a held message", n)
	}
	s.mustDone(t, first, 'Z', Answered, epoch)
	if n := len(s.take(at(100000))); n != 0 {
		t.Fatalf("%d jobs of a held message", n)
	}
	s.Release(1, at(100000))
	if jobs := s.take(at(100000)); len(jobs) != 2 || !jobs[0].Next.Equal(at(400)) {
		t.Errorf("the pass does not go on: %+v", jobs)
	}
	held := one(2, Local, "joe")
	held.Held = true
	s.mustAdd(t, held, epoch)
	if s.Plans(2)[0].State != Held {
		t.Error("added as held, and is not")
	}
	s.Release(2, at(100000))
	if len(s.take(at(100000))) != 1 {
		t.Error("not released")
	}
}

func TestRemove(t *testing.T) {
	s := New(Defaults(), epoch)
	s.mustAdd(t, mail(1, 1, 150, Remote, "x", "y"), epoch)
	j, _ := s.Next(epoch) // 0..99, or 150..249
	running := slices.Clone(j.Recipients)
	removed, p := s.Remove(1, []uint32{0, 149, 150, 299, 4711})
	if len(removed) != 3 || p.Open != [2]int{0, 297} {
		t.Errorf("removed %v, left %v", removed, p)
	}
	removed, p = s.Remove(1, nil)
	if len(removed) != 197 || p.Open[Remote] != 100 {
		t.Errorf("removed %d, left %v", len(removed), p)
	}
	if plans := s.Plans(1); len(plans) != 1 || plans[0].State != Running || !slices.Equal(plans[0].Recipients, running) {
		t.Errorf("left %+v", plans)
	}
	s.mustDone(t, j, 'Z', Answered, epoch)
	if removed, p = s.Remove(1, nil); len(removed) != 100 || !p.Finished() || s.Stats().Messages != 0 {
		t.Errorf("removed %d, left %v", len(removed), p)
	}
	if removed, _ = s.Remove(1, nil); removed != nil {
		t.Error("removed from nothing")
	}
}

func TestRestore(t *testing.T) {
	s := New(Defaults(), at(10000))
	m := mail(1, 1, 2, Remote, "x", "y", "z")
	m.Recipients[0].Next, m.Recipients[1].Next = at(10050), at(10020)                     // one unit: the earlier counts
	m.Recipients[2].Next, m.Recipients[3].Next = at(5000), at(5000)                       // overdue
	m.Recipients[4].Next, m.Recipients[5].Next = time.Unix(1<<40, 0), time.Unix(1<<40, 0) // a wrong clock planned that
	s.mustAdd(t, m, at(10000))
	want := map[string]int64{"x": 10020, "y": 10000, "z": (100 + 20) * (100 + 20)}
	for now := int64(10000); now < 20000; now++ {
		for _, j := range s.take(at(now)) {
			if want[j.Destination] != now {
				t.Errorf("%s at %d, want %d", j.Destination, now, want[j.Destination])
			}
			delete(want, j.Destination)
			s.mustDone(t, j, 'K', Answered, at(now))
		}
	}
	if len(want) != 0 {
		t.Errorf("never tried: %v", want)
	}
}

func TestClockBack(t *testing.T) {
	year := int64(365 * 86400)
	s := New(Defaults(), at(year))
	m := one(1, Remote, "x")
	m.Birth = at(year)
	s.mustAdd(t, m, at(year))
	s.mustDone(t, s.take(at(year))[0], 'Z', Answered, at(year))
	s.mustAdd(t, one(2, Remote, "y"), at(year)) // born a year ago
	s.mustDone(t, s.take(at(year))[0], 'Z', Answered, at(year))
	if n := len(s.take(epoch)); n != 0 {
		t.Fatalf("%d started at once", n)
	}
	for _, id := range []uint64{1, 2} {
		if p := s.Plans(id)[0]; p.Next.After(at(400)) {
			t.Errorf("message %d waits until %v", id, p.Next)
		}
	}
	jobs := s.take(at(400))
	if len(jobs) != 2 {
		t.Fatalf("%d started", len(jobs))
	}
	for _, j := range jobs { // both are 400 s old now
		if !j.Next.Equal(at(1600)) {
			t.Errorf("message %d next at %v", j.Message, j.Next)
		}
	}
}

func TestClockLeap(t *testing.T) { // the wall clock runs ahead of the monotonic one: real attempts, and nothing dies of it
	const month = 30 * 86400
	s := New(Defaults(), epoch)
	for id := range uint64(2) {
		s.mustAdd(t, one(id, Remote, "x"), epoch)
	}
	for _, j := range s.take(epoch) {
		s.mustDone(t, j, 'Z', Answered, epoch)
	}
	s.tick(at(month).Unix(), month*time.Second)
	jobs := s.take(at(month + 5))
	if len(jobs) != 2 || jobs[0].Dying || jobs[1].Dying {
		t.Fatalf("got %+v", jobs)
	}
	for _, j := range jobs {
		s.mustDone(t, j, 'Z', Answered, at(month+5))
	}
	if jobs = s.take(jobs[0].Next); len(jobs) != 2 || !jobs[0].Dying {
		t.Errorf("later they die: %+v", jobs)
	}
}

func TestIdleDestinations(t *testing.T) {
	o := Defaults()
	o.Idle = 3
	s := New(o, epoch)
	for id := range uint64(100) {
		s.mustAdd(t, one(id, Remote, fmt.Sprint("d", id)), epoch)
		for _, j := range s.take(epoch) {
			s.mustDone(t, j, 'K', Answered, epoch)
		}
		if n := s.dests.live(); n > 4 {
			t.Fatalf("%d destinations are remembered", n)
		}
	}
	s.mustAdd(t, one(1000, Remote, "d99"), epoch)
	for d := range s.Destinations() {
		if d.Window != 6 {
			t.Errorf("what was learned of %s is gone: %+v", d.Name, d)
		}
	}
}

func TestWheel(t *testing.T) { // against a list, at all distances
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		s := New(Defaults(), time.Unix(int64(r.Uint64N(1<<40))-1<<39, 0))
		var want []int64
		for range 1 + r.IntN(60) {
			n, u := s.units.take()
			u.next = s.now + 1 + int64(r.Uint64N(1<<r.IntN(40)))
			want = append(want, u.next)
			s.put(s.wheel, n)
			if r.IntN(4) == 0 {
				s.cut(n)
				want = want[:len(want)-1]
			}
		}
		slices.Sort(want)
		var got []int64
		now := s.now
		for len(got) < len(want) {
			_, next, ok := s.wheels[s.wheel].upcoming()
			if !ok {
				t.Fatalf("got %d of %d", len(got), len(want))
			}
			if next > want[len(got)] {
				t.Fatalf("wakes at %d for %d", next, want[len(got)])
			}
			now = max(now, next+int64(r.IntN(3)*r.IntN(5000)))
			s.turn(s.wheel, now, 1+r.IntN(5), func(n uint32) {
				if u := s.units.at(n); u.next > now {
					t.Fatalf("%d is not due at %d", u.next, now)
				}
				got = append(got, s.units.at(n).next)
			})
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || s.wheels[s.wheel].n != 0 {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}
