package elq

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"qmail/internal/system/env"
)

// TestMain is also the programs themselves, since they become others.
func TestMain(m *testing.M) {
	mains := map[string]func(context.Context, *env.Env, []string) int{"elq": Elq, "pinq": Pinq, "qail": Qail}
	run, ok := mains[os.Args[0]]
	if !ok {
		os.Exit(m.Run())
	}
	e, err := env.Process()
	if err != nil {
		panic(err)
	}
	os.Exit(run(context.Background(), e, os.Args[1:]))
}

func TestReaders(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	call := func(name string) (string, int) {
		var b bytes.Buffer
		cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{name, "-x", "a b"}, Env: []string{"PATH=" + dir}, Stdout: &b, Stderr: &b}
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return b.String(), cmd.ProcessState.ExitCode()
	}
	script("maildir2mbox", "echo moved")
	for name, reader := range map[string]string{"elq": "elm", "pinq": "pine", "qail": "Mail"} {
		script(reader, `echo `+reader+` "$1" "$2"; exit 3`)
		if out, code := call(name); code != 3 || out != "moved\n"+reader+" -x a b\n" {
			t.Errorf("%s: %d %q", name, code, out)
		}
	}
	script("maildir2mbox", "exit 111")
	if out, code := call("elq"); code != 111 || out != "" {
		t.Errorf("mail that cannot be moved: %d %q", code, out)
	}
	script("maildir2mbox", "exit 0")
	if err := os.Remove(filepath.Join(dir, "elm")); err != nil {
		t.Fatal(err)
	}
	if out, code := call("elq"); code != 100 || out == "" {
		t.Errorf("no reader: %d %q", code, out)
	}
}
