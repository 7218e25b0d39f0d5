package inlet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// backend is a qmail-send of which only the door is real.
type backend struct {
	mu     sync.Mutex
	next   uint64
	got    []*enqueue.Arrival
	asked  int
	hang   bool  // never answers
	refuse error // of messages
	full   error // of spools
}

func (b *backend) NewID() uint64  { b.mu.Lock(); defer b.mu.Unlock(); b.next++; return b.next }
func (b *backend) Now() time.Time { return time.Unix(1800000000, 0) }

// all is what has arrived, and how often recipients were asked for.
func (b *backend) all() ([]*enqueue.Arrival, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got, b.asked
}

type spool struct {
	bytes.Buffer
	err error
}

func (s *spool) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.Buffer.Write(p)
}
func (s *spool) Close() error { return nil }

func (b *backend) Spool() (enqueue.Spool, error) { return &spool{err: b.full}, nil }

func (b *backend) Accept(m *enqueue.Arrival, done func(error)) {
	if b.hang {
		return
	}
	b.mu.Lock()
	b.got = append(b.got, m)
	b.mu.Unlock()
	done(b.refuse)
}

func (b *backend) Verify(recipient string, done func(error)) {
	b.mu.Lock()
	b.asked++
	b.mu.Unlock()
	switch {
	case b.hang:
	case strings.HasPrefix(recipient, "nouser@"):
		done(reply.Permanent("5.1.1", "sorry, no mailbox here by that name", nil))
	case strings.HasPrefix(recipient, "trouble@"):
		done(reply.Temporary("4.3.0", "unable to look that up", errors.New("disk")))
	default:
		done(nil)
	}
}

// linkTo makes a Link to b, with so much memory.
func linkTo(t *testing.T, b *backend, memory int64) *Link {
	t.Helper()
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); enqueue.Serve(theirs, enqueue.Peer{How: "from network", Network: true}, b) }()
	l := &Link{Memory: func() int64 { return memory }}
	l.Connect(ours)
	t.Cleanup(func() {
		l.Connect(nil)
		<-ended
		if held := l.held.Load(); held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
	})
	return l
}

var to = &envelope.Envelope{Sender: "s@a.example", Recipients: []string{"u@b.example"}}

// put gives a message to the queue, in pieces; late means that its envelope comes last.
func put(q Queue, late bool, body string) (uint64, error) {
	first := to
	if late {
		first = nil
	}
	m, err := q.Open(first)
	if err != nil {
		return 0, err
	}
	for len(body) > 0 {
		n := min(len(body), 10000)
		if err := m.Write([]byte(body[:n])); err != nil {
			m.Abort()
			return 0, err
		}
		body = body[n:]
	}
	return m.Commit(to)
}

func TestMessagesOfAllSizes(t *testing.T) {
	b := &backend{}
	l := linkTo(t, b, 1<<20)
	for _, size := range []int{0, 1, 8 << 10, 8<<10 + 1, 100 << 10, inMemory, inMemory + 1, 2 << 20} {
		for _, late := range []bool{false, true} {
			body := strings.Repeat("x", size)
			id, err := put(l, late, body)
			if err != nil {
				t.Fatalf("%d bytes, late %v: %v", size, late, err)
			}
			all, _ := b.all()
			m := all[len(all)-1]
			got := m.Body
			if m.Spool != nil {
				got = m.Spool.(*spool).Bytes()
			}
			if id != m.ID || !strings.HasSuffix(string(got), "\n"+body) || m.Envelope.Recipients[0] != "u@b.example" {
				t.Errorf("%d bytes, late %v: %d is %+v with %d bytes", size, late, id, m.Envelope, len(got))
			}
		}
	}
}

