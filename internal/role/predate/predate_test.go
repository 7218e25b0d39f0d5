package predate

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/env"
)

func run(t *testing.T, in string, args ...string) (int, string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		defer w.Close()
		w.WriteString(in)
	}()
	var out bytes.Buffer
	e := &env.Env{
		Stdin: r, Stdout: &out, Stderr: &out, Vars: []string{"TZ=XST+5:30", "PATH=/usr/bin:/bin"},
		Now: func() time.Time { return time.Unix(1800000000, 0) },
	}
	return Main(context.Background(), e, args), out.String()
}

func TestMain(t *testing.T) {
	tests := []struct {
		name, args, want string
		code             int
	}{
		{"a Date field comes first", "cat", "Date: 15 Jan 2027 02:30:00 -0530\nSubject: x\n", 0},
		{"the child's exit code is ours", "sh|-c|cat >/dev/null; exit 17", "", 17},
		{"a child need not read", "true", "", 0},
		{"a crash is told", "sh|-c|kill -9 $$", "predate: fatal: child crashed\n", 111},
		{"a program that is none", "/nowhere/at/all", "predate: fatal: unable to run /nowhere/at/all: ", 111},
		{"nothing to run", "", "predate: usage: predate child\n", 100},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var args []string
			if tt.args != "" {
				args = strings.Split(tt.args, "|")
			}
			code, out := run(t, "Subject: x\n", args...)
			if code != tt.code || !strings.HasPrefix(out, tt.want) || tt.want == "" && out != "" {
				t.Errorf("%d %q", code, out)
			}
		})
	}
}

// A child that ends does not wait for the rest of our input, which may never come.
func TestAnInputThatStaysOpen(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	done := make(chan int, 1)
	go func() {
		done <- Main(context.Background(), &env.Env{Stdin: r, Stderr: os.Stderr, Now: time.Now}, []string{"true"})
	}()
	select {
	case code := <-done:
		if code != 0 {
			t.Error(code)
		}
	case <-time.After(20 * time.Second):
		t.Error("still waiting")
	}
}
