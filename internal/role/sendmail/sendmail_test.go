package sendmail

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, args string
		want       options
		bad        bool
	}{
		{"recipients", "a b", options{mode: 'm', recipients: []string{"a", "b"}}, false},
		{"what PHP says", "-t -i", options{mode: 'm', fromHeader: true}, false},
		{"what cron says", "-FCronDaemon -i -B8BITMIME -oem root", options{mode: 'm', hasName: true, name: "CronDaemon", message: []string{"BODY=8BITMIME"}, recipients: []string{"root"}}, false},
		{"what mutt says", "-oem -oi -f a@b -- c@d", options{mode: 'm', hasSender: true, sender: "a@b", recipients: []string{"c@d"}}, false},
		{"what git says", "-i -f a@b c@d", options{mode: 'm', hasSender: true, sender: "a@b", recipients: []string{"c@d"}}, false},
		{"brackets around a sender", "-f<a@b> c", options{mode: 'm', hasSender: true, sender: "a@b", recipients: []string{"c"}}, false},
		{"the null sender", "-f <> c", options{mode: 'm', hasSender: true, null: true, recipients: []string{"c"}}, false},
		{"the old name of -f", "-r a@b c", options{mode: 'm', hasSender: true, sender: "a@b", recipients: []string{"c"}}, false},
		{"notifications", "-N success,failure -R hdrs -V a=b c", options{mode: 'm', recipient: []string{"NOTIFY=SUCCESS,FAILURE"}, message: []string{"RET=HDRS", "ENVID=a+3Db"}, recipients: []string{"c"}}, false},
		{"never", "-Nnever c", options{mode: 'm', recipient: []string{"NOTIFY=NEVER"}, recipients: []string{"c"}}, false},
		{"notifications that are none", "-N maybe -R all c", options{mode: 'm', recipients: []string{"c"}}, false},
		{"options that mean nothing here", "-v -m -x -U -G -n -h5 -O DeliveryMode=b -L tag -Am -X/dev/null -Cfile -d0.1 c", options{mode: 'm', recipients: []string{"c"}}, false},
		{"-bs ends the command line", "-bs -Z", options{mode: 's'}, false},
		{"so does -bp", "-bp -Z", options{mode: 'p'}, false},
		{"verification", "-bv a", options{mode: 'v', recipients: []string{"a"}}, false},
		{"a queue run", "-q15m", options{mode: 'q'}, false},
		{"-q beside recipients is about time", "-q a", options{mode: 'm', recipients: []string{"a"}}, false},
		{"a daemon", "-bd", options{}, true},
		{"a letter that sendmail does not know", "-Z", options{}, true},
		{"an argument that is missing", "-f", options{}, true},
		{"options after a recipient are recipients", "a -t", options{mode: 'm', recipients: []string{"a", "-t"}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := parse(strings.Fields(tt.args))
			if (err != nil) != tt.bad {
				t.Fatal(err)
			}
			if tt.bad {
				return
			}
			w := tt.want
			if o.mode != w.mode || o.fromHeader != w.fromHeader || o.hasSender != w.hasSender || o.sender != w.sender || o.null != w.null ||
				o.hasName != w.hasName || o.name != w.name || !slices.Equal(o.recipients, w.recipients) ||
				!slices.Equal(o.message, w.message) || !slices.Equal(o.recipient, w.recipient) {
				t.Errorf("%+v, want %+v", o, w)
			}
		})
	}
}

func TestVars(t *testing.T) {
	e := &env.Env{Vars: []string{"QMAILNAME=N", "MAILHOST=h", "USER=joe", "NAME=M"}}
	tests := []struct {
		o    options
		want string
	}{
		{options{}, "QMAILNAME=N MAILHOST=h USER=joe NAME=M"},
		{options{hasSender: true, sender: "a@b@c"}, "QMAILHOST=c QMAILUSER=a@b USER=joe"},
		{options{hasSender: true, sender: "a"}, "QMAILUSER=a USER=joe"},
		{options{hasSender: true, null: true}, "QMAILNAME=N MAILHOST=h USER=joe NAME=M"},
		{options{hasName: true, name: "X Y"}, "MAILNAME=X Y QMAILNAME=N MAILHOST=h USER=joe NAME=M"},
		{options{hasSender: true, sender: "a", hasName: true, name: "X"}, "MAILNAME=X QMAILUSER=a USER=joe"},
	}
	for _, tt := range tests {
		if got := strings.Join(tt.o.vars(e), " "); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.o, got, tt.want)
		}
	}
}

