package setlock

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmail/internal/system/env"
)

// TestMain is also setlock itself, since that becomes another program.
func TestMain(m *testing.M) {
	if os.Args[0] != "setlock" {
		os.Exit(m.Run())
	}
	e, err := env.Process()
	if err != nil {
		panic(err)
	}
	os.Exit(Main(context.Background(), e, os.Args[1:]))
}

func call(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	var b bytes.Buffer
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{"setlock"}, args...), Env: []string{"PATH=/usr/bin:/bin"}, Stdout: &b, Stderr: &b}
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return b.String(), cmd.ProcessState.ExitCode()
}

func TestSetlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if out, code := call(t, path, "sh", "-c", "echo here; exit 7"); code != 7 || out != "here\n" {
		t.Errorf("%d %q", code, out)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if out, code := call(t, "-n", path, "echo", "here"); code != 111 || !strings.HasPrefix(out, "setlock: fatal: unable to lock ") {
		t.Errorf("%d %q", code, out)
	}
	if out, code := call(t, "-nx", path, "echo", "here"); code != 0 || out != "" {
		t.Errorf("%d %q", code, out)
	}
	// A program that setlock runs holds the lock for as long as it lives.
	if out, code := call(t, path+".2", "sh", "-c", "exec 9>"+path+".2; flock -n 9 && echo free || echo held"); code != 0 || out != "held\n" {
		t.Errorf("%d %q", code, out)
	}
	if out, code := call(t, path+".2", "/no/such/program"); code != 100 || !strings.HasPrefix(out, "setlock: fatal: unable to run ") {
		t.Errorf("%d %q", code, out)
	}
	if out, code := call(t, path+"/no/such", "true"); code != 111 {
		t.Errorf("%d %q", code, out)
	}
	if _, code := call(t, "-z", path, "true"); code != 100 {
		t.Errorf("%d", code)
	}
}
