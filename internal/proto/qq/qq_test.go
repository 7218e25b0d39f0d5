package qq

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/ipc"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// scripted makes a queue whose program is a shell script; its files are in the home, which is its directory.
func scripted(t *testing.T, script string, vars ...string) *Queue {
	t.Helper()
	home := t.TempDir()
	// A child that another test forks meanwhile would hold the file open for writing, and then it cannot be run.
	syscall.ForkLock.RLock()
	err := os.WriteFile(filepath.Join(home, "qq"), []byte("#!/bin/sh\n"+script), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	return &Queue{Home: home, Program: "./qq", Replaced: true, Vars: append(vars, "PATH=/usr/bin:/bin"), Now: time.Now}
}

// give hands over a message.
func give(t *testing.T, q *Queue, size int) (Accepted, error) {
	t.Helper()
	e := &envelope.Envelope{Sender: "s@s.example", Recipients: []string{"a@a.example", "b c@b.example"}}
	m, err := q.Open(testContext(t), e)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Abort()
	for rest := body(size); len(rest) > 0; {
		n := min(len(rest), 10000)
		if _, err := m.Write(rest[:n]); err != nil {
			break
		}
		rest = rest[n:]
	}
	return m.Commit(e)
}

func body(size int) []byte {
	return append([]byte("Subject: x\n\n"), bytes.Repeat([]byte("0123456\n"), size/8)...)
}

func TestProgram(t *testing.T) {
	q := scripted(t, `cat >message; cat <&1 >envelope; echo "$# $0 $ERROR_FD" >how; env >environment`, "EVIL=() { :; }", "FINE=1")
	a, err := give(t, q, 1<<20)
	if err != nil || a.QP == 0 {
		t.Fatal(a, err)
	}
	for name, want := range map[string]string{
		"message": string(body(1 << 20)), "envelope": "Fs@s.example\x00Ta@a.example\x00Tb c@b.example\x00\x00", "how": "0 ./qq 6\n",
	} {
		if got, err := os.ReadFile(filepath.Join(q.Home, name)); err != nil || string(got) != want {
			t.Errorf("%s: %.100q, %v", name, got, err)
		}
	}
	vars, err := os.ReadFile(filepath.Join(q.Home, "environment"))
	if err != nil || strings.Contains(string(vars), "EVIL") || !strings.Contains(string(vars), "FINE=1\n") {
		t.Errorf("%q %v", vars, err)
	}
}

func TestProgramOutcomes(t *testing.T) {
	const all = "cat >/dev/null; cat <&1 >/dev/null; "
	tests := []struct{ name, script, want string }{
		{"it may refuse without reading", "exit 31", "Dmail server permanently rejected message (#5.3.0)"},
		{"but not accept", "exit 0", "Zqq read error (#4.3.0)"},
		{"a long address", all + "exit 11", "Denvelope address too long for qq (#5.1.3)"},
		{"another code of the permanent ones", all + "exit 40", "Dqq permanent problem (#5.3.0)"},
		{"the first code that is not", all + "exit 41", "Zqq temporary problem (#4.3.0)"},
		{"100 is temporary here", all + "exit 100", "Zqq temporary problem (#4.3.0)"},
		{"a full disk", all + "exit 53", "Zqq write error or disk full (#4.3.0)"},
		{"no network", all + "exit 74", "Zcommunication with mail server failed (#4.4.2)"},
		{"a signal", all + "kill -9 $$", "Zqq crashed (#4.3.0)"},
		{"words of its own", all + "printf 'Dno (#5.7.1)' >&6; exit 82", "Dno (#5.7.1)"},
		{"words that begin with neither letter", all + "printf 'Xno' >&6; exit 82", "Zno (#4.0.0)"},
		{"words of another class than the letter's", all + "printf 'Dno (#4.7.1)' >&6; exit 82", "Dno (#5.0.0)"},
		{"words where the forks have them", all + "printf 'Zlater (#4.7.1)' >&$ERROR_FD; exit 88", "Zlater (#4.7.1)"},
		{"no words", all + "exit 82", "Zqq temporary problem (#4.3.0)"},
		{"two bytes are no words", all + "printf Dx >&6; exit 82", "Zqq temporary problem (#4.3.0)"},
		{"words count with their code only", all + "printf 'Dno (#5.7.1)' >&6; exit 53", "Zqq write error or disk full (#4.3.0)"},
		{"words end with their line", all + `printf 'Dno \001\033[31m \nBcc: x' >&6; exit 82`, "Dno ??[31m (#5.0.0)"},
		{"long words are cut", all + `printf 'D%01000d' 0 >&6; exit 82`, "D" + strings.Repeat("0", 254) + " (#5.0.0)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := give(t, scripted(t, tt.script), 200000)
			if err == nil || reply.Of(err).Report() != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}

func TestOtherDescriptorForWords(t *testing.T) {
	q := scripted(t, "cat >/dev/null; printf 'Dthree (#5.7.1)' >&3; exit 88", "ERROR_FD=3")
	if _, err := give(t, q, 10); err == nil || reply.Of(err).Text != "three" {
		t.Error(err)
	}
	for _, value := range []string{"0", "1", "10", "x", ""} { // descriptors that are taken, or none
		q.Vars = []string{"ERROR_FD=" + value}
		if _, fd := q.environment(); fd != wordsFD {
			t.Errorf("ERROR_FD=%s gave %d", value, fd)
		}
	}
}

func TestNoProgram(t *testing.T) {
	for _, path := range []string{"", "./none", "/nowhere/at/all"} {
		q := &Queue{Home: t.TempDir(), Program: path, Replaced: true, Now: time.Now}
		if _, err := give(t, q, 10); err == nil || reply.Of(err).Report() != "Zunable to exec qq (#4.3.0)" {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestAbortLeavesTheEnvelopeUnfinished(t *testing.T) {
	q := scripted(t, `cat >message; cat <&1 >envelope`)
	m, err := q.Open(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Write(body(100))
	m.Abort()
	if b, err := os.ReadFile(filepath.Join(q.Home, "envelope")); err != nil || len(b) > 0 {
		t.Errorf("%q %v", b, err)
	}
}

func TestAProgramThatHangsIsEnded(t *testing.T) {
	q := scripted(t, "exec sleep 60")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	started := time.Now()
	m, err := q.Open(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = m.Write(make([]byte, 1<<20))
	}
	_, err = m.Commit(&envelope.Envelope{})
	if reply.Of(err).Report() != "Zqq timeout (#4.3.0)" || time.Since(started) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(started))
	}
}

func TestCodesAndOutcomesAgree(t *testing.T) {
	for code := range 130 {
		o := Outcome(code)
		if code == 0 {
			if o != nil || Code(nil) != 0 {
				t.Error("0 is not success")
			}
			continue
		}
		back := Code(o)
		if again := Outcome(back); again.Report() != o.Report() {
			t.Errorf("%d is %s, that is %d, %s", code, o.Report(), back, again.Report())
		}
	}
	if Code(errors.New("what?")) != CodeLater || Code(reply.Permanent("5.7.1", "no", nil)) != CodeNever {
		t.Error("unknown means later, refused means never")
	}
}

// queue is a qmail-send in memory.
type queue struct {
	mu      sync.Mutex
	got     []*enqueue.Arrival
	spooled bytes.Buffer
	refuse  error
}

type spool struct{ q *queue }

func (s spool) Write(p []byte) (int, error) { return s.q.spooled.Write(p) }
func (s spool) Close() error                { return nil }

func (q *queue) NewID() uint64                  { return 4711 }
func (q *queue) Spool() (enqueue.Spool, error)  { return spool{q}, nil }
func (q *queue) Now() time.Time                 { return time.Now() }
func (q *queue) Verify(_ string, f func(error)) { f(nil) }
func (q *queue) Accept(a *enqueue.Arrival, done func(error)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse == nil {
		q.got = append(q.got, a)
	}
	done(q.refuse)
}

func (q *queue) message() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.got) != 1 {
		return ""
	}
	text := string(q.got[0].Body) + q.spooled.String()
	_, text, _ = strings.Cut(text, "\n") // our Received
	return text
}

// home makes a home, and serves its door if q is not nil. hangUp ends connections instead.
func home(t *testing.T, q *queue, hangUp bool) string {
	t.Helper()
	home, err := os.MkdirTemp("", "qq-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if err := os.MkdirAll(enqueue.DropDir(home), 0o755); err != nil {
		t.Fatal(err)
	}
	if q == nil {
		return home
	}
	ln, err := ipc.Listen(enqueue.SocketPath(home), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			if hangUp {
				c.Close()
				continue
			}
			serving.Go(func() { enqueue.Serve(ipc.New(ipc.Unix(c)), enqueue.Peer{UID: 5, PID: 6, How: "by uid 5"}, q) })
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
	return home
}

// sizes around what is held in memory.
func sizes() []int { return []int{0, 1000, inMemory - 100, inMemory + 100, 3 * inMemory} }

func TestThroughTheDoor(t *testing.T) {
	for _, size := range sizes() {
		for _, known := range []bool{true, false} {
			q := &queue{}
			h := home(t, q, false)
			e := &envelope.Envelope{Sender: "s", Recipients: []string{"r"}}
			given := e
			if !known {
				given = nil
			}
			m, err := (&Queue{Home: h, Now: time.Now}).Open(testContext(t), given)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(struct{ io.Writer }{m}, bytes.NewReader(body(size))); err != nil {
				t.Fatal(err)
			}
			a, err := m.Commit(e)
			m.Abort()
			if err != nil || a.QP != 6 && a.QP != 4711 || q.message() != string(body(size)) || q.got[0].Envelope.Sender != "s" {
				t.Errorf("%d bytes: %+v %v, %d bytes arrived", size, a, err, len(q.message()))
			}
			if left, err := enqueue.ListDropped(h); err != nil || len(left) > 0 {
				t.Errorf("%v %v", left, err)
			}
		}
	}
}

func TestRefusalsAreTheQueues(t *testing.T) {
	for _, size := range sizes() {
		q := &queue{refuse: reply.Permanent("5.3.4", "too large", nil)}
		_, err := give(t, &Queue{Home: home(t, q, false), Now: time.Now}, size)
		if err == nil || reply.Of(err).Report() != "Dtoo large (#5.3.4)" {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// dropped reads the one drop file of a home.
func dropped(t *testing.T, home string) (*envelope.Envelope, string) {
	t.Helper()
	paths, err := enqueue.ListDropped(home)
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v %v", paths, err)
	}
	d, err := enqueue.OpenDropped(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := io.ReadAll(d.Body)
	if err != nil {
		t.Fatal(err)
	}
	return d.Envelope, string(b)
}

func TestWithoutQmailSend(t *testing.T) {
	for _, size := range sizes() {
		for _, known := range []bool{true, false} {
			h := home(t, nil, false)
			e := &envelope.Envelope{Sender: "s", Recipients: []string{"r"}}
			given := e
			if !known {
				given = nil
			}
			m, err := (&Queue{Home: h, Now: time.Now}).Open(testContext(t), given)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(struct{ io.Writer }{m}, bytes.NewReader(body(size))); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Commit(e); err != nil {
				t.Fatal(err)
			}
			if e, text := dropped(t, h); e.Sender != "s" || text != string(body(size)) {
				t.Errorf("%d bytes: %+v, %d bytes arrived", size, e, len(text))
			}
		}
	}
}

// A qmail-send that goes away, or is about to, does not stop a message of this machine: it is dropped.
func TestWhenQmailSendGoesAway(t *testing.T) {
	for name, q := range map[string]*queue{"gone": nil, "stopping": {refuse: reply.Temporary("4.3.2", "stopping", nil)}} {
		t.Run(name, func(t *testing.T) {
			h := home(t, q, false)
			if q == nil {
				h = home(t, &queue{}, true)
			}
			if _, err := give(t, &Queue{Home: h, Now: time.Now}, 1000); err != nil {
				t.Fatal(err)
			}
			if _, text := dropped(t, h); text != string(body(1000)) {
				t.Errorf("%d bytes arrived", len(text))
			}
		})
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	for _, size := range sizes() {
		for _, q := range []*queue{nil, {}} {
			h := home(t, q, false)
			m, err := (&Queue{Home: h, Now: time.Now}).Open(testContext(t), &envelope.Envelope{})
			if err != nil {
				t.Fatal(err)
			}
			m.Write(body(size))
			m.Abort()
			m.Abort()
			if q != nil && q.message() != "" {
				t.Error("queued")
			}
			if list, err := os.ReadDir(enqueue.DropDir(h)); err != nil || len(list) > 0 {
				t.Errorf("%v %v", list, err)
			}
		}
	}
}

func TestNoQueueAtAll(t *testing.T) {
	for _, size := range sizes() {
		_, err := give(t, &Queue{Home: t.TempDir(), Now: time.Now}, size)
		if Code(err) != CodeQueueDir {
			t.Errorf("%d bytes: %v is code %d", size, err, Code(err))
		}
	}
}

func TestLongAddresses(t *testing.T) {
	for _, q := range []*Queue{{Home: home(t, nil, false), Now: time.Now}, scripted(t, "cat >/dev/null; cat <&1 >envelope; exit 54")} {
		m, err := q.Open(testContext(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Commit(&envelope.Envelope{Sender: strings.Repeat("x", envelope.MaxAddress+1)})
		if Code(err) != CodeTooLong {
			t.Error(err)
		}
	}
}