func TestRefusalsOfTheQueue(t *testing.T) {
	tests := []struct {
		name string
		b    *backend
		size int
		want string
	}{
		{"for now", &backend{refuse: reply.Temporary("4.3.0", "disk full", nil)}, 10, "Zdisk full (#4.3.0)"},
		{"for good", &backend{refuse: reply.Permanent("5.3.4", "too large", nil)}, 300 << 10, "Dtoo large (#5.3.4)"},
		{"before the end", &backend{full: errors.New("disk full")}, 2 << 20, "Zqq write error or disk full (#4.3.0)"},
	}
	for _, tt := range tests {
		for _, late := range []bool{false, true} {
			l := linkTo(t, tt.b, 1<<20)
			_, err := put(l, late, strings.Repeat("x", tt.size))
			e := reply.Of(err)
			if e == nil || string(e.Letter())+e.Text != tt.want {
				t.Errorf("%s, late %v: %v", tt.name, late, err)
			}
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	l := linkTo(t, &backend{}, 100<<10)
	if _, err := put(l, true, strings.Repeat("x", 200<<10)); reply.Of(err) != errNoMemory {
		t.Errorf("%v", err)
	}
	var open []Message
	for {
		m, err := l.Open(nil)
		if err != nil {
			if err != error(errNoMemory) || len(open) != 100/8 {
				t.Errorf("%d messages, then %v", len(open), err)
			}
			break
		}
		open = append(open, m)
	}
	for _, m := range open {
		m.Abort()
	}
}

func TestWithoutALink(t *testing.T) {
	l := &Link{Memory: func() int64 { return 1 << 20 }}
	if _, err := l.Open(nil); reply.Letter(err) != 'Z' {
		t.Errorf("%v", err)
	}
	if err := l.Verify("u@b.example"); reply.Letter(err) != 'Z' {
		t.Errorf("%v", err)
	}
}

func TestWhatIsKnownIsNotAskedAgain(t *testing.T) {
	b := &backend{}
	l := linkTo(t, b, 1<<20)
	for _, tt := range []struct {
		rcpt string
		code int
	}{{"u@b.example", 0}, {"u@b.example", 0}, {"nouser@b.example", 550}, {"nouser@b.example", 550}, {"trouble@b.example", 451}, {"trouble@b.example", 451}} {
		err := l.Verify(tt.rcpt)
		if e := reply.Of(err); (e == nil) != (tt.code == 0) || e != nil && (e.Code != tt.code || !strings.HasSuffix(e.Text, " (#"+e.Status+")")) {
			t.Errorf("%s: %v", tt.rcpt, err)
		}
	}
	if _, asked := b.all(); asked != 4 {
		t.Errorf("asked %d times", asked)
	}
}

// pipeStream is an ipc.Stream for virtual time.
type pipeStream struct{ net.Conn }

func (s pipeStream) Read(p []byte) (int, []*os.File, error) {
	n, err := s.Conn.Read(p)
	return n, nil, err
}

func (s pipeStream) Write(p []byte, _ *os.File) error {
	_, err := s.Conn.Write(p)
	return err
}

func TestAQueueThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- enqueue.Serve(ipc.New(pipeStream{b}), enqueue.Peer{}, &backend{hang: true}) }()
		l := &Link{Memory: func() int64 { return 1 << 20 }}
		l.Connect(ipc.New(pipeStream{a}))
		began := time.Now()
		if err := l.Verify("u@test.example"); reply.Letter(err) != 'Z' || time.Since(began) != verifyTime {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		for _, size := range []int{100, 300 << 10} {
			for _, late := range []bool{false, true} {
				began = time.Now()
				if _, err := put(l, late, strings.Repeat("x", size)); reply.Letter(err) != 'Z' || time.Since(began) != commitTime {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			}
		}
		if held := l.held.Load(); held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
		l.Connect(nil)
		<-served
	})
}

func TestVerdictsAreForgotten(t *testing.T) {
	var v verdicts
	now := time.Unix(1000, 0)
	v.put("a", nil, now)
	v.put("b", &reply.Error{Code: 550}, now)
	v.put("c", &reply.Error{Code: 451}, now)
	for _, tt := range []struct {
		name           string
		after          time.Duration
		known, refused bool
	}{
		{"a", 4 * time.Second, true, false}, {"b", 4 * time.Second, true, true}, {"c", 0, false, false},
		{"a", 5 * time.Second, false, false}, {"d", 0, false, false},
	} {
		if refusal, known := v.get(tt.name, now.Add(tt.after)); known != tt.known || (refusal != nil) != tt.refused {
			t.Errorf("%s after %v: %v, %v", tt.name, tt.after, refusal, known)
		}
	}
	for i := range 10 * verdictsMax {
		v.put(fmt.Sprint(i), nil, now)
	}
	if n := len(v.young) + len(v.old); n > 2*verdictsMax {
		t.Errorf("%d are remembered", n)
	}
}

