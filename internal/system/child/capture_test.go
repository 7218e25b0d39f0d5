package child

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCapture(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	in := write("in", "hello\n", 0o644)
	write("script", "#!/bin/sh\ncat; echo \"$0 $*\" >&2; exit 3\n", 0o755)
	write("naked", "cat\necho \"$1\"\n", 0o755)
	write("locked", "#!/bin/sh\n", 0o644)
	vars := []string{"PATH=" + dir + ":/usr/bin:/bin", "A=b"}
	tests := []struct {
		name string
		argv string
		keep int
		out  string
		code int
		err  error
	}{
		{"found in PATH, both descriptors", "script 1 2", 100, "hello\n" + dir + "/script 1 2\n", 3, nil},
		{"relative to its directory", "./script", 100, "hello\n./script \n", 3, nil},
		{"without a first line", "naked x", 100, "hello\nx\n", 0, nil},
		{"only the beginning", "cat", 3, "hel", 0, nil},
		{"not there", "nobody", 100, "", 0, syscall.ENOENT},
		{"not there by its path", "/no/such/program", 100, "", 0, syscall.ENOENT},
		{"not executable", "./locked", 100, "", 0, syscall.EACCES},
		{"killed", "./killed", 100, "last words\n", -1, ErrCrashed},
	}
	write("killed", "#!/bin/sh\necho last words; kill -9 $$\n", 0o755)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.Open(in)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			c := Capture{Argv: strings.Fields(tt.argv), Vars: vars, Dir: dir, Stdin: f, Keep: tt.keep}
			out, code, err := c.Run(t.Context())
			if string(out) != tt.out || code != tt.code && err == nil || !errors.Is(err, tt.err) {
				t.Errorf("%q %d %v", out, code, err)
			}
		})
	}
}

func TestCaptureIsKilledWithItsGroup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	c := Capture{Argv: []string{"sh", "-c", "echo on; sleep 60 & sleep 60"}, Vars: os.Environ(), Keep: 10}
	out, _, err := c.Run(ctx)
	if string(out) != "on\n" || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 10*time.Second {
		t.Errorf("%q %v after %v", out, err, time.Since(began))
	}
}

func TestCaptureOfAFlood(t *testing.T) {
	c := Capture{Argv: []string{"yes"}, Vars: os.Environ(), Keep: 10}
	if out, _, err := c.Run(t.Context()); len(out) != 10 || err == nil {
		t.Errorf("%q %v", out, err)
	}
}
