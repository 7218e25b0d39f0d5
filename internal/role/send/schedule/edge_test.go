package schedule

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestLifetimeIsStrict(t *testing.T) {
	for age, want := range map[int64]bool{604800: false, 604801: true} {
		s := New(Defaults(), at(age))
		s.mustAdd(t, one(1, Local, "joe"), at(age))
		if j := s.take(at(age))[0]; j.Dying != want {
			t.Errorf("at age %d dying is %v", age, j.Dying)
		}
	}
	o := Defaults()
	o.Lifetime = 0
	s := New(o, epoch)
	s.mustAdd(t, one(1, Local, "joe"), epoch)
	if s.take(epoch)[0].Dying {
		t.Error("without lifetime a message dies in the second of its birth")
	}
}

func TestDyingIsOfOnePass(t *testing.T) {
	s := New(Defaults(), at(700000))
	s.mustAdd(t, one(1, Local, "joe"), at(700000))
	j := s.take(at(700000))[0]
	s.mustDone(t, j, 'Z', Answered, at(700000)) // the caller does not let it die
	s.SetLifetime(365 * 24 * time.Hour)
	again := s.take(j.Next)
	if !j.Dying || len(again) != 1 || again[0].Dying {
		t.Errorf("first %+v, then %+v", j, again)
	}
}

func TestDyingListIsTriedWhole(t *testing.T) { // at a dead destination, every recipient has its attempt
	s := New(Defaults(), at(700000))
	s.mustAdd(t, listTo(1, 30, 1), at(700000))
	tried := 0
	for jobs := s.take(at(700000)); len(jobs) > 0; jobs = s.take(at(700000)) {
		for _, j := range jobs {
			tried++
			s.mustDone(t, j, 'D', Unreachable, at(700000))
		}
	}
	if tried != 30 {
		t.Errorf("%d were tried", tried)
	}
}

func TestListAtDeadDestination(t *testing.T) { // the rest of its pass is put off with those that were tried
	s := New(Defaults(), epoch)
	s.mustAdd(t, listTo(1, 3000, 1), epoch)
	tried := 0
	for jobs := s.take(epoch); len(jobs) > 0; jobs = s.take(epoch) {
		for _, j := range jobs {
			tried++
			s.mustDone(t, j, 'Z', Unreachable, epoch)
		}
	}
	plans := s.Plans(1)
	if tried != 5 || len(plans) != 1 || plans[0].State != Waiting || !plans[0].Next.Equal(at(400)) || len(plans[0].Recipients) != 3000 {
		t.Errorf("%d tried, %d plans", tried, len(plans))
	}
	slices.Sort(plans[0].Recipients)
	if len(slices.Compact(plans[0].Recipients)) != 3000 {
		t.Error("recipients are there twice")
	}
}

func TestLostIsForgiven(t *testing.T) { // one that was lost, then put off for a reason, waits as the formula says
	s := New(Defaults(), epoch)
	s.mustAdd(t, one(1, Remote, "x"), epoch)
	s.mustDone(t, s.take(epoch)[0], 'Z', Lost, epoch)
	s.mustDone(t, s.take(at(2))[0], 'Z', Answered, at(2))
	if p := s.Plans(1)[0]; !p.Next.Equal(at((1 + 20) * (1 + 20))) {
		t.Errorf("waits until %v", p.Next)
	}
}

func TestOneDestinationLeavesAPlace(t *testing.T) {
	s := New(Defaults(), epoch)
	for id := range uint64(100) {
		s.mustAdd(t, one(id, Remote, "x"), epoch)
	}
	jobs := s.take(epoch)
	for range 40 { // its window grows
		s.mustDone(t, jobs[0], 'K', Answered, epoch)
		jobs = append(jobs[1:], s.take(epoch)...)
	}
	if len(jobs) != 19 {
		t.Errorf("%d of 20 places are taken", len(jobs))
	}
	s.mustAdd(t, one(1000, Remote, "y"), epoch)
	if more := s.take(epoch); len(more) != 1 || more[0].Message != 1000 {
		t.Errorf("another destination gets %+v", more)
	}
}