// TestOnce covers who takes the message of a program that serves one connection.
func TestOnce(t *testing.T) {
	program := func(t *testing.T, script string) string {
		path := filepath.Join(t.TempDir(), "queue")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return "QMAILQUEUE=" + path
	}
	home := func(t *testing.T) string {
		home := t.TempDir()
		if err := os.MkdirAll(enqueue.DropDir(home), 0o700); err != nil {
			t.Fatal(err)
		}
		return home
	}
	tests := []struct {
		name, script, want string
		bad                string // what is said of a recipient that qmail-send does not know
		send               bool
	}{
		{"the program of QMAILQUEUE", "cat >/dev/null; cat 0<&1 >/dev/null", "K", "K", true},
		{"a program that refuses", "cat >/dev/null; exit 31", "Dmail server permanently rejected message (#5.3.0)", "K", true},
		{"a program with words of its own", "cat >/dev/null; printf 'Zbusy (#4.3.2)' >&6; exit 82", "Zbusy (#4.3.2)", "K", false},
		{"a program that is not there", "", "Zunable to exec qq (#4.3.0)", "K", false},
		{"qmail-send", "none", "K", "Dsorry, no mailbox here by that name (#5.1.1)", true},
		{"nobody: it is left for the next qmail-send", "none", "K", "K", false},
	}
	letter := func(err error) string {
		if e := reply.Of(err); e != nil {
			return string(e.Letter()) + e.Text
		}
		return "K"
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &env.Env{Home: home(t), Now: time.Now, Vars: []string{"PATH=/usr/bin:/bin"}}
			switch tt.script {
			case "none":
			case "":
				e.Vars = append(e.Vars, "QMAILQUEUE=")
			default:
				e.Vars = append(e.Vars, program(t, tt.script))
			}
			b := &backend{}
			if tt.send {
				ln, err := ipc.Listen(enqueue.SocketPath(e.Home), 0o600)
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				go func() {
					for {
						c, err := ln.Accept()
						if err != nil {
							return
						}
						go enqueue.Serve(ipc.New(ipc.Unix(c.(*net.UnixConn))), enqueue.Peer{}, b)
					}
				}()
			}
			q := NewOnce(t.Context(), e)
			defer q.Close()
			if got := letter(q.Verify("nouser@b.example")); got != tt.bad {
				t.Errorf("of an unknown recipient: %s", got)
			}
			if m, err := q.Open(nil); err != nil {
				t.Fatal(err)
			} else {
				m.Write([]byte("x"))
				m.Abort()
			}
			for _, late := range []bool{false, true} {
				if _, err := put(q, late, "Subject: x\n\nbody\n"); letter(err) != tt.want {
					t.Errorf("late %v: %s, want %s", late, letter(err), tt.want)
				}
			}
			dropped, err := enqueue.ListDropped(e.Home)
			if err != nil {
				t.Fatal(err)
			}
			direct := tt.script == "none"
			got, _ := b.all()
			if want := 2; direct && tt.send && len(got) != want || direct && !tt.send && len(dropped) != want || !direct && len(got)+len(dropped) != 0 {
				t.Errorf("%d queued, %d dropped", len(got), len(dropped))
			}
		})
	}
}

func TestPeer(t *testing.T) {
	remote, local := netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::25]:25")
	full := []string{"TCPREMOTEIP=192.0.2.7", "TCPREMOTEHOST=c.example", "TCPREMOTEINFO=joe", "TCPLOCALHOST=mx.example", "TCPLOCALIP=192.0.2.1"}
	tests := []struct {
		name   string
		vars   []string
		remote netip.AddrPort
		want   received.From
		ip     string
	}{
		{"what tcpserver says", full, netip.AddrPort{}, received.From{IP: "192.0.2.7", Host: "c.example", Info: "joe", Local: "mx.example"}, "192.0.2.7"},
		{"it counts for more than what the kernel says", full, remote, received.From{IP: "192.0.2.7", Host: "c.example", Info: "joe", Local: "mx.example"}, "192.0.2.7"},
		{"our address where we have no name", full[4:], netip.AddrPort{}, received.From{Local: "192.0.2.1"}, "invalid IP"},
		{"what the kernel says", nil, remote, received.From{IP: "2001:db8::1", Local: "2001:db8::25"}, "2001:db8::1"},
		{"nothing", nil, netip.AddrPort{}, received.From{}, "invalid IP"},
		{"an address that is none", []string{"TCPREMOTEIP=unknown"}, netip.AddrPort{}, received.From{IP: "unknown"}, "invalid IP"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := local
			if !tt.remote.IsValid() {
				l = netip.AddrPort{}
			}
			from, ip := Peer(&env.Env{Vars: tt.vars}, tt.remote, l)
			if from != tt.want || ip.String() != tt.ip {
				t.Errorf("%+v, %v", from, ip)
			}
		})
	}
}
