package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

func alive() bool { return false }

// TestNthFault plays the story with each operation failing once.
func TestNthFault(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 11
	}
	for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
		for n := 0; ; n += step {
			ended := false
			synctest.Test(t, func(t *testing.T) {
				m := disk.NewMemory()
				m.Inject(disk.FailNth(n, errno))
				a := newAccount()
				j, err := Open(m, smallOptions(t))
				if err == nil {
					story(j, a, alive)
					ended = m.Ops() <= n
					m.Inject(nil)
					a.check(t, j)
					defer j.Close()
				} else if !errors.Is(err, errno) {
					t.Errorf("operation %d: the error does not say why: %v", n, err)
				}
				for _, how := range []disk.Crash{disk.Lost, disk.Kept, disk.Random} {
					rnd := rand.New(rand.NewPCG(uint64(n), uint64(how)))
					reopen(t, fmt.Sprintf("%v at %d, %v", errno, n, how), m.Crash(how, rnd), a, rnd)
				}
				reopen(t, fmt.Sprintf("%v at %d, killed", errno, n), m.Kill(), a, rand.New(rand.NewPCG(uint64(n), 9)))
			})
			if t.Failed() {
				t.Fatalf("first with %v at operation %d", errno, n)
			}
			if ended {
				t.Logf("%d operations", n)
				break
			}
		}
	}
}

// TestTheCrashTestNotices plays the story on disks that lie: the audit must complain.
func TestTheCrashTestNotices(t *testing.T) {
	for _, lie := range []disk.Kind{disk.OpSync, disk.OpSyncDir} {
		synctest.Test(t, func(t *testing.T) {
			m := disk.NewMemory()
			j, err := Open(m, smallOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			m.Lie(lie)
			a := newAccount()
			story(j, a, alive)
			after := m.Crash(disk.Lost, nil)
			j.Close()
			j, err = Open(after, smallOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if len(a.audit(j)) == 0 {
				t.Errorf("nobody noticed that %s did nothing", lie)
			}
		})
	}
}

// TestSyncFailsForAWhile: everything is refused, nothing that was acknowledged is lost, and it works again by itself.
func TestSyncFailsForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := disk.NewMemory()
		j, err := Open(m, smallOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		a := newAccount()
		before := a.accept(j, alive, 1000, 2)
		m.Inject(disk.FailKind(syscall.EIO, disk.OpSync))
		a.write(j, before, 0)
		synctest.Wait() // written, not synced
		for range 5 {
			id := a.accept(j, alive, 1000, 1)
			if !a.msgs[id].refused {
				t.Error("accepted without a sync")
			}
			time.Sleep(flushAfter)
		}
		if s := j.Stats(); s.Backlog != 1 || s.Failures == 0 {
			t.Errorf("%+v", s)
		}
		a.check(t, j)
		m.Inject(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s := j.Stats(); s.Backlog != 0 {
			t.Errorf("the close still waits: %+v", s)
		}
		a.mark(before, []uint32{0}, yes)
		if id := a.accept(j, alive, 1000, 1); a.msgs[id].refused {
			t.Error("still refuses")
		}
		a.check(t, j)
		for _, how := range []disk.Crash{disk.Lost, disk.Kept} {
			reopen(t, how.String(), m.Crash(how, nil), a, rand.New(rand.NewPCG(1, 1)))
		}
		j.Close()
	})
}

// TestARefusedMessageStaysRefused: a group of four fails with its first records already written, and the power goes
// right after the refusal.
func TestARefusedMessageStaysRefused(t *testing.T) {
	refused := 0
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			m := disk.NewMemory()
			j, err := Open(m, smallOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			a := newAccount()
			a.accept(j, alive, 100, 1)
			synctest.Wait()
			failed := false
			m.Inject(func(o disk.Op) error {
				if o.Kind == disk.OpWrite && o.Size > 2000 && o.Size < headerRoom && !failed {
					failed = true
					return syscall.EIO
				}
				return nil
			})
			var b [4]struct {
				id  queue.ID
				err error
			}
			left := make(chan bool, len(b))
			gate := make(chan bool) // the writer waits at it, so that all four come together
			j.Commit(queue.Batch{}, func(error) { <-gate })
			synctest.Wait()
			for i := range b {
				a.n++
				b[i].id = j.NewID()
				msg := &told{body: strings.Repeat("x", 700), closed: make([]fact, 1), who: []string{"r"}}
				a.msgs[b[i].id] = msg
				env := a.envelope(a.n, msg.who)
				j.Commit(queue.Batch{Accepts: []queue.Accept{{ID: b[i].id, Envelope: env, Body: split(msg.body)}}}, func(err error) {
					b[i].err = err
					left <- true
				})
			}
			close(gate)
			for range b {
				<-left
			}
			for _, one := range b {
				a.msgs[one.id].accepted, a.msgs[one.id].refused = after(one.err, false), one.err != nil
				if one.err != nil {
					refused++
				}
			}
			rnd := rand.New(rand.NewPCG(seed, 0))
			reopen(t, "cut", m.Crash(disk.Random, rnd), a, rnd)
		})
	}
	if refused < 60 {
		t.Errorf("only %d were refused", refused)
	}
}