func TestSMTPEnvironment(t *testing.T) {
	e := &env.Env{Vars: []string{"TCPREMOTEIP=1.2.3.4", "X=1", "X=2"}}
	vars := smtpdVars(e)
	for _, want := range []string{"RELAYCLIENT=", "TCPREMOTEIP=127.0.0.1", "TCPREMOTEINFO=sendmail-bs", "X=1"} {
		if !slices.Contains(vars, want) {
			t.Errorf("%s is not in %q", want, vars)
		}
	}
	if slices.Contains(vars, "TCPREMOTEIP=1.2.3.4") {
		t.Errorf("%q", vars)
	}
	e.Vars = []string{"PROTO=TCP", "TCPREMOTEIP=1.2.3.4"}
	if got := smtpdVars(e); !slices.Equal(got, e.Vars) {
		t.Errorf("the caller's own connection became %q", got)
	}
}

// world is a home in which messages end as drop files, and an input.
func world(t *testing.T, in string) (*env.Env, *bytes.Buffer) {
	t.Helper()
	home := t.TempDir()
	if err := os.MkdirAll(enqueue.DropDir(home), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(home, "in")
	if err := os.WriteFile(path, []byte(in), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	out := &bytes.Buffer{}
	now := func() time.Time { return time.Unix(1800000000, 0) }
	return &env.Env{Home: home, Stdin: f, Stdout: out, Stderr: out, Now: now, Vars: []string{"TZ=XST-2"}}, out
}

func queued(t *testing.T, e *env.Env) (*envelope.Envelope, string) {
	t.Helper()
	paths, err := enqueue.ListDropped(e.Home)
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v %v", paths, err)
	}
	d, err := enqueue.OpenDropped(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Done()
	b, err := io.ReadAll(d.Body)
	if err != nil {
		t.Fatal(err)
	}
	return d.Envelope, string(b)
}

// A caller with no HOME, no user and no control files, as cron has it.
func TestBareCaller(t *testing.T) {
	e, out := world(t, "To: a@b.example\n\nx\n")
	if code := Main(context.Background(), e, []string{"-ti", "-N", "never", "-R", "full"}); code != 0 || out.Len() > 0 {
		t.Fatal(code, out)
	}
	env, text := queued(t, e)
	if env.Sender != "anonymous@defaulthost.defaultdomain" || !slices.Equal(env.Recipients, []string{"a@b.example"}) ||
		!slices.Equal(env.Options, []string{"RET=FULL"}) || !strings.Contains(text, "\nFrom: anonymous@defaulthost.defaultdomain\n") {
		t.Errorf("%+v %q", env, text)
	}
}

func TestDatemail(t *testing.T) {
	e, out := world(t, "To: a@b.example\n\nx\n")
	if code := Datemail(context.Background(), e, []string{"-t"}); code != 0 {
		t.Fatal(code, out)
	}
	if _, text := queued(t, e); !strings.Contains(text, "\nDate: 15 Jan 2027 10:00:00 +0200\nTo:") {
		t.Errorf("%q", text)
	}
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"-bz": "sendmail: usage: ", "-Z": "sendmail: illegal option -- Z\nsendmail: usage: ",
		"-bi": "sendmail: fatal: please use fastforward/newaliases instead\n", "-q": "",
	} {
		e, out := world(t, "")
		code := Main(context.Background(), e, []string{args})
		if !strings.HasPrefix(out.String(), want) || (code == 100) != (want != "") {
			t.Errorf("%s: %d %q", args, code, out)
		}
	}
}

func TestVerify(t *testing.T) {
	e, out := world(t, "")
	if code := Main(context.Background(), e, []string{"-bv", "a@b"}); code != 111 {
		t.Errorf("without a queue: %d %q", code, out)
	}
	ln, err := ipc.Listen(enqueue.SocketPath(e.Home), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.AcceptUnix()
		if err == nil {
			enqueue.Serve(ipc.New(ipc.Unix(c)), enqueue.Peer{}, verifier{})
		}
	}()
	out.Reset()
	code := Main(context.Background(), e, []string{"-bv", "good@b", "bad@b"})
	ln.Close()
	<-done
	if code != 100 || out.String() != "good@b... deliverable\nbad@b... no such mailbox (#5.1.1)\n" {
		t.Errorf("%d %q", code, out)
	}
}

type verifier struct{}

func (verifier) NewID() uint64                               { return 1 }
func (verifier) Spool() (enqueue.Spool, error)               { return nil, io.ErrUnexpectedEOF }
func (verifier) Accept(_ *enqueue.Arrival, done func(error)) { done(io.ErrUnexpectedEOF) }
func (verifier) Now() time.Time                              { return time.Now() }
func (verifier) Verify(address string, done func(error)) {
	if strings.HasPrefix(address, "good") {
		done(nil)
		return
	}
	done(reply.Permanent("5.1.1", "no such mailbox", nil))
}
