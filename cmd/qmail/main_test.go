package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestMain is qmail itself under any name but that of a test.
func TestMain(m *testing.M) {
	if !strings.HasSuffix(os.Args[0], ".test") {
		main()
	}
	os.Exit(m.Run())
}

// call runs qmail under a name and returns what it says and its exit code.
func call(t *testing.T, argv ...string) (out, errs string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: argv, Env: []string{"QMAILHOME=/nonexistent"},
		Stdout: &stdout, Stderr: &stderr,
	}
	err := cmd.Run()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

func TestDispatch(t *testing.T) {
	tests := []struct {
		name      string
		argv      []string
		out, errs string // what they begin with
		code      int
	}{
		{"alone it lists its programs", []string{"qmail"}, "", "usage: qmail PROGRAM", 100},
		{"help is no error", []string{"/usr/bin/qmail", "help"}, "usage: qmail PROGRAM", "", 0},
		{"it has a version", []string{"qmail", "version"}, "qmail " + version + " go1.", "", 0},
		{"a program is found by its own name", []string{"/var/qmail/bin/qmail-init"}, "", "usage: qmail init", 100},
		{"a program is found by an argument", []string{"qmail", "init"}, "", "usage: qmail init", 100},
		{"an argument may be the whole name", []string{"qmail", "qmail-init"}, "", "usage: qmail init", 100},
		{"arguments are passed on", []string{"qmail", "init", "-home", "here", "a.example"}, "", "qmail-init: the home must be an absolute path: \"here\"", 100},
		{"a binary of any name is qmail", []string{"./qmail.new", "version"}, "qmail ", "", 0},
		{"an absent program makes its caller try later", []string{"qmail", "clean"}, "", "qmail-clean: qmail-send removes ", 111},
		{"and so under its own name", []string{"/var/qmail/bin/qsmhook", "-x"}, "", "qsmhook: preline does what it did\n", 111},
		{"an unknown program is the caller's mistake", []string{"qmail", "no\nsuch"}, "", `qmail: there is no program "no\nsuch"`, 100},
		{"a home must exist to be started", []string{"qmail", "start"}, "", "qmail-start: ", 111},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, errs, code := call(t, tt.argv...)
			if !strings.HasPrefix(out, tt.out) || !strings.HasPrefix(errs, tt.errs) || code != tt.code || (out == "") != (tt.out == "") {
				t.Errorf("exit %d\nstdout: %s\nstderr: %s", code, out, errs)
			}
		})
	}
}

func TestEveryNameIsListedOnce(t *testing.T) {
	out, _, _ := call(t, "qmail", "programs")
	names := strings.Fields(out)
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	if len(slices.Compact(sorted)) != len(names) {
		t.Errorf("a name is listed twice: %v", names)
	}
	for _, name := range []string{"qmail-start", "qmail-smtpd", "qmail-queue", "sendmail", "qmail-pop3d", "tcp-env", "forward"} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is missing", name)
		}
	}
	for _, name := range names {
		if p, ok := find(name); !ok || p.link != name {
			t.Errorf("%s leads to %q", name, p.link)
		}
	}
}