// TestClosesWrittenAgainOutliveTheirAccept: a close that had to be written twice, because the first sync failed, must not be
// dropped with its second place while the accept is on the disk.
func TestClosesWrittenAgainOutliveTheirAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := disk.NewMemory()
		j, err := Open(m, smallOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		a := newAccount()
		a.accept(j, alive, 6000, 1) // keeps the first segment from being moved
		id := a.accept(j, alive, 2000, 1)
		for range 3 {
			a.close(j, alive, a.accept(j, alive, 3000, 1))
		}
		first := j.index.live[id].seg
		a.write(j, id)
		synctest.Wait()
		m.Inject(disk.FailNth(m.Ops(), syscall.EIO)) // the flush
		time.Sleep(4 * flushAfter)
		synctest.Wait()
		if n := j.Stats().Failures; n != 1 {
			t.Fatalf("%d failures", n)
		}
		a.mark(id, nil, yes)
		for range 20 {
			a.close(j, alive, a.accept(j, alive, 3000, 1))
		}
		synctest.Wait()
		if first.gone {
			t.Error("the first segment was dropped: nothing is tested")
		}
		rnd := rand.New(rand.NewPCG(1, 1))
		reopen(t, "cut", m.Crash(disk.Lost, rnd), a, rnd)
		j.Close()
	})
}

// TestABodyOutlivesAnUnsyncedClose: until the close is durable, the body's file stays.
func TestABodyOutlivesAnUnsyncedClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := disk.NewMemory()
		j, err := Open(m, smallOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		a := newAccount()
		id := a.spool(j, alive, 1000)
		a.write(j, id)
		synctest.Wait()
		if _, err := m.Stat(bodyName(uint64(id))); err != nil {
			t.Errorf("too early: %v", err)
		}
		time.Sleep(2 * flushAfter)
		synctest.Wait()
		if _, err := m.Stat(bodyName(uint64(id))); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("too late: %v", err)
		}
	})
}

