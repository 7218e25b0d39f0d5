package pop3d

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/proto/pop3"
	"qmail/internal/store/maildrop"
	"qmail/internal/system/env"
)

func makeDrop(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"tmp", "new", "cur"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range files {
		path := filepath.Join(dir, f)
		if err := os.WriteFile(path, []byte("Subject: "+f+"\n\nx\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(int64(i+1), 0), time.Unix(int64(i+1), 0)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// talk plays a session and returns all that was said.
func talk(t testing.TB, dir string, commands string) string {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		io.WriteString(client, commands)
	}()
	done := make(chan string)
	go func() {
		b, _ := io.ReadAll(client)
		done <- string(b)
	}()
	session(server, time.Now(), []string{dir})
	server.Close()
	return <-done
}

func TestUIDsAreStableAndUnique(t *testing.T) {
	long := strings.Repeat("n", 100)
	dir := makeDrop(t, "new/a", "cur/a:2,S", "new/b c", "cur/"+long+":2,", "new/d")
	list := func() map[string]bool {
		drop, err := maildrop.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer drop.Close()
		messages, err := drop.List(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		b := newMailbox(drop, messages)
		uids := map[string]bool{}
		for i := range b.Len() {
			uid := b.UID(i)
			if uids[uid] || len(uid) > 70 || strings.ContainsAny(uid, " \r\n") {
				t.Errorf("%q", uid)
			}
			uids[uid] = true
		}
		return uids
	}
	before := list()
	if got := talk(t, dir, "RETR 1\r\nQUIT\r\n"); !strings.Contains(got, "Subject: new/a") {
		t.Errorf("%q", got)
	}
	moved, err := filepath.Glob(dir + "/new/*")
	if err != nil || len(moved) > 0 {
		t.Errorf("QUIT left %v %v", moved, err)
	}
	after := list()
	for uid := range before {
		if !after[uid] {
			t.Errorf("%s is gone after the messages have moved", uid)
		}
	}
	if !before["a"] || !before["d"] || len(after) != 5 {
		t.Errorf("%v, then %v", before, after)
	}
}

func TestRootHasNoMail(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	var said bytes.Buffer
	if code := Main(t.Context(), &env.Env{Stderr: &said, Now: time.Now}, []string{makeDrop(t)}); code != 1 || said.Len() == 0 {
		t.Errorf("%d %s", code, said.String())
	}
}

func TestNoMaildir(t *testing.T) {
	if got := talk(t, "/no/such/dir", "STAT\r\n"); got != "-ERR this user has no $HOME/Maildir\r\n" {
		t.Errorf("%q", got)
	}
	dir := makeDrop(t)
	if err := os.Remove(dir + "/new"); err != nil {
		t.Fatal(err)
	}
	if got := talk(t, dir, "STAT\r\n"); got != "-ERR unable to scan $HOME/Maildir\r\n" {
		t.Errorf("%q", got)
	}
}

func TestWhatCannotBeRemovedIsSaid(t *testing.T) {
	drop := makeDrop(t, "new/a")
	d, err := maildrop.Open(drop)
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.List(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := newMailbox(d, list)
	d.Close() // as good as a disk that is gone
	if err := b.Update(func(int) bool { return true }); err == nil {
		t.Error("nothing was said")
	}
}

func BenchmarkLogin(b *testing.B) {
	var files []string
	for i := range 1000 {
		files = append(files, fmt.Sprintf("cur/%d.M%dP1Q1R1.host:2,S", i, i))
	}
	dir := makeDrop(b, files...)
	b.ResetTimer()
	for range b.N {
		drop, err := maildrop.Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		list, err := drop.List(time.Now())
		if err != nil || len(list) != 1000 {
			b.Fatal(err)
		}
		pop3.NewTransaction(newMailbox(drop, list))
		drop.Close()
	}
}