func TestNobodyGainsByAbsence(t *testing.T) { // who was quiet for a thousand turns of another is not owed them
	w := newWorld(t, 10, 1)
	send := func(source, id uint64) {
		m := one(source*10000+id, Remote, "x")
		m.Source = source
		w.s.mustAdd(t, m, w.now)
	}
	for id := range uint64(1000) {
		send(1, id)
		w.run(time.Minute, never)
	}
	for id := uint64(1000); id < 1200; id++ {
		send(2, id)
		send(1, id)
	}
	count := map[uint64]int{}
	w.ended = func(j Job) { count[j.Message/10000]++ }
	w.run(time.Hour, func() bool { return count[1]+count[2] == 100 })
	if count[1] < 48 || count[2] < 48 {
		t.Errorf("of a hundred turns: %v", count)
	}
}

func TestOnceProvenIsNotForEver(t *testing.T) { // destinations that answered once and died leave room to the living
	w := newWorld(t, 10, 32)
	alive := true
	w.takes = func(j Job) (time.Duration, Contact) {
		if alive || j.Destination == "good" {
			return 10 * time.Millisecond, Answered
		}
		return time.Minute, Unreachable
	}
	for id := range uint64(100) {
		w.s.mustAdd(t, one(id, Remote, fmt.Sprint("d", id)), w.now)
	}
	w.run(time.Second, never)
	alive = false
	for id := range uint64(100) {
		w.s.mustAdd(t, one(1000+id, Remote, fmt.Sprint("d", id)), w.now)
	}
	w.run(5*time.Minute, never) // all were found dead
	w.now = w.now.Add(time.Hour)
	w.s.mustAdd(t, one(5000, Remote, "good"), w.now)
	w.run(time.Second, never)
	if c := w.s.Stats().Channels[Remote]; c.Jobs >= 32 || c.Jobs < 28 {
		t.Errorf("dead destinations have %d of 32 places", c.Jobs)
	}
}

func TestBirthInTheFuture(t *testing.T) { // counts as now, and age from there
	s := New(Defaults(), epoch)
	m := one(1, Remote, "x")
	m.Birth = at(365 * 86400)
	s.mustAdd(t, m, epoch)
	for _, age := range []int64{0, 400, 1600, 3600} {
		if age > 0 && len(s.take(at(age-1))) != 0 {
			t.Fatalf("tried before age %d", age)
		}
		jobs := s.take(at(age))
		if len(jobs) != 1 {
			t.Fatalf("at age %d: %d jobs", age, len(jobs))
		}
		s.mustDone(t, jobs[0], 'Z', Answered, at(age))
	}
	if got := retry(1000, 50, Remote); got != 450 {
		t.Errorf("retry is %d", got)
	}
}

func TestLeapAndBack(t *testing.T) { // doubt in a clock ends an hour after it was set right
	s := New(Defaults(), epoch)
	const year = 365 * 86400
	s.tick(at(year).Unix(), year*time.Second)
	s.tick(at(10).Unix(), 0)
	if s.doubtful > at(10+trust).Unix() {
		t.Error("nothing would die for a year")
	}
	s.tick(at(5).Unix(), 0) // a little back: time stands
	if s.now != at(10).Unix() {
		t.Errorf("now is %d", s.now)
	}
}

func TestDeadInTheFuture(t *testing.T) { // a failure that a wrong clock dated ahead does not keep mail from being tried
	s := New(Defaults(), at(1_000_000))
	m := one(1, Remote, "x")
	m.Birth = at(1_000_000)
	s.mustAdd(t, m, at(1_000_000))
	for range 3 { // down to a window of one
		s.Alarm(at(1_000_000))
		s.mustDone(t, s.take(at(1_000_000))[0], 'Z', Unreachable, at(1_000_000))
	}
	s.tick(epoch.Unix(), 0)
	jobs := s.take(at(400))
	if len(jobs) != 1 {
		t.Errorf("plans %+v", s.Plans(1))
	}
}

