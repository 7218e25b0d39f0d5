package maildirserial

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/env"
)

const old = 1000000000

// world is a home with a Maildir and a queue program that keeps what it gets.
func world(t *testing.T, messages map[string]string) (dir string, e *env.Env, said *bytes.Buffer) {
	t.Helper()
	dir = t.TempDir()
	files := map[string]string{
		"control/me": "h.example\n",
		"queue":      "#!/bin/sh\nn=" + dir + "/queued.$$; cat >$n; cat <&1 >>$n\n", "Maildir/tmp/x": "", "Maildir/cur/.x": "",
	}
	for name, text := range messages {
		files["Maildir/new/"+name] = text
	}
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(old, 0), time.Unix(old, 0)); err != nil {
			t.Fatal(err)
		}
	}
	said = &bytes.Buffer{}
	return dir, &env.Env{Home: dir, Stderr: said, Now: func() time.Time { return time.Unix(old+1000, 0) }, Vars: []string{
		"PATH=/usr/bin:/bin", "QMAILQUEUE=" + filepath.Join(dir, "queue"),
	}}, said
}

func left(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(dir, "Maildir/new"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range list {
		names = append(names, f.Name())
	}
	sort.Strings(names)
	return strings.Join(names, " ")
}

func queued(t *testing.T, dir string) (all []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "queued.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.ReplaceAll(string(b), "\x00", "|"))
	}
	return all
}

func letter(sender, recipient string) string {
	return fmt.Sprintf("Return-Path: <%s>\nDelivered-To: p-%s\nSubject: x\n\nbody\n", sender, recipient)
}

// client is a script that says something about each name, chosen by its last letter.
const client = `tr '\0' '\n' | while read n; do case $n in
*k) r=Kok;; *d) r='Dno (#5.1.1)';; *z) r=Zlater;; *) r=huh;; esac; printf '%s\000%s\n' "$n" "$r"; done`

func TestResults(t *testing.T) {
	messages := map[string]string{
		"1.k": letter("s@x", "a@y"), "2.d": letter("s@x", "b@y"), "3.z": letter("s@x", "c@y"), "4.k": "Subject: not ours\n\nx\n",
		"5.k": letter("s@x", "e@y"), "6.odd": letter("s@x", "f@y"),
	}
	dir, e, said := world(t, messages)
	code := Main(t.Context(), e, []string{filepath.Join(dir, "Maildir"), "p-", "sh", "-c", client})
	if code != 111 || !strings.HasSuffix(said.String(), "maildirserial: fatal: making no progress, giving up\n") {
		t.Errorf("%d %s", code, said)
	}
	if got := left(t, dir); got != "2.d 3.z 4.k 6.odd" {
		t.Errorf("left %s", got)
	}
	if q := queued(t, dir); len(q) > 0 {
		t.Errorf("bounced %q", q)
	}
}

func TestNothingToDo(t *testing.T) {
	dir, e, said := world(t, map[string]string{"1.k": letter("s@x", "a@y")})
	if code := Main(t.Context(), e, []string{filepath.Join(dir, "Maildir"), "p-", "sh", "-c", client}); code != 0 || said.Len() > 0 {
		t.Errorf("%d %s", code, said)
	}
	if code := Main(t.Context(), e, []string{filepath.Join(dir, "Maildir"), "p-", "/no/such/client"}); code != 0 || left(t, dir) != "" {
		t.Errorf("%d %s", code, said)
	}
}

func TestBounces(t *testing.T) {
	dir, e, said := world(t, map[string]string{"1.d": letter("s@x", "b@y")})
	if code := Main(t.Context(), e, []string{"-b", filepath.Join(dir, "Maildir"), "p-", "sh", "-c", client}); code != 0 || left(t, dir) != "" {
		t.Errorf("%d %s", code, said)
	}
	want := "Date: 9 Sep 2001 02:03:20 -0000\nFrom: MAILER-DAEMON@h.example\nTo: s@x\nSubject: failure notice\n\n" +
		"Hi. This is the maildirbounce program at h.example.\nI'm afraid I wasn't able to deliver your message to the following address.\n" +
		"This is a permanent error; I've given up. Sorry it didn't work out.\n\n<b@y>:\nno (#5.1.1)\n\n" +
		"--- Below this line is a copy of the message.\n\nReturn-Path: <s@x>\nSubject: x\n\nbody\nF|Ts@x||"
	if q := queued(t, dir); len(q) != 1 || q[0] != want {
		t.Errorf("%q", q)
	}
}

