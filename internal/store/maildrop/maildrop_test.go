package maildrop

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const old = 1000000000

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeDrop makes a maildir of files "new/name" and so on, the first the oldest.
func makeDrop(t testing.TB, files ...string) (*Drop, string) {
	t.Helper()
	dir := t.TempDir()
	for _, part := range []string{"tmp", "new", "cur"} {
		must(t, os.Mkdir(filepath.Join(dir, part), 0o700))
	}
	for i, name := range files {
		put(t, dir, name, old+int64(i))
	}
	d, err := Open(dir)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d, dir
}

func put(t testing.TB, dir, name string, when int64) {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, []byte("content of "+name), 0o600))
	must(t, os.Chtimes(path, time.Unix(when, 0), time.Unix(when, 0)))
}

func names(list []Message) string {
	var all []string
	for _, m := range list {
		all = append(all, m.Dir+"/"+m.Name)
	}
	return strings.Join(all, " ")
}

func list(t testing.TB, d *Drop) []Message {
	t.Helper()
	l, err := d.List(time.Now())
	must(t, err)
	return l
}

func TestAListIsRegularFilesOldestFirst(t *testing.T) {
	d, dir := makeDrop(t, "cur/b:2,S", "new/c", "new/a", "new/.hidden", "tmp/t")
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "new/link")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "new/fifo"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "new/dir"), 0o700))
	put(t, dir, "new/just-now", time.Now().Unix()+5)
	put(t, dir, "new/0", old) // the same time as b: then by name
	if got := names(list(t, d)); got != "new/0 cur/b:2,S new/c new/a" {
		t.Errorf("listed %s", got)
	}
}

