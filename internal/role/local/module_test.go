package local

import (
	"fmt"
	"os"
	"testing"

	"qmail/internal/format/spawn"
	"qmail/internal/proto/jobs"
)

// module makes an executable of the user's for the place of qmail-local.
func (w *world) module(t *testing.T, text string) string {
	t.Helper()
	w.write(t, "module", "#!/bin/sh\n"+text, 0o755)
	return w.user + "/module"
}

// TestAProgramInThePlaceOfLocal runs as the user, in qmail's home, with the classic arguments.
func TestAProgramInThePlaceOfLocal(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail", "./Maildir/\n", 0o600)
	s := w.spawn(t, "QMAILLOCAL="+w.module(t, `
test -f /dev/stdin || exit 111
echo "$# $*"; pwd; id -u; head -n 1; env | sort | grep -v '^_=\|PWD=\|SHLVL=' | tr '\n' ' '
`))
	deliver := func(ext string, recipients ...string) string {
		return s.await(t, s.start(t, &jobs.Job{Sender: "s p@remote.example", Dash: "-", Ext: ext, Recipients: recipients}, "Subject: hi\n\nbody\n"))
	}
	uid := fmt.Sprint(os.Getuid())
	if os.Getuid() == 0 {
		uid = fmt.Sprint(nobody)
	}
	want := "K9 -- alice " + w.user + " alice-x - x test.example s p@remote.example ./Maildir/\n" + w.home + "\n" + uid + "\nSubject: hi\nPATH=/usr/bin:/bin QMAILHOME=" + w.home + " "
	if got := deliver("x", "alice-x@test.example"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := s.await(t, s.start(t, &jobs.Job{Verify: true, Dash: "-", Ext: "nobody", Recipients: []string{"alice-nobody@test.example"}}, "")); got != "K\n" {
		t.Errorf("only the program knows: %q", got)
	}
	if len(w.mailbox(t, "Maildir")) != 0 {
		t.Error(".qmail counted all the same")
	}
}

// TestTheAliasUserHasTheAddressesOfItsFiles: with a program in the place of qmail-local, too, what is nobody's is refused
// at RCPT, and does not have to be bounced.
func TestTheAliasUserHasTheAddressesOfItsFiles(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail-known", "./Maildir/\n", 0o600)
	s := w.spawnFor(t, "alias", "QMAILLOCAL="+w.module(t, "echo the program\n"))
	verify := func(ext string) string {
		return s.await(t, s.start(t, &jobs.Job{Verify: true, Dash: "-", Ext: ext, Recipients: []string{ext + "@test.example"}}, ""))
	}
	if got := verify("known"); got != "K\n" {
		t.Errorf("a known one: %q", got)
	}
	if got := verify("unknown"); got != "DSorry, no mailbox here by that name. (#5.1.1)\n" {
		t.Errorf("an unknown one: %q", got)
	}
	if got := s.await(t, s.start(t, &jobs.Job{Sender: "s", Dash: "-", Ext: "known", Recipients: []string{"known@test.example"}}, "x\n")); got != "Kthe program\n" {
		t.Errorf("a delivery: %q", got)
	}
}

func TestHowAProgramInThePlaceOfLocalEnds(t *testing.T) {
	w := newWorld(t)
	s := w.spawn(t, "QMAILLOCAL="+w.module(t, `
case $6 in
no) echo no; exit 100 ;;
crash) kill -9 $$ ;;
later) echo later; exit 75 ;;
esac
`))
	for ext, want := range map[string]string{"no": "Dno\n", "crash": spawn.LocalCrashed, "later": "Zlater\n", "": "K"} {
		got := s.await(t, s.start(t, &jobs.Job{Sender: "s", Dash: "-", Ext: ext, Recipients: []string{"alice-" + ext + "@test.example"}}, "x\n"))
		if got != want {
			t.Errorf("%s: %q, want %q", ext, got, want)
		}
	}
}

// TestAMissingLocalDefers: during an upgrade mail waits. (qmail-lspawn bounced all of it.)
func TestAMissingLocalDefers(t *testing.T) {
	w := newWorld(t)
	s := w.spawn(t, "QMAILLOCAL=/no/such/local")
	if got := s.await(t, s.start(t, &jobs.Job{Sender: "s", Recipients: []string{"alice@test.example"}}, "x\n")); got != spawn.LocalUnable {
		t.Error(got)
	}
	w.write(t, "plain", "#!/bin/sh\n", 0o644)
	s = w.spawn(t, "QMAILLOCAL="+w.user+"/plain")
	if got := s.await(t, s.start(t, &jobs.Job{Sender: "s", Recipients: []string{"alice@test.example"}}, "x\n")); got != spawn.LocalUnable {
		t.Error(got)
	}
}

// TestTheClassicLocalInItsOwnPlace: our own qmail-local has the classic interface, too.
func TestTheClassicLocalInItsOwnPlace(t *testing.T) {
	w := newWorld(t)
	self, err := os.ReadFile("/proc/self/exe") // a copy, since the user may not see where this one lies
	must(t, err)
	must(t, os.WriteFile(w.user+"/qmail-local", self, 0o755))
	w.write(t, ".qmail", "./Maildir/\n|echo \"$SENDER $EXT\"\n", 0o600)
	w.write(t, ".qmail-no", "|echo never; exit 100\n", 0o600)
	s := w.spawn(t, "QMAILLOCAL="+w.user+"/qmail-local")
	if got := s.await(t, s.start(t, &jobs.Job{Sender: "s@x", Recipients: []string{"alice@test.example"}}, "x\n")); got != "Ks@x \ndid 1+0+1\n" {
		t.Errorf("%q", got)
	}
	if got := s.await(t, s.start(t, &jobs.Job{Sender: "s@x", Dash: "-", Ext: "no", Recipients: []string{"alice-no@test.example"}}, "x\n")); got != "Dnever\n" {
		t.Errorf("%q", got)
	}
	if got := w.mailbox(t, "Maildir"); len(got) != 1 || got[0] != "Return-Path: <s@x>\nDelivered-To: alice@test.example\nx\n" {
		t.Errorf("%q", got)
	}
}
