package child

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("exit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "closed"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		argv  []string
		path  string
		code  int
		crash bool
	}{
		{"an exit code comes back", []string{"sh", "-c", "exit 3"}, "/usr/bin:/bin", 3, false},
		{"a program that is nowhere is a permanent error", []string{"no-such-program"}, "/usr/bin:/bin", Never, false},
		{"so is a path to nothing", []string{"/no/such/program"}, "", Never, false},
		{"so is one that may not be run", []string{"closed"}, dir, Never, false},
		{"so is no name at all", []string{""}, dir, Never, false},
		{"the search goes on after a directory without it", []string{"script"}, "/nonexistent:" + dir, 7, false},
		{"a file without a format is a script", []string{script}, "", 7, false},
		{"a signal is a crash", []string{"/bin/sh", "-c", "kill -9 $$"}, "", 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, err := Run(t.Context(), tt.argv, []string{"PATH=" + tt.path}, os.Stdin, os.Stdout, os.Stderr)
			if code != tt.code || errors.Is(err, ErrCrashed) != tt.crash {
				t.Errorf("%d %v", code, err)
			}
		})
	}
}

func TestAnEndedContextEndsTheProgram(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start([]string{"/bin/sh", "-c", "echo here; exec sleep 60"}, nil, nil, w)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if line, err := io.ReadAll(io.LimitReader(r, 5)); err != nil || !bytes.Equal(line, []byte("here\n")) {
		t.Fatalf("%q %v", line, err)
	}
	cancel()
	began := time.Now()
	if _, err := Wait(ctx, p); !errors.Is(err, ErrCrashed) || time.Since(began) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestRunFed(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	code, err := RunFed(t.Context(), []string{"/bin/sh", "-c", "cat; exit 5"}, nil, "head\n", strings.NewReader("body\n"), w, nil)
	w.Close()
	got, _ := io.ReadAll(r)
	if code != 5 || err != nil || string(got) != "head\nbody\n" {
		t.Errorf("%d %v %q", code, err, got)
	}
	// A program that reads nothing is no trouble, one that gets half a message must not succeed with it.
	if code, err := RunFed(t.Context(), []string{"/bin/true"}, nil, strings.Repeat("x", 1<<20), strings.NewReader(""), nil, nil); code != 0 || err != nil {
		t.Errorf("%d %v", code, err)
	}
	half := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := RunFed(t.Context(), []string{"/bin/sh", "-c", "cat >/dev/null; sleep 60"}, nil, "", half, nil, nil); !errors.Is(err, ErrCrashed) {
		t.Errorf("half a message: %v", err)
	}
	if _, err := RunFed(t.Context(), []string{"/no/such"}, nil, "", half, nil, nil); err == nil {
		t.Error("ran nothing")
	}
}
