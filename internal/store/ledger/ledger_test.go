package ledger

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/disk"
)

// inspect is the queue of a disk as Verify sees it.
func inspect(d disk.FS) Snapshot {
	return func(after queue.Account, each func(*queue.Entry) error) error { return journal.Inspect(d, after, each) }
}

// rig is a queue with an account.
type rig struct {
	t      *testing.T
	disk   *disk.Memory
	store  *journal.Journal
	ledger *Ledger
	opt    Options
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, disk: disk.NewMemory()}
	r.start()
	return r
}

func (r *rig) start() {
	r.t.Helper()
	r.ledger = New(r.disk, r.opt)
	store, err := journal.Open(r.disk, journal.Options{SegmentSize: 16 << 10, CacheBytes: -1, Account: r.ledger})
	if err != nil {
		r.t.Fatal(err)
	}
	r.store = store
}

func (r *rig) stop() {
	r.t.Helper()
	if err := r.store.Close(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) commit(b queue.Batch) error {
	done := make(chan error, 1)
	r.store.Commit(b, func(err error) { done <- err })
	return <-done
}

func (r *rig) accept(sender string, recipients ...string) queue.ID {
	r.t.Helper()
	id := r.store.NewID()
	e := &envelope.Envelope{Sender: sender, Recipients: recipients, UID: 7}
	if err := r.commit(queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: e, Body: [][]byte{[]byte("body of " + sender)}}}}); err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *rig) close(id queue.ID, o queue.Outcome, who ...uint32) {
	r.t.Helper()
	if err := r.commit(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: who, Outcome: o}}}); err != nil {
		r.t.Fatal(err)
	}
}

func verifyDisk(t *testing.T, d disk.FS) *Balance {
	t.Helper()
	b, err := Verify(d, inspect(d))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r *rig) even() *Balance {
	r.t.Helper()
	b := verifyDisk(r.t, r.disk)
	if !b.Even() {
		r.t.Errorf("%+v", b)
	}
	return b
}

// story is some mail: 3 messages to 7 recipients, of whom one waits.
func (r *rig) story() (waiting queue.ID) {
	a := r.accept("a@x", "one@x", "two@y", "three@z")
	b := r.accept("b@x", "four@x", "five@y")
	c := r.accept("c@x", "six@x", "seven@y")
	r.close(a, queue.Delivered, 0, 2)
	r.close(a, queue.Bounced, 1)
	r.close(b, queue.Expired, 1)
	r.close(c, queue.Dropped)
	return b
}

func TestWhatCameInIsWhatWentOutAndWhatIsThere(t *testing.T) {
	r := newRig(t)
	r.story()
	for _, when := range []string{"while it runs", "after it stopped", "after it began anew"} {
		b := r.even()
		want := [6]int64{queue.Delivered: 2, queue.Bounced: 1, queue.Expired: 1, queue.Dropped: 2}
		if b.Accepted != 7 || b.Closed != want || b.Queued != 1 || b.Messages != 3 {
			t.Errorf("%s: %+v", when, b)
		}
		switch when {
		case "while it runs":
			r.stop()
		case "after it stopped":
			if b.Unwritten != 0 {
				t.Errorf("%d entries were not written", b.Unwritten)
			}
			r.start()
		}
	}
	r.stop()
}

// TestALostMessageIsNamed takes a message out of the queue behind its back.
func TestALostMessageIsNamed(t *testing.T) {
	r := newRig(t)
	r.story()
	r.stop()
	names, err := r.disk.ReadDir("segments")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".seg") {
			if err := r.disk.Remove("segments/" + name); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := verifyDisk(t, r.disk)
	if b.Even() || len(b.Differences) != 1 {
		t.Fatalf("%+v", b)
	}
	if d := b.Differences[0]; !strings.HasPrefix(d.What, "lost") || d.Sender != "b@x" || !slices.Equal(d.Recipients, []string{"four@x"}) {
		t.Errorf("%+v", d)
	}
}

