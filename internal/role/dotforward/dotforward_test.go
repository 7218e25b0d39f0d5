package dotforward

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/env"
)

const message = "Subject: x\n\nbody\n"

// world is a home with a queue program that keeps what it gets.
func world(t *testing.T, queueExit string) (dir string, e *env.Env, said *bytes.Buffer) {
	t.Helper()
	dir = t.TempDir()
	for path, text := range map[string]string{
		"control/me": "h.example\n", "control/defaultdomain": "d.example\n", "message": message,
		"queue": "#!/bin/sh\ncat >" + dir + "/queued; cat <&1 >" + dir + "/envelope; exit " + queueExit + "\n",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in, err := os.Open(filepath.Join(dir, "message"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	said = &bytes.Buffer{}
	e = &env.Env{Home: dir, Stdin: in, Stdout: said, Stderr: said, Now: time.Now, Vars: []string{
		"PATH=/usr/bin:/bin", "USER=joe", "HOST=x.example", "NEWSENDER=s@x.example", "QMAILQUEUE=" + filepath.Join(dir, "queue"),
		"DTLINE=Delivered-To: joe@x.example\n", "RPLINE=Return-Path: <s@x.example>\n", "UFLINE=From s@x.example Mon\n",
	}}
	return dir, e, said
}

func queued(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "envelope"))
	if err != nil {
		return ""
	}
	m, _ := os.ReadFile(filepath.Join(dir, "queued"))
	return strings.ReplaceAll(string(b), "\x00", "|") + string(m)
}

func TestFiles(t *testing.T) {
	const head = "Delivered-To: joe@x.example\n"
	tests := []struct {
		name, file, queue string
		code              int
		queued, piped     string
		said              string
	}{
		{"an address", "ann\n", "0", 99, "Fs@x.example|Tann@h.example||" + head + message, "", "dot-forward: qp "},
		{"several on a line, and comments", "# me\nann, bob@y (Bob)\n<c@z>\n", "0", 99, "Fs@x.example|Tann@h.example|Tbob@y.d.example|Tc@z.d.example||" + head + message, "", "dot-forward: qp "},
		{"the user himself", "\\joe\n", "0", 0, "", "", ""},
		{"the user by address, and another", "JOE@X.example, ann\n", "0", 0, "Fs@x.example|Tann@h.example||" + head + message, "", "dot-forward: qp "},
		{"a program", "\"|cat >DIR/piped\"\n", "0", 99, "", "From s@x.example Mon\nReturn-Path: <s@x.example>\n" + head + message, ""},
		{"a program that says never", "\"|exit 100\", ann\n", "0", 100, "", "", "dot-forward: fatal: permanent error of exit 100\n"},
		{"a program that says later", "\"|exit 1\", ann\n", "0", 111, "", "", "dot-forward: fatal: temporary error of exit 1\n"},
		{"a program cannot end it all", "\"|exit 99\"\n", "0", 111, "", "", "dot-forward: fatal: temporary error of exit 99\n"},
		{"a program and an address", "\"|cat >DIR/piped\", ann\n", "0", 99, "Fs@x.example|Tann@h.example||" + head + message, "From s@x.example Mon\nReturn-Path: <s@x.example>\n" + head + message, "dot-forward: qp "},
		{"a file", "/var/mail/joe\n", "0", 111, "", "", "dot-forward: fatal: file delivery /var/mail/joe not supported\n"},
		{"an included list", ":include:x\n", "0", 111, "", "", "dot-forward: fatal: :include: x not supported\n"},
		{"what is wrong later stops what comes before", "ann\n\"|cat >DIR/piped\"\na: b;\n", "0", 111, "", "", "dot-forward: fatal: unable to parse this line: a: b;\n"},
		{"an empty file", "", "0", 0, "", "", ""},
		{"only comments", "# x\n", "0", 0, "", "", ""},
		{"a queue that refuses", "ann\n", "31", 100, "-", "", "dot-forward: fatal: mail server permanently rejected message (#5.3.0)\n"},
		{"a queue in trouble", "ann\n", "53", 111, "-", "", "dot-forward: fatal: qq write error or disk full (#4.3.0)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, e, said := world(t, tt.queue)
			file := filepath.Join(dir, "forward")
			if err := os.WriteFile(file, []byte(strings.ReplaceAll(tt.file, "DIR", dir)), 0o600); err != nil {
				t.Fatal(err)
			}
			code := Main(t.Context(), e, []string{filepath.Join(dir, "none"), file})
			if code != tt.code || !strings.HasPrefix(said.String(), tt.said) || (tt.said == "") != (said.Len() == 0) {
				t.Errorf("exit %d, said %q", code, said)
			}
			if got := queued(dir); got != tt.queued && tt.queued != "-" {
				t.Errorf("queued %q", got)
			}
			if b, _ := os.ReadFile(filepath.Join(dir, "piped")); string(b) != tt.piped {
				t.Errorf("piped %q", b)
			}
		})
	}
}

func TestDryRun(t *testing.T) {
	dir, e, said := world(t, "0")
	file := filepath.Join(dir, "forward")
	if err := os.WriteFile(file, []byte("joe, ann, \"|x y\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := Main(t.Context(), e, []string{"-n", file}); code != 0 || said.String() != "forward ann@h.example\npipe through x y\ndirect delivery\n" || queued(dir) != "" {
		t.Errorf("exit %d, said %q", code, said)
	}
}

func TestMisuse(t *testing.T) {
	dir, e, _ := world(t, "0")
	if code := Main(t.Context(), e, nil); code != 100 {
		t.Errorf("no file: %d", code)
	}
	if code := Main(t.Context(), e, []string{dir}); code != 111 {
		t.Errorf("a directory: %d", code)
	}
	if code := Main(t.Context(), &env.Env{Home: dir, Stderr: io.Discard}, []string{"x"}); code != 100 {
		t.Errorf("outside a .qmail file: %d", code)
	}
	if code := Main(t.Context(), e, []string{filepath.Join(dir, "none")}); code != 0 {
		t.Errorf("no file at all: %d", code)
	}
}