func TestAlarmsInARow(t *testing.T) {
	s := New(Defaults(), epoch)
	s.mustAdd(t, one(1, Remote, "x"), epoch)
	for range 5 {
		jobs := s.take(epoch)
		if len(jobs) != 1 {
			t.Fatalf("%d jobs", len(jobs))
		}
		s.mustDone(t, jobs[0], 'Z', Answered, epoch)
		if n := len(s.take(at(399))); n != 0 {
			t.Fatal("tried too early")
		}
		s.Alarm(epoch)
	}
}

func TestAlarmTwiceBeforeNext(t *testing.T) {
	s := New(Defaults(), epoch)
	s.SetConcurrency(Local, 1)
	for id := range uint64(500) {
		m := one(id, Local, "joe")
		m.Recipients[0].Next = at(50)
		s.mustAdd(t, m, epoch)
	}
	s.Alarm(epoch)
	first := s.take(epoch) // 64 or so have left the wheel
	s.mustDone(t, first[0], 'Z', Answered, epoch)
	s.Alarm(epoch)
	done := 0
	for jobs := s.take(epoch); len(jobs) > 0; jobs = s.take(epoch) {
		s.mustDone(t, jobs[0], 'K', Answered, epoch)
		done++
	}
	if done != 500 {
		t.Errorf("%d of 500 were due", done)
	}
}

func TestDue(t *testing.T) {
	s := New(Defaults(), epoch)
	for id := range uint64(2) {
		m := one(id, Local, "joe")
		m.Recipients[0].Next = at(50)
		s.mustAdd(t, m, epoch)
	}
	if !s.Due(1, epoch) || s.Due(2, epoch) {
		t.Error("Due knows the wrong messages")
	}
	if jobs := s.take(epoch); len(jobs) != 1 || jobs[0].Message != 1 {
		t.Errorf("got %+v", jobs)
	}
}

func TestShortListsAreSmall(t *testing.T) {
	s := New(Defaults(), epoch)
	m := mail(1, 1, 5000, Remote, "x")
	for i := range m.Recipients {
		m.Recipients[i].Next = at(100)
	}
	s.mustAdd(t, m, epoch)
	all := make([]uint32, 4990)
	for i := range all {
		all[i] = uint32(i)
	}
	s.Remove(1, all)
	if l := s.lists.at(s.units.at(s.messages.at(1).first).rcpt); cap(l.r) > 100 {
		t.Errorf("room for %d", cap(l.r))
	}
	s.Remove(1, []uint32{4990, 4991, 4992, 4993, 4994, 4995, 4996, 4997, 4998})
	if s.lists.live() != 0 {
		t.Error("a list of one")
	}
	if jobs := s.take(at(100)); len(jobs) != 1 || !slices.Equal(jobs[0].Recipients, []uint32{4999}) {
		t.Errorf("got %+v", jobs)
	}
}

func TestHeap(t *testing.T) { // against a sorted list, with removals in the middle, and seq about to wrap
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var h heap
		places := map[uint32]int{}
		moved := func(id uint32, at int) { places[id] = at }
		want := []entry{}
		seq := ^uint32(0) - 20
		for id := range uint32(200) {
			if r.IntN(3) > 0 || len(want) == 0 {
				e := entry{r.Uint64N(8), seq, id}
				seq++
				h.push(e, moved)
				want = append(want, e)
				continue
			}
			i := r.IntN(len(want))
			if got := h.remove(places[want[i].id], moved); got != want[i] {
				t.Fatalf("removed %v, want %v", got, want[i])
			}
			want = slices.Delete(want, i, i+1)
		}
		slices.SortStableFunc(want, func(a, b entry) int { return cmp.Compare(a.key, b.key) }) // equal keys as they came
		for _, e := range want {
			if got := h.remove(0, moved); got != e {
				t.Fatalf("got %v, want %v", got, e)
			}
		}
	}
}
