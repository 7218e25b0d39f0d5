package journal

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// smallOptions make segments so small that a short story has many.
func smallOptions(t testing.TB) Options {
	return Options{SegmentSize: minSegment, CacheBytes: -1}
}

// story does everything a queue does, waiting after each step until the housekeeper is done too.
func story(j *Journal, a *account, dead func() bool) {
	wait := func() {
		time.Sleep(3 * flushAfter) // in the bubble's time
		synctest.Wait()
	}
	keep := a.accept(j, dead, 2000, 3)
	straggler := a.accept(j, dead, 1500, 2)
	failing := a.accept(j, dead, 300, 4)
	a.fail(j, dead, failing, 0, "no such box")
	a.fail(j, dead, failing, 2, "no such host")
	a.fail(j, dead, failing, 3, "no such box")
	a.write(j, keep, 1)
	a.note(j, keep)
	wait()
	if !dead() {
		a.mark(keep, []uint32{1}, yes)
	}
	a.bounce(j, dead, keep, 0)
	big := a.spool(j, dead, 9000)
	kept := a.spool(j, dead, 700)
	a.hold(j, straggler, true)
	a.close(j, dead, big)
	wait()
	done := make(chan bool)
	for range 4 { // at once, so that they share a sync
		go func() {
			defer func() { done <- true }()
			for range 4 {
				id := a.accept(j, dead, 2500, 1)
				a.close(j, dead, id, 0)
			}
		}()
	}
	for range 4 {
		<-done
	}
	a.fail(j, dead, failing, 3, "")
	a.fail(j, dead, failing, 2, "no such thing")
	wait() // the first segments are mostly dead: stragglers are copied, segments dropped
	a.close(j, dead, straggler, 1)
	for range 8 {
		a.close(j, dead, a.accept(j, dead, 3000, 2), 0, 1)
	}
	wait()
	a.hold(j, straggler, false)
	a.bounce(j, dead, straggler, 0)
	a.bounce(j, dead, failing, 2)
	a.write(j, kept, 0)
	wait()
}

func (a *account) note(j queue.Store, id queue.ID) {
	j.Write(queue.Batch{Notes: []queue.Note{{ID: id, Next: time.Unix(2_000_000_000, 0), Text: "deferral"}}})
}

// TestCrash plays the story, dying at operation 0, 1, 2, ... until it ends, and opens what each way of dying leaves.
func TestCrash(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 7
	}
	drops, copies := 0, 0
	for n := 0; ; n += step {
		ended := false
		synctest.Test(t, func(t *testing.T) {
			m := disk.NewMemory()
			m.Inject(disk.DieAt(n))
			a := newAccount()
			j, err := Open(m, smallOptions(t))
			if err == nil {
				story(j, a, m.Dead)
				drops = max(drops, int(j.writer.seq)-len(j.segs))
				copies = max(copies, countCopies(j))
				ended = !m.Dead()
				if n%2 == 0 {
					j.Close()
				} else {
					defer j.Close() // after the crash, as a process that never saw it
				}
			}
			ended = ended && !m.Dead()
			for _, how := range []disk.Crash{disk.Lost, disk.Kept, disk.Random, disk.Random} {
				seed := rand.NewPCG(uint64(n), uint64(how))
				reopen(t, fmt.Sprintf("dead at %d, %v", n, how), m.Crash(how, rand.New(seed)), a, rand.New(seed))
			}
			reopen(t, fmt.Sprintf("killed at %d", n), m.Kill(), a, rand.New(rand.NewPCG(uint64(n), 9)))
		})
		if t.Failed() {
			t.Fatalf("first at operation %d", n)
		}
		if ended {
			t.Logf("%d operations, %d segments dropped", n, drops)
			if n < 150 || drops < 4 {
				t.Error("the story is too short to prove anything")
			}
			break
		}
	}
	if copies == 0 {
		t.Error("nothing was ever copied forward")
	}
}

// countCopies looks for messages that the collector moved.
func countCopies(j *Journal) (n int) {
	j.mu.RLock()
	segs := j.segs
	j.mu.RUnlock()
	for _, s := range segs {
		j.records(s, func(_ place, it *item) error {
			if it.kind == kindAccept && it.flags&flagCopy != 0 {
				n++
			}
			return nil
		})
	}
	return n
}

// reopen opens a disk found after a crash, once with a second crash in the middle of it, and checks all that was promised.
func reopen(t *testing.T, how string, m *disk.Memory, a *account, rnd *rand.Rand) {
	t.Helper()
	m.Inject(disk.DieAt(rnd.IntN(20)))
	if j, err := Open(m, smallOptions(t)); err == nil {
		synctest.Wait()
		j.Close()
	}
	m = m.Crash(disk.Random, rnd)
	j, err := Open(m, smallOptions(t))
	if err != nil {
		t.Errorf("%s: does not open: %v", how, err)
		return
	}
	before := t.Failed()
	a.check(t, j)
	synctest.Wait() // the housekeeper moves and drops
	a.check(t, j)
	if err := j.Close(); err != nil {
		t.Errorf("%s: %v", how, err)
	}
	j, err = Open(m, smallOptions(t))
	if err != nil {
		t.Errorf("%s: does not open again: %v", how, err)
		return
	}
	a.check(t, j)
	if err := commit(j, queue.Batch{Accepts: []queue.Accept{{ID: j.NewID(), Envelope: benchEnvelope(), Body: split("still works")}}}); err != nil {
		t.Errorf("%s: %v", how, err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("%s: %v", how, err)
	}
	if t.Failed() && !before {
		t.Logf("this was: %s", how)
	}
}
