package child

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
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
