package maildir

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"qmail/internal/system/disk"
)

// memory is a maildir on a disk that can crash.
type memory struct{ *disk.Memory }

func (memory) Close() error { return nil }

func newMemory(t *testing.T) *disk.Memory {
	t.Helper()
	m := disk.NewMemory()
	for _, dir := range []string{"tmp", "new", "cur"} {
		if err := m.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	return m
}

// text is message number i: some short, some longer than any buffer.
func text(i int) string {
	return fmt.Sprintf("message %d\n", i) + strings.Repeat("0123456789abcde\n", i*3000)
}

// inStory is how many messages story delivers.
const inStory = 2 + few + 2

// story delivers some messages, alone, two of them at once and many at once, and returns those that were said to
// be there.
func story(m *disk.Memory) (delivered []int) {
	d := deliverer(func(string) (Disk, error) { return memory{m}, nil })
	one := func(i int) error {
		return d.Deliver(context.Background(), "Maildir", Message{Head: []byte("Delivered-To: x\n"), Reader: strings.NewReader(text(i)), Size: int64(len(text(i)))})
	}
	var mu sync.Mutex
	note := func(i int) {
		if one(i) == nil {
			mu.Lock()
			delivered = append(delivered, i)
			mu.Unlock()
		}
	}
	note(0)
	together(d, 2, func(i int) { note(1 + i) })
	together(d, few, func(i int) { note(3 + i) })
	note(3 + few)
	return delivered
}

// inNew returns the messages in new/, by number; half a message is a failure.
func inNew(t *testing.T, m *disk.Memory, when string) map[int]int {
	t.Helper()
	names, err := m.ReadDir("new")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]int{}
	for _, name := range names {
		f, err := m.Open("new/" + name)
		if err != nil {
			t.Fatal(err)
		}
		size, _ := f.Size()
		b := make([]byte, size)
		if size > 0 {
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		var i int
		fmt.Sscanf(strings.TrimPrefix(string(b), "Delivered-To: x\n"), "message %d\n", &i)
		if string(b) != "Delivered-To: x\n"+text(i) {
			t.Errorf("%s: new/%s is not whole: %d bytes %.40q", when, name, len(b), b)
		}
		found[i]++
	}
	return found
}

// The power fails at each operation in turn. What was said to be there is there, and nothing in new/ is not
// whole.
func TestPowerFailureAtEachOperation(t *testing.T) {
	whole := newMemory(t)
	if got := len(story(whole)); got != inStory {
		t.Fatalf("without trouble %d of %d are delivered", got, inStory)
	}
	points := 0
	for n := newMemory(t).Ops(); n < whole.Ops(); n++ {
		m := newMemory(t)
		m.Inject(func(o disk.Op) error {
			if o.N >= n {
				return disk.ErrPower
			}
			return nil
		})
		delivered := story(m)
		points++
		for seed := range uint64(8) {
			how := disk.Crash(min(int(seed), int(disk.Random)))
			when := fmt.Sprintf("power off at operation %d, %s %d", n, how, seed)
			found := inNew(t, m.Crash(how, rand.New(rand.NewPCG(uint64(n), seed))), when)
			for _, i := range delivered {
				if found[i] == 0 {
					t.Errorf("%s: message %d was delivered and is gone", when, i)
				}
			}
		}
	}
	if points < 30 {
		t.Errorf("only %d points", points)
	}
}

// One operation fails and the machine goes on. A message that was refused is not there, one that was taken is.
func TestOneFailureAtEachOperation(t *testing.T) {
	whole := newMemory(t)
	story(whole)
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
		for n := newMemory(t).Ops(); n < whole.Ops(); n++ {
			m := newMemory(t)
			m.Inject(disk.FailNth(n, cause))
			delivered := story(m)
			m.Inject(nil)
			when := fmt.Sprintf("%v at operation %d", cause, n)
			found := inNew(t, m, when)
			for i := range inStory {
				want := 0
				for _, j := range delivered {
					if i == j {
						want = 1
					}
				}
				if found[i] != want {
					t.Errorf("%s: message %d is there %d times, want %d", when, i, found[i], want)
				}
			}
			after := inNew(t, m.Crash(disk.Lost, nil), when)
			for _, i := range delivered {
				if after[i] == 0 {
					t.Errorf("%s: message %d was delivered and is gone after a power failure", when, i)
				}
			}
		}
	}
}

// A disk that lies about its syncs must be caught by these tests, or they prove nothing.
func TestLiesAreNoticed(t *testing.T) {
	for _, kind := range []disk.Kind{disk.OpSync, disk.OpSyncAll, disk.OpSyncDir} {
		noticed := false
		m := newMemory(t)
		m.Lie(kind)
		delivered := story(m)
		names, err := m.Crash(disk.Lost, nil).ReadDir("new")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		after := m.Crash(disk.Lost, nil)
		noticed = len(names) < len(delivered)
		for _, name := range names {
			if info, err := after.Stat("new/" + name); err != nil || info.Size == 0 {
				noticed = true
			}
		}
		if !noticed {
			t.Errorf("nobody notices that %s does nothing", kind)
		}
	}
}
