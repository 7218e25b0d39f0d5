package maildir2mbox

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/env"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a Maildir with messages, the first the oldest, beside an mbox file.
func world(t *testing.T, mbox string, messages ...string) (dir string, e *env.Env, said *bytes.Buffer) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{"Maildir", "Maildir/tmp", "Maildir/new", "Maildir/cur"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o700))
	}
	for i, m := range messages {
		path := filepath.Join(dir, "Maildir/new", string(rune('a'+i)))
		must(t, os.WriteFile(path, []byte(m), 0o600))
		must(t, os.Chtimes(path, time.Unix(1000000000+int64(i), 0), time.Unix(1000000000+int64(i), 0)))
	}
	if mbox != "" {
		must(t, os.WriteFile(filepath.Join(dir, "mbox"), []byte(mbox), 0o600))
	}
	said = &bytes.Buffer{}
	return dir, &env.Env{Stderr: said, Now: time.Now, Vars: []string{
		"MAILDIR=" + dir + "/Maildir", "MAIL=" + dir + "/mbox", "MAILTMP=" + dir + "/mbox.tmp",
	}}, said
}

func left(t *testing.T, dir string) int {
	t.Helper()
	list, err := filepath.Glob(dir + "/Maildir/*/*")
	must(t, err)
	return len(list)
}

func TestEveryLineIsKept(t *testing.T) {
	dir, e, said := world(t, "", "Return-Path: <a b@x>\n\nFrom me\nlast", "", "Return-Path: <>\n>From\nFrom ")
	if code := Main(t.Context(), e, nil); code != 0 || said.Len() > 0 {
		t.Fatalf("%d %s", code, said)
	}
	const want = "From a-b@x Sun Sep 09 01:46:40 2001\nReturn-Path: <a b@x>\n\n>From me\nlast\n\n" +
		"From XXX Sun Sep 09 01:46:41 2001\n\n" +
		"From MAILER-DAEMON Sun Sep 09 01:46:42 2001\nReturn-Path: <>\n>From\n>From \n\n"
	b, err := os.ReadFile(dir + "/mbox")
	if err != nil || string(b) != want {
		t.Errorf("%q %v", b, err)
	}
	if left(t, dir) != 0 {
		t.Error("messages are left")
	}
}

func TestTroubleLeavesEverything(t *testing.T) {
	for name, spoil := range map[string]func(dir string){
		"no room for the new file": func(dir string) { must(t, os.Mkdir(dir+"/mbox.tmp", 0o700)) },
		"a link in its place":      func(dir string) { must(t, os.Symlink(dir+"/elsewhere", dir+"/mbox.tmp")) },
		"no Maildir":               func(dir string) { must(t, os.Rename(dir+"/Maildir/new", dir+"/Maildir/old")) },
		"an mbox that is none": func(dir string) {
			must(t, os.Remove(dir+"/mbox"))
			must(t, os.Mkdir(dir+"/mbox", 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, e, said := world(t, "old\n", "x\n")
			spoil(dir)
			if code := Main(t.Context(), e, nil); code != 111 || !strings.HasPrefix(said.String(), "maildir2mbox: fatal: ") {
				t.Errorf("%d %s", code, said)
			}
			if left(t, dir) != 1 {
				t.Error("the message is gone")
			}
			if b, err := os.ReadFile(dir + "/mbox"); err == nil && string(b) != "old\n" {
				t.Errorf("the mbox holds %q", b)
			}
			if _, err := os.Stat(dir + "/elsewhere"); err == nil {
				t.Error("followed a link")
			}
		})
	}
}

func TestALockIsWaitedFor(t *testing.T) {
	dir, e, _ := world(t, "old\n", "x\n")
	f, err := os.OpenFile(dir+"/mbox", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	done := make(chan int)
	go func() { done <- Main(t.Context(), e, nil) }()
	select {
	case code := <-done:
		t.Fatalf("went on without the lock: %d", code)
	case <-time.After(3 * lockPause):
	}
	_, err = f.WriteAt([]byte("new\n"), 4) // a delivery that has the lock
	must(t, err)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	if code := <-done; code != 0 {
		t.Errorf("%d", code)
	}
	b, err := os.ReadFile(dir + "/mbox")
	if err != nil || !strings.HasPrefix(string(b), "old\nnew\nFrom ") {
		t.Errorf("%q %v", b, err)
	}
}