// TestDiskFull: accepts are refused, closes go on, and what they free is used again.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := disk.NewMemory()
		j, err := Open(m, smallOptions(t))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		m.SetSpace(0)
		a := newAccount()
		var kept []queue.ID
		for {
			id := a.accept(j, alive, 2000, 1)
			if a.msgs[id].refused {
				break
			}
			if kept = append(kept, id); len(kept) > 100 {
				t.Fatal("never full")
			}
		}
		if err := commit(j, queue.Batch{Accepts: []queue.Accept{{ID: j.NewID(), Envelope: benchEnvelope(), Body: [][]byte{make([]byte, 3000)}}}}); !errors.Is(err, queue.ErrFull) {
			t.Errorf("full, but the error is %v", err)
		}
		big := a.spool(j, alive, 5000)
		if !a.msgs[big].refused {
			t.Error("spooled into a full disk")
		}
		if s := j.Stats(); !s.Full || s.Failures != 0 {
			t.Errorf("%+v", s)
		}
		for range 200 { // more than the rest of a segment holds
			j.Write(queue.Batch{Notes: []queue.Note{{ID: kept[0], Next: time.Unix(1, 0), Text: strings.Repeat("x", 50)}}})
		}
		for _, id := range kept {
			if err := commit(j, queue.Batch{Closes: []queue.Close{{ID: id}}}); err != nil {
				t.Fatalf("a close was refused: %v", err)
			}
			a.mark(id, nil, yes)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for range 3 {
			if id := a.accept(j, alive, 2000, 1); a.msgs[id].refused {
				t.Errorf("still full: %+v", j.Stats())
			}
		}
		a.check(t, j)
		reopen(t, "full", m.Kill(), a, rand.New(rand.NewPCG(1, 1)))
		j.Close()
	})
}

// TestNotesAreBoundedWhenTheDiskIsGone: closes are all kept, notes only so far.
func TestNotesAreBoundedWhenTheDiskIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := disk.NewMemory()
		opt := smallOptions(t)
		opt.Backlog = 1000
		j, err := Open(m, opt)
		if err != nil {
			t.Fatal(err)
		}
		a := newAccount()
		id := a.accept(j, alive, 10, 50)
		m.Inject(disk.FailKind(syscall.EIO, disk.OpWrite, disk.OpSync))
		for range 100 {
			j.Write(queue.Batch{Notes: []queue.Note{{ID: id, Next: time.Unix(1, 0)}}})
		}
		for i := range 40 {
			a.write(j, id, uint32(i))
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		s := j.Stats()
		if s.LostNotes == 0 || s.Backlog < 40 || s.Backlog > 60 {
			t.Errorf("%+v", s)
		}
		m.Inject(nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		for i := range 40 {
			a.mark(id, []uint32{uint32(i)}, yes)
		}
		reopen(t, "after", m.Crash(disk.Lost, nil), a, rand.New(rand.NewPCG(1, 1)))
		j.Close()
	})
}

func TestASecondProcessIsRefused(t *testing.T) {
	m := disk.NewMemory()
	j, err := Open(m, smallOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(m, smallOptions(t)); !errors.Is(err, queue.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, err = Open(m, smallOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	j.Close()
}

// snapshot is every file with its content.
func snapshot(t *testing.T, m *disk.Memory) map[string]string {
	t.Helper()
	all := map[string]string{}
	var walk func(string)
	walk = func(dir string) {
		names, err := m.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if dir != "." {
				name = dir + "/" + name
			}
			f, err := m.Open(name)
			if err != nil {
				walk(name)
				continue
			}
			size, _ := f.Size()
			b := make([]byte, size)
			f.ReadAt(b, 0)
			all[name] = string(b)
			f.Close()
		}
	}
	walk(".")
	return all
}

func TestANewerFormatIsRefusedAndUntouched(t *testing.T) {
	m := disk.NewMemory()
	j, err := Open(m, smallOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	name := j.segs[0].name
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := m.OpenWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{8, headerCopy + 8} {
		if _, err := f.WriteAt([]byte{3}, at); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	before := snapshot(t, m)
	_, err = Open(m, smallOptions(t))
	if err == nil || !strings.Contains(err.Error(), "version 3") || !strings.Contains(err.Error(), "segment 0000000000000001") {
		t.Errorf("error %v", err)
	}
	after := snapshot(t, m)
	if len(before) != len(after) {
		t.Errorf("%d files, then %d", len(before), len(after))
	}
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s was touched", name)
		}
	}
	if _, err := m.Stat(segmentDir); errors.Is(err, fs.ErrNotExist) {
		t.Error("nothing was tested")
	}
}
