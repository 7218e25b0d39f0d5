package mboxfile

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/format/reply"
)

func message(body string) Message {
	return Message{From: []byte("From a@b date\n"), Head: []byte("Return-Path: <a@b>\n"), Body: strings.NewReader(body)}
}

const start = "From a@b date\nReturn-Path: <a@b>\n"

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAppend(t *testing.T) {
	path := t.TempDir() + "/Mailbox"
	want := ""
	for i, body := range []string{"A: b\n\nhi\n", "From x\nno end", ""} {
		if err := Append(t.Context(), path, "./Mailbox", message(body)); err != nil {
			t.Fatal(err)
		}
		want += start + []string{"A: b\n\nhi\n\n", ">From x\nno end\n\n", "\n"}[i]
		if got := content(t, path); got != want {
			t.Fatalf("after %d: %q, want %q", i+1, got, want)
		}
	}
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestTroubleDefersAndLeavesTheFileAsItWas(t *testing.T) {
	dir := t.TempDir()
	const old = "From old\n\nwhat was there\n\n"
	box := dir + "/box"
	os.WriteFile(box, []byte(old), 0o600)
	os.Symlink(dir+"/canary", dir+"/dangling")
	syscall.Mkfifo(dir+"/fifo", 0o600)
	os.Symlink("loop", dir+"/loop")
	type test struct {
		name, path string
		m          Message
		want       string
	}
	tests := []test{
		{"a message that cannot be read", box, Message{Body: io.MultiReader(strings.NewReader("some of it\n"), iotest.ErrReader(syscall.EIO))}, "ZUnable to read message: input/output error. (#4.3.0)"},
		{"no such directory", dir + "/none/box", message("x"), "ZUnable to open F: file does not exist. (#4.2.1)"},
		{"a directory", dir, message("x"), "ZUnable to open F: is a directory. (#4.2.1)"},
		{"a link makes no file", dir + "/dangling", message("x"), "ZUnable to open F: file does not exist. (#4.2.1)"},
		{"a FIFO without a reader", dir + "/fifo", message("x"), "ZUnable to open F: unknown error. (#4.2.1)"},
		{"a device", "/dev/null", message("x"), "ZUnable to open F: invalid argument. (#4.2.1)"},
		{"a link to itself", dir + "/loop", message("x"), "ZUnable to open F: symbolic link loop. (#4.2.1)"},
	}
	if os.Geteuid() == 0 { // only root can make files of others
		os.WriteFile(dir+"/bobs", []byte(old), 0o666)
		os.Chown(dir+"/bobs", 12345, 12345)
		os.Symlink(dir+"/bobs", dir+"/tobob")
		tests = append(tests, test{"a link to a file of somebody else", dir + "/tobob", message("x"), "ZUnable to open F: permission denied. (#4.2.1)"})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Append(t.Context(), tt.path, "F", tt.m)
			if err == nil || reply.Of(err).Report() != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	if got := content(t, box); got != old {
		t.Errorf("the mailbox is now %q", got)
	}
	if _, err := os.Lstat(dir + "/canary"); err == nil {
		t.Error("made a file through a link")
	}
}

func TestAFullDiskLeavesTheFileAsItWas(t *testing.T) {
	path := t.TempDir() + "/box"
	const old = "From old\n\nwhat was there\n\n"
	os.WriteFile(path, []byte(old), 0o600)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := before
	limit.Cur = uint64(len(old) + 100) // the kernel writes so far and then says EFBIG
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	err := Append(t.Context(), path, "F", message(strings.Repeat("a long message\n", 1000)))
	if e := unix.Setrlimit(unix.RLIMIT_FSIZE, &before); e != nil {
		t.Fatal(e)
	}
	if err == nil || reply.Of(err).Report() != "ZUnable to write F: file too big. (#4.3.0)" {
		t.Error(err)
	}
	if got := content(t, path); got != old {
		t.Errorf("the mailbox is now %q", got)
	}
}

func TestAppendsTogetherDoNotMix(t *testing.T) {
	path := t.TempDir() + "/box"
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			body := strings.Repeat(fmt.Sprintf("message %d\n", i), 20000) // more than any buffer
			if err := Append(t.Context(), path, "box", message(body)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	parts := strings.Split(content(t, path), start)
	if len(parts) != n+1 {
		t.Fatalf("%d messages", len(parts)-1)
	}
	for _, p := range parts[1:] {
		lines := strings.Split(strings.TrimSuffix(p, "\n\n"), "\n")
		for _, l := range lines {
			if l != lines[0] {
				t.Fatalf("%q among %q", l, lines[0])
			}
		}
	}
}

func TestALockThatIsNotGivenBackDefers(t *testing.T) {
	path := t.TempDir() + "/box"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // the 30 seconds, for a test
	defer cancel()
	err = Append(ctx, path, "box", message("x"))
	if err == nil || reply.Of(err).Report() != "ZFile has been locked for 30 seconds straight. (#4.3.0)" {
		t.Error(err)
	}
	if content(t, path) != "" {
		t.Error("written without the lock")
	}
}

// TestAFileThatIsReplaced while its lock is waited for gets nothing: its place is taken by another.
func TestAFileThatIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/Mailbox"
	old, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := unix.Flock(int(old.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Append(t.Context(), path, "./Mailbox", message("x\n")) }()
	time.Sleep(2 * lockPause) // it waits by now; if not, it sees the new file at once
	if err := os.WriteFile(dir+"/new", []byte("From new\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/new", path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(old.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "From new\n\n"+start+"x\n\n" {
		t.Errorf("%q", got)
	}
	if info, err := old.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("the old one has %d bytes, %v", info.Size(), err)
	}
}
