package maildir

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmail/internal/system/disk"
)

// part is one of several maildirs on a disk that can crash.
type part struct {
	*disk.Memory
	dir string
}

func (part) Close() error           { return nil }
func (part) Device() (uint64, bool) { return 1, true }

func (p part) Temp(dir string, perm fs.FileMode) (disk.File, error) {
	return p.Memory.Temp(p.dir+"/"+dir, perm)
}
func (p part) Link(f disk.File, name string) error { return p.Memory.Link(f, p.dir+"/"+name) }
func (p part) SyncDir(name string) error           { return p.Memory.SyncDir(p.dir + "/" + name) }
func (p part) Remove(name string) error            { return p.Memory.Remove(p.dir + "/" + name) }

const (
	parts   = 3
	inParts = 2 * parts
)

func newParts(t *testing.T) *disk.Memory {
	t.Helper()
	m := disk.NewMemory()
	for i := range parts {
		for _, dir := range []string{"", "/tmp", "/new", "/cur"} {
			if err := m.Mkdir(fmt.Sprint(i)+dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.SyncDir(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	return m
}

// round delivers two messages into each part, all of them at once, and returns those that were said to be there.
func round(m *disk.Memory) (delivered map[int]bool) {
	d := deliverer(func(path string) (Disk, error) { return part{m, path}, nil })
	delivered = map[int]bool{}
	var mu sync.Mutex
	g := d.groupOf(part{m, ""})
	g.turn.Lock() // so that all of them wait
	var all sync.WaitGroup
	for i := range inParts {
		all.Go(func() {
			err := d.Deliver(context.Background(), fmt.Sprint(i%parts), Message{Head: []byte("x\n"), Body: []byte(fmt.Sprintf("message %d\n", i))})
			mu.Lock()
			defer mu.Unlock()
			delivered[i] = err == nil
		})
	}
	for {
		mu.Lock()
		ended := len(delivered)
		mu.Unlock()
		g.mu.Lock()
		waits := 0
		if g.next != nil {
			waits = len(g.next.all)
		}
		g.mu.Unlock()
		if waits+ended >= inParts {
			break
		}
		time.Sleep(50 * time.Microsecond)
	}
	g.turn.Unlock()
	all.Wait()
	return delivered
}

// found returns the messages of all parts, and fails for one that is not whole or not where it belongs.
func found(t *testing.T, m *disk.Memory, when string) map[int]bool {
	t.Helper()
	all := map[int]bool{}
	for p := range parts {
		names, err := m.ReadDir(fmt.Sprint(p, "/new"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			f, err := m.Open(fmt.Sprint(p, "/new/", name))
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n, _ := f.ReadAt(b, 0)
			f.Close()
			var i int
			if fmt.Sscanf(string(b[:n]), "x\nmessage %d\n", &i); string(b[:n]) != fmt.Sprintf("x\nmessage %d\n", i) || i%parts != p {
				t.Errorf("%s: %d/new/%s has %q", when, p, name, b[:n])
			}
			all[i] = true
		}
	}
	return all
}

// TestSeveralMaildirsShareASync: one sync of all files, and still each new/ is synced before anything counts.
func TestSeveralMaildirsShareASync(t *testing.T) {
	whole := newParts(t)
	before := whole.Ops()
	var syncs, names int
	var mu sync.Mutex
	whole.Inject(func(o disk.Op) error {
		mu.Lock()
		defer mu.Unlock()
		switch o.Kind {
		case disk.OpSync, disk.OpSyncAll:
			syncs++
		case disk.OpSyncDir:
			names++
		}
		return nil
	})
	for i, ok := range round(whole) {
		if !ok {
			t.Errorf("message %d is not delivered", i)
		}
	}
	if syncs != 1 || names != parts {
		t.Errorf("%d syncs of files and %d of names", syncs, names)
	}
	for n := before; n < whole.Ops(); n++ {
		for _, cause := range []error{disk.ErrPower, syscall.EIO} {
			m := newParts(t)
			m.Inject(func(o disk.Op) error {
				if o.N == n || cause == disk.ErrPower && o.N > n {
					return cause
				}
				return nil
			})
			delivered := round(m)
			m.Inject(nil)
			when := fmt.Sprintf("%v at operation %d", cause, n)
			if cause != disk.ErrPower {
				there := found(t, m, when)
				for i, ok := range delivered {
					if there[i] != ok {
						t.Errorf("%s: message %d is there: %v; it was said: %v", when, i, there[i], ok)
					}
				}
				continue
			}
			for seed := range uint64(6) {
				there := found(t, m.Crash(disk.Crash(min(int(seed), int(disk.Random))), rand.New(rand.NewPCG(uint64(n), seed))), when)
				for i, ok := range delivered {
					if ok && !there[i] {
						t.Errorf("%s: message %d was delivered and is gone", when, i)
					}
				}
			}
		}
	}
}