// TestAMessageFromNowhereIsNamed takes the account away.
func TestAMessageFromNowhereIsNamed(t *testing.T) {
	r := newRig(t)
	id := r.story()
	r.stop()
	if err := r.disk.Remove(fileName(1)); err != nil {
		t.Fatal(err)
	}
	r.start()
	if s := r.store.Stats(); s.Segments != 1 || s.Messages != 0 { // the queue has not forgotten what was closed
		r.close(id, queue.Delivered)
		r.stop()
	}
	b := verifyDisk(t, r.disk)
	if !b.Even() { // a new account was told of all that the journal still had
		t.Errorf("%+v", b)
	}
}

// TestADuplicateIsNamed plants what would mean that somebody got something twice.
func TestADuplicateIsNamed(t *testing.T) {
	plants := map[string]func(l *Ledger, id queue.ID){
		"closed twice: delivered": func(l *Ledger, id queue.ID) {
			l.Closed(time.Now(), &queue.Close{ID: id, Recipients: []uint32{1}, Outcome: queue.Delivered})
		},
		"accepted twice": func(l *Ledger, id queue.ID) {
			l.Accepted(time.Now(), id, &envelope.Envelope{Sender: "b@x", Recipients: []string{"four@x", "five@y"}}, 1, false)
		},
		"closed, and never accepted: bounced": func(l *Ledger, id queue.ID) {
			l.Closed(time.Now(), &queue.Close{ID: id + 1000, Recipients: []uint32{1}, Outcome: queue.Bounced})
		},
	}
	for what, plant := range plants {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			id := r.story()
			r.ledger.mu.Lock()
			at := r.ledger.block.at
			r.ledger.mu.Unlock()
			plant(r.ledger, id)
			r.ledger.Reached(at)
			r.stop()
			b := verifyDisk(t, r.disk)
			if b.Even() || len(b.Differences) != 1 || b.Differences[0].What != what {
				t.Errorf("%+v", b)
			}
		})
	}
}

// TestADoneMessageThatIsClosedAgainIsNamed: nothing of it is remembered but its number.
func TestADoneMessageThatIsClosedAgainIsNamed(t *testing.T) {
	r := newRig(t)
	r.story()
	r.ledger.mu.Lock()
	at := r.ledger.block.at
	r.ledger.mu.Unlock()
	r.ledger.Closed(time.Now(), &queue.Close{ID: 1, Recipients: []uint32{2}, Outcome: queue.Delivered})
	r.ledger.Reached(at)
	r.stop()
	b := verifyDisk(t, r.disk)
	if b.Even() || len(b.Differences) != 1 || b.Differences[0].What != "closed twice: delivered" || !slices.Equal(b.Differences[0].Recipients, []string{"three@z"}) {
		t.Errorf("%+v", b)
	}
}

