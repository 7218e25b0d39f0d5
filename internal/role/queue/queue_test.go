package queue

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

func home(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	if err := os.MkdirAll(enqueue.DropDir(home), 0o755); err != nil {
		t.Fatal(err)
	}
	return home
}

// start runs the role with pipes for its descriptors.
func start(t *testing.T, ctx context.Context, home string) (message, records *os.File, code <-chan int) {
	t.Helper()
	r0, w0, err0 := os.Pipe()
	r1, w1, err1 := os.Pipe()
	if err := errors.Join(err0, err1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []*os.File{r0, w0, r1, w1} {
			f.Close()
		}
	})
	c := make(chan int, 1)
	go func() {
		c <- Main(ctx, &env.Env{Home: home, Stdin: r0, Stdout: r1, Stderr: io.Discard, Now: time.Now, Vars: []string{"QMAILQUEUE=/nowhere"}}, nil)
	}()
	return w0, w1, c
}

func wait(t *testing.T, code <-chan int) int {
	t.Helper()
	select {
	case c := <-code:
		return c
	case <-time.After(20 * time.Second):
		t.Fatal("still running")
		return 0
	}
}

func TestMain(t *testing.T) {
	h := home(t)
	message, records, code := start(t, context.Background(), h)
	text := "Subject: x\n\n" + strings.Repeat("0123456\n", 100000) + "no newline\x00"
	if _, err := io.WriteString(message, text); err != nil { // all of it, before the envelope
		t.Fatal(err)
	}
	message.Close()
	io.WriteString(records, "Fs\x00Ta@b\x00T\x00\x00and more, on a pipe that stays open")
	if c := wait(t, code); c != 0 {
		t.Fatal(c)
	}
	paths, err := enqueue.ListDropped(h)
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	d, err := enqueue.OpenDropped(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	body, err := io.ReadAll(d.Body)
	if err != nil || string(body) != text || d.Envelope.Sender != "s" || !slices.Equal(d.Envelope.Recipients, []string{"a@b", ""}) {
		t.Errorf("%d bytes, %+v, %v", len(body), d.Envelope, err)
	}
}

func TestCodes(t *testing.T) {
	long := strings.Repeat("x", envelope.MaxAddress+1)
	tests := []struct {
		name, records string
		code          int
	}{
		{"no sender", "Ta\x00\x00", qq.CodeBug},
		{"two senders", "Fa\x00Fb\x00\x00", qq.CodeBug},
		{"the empty record first", "\x00", qq.CodeBug},
		{"nothing", "", qq.CodeRead},
		{"a sender cut short", "Fabc", qq.CodeRead},
		{"no end", "Fa\x00Tb\x00", qq.CodeRead},
		{"a long sender", "F" + long + "\x00\x00", qq.CodeTooLong},
		{"a long recipient", "F\x00T" + long + "\x00\x00", qq.CodeTooLong},
		{"a recipient without end", "F\x00T" + strings.Repeat(long, 10), qq.CodeTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := home(t)
			message, records, code := start(t, context.Background(), h)
			message.Close()
			io.WriteString(records, tt.records)
			records.Close()
			if c := wait(t, code); c != tt.code {
				t.Errorf("%d, want %d", c, tt.code)
			}
			if list, err := os.ReadDir(enqueue.DropDir(h)); err != nil || len(list) > 0 {
				t.Errorf("%v %v", list, err)
			}
		})
	}
}

func TestTrouble(t *testing.T) {
	t.Run("no home", func(t *testing.T) {
		_, _, code := start(t, context.Background(), "/nowhere/at/all")
		if c := wait(t, code); c != qq.CodeHome {
			t.Error(c)
		}
	})
	t.Run("no queue", func(t *testing.T) {
		message, records, code := start(t, context.Background(), t.TempDir())
		message.Close()
		io.WriteString(records, "F\x00\x00")
		if c := wait(t, code); c != qq.CodeQueueDir {
			t.Error(c)
		}
	})
	t.Run("a queue that is none", func(t *testing.T) {
		h := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(h, "queue"), 0o755), os.WriteFile(enqueue.DropDir(h), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		message, records, code := start(t, context.Background(), h)
		message.Close()
		io.WriteString(records, "F\x00\x00")
		if c := wait(t, code); c != qq.CodeFiles {
			t.Error(c)
		}
	})
	t.Run("time is up", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		message, _, code := start(t, ctx, home(t))
		io.WriteString(message, "x")
		if c := wait(t, code); c != qq.CodeTimeout {
			t.Error(c)
		}
		message.Close()
	})
	t.Run("a directory for a message", func(t *testing.T) {
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if c := Main(context.Background(), &env.Env{Home: home(t), Stdin: dir, Stdout: dir, Now: time.Now}, nil); c != qq.CodeRead {
			t.Error(c)
		}
	})
}

// An envelope has one reading: what is accepted, written again, is what was read.
func FuzzEnvelope(f *testing.F) {
	for _, s := range []string{"Fs\x00Ta\x00\x00", "F\x00\x00x", "Fs", "\x00", "T\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		e, code := readEnvelope(bufio.NewReader(strings.NewReader(in)))
		if (e == nil) == (code == 0) {
			t.Fatalf("%q: %+v, %d", in, e, code)
		}
		if e != nil && !strings.HasPrefix(in, string(append(e.Append(nil, false), 0))) {
			t.Fatalf("%q became %+v", in, e)
		}
	})
}