func TestABounceOfABounce(t *testing.T) {
	dir, e, said := world(t, map[string]string{"1.d": letter("", "b@y"), "2.d": letter("#@[]", "b@y")})
	if code := Main(t.Context(), e, []string{"-b", filepath.Join(dir, "Maildir"), "p-", "sh", "-c", client}); code != 0 || left(t, dir) != "" {
		t.Errorf("%d %s", code, said)
	}
	q := queued(t, dir)
	if len(q) != 1 || !strings.HasSuffix(q[0], "F#@[]|Tpostmaster@h.example||") || !strings.Contains(q[0], "but the bounce bounced!\n\n<b@y>:\n") {
		t.Errorf("%q", q)
	}
}

func TestWhatIsTooOldBounces(t *testing.T) {
	for secs, want := range map[string]int{"999": 0, "1001": 111} {
		dir, e, said := world(t, map[string]string{"1.z": letter("s@x", "b@y")})
		if code := Main(t.Context(), e, []string{"-bt", secs, filepath.Join(dir, "Maildir"), "p-", "sh", "-c", client}); code != want {
			t.Errorf("%s: %d %s", secs, code, said)
		}
		if q := queued(t, dir); want == 0 && (len(q) != 1 || !strings.Contains(q[0], "<b@y>:\nlater\nThis message is too old. Giving up.\n\n---")) {
			t.Errorf("%q", q)
		}
	}
}

func TestABounceThatCannotBeQueuedKeepsTheMessage(t *testing.T) {
	dir, e, said := world(t, map[string]string{"1.d": letter("s@x", "b@y")})
	e.Vars = append([]string{"QMAILQUEUE=/no/such/program"}, e.Vars...)
	code := Main(t.Context(), e, []string{"-b", filepath.Join(dir, "Maildir"), "p-", "sh", "-c", client})
	if code != 111 || left(t, dir) != "1.d" || !strings.Contains(said.String(), "unable to queue a bounce") {
		t.Errorf("%d %s", code, said)
	}
}

func TestBadClients(t *testing.T) {
	for name, script := range map[string]string{
		"one that crashes":          "kill -9 $$",
		"one that says nothing":     "cat >/dev/null",
		"one that stops in between": `tr '\0' '\n' | head -1 | while read n; do printf '%s\000K' "$n"; done`,
		"one that raves":            "yes | tr -d '\\n' | head -c 100000",
		"one that invents names":    `printf '/etc/passwd\000Kok\n../../../etc/passwd\000Kok\n'`,
	} {
		dir, e, said := world(t, map[string]string{"1.k": letter("s@x", "b@y")})
		if code := Main(t.Context(), e, []string{filepath.Join(dir, "Maildir"), "p-", "sh", "-c", script}); code != 111 || left(t, dir) != "1.k" {
			t.Errorf("%s: %d %s, left %s", name, code, said, left(t, dir))
		}
	}
}

func TestMisuse(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing": nil, "no client": {"dir", "p-"}, "no number": {"-t", "x", "dir", "p-", "true"}, "no such option": {"-x", "dir", "p-", "true"},
	} {
		if code := Main(t.Context(), &env.Env{Stderr: &bytes.Buffer{}}, args); code != 100 {
			t.Errorf("%s: %d", name, code)
		}
	}
	if code := Main(t.Context(), &env.Env{Stderr: &bytes.Buffer{}}, []string{"/no/such/dir", "p-", "true"}); code != 111 {
		t.Errorf("no Maildir: %d", code)
	}
}
