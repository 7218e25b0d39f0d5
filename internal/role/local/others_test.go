package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program skips a test without a program that others have written; Debian has it in that package.
func program(t *testing.T, pkg, path string) string {
	t.Helper()
	found, err := exec.LookPath(path)
	if err != nil {
		t.Skipf("%s is not here; it comes with Debian's %s", path, pkg)
	}
	return found
}

const hello = "From: a@x.example\nTo: alice@test.example\nSubject: hello\n\nbody\n"

func TestMaildropBehindAProgramLine(t *testing.T) {
	path := program(t, "maildrop", "maildrop")
	w := newWorldOf(t, 65534) // it wants its user to have a name
	w.write(t, "filter", "if (/^Subject: refuse/)\n{\n  echo \"no such mail, please\"\n  EXITCODE=100\n  exit\n}\nif (/^Subject: later/)\n{\n  EXITCODE=111\n  exit\n}\nto \"./Maildir/\"\n", 0o600)
	w.write(t, ".qmail", "|"+path+" ./filter\n", 0o600)
	if got := w.deliver(t, "", "", hello); got != "Kdid 0+0+1\n" {
		t.Errorf("%q", got)
	}
	if got := w.deliver(t, "", "", strings.Replace(hello, "hello", "refuse", 1)); got != "Dno such mail, please\n" {
		t.Errorf("%q", got)
	}
	if got := w.deliver(t, "", "", strings.Replace(hello, "hello", "later", 1)); got != "Z" {
		t.Errorf("%q", got)
	}
	if got := w.mailbox(t, "Maildir"); len(got) != 1 || got[0] != hello {
		t.Errorf("%q", got)
	}
}

func TestDovecotLDABehindAProgramLine(t *testing.T) {
	path := program(t, "dovecot-core", "/usr/lib/dovecot/dovecot-lda")
	w := newWorld(t)
	w.write(t, ".qmail", "|preline() { printf '%s%s' \"$RPLINE\" \"$DTLINE\"; cat; }; preline | "+path+
		" -c /dev/null -o mail_location=maildir:~/Dovecot -o postmaster_address=p@test.example -f \"$SENDER\" -a \"$RECIPIENT\"\n", 0o600)
	if got := w.deliver(t, "", "", hello); got[0] != 'K' || !strings.Contains(got, "did 0+0+1\n") {
		t.Errorf("%q", got)
	}
	want := "Return-Path: <s@remote.example>\nDelivered-To: alice@test.example\n" + hello
	if got := w.mailbox(t, "Dovecot"); len(got) != 1 || got[0] != want {
		t.Errorf("%q", got)
	}
	w.write(t, ".qmail", "|"+path+" -c /dev/null -o mail_location=maildir:/no/such/place -o postmaster_address=p@test.example\n", 0o600)
	if got := w.deliver(t, "", "", hello); got[0] != 'Z' {
		t.Errorf("where dovecot cannot write: %q", got)
	}
}

func TestMlmmjBehindAProgramLine(t *testing.T) {
	path := program(t, "mlmmj", "mlmmj-receive")
	w := newWorld(t)
	list := w.user + "/list"
	for _, dir := range []string{"", "incoming", "queue", "queue/discarded", "archive", "text", "subconf", "unsubconf", "bounce", "control",
		"moderation", "subscribers.d", "digesters.d", "nomailsubs.d", "requeue"} {
		must(t, os.Mkdir(filepath.Join(list, dir), 0o700))
		w.own(t, filepath.Join(list, dir))
	}
	for name, text := range map[string]string{"control/listaddress": "alice-list@test.example\n", "control/owner": "o@test.example\n", "index": "0\n"} {
		w.write(t, "list/"+name, text, 0o600)
	}
	w.write(t, ".qmail-list", "|"+path+" -F -L "+list+"\n", 0o600)
	if got := w.deliver(t, "-", "list", strings.Replace(hello, "alice@", "alice-list@", 1)); got != "Kdid 0+0+1\n" {
		t.Errorf("%q", got)
	}
	got, err := os.ReadFile(filepath.Join(list, "archive", "1")) // written by the time -F ends
	if err != nil || !strings.Contains(string(got), "Subject: hello\n\nbody\n") {
		t.Errorf("%q %v", got, err)
	}
}