func TestAMissingPartIsAnError(t *testing.T) {
	d, dir := makeDrop(t, "cur/a")
	must(t, os.Remove(filepath.Join(dir, "new")))
	if _, err := d.List(time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Open(filepath.Join(dir, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Open(filepath.Join(dir, "cur/a")); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("%v", err)
	}
}

func TestMessagesAreFollowed(t *testing.T) {
	d, dir := makeDrop(t, "new/a", "new/b", "cur/c:2,")
	l := list(t, d)
	must(t, os.Rename(dir+"/new/a", dir+"/cur/a:2,RS")) // by another reader
	must(t, os.Rename(dir+"/cur/c:2,", dir+"/cur/c:2,T"))
	f, err := d.Read(&l[0])
	must(t, err)
	if b, err := io.ReadAll(f); err != nil || string(b) != "content of new/a" {
		t.Errorf("%q %v", b, err)
	}
	f.Close()
	must(t, d.Remove(&l[2]))
	must(t, os.Remove(dir+"/new/b"))
	must(t, d.Remove(&l[1]))
	if _, err := d.Read(&l[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read what is gone: %v", err)
	}
	if got := names(list(t, d)); got != "cur/a:2,RS" {
		t.Errorf("left %s", got)
	}
}

func TestAnotherMessageOfTheSameNameIsLeftAlone(t *testing.T) {
	d, dir := makeDrop(t, "new/a", "cur/a:2,S")
	l := list(t, d)
	must(t, os.Remove(dir+"/new/a"))
	must(t, d.Remove(&l[0]))
	if got := names(list(t, d)); got != "cur/a:2,S" {
		t.Errorf("left %q", got)
	}
}

// TestFlagsThatChangeAllTheTime: whoever changes them, what is removed is removed, and what is read is found. How
// often a message is too busy is up to the machine: that it is not forever is all that is promised.
func TestFlagsThatChangeAllTheTime(t *testing.T) {
	var files []string
	for i := range 60 {
		files = append(files, fmt.Sprintf("cur/m%d:2,", i))
	}
	d, dir := makeDrop(t, files...)
	l := list(t, d)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for from, to := "", "F"; ; from, to = to, from {
			for i := range files {
				select {
				case <-over:
					return
				default:
					os.Rename(fmt.Sprintf("%s/cur/m%d:2,%s", dir, i, from), fmt.Sprintf("%s/cur/m%d:2,%s", dir, i, to))
				}
			}
		}
	}()
	defer func() {
		close(over)
		<-done
		if left := names(list(t, d)); left != "" {
			t.Errorf("%s still there", left)
		}
	}()
	deadline := time.Now().Add(time.Minute)
	for i := range l {
		f, err := d.Read(&l[i])
		if err == nil {
			f.Close()
		} else if !errors.Is(err, ErrBusy) {
			t.Fatalf("read: %v", err)
		}
		for {
			err := d.Remove(&l[i])
			if err == nil {
				break
			}
			if !errors.Is(err, ErrBusy) || time.Now().After(deadline) {
				t.Fatalf("remove: %v", err)
			}
		}
	}
}

// TestWhatIsRenamedWhileItIsListedIsListed: a list once was empty because all flags changed after the directory
// was read and before the files were looked at.
func TestWhatIsRenamedWhileItIsListedIsListed(t *testing.T) {
	d, dir := makeDrop(t, "new/a", "new/b", "cur/c:2,", "new/removed")
	moves := map[string]string{"a": "cur/a:2,S", "b": "new/b:2,", "c:2,": "cur/c:2,S", "c:2,S": "cur/c:2,SF"}
	l, err := d.list(time.Now(), func(at int, name string, st *unix.Stat_t, flags int) error {
		for _, part := range []string{"new/", "cur/"} {
			if to, ok := moves[name]; ok {
				_ = os.Rename(dir+"/"+part+name, dir+"/"+to)
			}
		}
		_ = os.Remove(dir + "/new/removed")
		return unix.Fstatat(at, name, st, flags)
	})
	must(t, err)
	if got := names(l); got != "cur/a:2,S new/b:2, cur/c:2,SF" {
		t.Errorf("listed %s", got)
	}
}

// TestAListOfWhatNeverStaysComesToAnEnd.
func TestAListOfWhatNeverStaysComesToAnEnd(t *testing.T) {
	d, _ := makeDrop(t, "new/a", "cur/b:2,")
	looks := 0
	l, err := d.list(time.Now(), func(at int, name string, st *unix.Stat_t, flags int) error {
		if looks++; name == "a" {
			return unix.ENOENT
		}
		return unix.Fstatat(at, name, st, flags)
	})
	must(t, err)
	if got := names(l); got != "cur/b:2," || looks != 2*(patience+1) {
		t.Errorf("listed %s after %d looks", got, looks)
	}
}

// TestMassRemoval by somebody else does not make each removal of ours read the whole Maildir.
func TestMassRemoval(t *testing.T) {
	var files []string
	for i := range 2000 {
		files = append(files, fmt.Sprintf("new/m%d", i))
	}
	d, dir := makeDrop(t, files...)
	l := list(t, d)
	for _, f := range files {
		must(t, os.Remove(filepath.Join(dir, f)))
	}
	put(t, dir, "cur/last:2,", old)
	for i := range l {
		must(t, d.Remove(&l[i]))
	}
	for _, s := range d.scans {
		if len(s) != 1 {
			t.Errorf("a scan of %d", len(s))
		}
	}
	if len(d.scans) != certain {
		t.Errorf("%d scans", len(d.scans))
	}
}

func TestWhatMovesWhileItIsListedIsListedOnce(t *testing.T) {
	a := Message{Dir: "new", Name: "a", ino: 1}
	b := Message{Dir: "cur", Name: "a:2,", ino: 1}
	link := Message{Dir: "cur", Name: "b:2,", ino: 1}
	other := Message{Dir: "cur", Name: "a:2,S", ino: 2}
	if got := names(once([]Message{a, b, link, other})); got != "cur/a:2, cur/b:2, cur/a:2,S" {
		t.Errorf("%s", got)
	}
}

func TestSettleNeverReplaces(t *testing.T) {
	d, dir := makeDrop(t, "new/a", "new/b", "cur/c:2,S", "new/gone")
	l := list(t, d)
	put(t, dir, "cur/b:2,", old)
	must(t, os.Remove(dir+"/new/gone"))
	var failed []string
	for i := range l {
		if err := d.Settle(&l[i]); err != nil {
			failed = append(failed, l[i].Name)
		}
	}
	if strings.Join(failed, " ") != "b" {
		t.Errorf("failed: %v", failed)
	}
	b, err := os.ReadFile(dir + "/cur/b:2,")
	if err != nil || string(b) != "content of cur/b:2," {
		t.Errorf("replaced: %q %v", b, err)
	}
	if got := names(list(t, d)); got != "cur/a:2, cur/b:2, new/b cur/c:2,S" {
		t.Errorf("now %s", got)
	}
}

func TestAFileThatBecameALinkIsNotRead(t *testing.T) {
	d, dir := makeDrop(t, "new/a")
	l := list(t, d)
	must(t, os.Remove(dir+"/new/a"))
	must(t, os.Symlink("/etc/passwd", dir+"/new/a"))
	if f, err := d.Read(&l[0]); err == nil {
		f.Close()
		t.Error("followed a link")
	}
	must(t, os.Remove(dir+"/new/a"))
	must(t, syscall.Mkfifo(dir+"/new/a", 0o600))
	if f, err := d.Read(&l[0]); err == nil {
		f.Close()
		t.Error("opened a FIFO")
	}
}

func TestSweep(t *testing.T) {
	d, dir := makeDrop(t, "tmp/old", "tmp/.keep")
	put(t, dir, "tmp/young", time.Now().Unix()-3600)
	d.Sweep(time.Now())
	left, err := os.ReadDir(dir + "/tmp")
	must(t, err)
	if len(left) != 2 || left[0].Name() != ".keep" || left[1].Name() != "young" {
		t.Errorf("left %v", left)
	}
}

// TestReadersTogether: some settle, some remove, nobody fails, and nothing is lost but what was removed.
func TestReadersTogether(t *testing.T) {
	var files []string
	for i := range 200 {
		files = append(files, "new/"+strings.Repeat("x", 1+i%3)+string(rune('a'+i%26))+strings.Repeat("y", i))
	}
	_, dir := makeDrop(t, files...)
	var wg sync.WaitGroup
	for reader := range 4 {
		wg.Go(func() {
			d, err := Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			l, err := d.List(time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			for i := range l {
				do := d.Settle
				if (len(l[i].Key())+reader)%2 == 0 && len(l[i].Key())%2 == 0 {
					do = d.Remove
				}
				if err := do(&l[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	d, err := Open(dir)
	must(t, err)
	defer d.Close()
	odd := 0
	for _, f := range files {
		odd += (len(f) - len("new/")) % 2
	}
	left := list(t, d)
	for _, m := range left {
		if m.Dir != "cur" || len(m.Key())%2 == 0 {
			t.Errorf("left: %s/%s", m.Dir, m.Name)
		}
	}
	if len(left) != odd {
		t.Errorf("%d left, not %d", len(left), odd)
	}
}