// long is an account of several files.
func long(t *testing.T) *rig {
	r := &rig{t: t, disk: disk.NewMemory(), opt: Options{FileSize: 300}}
	r.start()
	for i := range 20 {
		r.close(r.accept(fmt.Sprintf("s%d@x", i), "r@y"), queue.Delivered, 0)
		if err := r.ledger.Settle(); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
	r.even()
	return r
}

func TestAnAccountThatWasTamperedWithIsFound(t *testing.T) {
	edit := func(name string, f func(disk.File, int64) error) func(*disk.Memory) error {
		return func(d *disk.Memory) error {
			file, err := d.OpenWrite(name)
			if err != nil {
				return err
			}
			defer file.Close()
			size, err := file.Size()
			if err != nil {
				return err
			}
			return f(file, size)
		}
	}
	flip := func(at func(size int64) int64) func(disk.File, int64) error {
		return func(f disk.File, size int64) error {
			b := make([]byte, 1)
			if _, err := f.ReadAt(b, at(size)); err != nil {
				return err
			}
			b[0] ^= 0x40
			_, err := f.WriteAt(b, at(size))
			return err
		}
	}
	cases := map[string]func(*disk.Memory) error{
		"a byte of an entry":              edit(fileName(3), flip(func(size int64) int64 { return size - 3 })),
		"a byte of an entry, newest file": nil, // below
		"a byte of a block's header":      edit(fileName(2), flip(func(int64) int64 { return headerSize + 40 })),
		"a byte of a file's header":       edit(fileName(4), flip(func(int64) int64 { return 30 })),
		"a file cut short":                edit(fileName(2), func(f disk.File, size int64) error { return f.Truncate(size - 10) }),
		"a file emptied":                  edit(fileName(2), func(f disk.File, _ int64) error { return f.Truncate(headerSize) }),
		"a file taken out":                func(d *disk.Memory) error { return d.Remove(fileName(3)) },
		"a file in another's place": func(d *disk.Memory) error {
			return d.Rename(fileName(4), fileName(3))
		},
	}
	files, err := list(long(t).disk)
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	newest := fileName(files[len(files)-1])
	cases["a byte of an entry, newest file"] = edit(newest, flip(func(int64) int64 { return headerSize + blockHeader + 5 }))
	for what, change := range cases {
		t.Run(what, func(t *testing.T) {
			r := long(t)
			if err := change(r.disk); err != nil {
				t.Fatal(err)
			}
			if b := verifyDisk(t, r.disk); b.Even() {
				t.Errorf("nothing is found: %+v", b)
			}
		})
	}
}

func TestFind(t *testing.T) {
	r := newRig(t)
	r.story()
	r.stop()
	tests := []struct {
		q    Query
		want string
	}{
		{Query{}, "1 one@x=delivered two@y=bounced three@z=delivered; 2 four@x=outcome 0 five@y=expired; 3 six@x=dropped seven@y=dropped"},
		{Query{Sender: "A@X"}, "1 one@x=delivered two@y=bounced three@z=delivered"},
		{Query{Recipient: "Five@y"}, "2 five@y=expired"},
		{Query{Recipient: "*@y"}, "1 two@y=bounced; 2 five@y=expired; 3 seven@y=dropped"},
		{Query{Sender: "c*", Recipient: "s*e*"}, "3 seven@y=dropped"},
		{Query{Sender: "b@x", Recipient: "one@x"}, ""},
		{Query{ID: 2}, "2 four@x=outcome 0 five@y=expired"},
		{Query{Limit: 1}, "1 one@x=delivered two@y=bounced three@z=delivered"},
		{Query{Since: time.Now().Add(time.Hour)}, ""},
	}
	for _, tt := range tests {
		found, err := Find(r.disk, tt.q)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, f := range found {
			line := f.ID.String()
			for _, r := range f.Recipients {
				line += " " + r.Address + "=" + r.Outcome.String()
			}
			lines = append(lines, line)
		}
		if got := strings.Join(lines, "; "); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.q, got, tt.want)
		}
	}
}

func TestOldFilesGoButNotThoseOfMailThatIsThere(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	r := &rig{t: t, disk: disk.NewMemory(), opt: Options{FileSize: 1, Keep: func() int { return 10 }, Now: func() time.Time { return now }}}
	r.start()
	settle := func() {
		if err := r.ledger.Settle(); err != nil {
			t.Fatal(err)
		}
	}
	r.close(r.accept("a@x", "r@y"), queue.Delivered, 0)
	settle()
	waiting := r.accept("b@x", "r@y")
	settle()
	drop := func(want int) {
		t.Helper()
		now = now.Add(11 * 24 * time.Hour)
		r.accept("c@x")
		settle()
		r.ledger.io <- struct{}{}
		err := r.ledger.dropOld(now)
		<-r.ledger.io
		if files, _ := list(r.disk); err != nil || len(files) != want {
			t.Errorf("%v, %v, want %d", files, err, want)
		}
		r.even()
	}
	drop(2) // the first
	drop(3) // the next has the message that waits
	r.close(waiting, queue.Delivered, 0)
	drop(2)
	b := r.even()
	if b.Before != 1 {
		t.Errorf("%d closed from before the account, want 1", b.Before)
	}
	r.stop()
}

