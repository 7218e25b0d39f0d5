package maildir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/system/disk"
)

func openDir(path string) (Disk, error) {
	d, err := disk.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func deliverer(open func(string) (Disk, error)) *Deliverer {
	return New(Config{Open: open, Now: time.Now, Random: rand.Uint64, Host: "mx.example", PID: os.Getpid()})
}

func maildir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir() + "/Maildir"
	for _, sub := range []string{"", "/tmp", "/new", "/cur"} {
		if err := os.Mkdir(dir+sub, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// files returns the names and contents of a directory.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range list {
		b, err := os.ReadFile(dir + "/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(b)
	}
	return all
}

func TestDeliver(t *testing.T) {
	long := strings.Repeat("0123456789abcdef\x00\xff\n", 20000)
	tests := []struct {
		name string
		m    Message
		want string
	}{
		{"a message at hand", Message{Head: []byte("A: b\n"), Body: []byte("X: y\n\nhi")}, "A: b\nX: y\n\nhi"},
		{"an empty message", Message{Head: []byte("A: b\n")}, "A: b\n"},
		{"a message from a reader", Message{Head: []byte("A: b\n"), Reader: strings.NewReader("body"), Size: 4}, "A: b\nbody"},
		{"a message longer than any buffer, byte for byte", Message{Head: []byte("A: b\n"), Reader: iotest.OneByteReader(strings.NewReader(long)), Size: int64(len(long))}, "A: b\n" + long},
		{"no more than its size", Message{Reader: strings.NewReader("bodymore"), Size: 4}, "body"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := maildir(t)
			if err := deliverer(openDir).Deliver(t.Context(), dir, tt.m); err != nil {
				t.Fatal(err)
			}
			got := files(t, dir+"/new")
			if len(got) != 1 || len(files(t, dir+"/tmp")) != 0 {
				t.Fatalf("%d files in new, tmp %v", len(got), files(t, dir+"/tmp"))
			}
			for name, text := range got {
				if text != tt.want {
					t.Errorf("%d bytes %.40q, want %d bytes", len(text), text, len(tt.want))
				}
				if !regexp.MustCompile(`^\d{10}\.M\d{1,6}P\d+Q1R[0-9a-f]+\.mx\.example$`).MatchString(name) {
					t.Errorf("name %q", name)
				}
				if info, _ := os.Stat(dir + "/new/" + name); info.Mode() != 0o600 {
					t.Errorf("mode %v", info.Mode())
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	dir := maildir(t)
	file := dir + "/file"
	os.WriteFile(file, nil, 0o600)
	noTmp := maildir(t)
	os.Remove(noTmp + "/tmp")
	noNew := maildir(t)
	os.Remove(noNew + "/new")
	linked := maildir(t)
	os.Remove(linked + "/tmp")
	elsewhere := t.TempDir()
	os.Symlink(elsewhere, linked+"/tmp")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	body := Message{Head: []byte("A: b\n"), Body: []byte("x")}
	tests := []struct {
		name, path string
		ctx        context.Context
		m          Message
		want       string
	}{
		{"no maildir", dir + "/none", t.Context(), body, "ZUnable to chdir to maildir. (#4.2.1)"},
		{"a file in its place", file, t.Context(), body, "ZUnable to chdir to maildir. (#4.2.1)"},
		{"no tmp", noTmp, t.Context(), body, "ZTemporary error on maildir delivery. (#4.3.0)"},
		{"no new", noNew, t.Context(), body, "ZTemporary error on maildir delivery. (#4.3.0)"},
		{"tmp leads elsewhere", linked, t.Context(), body, "ZTemporary error on maildir delivery. (#4.3.0)"},
		{"a message that ends early", dir, t.Context(), Message{Reader: strings.NewReader("abc"), Size: 4}, "ZUnable to read message. (#4.3.0)"},
		{"a message that cannot be read", dir, t.Context(), Message{Reader: iotest.ErrReader(io.ErrClosedPipe), Size: 4}, "ZUnable to read message. (#4.3.0)"},
		{"too late", dir, ended, body, "ZTimeout on maildir delivery. (#4.3.0)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := deliverer(openDir).Deliver(tt.ctx, tt.path, tt.m)
			if err == nil || reply.Of(err).Report() != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	for _, d := range []string{dir + "/new", dir + "/tmp", elsewhere, noNew + "/tmp"} {
		if left := files(t, d); len(left) > 0 {
			t.Errorf("%s holds %v", d, left)
		}
	}
}

// faulty is a maildir whose calls fail when their turn comes.
type faulty struct {
	Disk
	left atomic.Int64 // calls until one fails
	err  error
}

func (d *faulty) fail() error {
	if d.left.Add(-1) == -1 {
		return d.err
	}
	return nil
}

func (d *faulty) Temp(dir string, perm fs.FileMode) (disk.File, error) {
	if err := d.fail(); err != nil {
		return nil, err
	}
	f, err := d.Disk.Temp(dir, perm)
	if err != nil {
		return nil, err
	}
	return &faultyFile{f, d}, nil
}

func (d *faulty) Link(f disk.File, name string) error {
	if err := d.fail(); err != nil {
		return err
	}
	return d.Disk.Link(f.(*faultyFile).File, name)
}

func (d *faulty) SyncDir(name string) error {
	if err := d.fail(); err != nil {
		return err
	}
	return d.Disk.SyncDir(name)
}

type faultyFile struct {
	disk.File
	disk *faulty
}

func (f *faultyFile) WriteVec(pieces [][]byte, off int64) (int64, error) {
	if err := f.disk.fail(); err != nil {
		n, _ := f.File.WriteVec([][]byte{pieces[0][:len(pieces[0])/2]}, off) // full disks take a part
		return n, err
	}
	return f.File.WriteVec(pieces, off)
}

func (f *faultyFile) Sync() error {
	if err := f.disk.fail(); err != nil {
		return err
	}
	return f.File.Sync()
}

func TestEachFailingCallDefersAndLeavesNothingBehind(t *testing.T) {
	text := strings.Repeat("a line of text\n", 10000)
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS} {
		failures := 0
		for n := int64(0); ; n++ {
			dir := maildir(t)
			var d *faulty
			open := func(path string) (Disk, error) {
				real, err := openDir(path)
				d = &faulty{Disk: real, err: &fs.PathError{Op: "call", Path: path, Err: cause}}
				d.left.Store(n)
				return d, err
			}
			err := deliverer(open).Deliver(t.Context(), dir, Message{Head: []byte("A: b\n"), Reader: strings.NewReader(text), Size: int64(len(text))})
			got := files(t, dir+"/new")
			if err == nil {
				if len(got) != 1 {
					t.Errorf("%v at call %d: delivered, and %d files", cause, n, len(got))
				}
				break
			}
			failures++
			if !errors.Is(err, cause) || reply.Of(err).Report() != "ZTemporary error on maildir delivery. (#4.3.0)" {
				t.Errorf("%v at call %d: %v", cause, n, err)
			}
			if len(got) != 0 || len(files(t, dir+"/tmp")) != 0 {
				t.Errorf("%v at call %d leaves %d files in new", cause, n, len(got))
			}
		}
		if failures != 8 { // Temp, head, three pieces, Sync, Link, SyncDir
			t.Errorf("%v: %d calls could fail", cause, failures)
		}
	}
}

func TestATakenNameIsNotOverwritten(t *testing.T) {
	dir := maildir(t)
	d := deliverer(openDir)
	d.config.Now = func() time.Time { return time.Unix(1700000000, 0) }
	d.config.Random = func() uint64 { return 7 }
	taken := dir + fmt.Sprintf("/new/1700000000.M0P%dQ1R7.mx.example", os.Getpid())
	if err := os.WriteFile(taken, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Deliver(t.Context(), dir, Message{Head: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir+"/new"); len(got) != 2 {
		t.Errorf("%v", got)
	}
	if b, _ := os.ReadFile(taken); string(b) != "mine" {
		t.Errorf("overwritten: %q", b)
	}
}

func TestHostsInFileNames(t *testing.T) {
	for host, want := range map[string]string{
		"mx.example": "mx.example", "a/b:c": `a\057b\072c`, "": "localhost",
		strings.Repeat("x", 100): strings.Repeat("x", 64), "../..": `..\057..`,
	} {
		if got := escape(host); got != want {
			t.Errorf("escape(%q) = %q", host, got)
		}
	}
}

// counting counts the syncs of directories and can hold them up.
type counting struct {
	Disk
	begun *atomic.Int64
	hold  chan struct{}
}

func (d *counting) SyncDir(name string) error {
	d.begun.Add(1)
	<-d.hold
	return d.Disk.SyncDir(name)
}

func TestDeliveriesThatWaitTogetherShareASync(t *testing.T) {
	dir := maildir(t)
	var begun atomic.Int64
	hold := make(chan struct{})
	d := deliverer(func(path string) (Disk, error) {
		real, err := openDir(path)
		return &counting{real, &begun, hold}, err
	})
	d.config.Now = func() time.Time { return time.Unix(1700000000, 0) } // they all come within one second
	const n = 20
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := d.Deliver(t.Context(), dir, Message{Head: fmt.Appendf(nil, "message %d", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	for waiting(d)+len(files(t, dir+"/new")) < n { // all written, and the last sync of the first ones still held
		time.Sleep(time.Millisecond)
	}
	close(hold)
	wg.Wait()
	seen := map[string]bool{}
	for _, text := range files(t, dir+"/new") {
		seen[text] = true
	}
	if len(seen) != n {
		t.Errorf("%d of %d messages", len(seen), n)
	}
	if b := begun.Load(); b < 1 || b > 3 { // one for the first, one for those who waited, one for latecomers
		t.Errorf("%d syncs for %d deliveries", b, n)
	}
	if len(d.open) != 0 {
		t.Error("the maildir is still open")
	}
}

// waiting is how many deliveries wait for the one that is being finished.
func waiting(d *Deliverer) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.open {
		s.group.mu.Lock()
		if s.group.next != nil {
			n += len(s.group.next.all)
		}
		s.group.mu.Unlock()
	}
	return n
}

// together runs deliveries that all wait for each other.
func together(d *Deliverer, n int, deliver func(i int)) {
	s, err := d.acquire("Maildir")
	if err != nil {
		return
	}
	s.group.turn.Lock()
	var wg sync.WaitGroup
	var gone atomic.Int64 // those that failed before they could wait
	for i := range n {
		wg.Go(func() { deliver(i); gone.Add(1) })
	}
	for waiting(d)+int(gone.Load()) < n {
		time.Sleep(50 * time.Microsecond)
	}
	s.group.turn.Unlock()
	wg.Wait()
	d.release(s)
}

func TestAFailedSyncFailsAllWhoShareIt(t *testing.T) {
	for _, kind := range []disk.Kind{disk.OpSync, disk.OpSyncAll, disk.OpSyncDir} {
		for _, n := range []int{1, few - 1, few, 10} {
			m := newMemory(t)
			d := deliverer(func(string) (Disk, error) { return memory{m}, nil })
			m.Inject(func(o disk.Op) error {
				if o.Kind == kind {
					return syscall.EIO
				}
				return nil
			})
			var failed atomic.Int64
			together(d, n, func(i int) {
				if d.Deliver(t.Context(), "Maildir", Message{Head: []byte("x")}) != nil {
					failed.Add(1)
				}
			})
			want := n
			if kind == disk.OpSync && n >= few || kind == disk.OpSyncAll && n < few { // the other way was taken
				want = 0
			}
			if got := int(failed.Load()); got != want {
				t.Errorf("%s fails, %d together: %d failed, want %d", kind, n, got, want)
			}
			m.Inject(nil)
			if names, err := m.ReadDir("new"); err != nil || len(names) != n-want {
				t.Errorf("%s fails, %d together: %d files in new/, %v", kind, n, len(names), err)
			}
		}
	}
}

func TestASlowSyncOfAllIsAvoidedForAWhile(t *testing.T) {
	m := newMemory(t)
	d := deliverer(func(string) (Disk, error) { return memory{m}, nil })
	now := time.Unix(1700000000, 0)
	var mu sync.Mutex
	d.config.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	took := 2 * slow
	all := 0
	m.Inject(func(o disk.Op) error {
		if o.Kind == disk.OpSyncAll {
			mu.Lock()
			defer mu.Unlock()
			all++
			now = now.Add(took)
		}
		return nil
	})
	round := func() {
		together(d, few, func(int) {
			if err := d.Deliver(t.Context(), "Maildir", Message{Head: []byte("x")}); err != nil {
				t.Error(err)
			}
		})
	}
	round()
	round()
	if all != 1 {
		t.Errorf("%d syncs of all; the second was to be avoided", all)
	}
	mu.Lock()
	now = now.Add(avoid)
	took = 0
	mu.Unlock()
	round()
	round()
	if all != 3 {
		t.Errorf("%d syncs of all; after a while it was to be tried again, and to be kept", all)
	}
}

func TestAMovedMaildirDoesNotKeepItsDeliveries(t *testing.T) {
	dir := maildir(t)
	now := time.Unix(1700000000, 0)
	d := deliverer(openDir)
	d.config.Now = func() time.Time { return now }
	s, err := d.acquire(dir) // a delivery that does not end
	if err != nil {
		t.Fatal(err)
	}
	defer d.release(s)
	os.Rename(dir, dir+".old")
	for _, sub := range []string{"", "/tmp", "/new", "/cur"} {
		os.Mkdir(dir+sub, 0o700)
	}
	now = now.Add(fresh)
	if err := d.Deliver(t.Context(), dir, Message{Head: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if len(files(t, dir+"/new")) != 1 || len(files(t, dir+".old/new")) != 0 {
		t.Error("delivered into the old place")
	}
}

func BenchmarkDeliver(b *testing.B) {
	for _, together := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprint(together), func(b *testing.B) {
			dir := maildir(b)
			d := deliverer(openDir)
			m := Message{Head: []byte("Return-Path: <s@example.org>\nDelivered-To: joe@example.net\n"), Body: bytes.Repeat([]byte("x"), 4096)}
			var wg sync.WaitGroup
			var next atomic.Int64
			var before, after syscall.Rusage
			syscall.Getrusage(0, &before)
			b.ReportAllocs()
			b.ResetTimer()
			for range together {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if err := d.Deliver(b.Context(), dir, m); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			syscall.Getrusage(0, &after)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(b.N)/1e6, "cpu-ms/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}
