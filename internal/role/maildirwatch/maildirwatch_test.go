package maildirwatch

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/env"
)

func TestAScreen(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"tmp", "new", "cur"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	const message = "Return-Path: <s@x>\nDelivered-To: me@y\nFrom: S \x1b[31m<s@x>\nSubject: hi\n\nline 1\nline 2\n"
	for name, text := range map[string]string{"new/a": message, "cur/b:2,S": "Subject: seen\n\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code := Main(ctx, &env.Env{Stdout: &out, Stderr: &errs, Now: time.Now, Vars: []string{"MAILDIR=" + dir}}, nil)
	const want = "\x1b[;H\x1b[;JFROM <s@x> TO <me@y>\n\x1b[1mFrom: S ?[31m<s@x>\x1b[0m\nhi line 1 line 2\n\n"
	if code != 0 || out.String() != want {
		t.Errorf("%d %q %s", code, out.String(), errs.String())
	}
}

func TestNoMaildir(t *testing.T) {
	for _, vars := range [][]string{nil, {"MAILDIR=/no/such"}} {
		var errs bytes.Buffer
		if code := Main(t.Context(), &env.Env{Stderr: &errs, Now: time.Now, Vars: vars}, nil); code != 111 || !strings.HasPrefix(errs.String(), "maildirwatch: fatal: ") {
			t.Errorf("%d %s", code, errs.String())
		}
	}
}