// TestCrash lets a queue and its account die at any moment. They agree whenever they are opened again.
func TestCrash(t *testing.T) {
	step := 4
	if testing.Short() {
		step = 20
	}
	for n := 0; ; n += step {
		ended := false
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(n), 1))
			m := disk.NewMemory()
			m.Inject(disk.DieAt(n))
			opt := Options{FileSize: 2000}
			if store, err := journal.Open(m, journal.Options{SegmentSize: 16 << 10, CacheBytes: -1, Account: New(m, opt)}); err == nil {
				play(store, rnd)
				store.Close()
				ended = !m.Dead()
			}
			for _, how := range []disk.Crash{disk.Lost, disk.Kept, disk.Random, disk.Random} {
				after := m.Crash(how, rnd)
				if rnd.IntN(2) == 0 { // another life, which ends by a signal, before what counts
					if store, err := journal.Open(after, journal.Options{SegmentSize: 16 << 10, CacheBytes: -1, Account: New(after, opt)}); err == nil {
						play(store, rnd)
						after = after.Kill()
						store.Close()
						if store, err := journal.Open(after, journal.Options{SegmentSize: 16 << 10, CacheBytes: -1, Account: New(after, opt)}); err == nil {
							defer store.Close()
						}
						after = after.Crash(how, rnd)
					}
				}
				if b := verifyDisk(t, after); !b.Even() { // as found
					t.Errorf("dead at %d, %v: %+v", n, how, b)
				}
				store, err := journal.Open(after, journal.Options{SegmentSize: 16 << 10, CacheBytes: -1, Account: New(after, opt)})
				if err != nil {
					t.Errorf("dead at %d, %v: %v", n, how, err)
					continue
				}
				play(store, rnd)
				if b := verifyDisk(t, after); !b.Even() { // while it runs
					t.Errorf("dead at %d, %v, running: %+v", n, how, b)
				}
				if err := store.Close(); err != nil {
					t.Error(err)
				}
				if b := verifyDisk(t, after); !b.Even() || b.Unwritten != 0 {
					t.Errorf("dead at %d, %v, closed: %+v", n, how, b)
				}
			}
		})
		if t.Failed() {
			t.Fatalf("first at operation %d", n)
		}
		if ended {
			if n < 100 {
				t.Errorf("the story has only %d operations", n)
			}
			return
		}
	}
}

// play uses a queue for a while.
func play(s *journal.Journal, r *rand.Rand) {
	var ids []queue.ID
	commit := func(b queue.Batch) error {
		done := make(chan error, 1)
		s.Commit(b, func(err error) { done <- err })
		return <-done
	}
	for i := range 30 {
		id := s.NewID()
		e := &envelope.Envelope{Sender: fmt.Sprintf("s%d@x", i), Recipients: []string{"a@y", "b@y"}}
		if commit(queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: e, Body: [][]byte{make([]byte, 500+r.IntN(2500))}}}}) == nil {
			ids = append(ids, id)
		}
		if len(ids) > 3 {
			if k := r.IntN(len(ids)); r.IntN(8) > 0 {
				s.Write(queue.Batch{Closes: []queue.Close{{ID: ids[k], Recipients: []uint32{0}, Outcome: queue.Delivered}}})
				s.Write(queue.Batch{Closes: []queue.Close{{ID: ids[k], Recipients: []uint32{1}, Outcome: queue.Delivered}}})
				ids = slices.Delete(ids, k, k+1)
			}
		}
		if i%10 == 9 {
			time.Sleep(10 * time.Second)
		}
	}
	synctest.Wait()
}

