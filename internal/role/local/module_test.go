package local

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"qmail/internal/proto/jobs"
)

func TestModuleReport(t *testing.T) {
	long := strings.Repeat("x", 4000)
	tests := []struct {
		name string
		code int
		out  string
		want string
	}{
		{"done", 0, "did 1+0+0\n", "Kdid 1+0+0\n"},
		{"done in silence", 0, "", "K"},
		{"never", 100, "no\n", "Dno\n"},
		{"later", 111, "wait\n", "Zwait\n"},
		{"the codes of sysexits.h that pass", 75, "wait\n", "Zwait\n"},
		{"an input or output error", 74, "x", "Zx"},
		{"an operating system error", 71, "x", "Zx"},
		{"any other code", 1, "oh\n", "Doh\n"},
		{"a code of the shell's", 127, "sh: not found\n", "Dsh: not found\n"},
		{"could not be executed", 126, "x", "DUnable to run qmail-local.\n"},
		{"NFS", 115, "x", "ZNFS failure in qmail-local.\n"},
		{"root", 113, "x", "ZNot allowed to perform deliveries as root.\n"},
		{"no getpw", 121, "x", "ZUnable to run qmail-getpw.\n"},
		{"a NUL ends the text", 100, "a\x00b", "Da"},
		{"a long report is cut", 100, long, "D" + long[:cutReport-len(tooLong)] + tooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := moduleReport(tt.code, []byte(tt.out)); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

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

func TestHowAProgramInThePlaceOfLocalEnds(t *testing.T) {
	w := newWorld(t)
	s := w.spawn(t, "QMAILLOCAL="+w.module(t, `
case $6 in
no) echo no; exit 100 ;;
crash) kill -9 $$ ;;
later) echo later; exit 75 ;;
esac
`))
	for ext, want := range map[string]string{"no": "Dno\n", "crash": moduleCrashed, "later": "Zlater\n", "": "K"} {
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
	if got := s.await(t, s.start(t, &jobs.Job{Sender: "s", Recipients: []string{"alice@test.example"}}, "x\n")); got != moduleUnable {
		t.Error(got)
	}
	w.write(t, "plain", "#!/bin/sh\n", 0o644)
	s = w.spawn(t, "QMAILLOCAL="+w.user+"/plain")
	if got := s.await(t, s.start(t, &jobs.Job{Sender: "s", Recipients: []string{"alice@test.example"}}, "x\n")); got != moduleUnable {
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