// TestFailures has each operation fail once, and whole kinds of them for a while.
func TestFailures(t *testing.T) {
	for n := 0; n < 400; n += 3 {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(n), 2))
			m := disk.NewMemory()
			kinds := []disk.Kind{disk.OpSync, disk.OpWrite, disk.OpCreate, disk.OpAllocate, disk.OpSyncDir}
			looking := false // at what was written, not writing
			m.Inject(func(o disk.Op) error {
				if !looking && strings.HasPrefix(o.Name, Dir) && (o.N == n || n%7 == 0 && o.N > n && o.N < n+60 && o.Kind == kinds[n%len(kinds)]) {
					return syscall.EIO
				}
				return nil
			})
			store, err := journal.Open(m, journal.Options{SegmentSize: 16 << 10, CacheBytes: -1, Account: New(m, Options{FileSize: 2000})})
			if err != nil {
				return // an account that cannot be read
			}
			play(store, rnd)
			time.Sleep(time.Minute)
			looking = true
			b, err := Verify(m, inspect(m))
			looking = false
			if err != nil || !b.Even() {
				t.Errorf("operation %d fails: %+v, %v", n, b, err)
			}
			m.Inject(nil)
			store.Close()
			if b := verifyDisk(t, m.Kill()); !b.Even() {
				t.Errorf("operation %d failed: %+v", n, b)
			}
		})
	}
}

func FuzzEntries(f *testing.F) { // whatever the bytes, they are entries or an error, and no entry is larger than they are
	f.Add(appendAccept(nil, 5, 7, &envelope.Envelope{Sender: "s@x", Recipients: []string{"r@y", "r@z"}}, 9, true))
	f.Add(appendClose(nil, -5, &queue.Close{ID: 7, Recipients: []uint32{1, 2, 3, 9}, Outcome: queue.Bounced, As: 8}))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := block{entries: b}
		k.each(func(e *Entry) error {
			n := 0
			e.EachRecipient(func(uint32, []byte) { n++ })
			e.EachClosed(1000, func(i uint32) {
				if i >= 1000 {
					t.Fatal(i)
				}
			})
			if n != e.Recipients || n > len(b) {
				t.Fatalf("%d recipients of %d bytes", n, len(b))
			}
			return nil
		})
	})
}

// TestTenMillion measures Find and Verify: QMAIL_TEST_LEDGER=10000000 go test -run TenMillion -v ./internal/store/ledger
func TestTenMillion(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv("QMAIL_TEST_LEDGER"))
	if err != nil {
		count = 20_000
	}
	d, err := disk.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l := New(d, Options{})
	if _, err := l.Begin(func(queue.ID) bool { return false }); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	began := now
	for i := range count / 2 { // an accept and a close each
		id := queue.ID(i + 1)
		l.Accepted(now, id, &envelope.Envelope{Sender: fmt.Sprintf("someone.%d@sender%d.example", i%1000, i%77), Recipients: []string{fmt.Sprintf("user%d@domain%d.example", i%99991, i%1013)}}, 4000, false)
		l.Closed(now, &queue.Close{ID: id, Recipients: []uint32{0}, Outcome: queue.Delivered})
		l.Reached(queue.Position{Segment: 1, Offset: int64(i+1) * 8})
		if i%100_000 == 0 {
			if err := l.Settle(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, size, err := Files(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries of %.1f bytes, written in %v", count, float64(size)/float64(count), time.Since(began))
	began = time.Now()
	i := count/2 - 3
	found, err := Find(d, Query{Sender: fmt.Sprintf("someone.%d@sender%d.example", i%1000, i%77), Recipient: fmt.Sprintf("user%d@domain%d.example", i%99991, i%1013)})
	if err != nil || len(found) == 0 || found[len(found)-1].ID != queue.ID(i+1) || found[len(found)-1].Recipients[0].Outcome != queue.Delivered {
		t.Errorf("%+v, %v", found, err)
	}
	t.Logf("found %d in %v", len(found), time.Since(began))
	began = time.Now()
	b, err := Verify(d, func(queue.Account, func(*queue.Entry) error) error { return nil })
	if err != nil || !b.Even() && b.Accepted != int64(count/2) {
		t.Errorf("%+v, %v", b, err)
	}
	t.Logf("verified in %v", time.Since(began))
}
