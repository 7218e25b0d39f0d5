package smtpd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// backend is a qmail-send of which only the door is real.
type backend struct {
	mu       sync.Mutex
	next     uint64
	arrived  []*enqueue.Arrival
	asked    []string
	spooled  int
	hang     bool // never answers
	refuse   error
	refusing error // of the spool
}

func (b *backend) NewID() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	return b.next
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

func (b *backend) Spool() (enqueue.Spool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spooled++
	return &spool{err: b.refusing}, nil
}

func (b *backend) Accept(m *enqueue.Arrival, done func(error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hang {
		return
	}
	if b.refuse == nil {
		b.arrived = append(b.arrived, m)
	}
	done(b.refuse)
}

func (b *backend) Verify(recipient string, done func(error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, recipient)
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

func (b *backend) Now() time.Time { return time.Unix(1800000000, 0) }

func (b *backend) bodies() (list []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.arrived {
		if m.Spool != nil {
			list = append(list, m.Spool.(*spool).String())
		} else {
			list = append(list, string(m.Body))
		}
	}
	return list
}

// link gives the role's end of a new link to b; the other end is served until it is closed.
func (b *backend) link(t *testing.T) (ours, theirs *ipc.Conn) {
	t.Helper()
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	go enqueue.Serve(theirs, enqueue.Peer{How: "from network", Network: true}, b)
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// running is the role in this process, with a socket.
type running struct {
	*backend
	home, address string
	orders        chan env.Order
	theirs        *ipc.Conn
	log           *lockedBuffer
	code          chan int
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var fixture = map[string]string{"me": "mx.test.example\n", "rcpthosts": "test.example\n"}

func with(files map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	for name, text := range files {
		all[name] = text
	}
	for i := 0; i < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}

func startRole(t *testing.T, files map[string]string) *running {
	t.Helper()
	r := &running{backend: &backend{}, home: makeHome(t, files), orders: make(chan env.Order), log: &lockedBuffer{}, code: make(chan int, 1)}
	ready := make(chan struct{})
	e := &env.Env{Home: r.home, Stderr: r.log, Now: time.Now, Orders: r.orders, Ready: func() error { close(ready); return nil }}
	go func() { r.code <- Main(context.Background(), e, nil) }()
	select {
	case <-ready:
	case code := <-r.code:
		t.Fatalf("exit %d: %s", code, r.log)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = ln.Addr().String()
	var ours *ipc.Conn
	ours, r.theirs = r.backend.link(t)
	r.orders <- env.Order{Kind: env.Link, Name: "send", Link: ours}
	r.orders <- env.Order{Kind: env.Listen, Name: "smtp", Listener: ln}
	t.Cleanup(func() { r.stop(t) })
	return r
}

// order returns when the role has done it: it takes the next one, which means nothing, only then.
func (r *running) order(o env.Order) {
	r.orders <- o
	r.orders <- env.Order{}
}

// stop ends the role, once.
func (r *running) stop(t *testing.T) {
	t.Helper()
	if r.orders == nil {
		return
	}
	r.orders <- env.Order{Kind: env.Stop}
	r.orders = nil
	if code := <-r.code; code != 0 {
		t.Errorf("exit %d: %s", code, r.log)
	}
}

// talk is a client that sends and reads in lockstep.
type talk struct {
	t    *testing.T
	conn net.Conn
}

func (r *running) dial(t *testing.T) *talk {
	t.Helper()
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &talk{t, conn}
}

// say sends and expects that many replies, of which it returns the last.
func (c *talk) say(send string, replies int) string {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, send); err != nil {
		c.t.Fatalf("%q: %v", send, err)
	}
	var got []byte
	b := make([]byte, 4096)
	for {
		if list := parseComplete(string(got)); len(list) >= replies {
			return strings.TrimRight(list[replies-1].lines[0], "\r\n")
		}
		n, err := c.conn.Read(b)
		if got = append(got, b[:n]...); err != nil {
			c.t.Fatalf("after %q: %q, %v", send[:min(len(send), 60)], got, err)
		}
	}
}

// expect is say with the code and status that the reply must begin with.
func (c *talk) expect(want, send string, replies int) {
	c.t.Helper()
	if got := c.say(send, replies); !strings.HasPrefix(got, want) {
		c.t.Fatalf("after %q: %q, want %s", send[:min(len(send), 60)], got, want)
	}
}

const toData = "MAIL FROM:<s@client.example>\r\nRCPT TO:<u@test.example>\r\nDATA\r\n"

func (c *talk) hello() { c.t.Helper(); c.expect("250", "EHLO client.example\r\n", 2) }

func TestAMessageGoesThrough(t *testing.T) {
	r := startRole(t, fixture)
	c := r.dial(t)
	c.hello()
	c.expect("354", toData, 3)
	c.expect("250 2.0.0 ok ", "Subject: x\r\n\r\nhello\r\n.\r\n", 1)
	c.expect("354", "MAIL FROM:<> BODY=8BITMIME\r\nRCPT TO:<nouser@test.example>\r\nRCPT TO:<u@test.example>\r\nDATA\r\n", 4)
	big := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 6000)
	if got := c.say(big+".\r\n", 1); !strings.HasSuffix(got, " qp 2") {
		t.Fatal(got)
	}
	c.expect("221", "QUIT\r\n", 1)
	r.stop(t)
	bodies := r.bodies()
	if len(bodies) != 2 || r.spooled != 1 {
		t.Fatalf("%d arrived, %d spooled", len(bodies), r.spooled)
	}
	for i, want := range []string{"Subject: x\n\nhello\n", strings.ReplaceAll(big, "\r", "")} {
		head, ok := strings.CutSuffix(bodies[i], want)
		if !ok || !strings.Contains(head, "\nReceived: from unknown (HELO client.example) (127.0.0.1)\n  by mx.test.example with ESMTP; ") {
			t.Errorf("message %d begins with %q", i, bodies[i][:200])
		}
	}
	if e := r.arrived[1].Envelope; e.Sender != "" || fmt.Sprint(e.Recipients, e.Options) != "[u@test.example] [BODY=8BITMIME]" {
		t.Errorf("envelope %+v", e)
	}
	if want := `qmail-smtpd: refused 127.0.0.1: "RCPT TO:<nouser@test.example>": 550 5.1.1 sorry, no mailbox here by that name (#5.1.1)`; !strings.Contains(r.log.String(), want+"\n") {
		t.Errorf("log %q", r.log)
	}
}

func TestWhatTheQueueSaysOfRecipients(t *testing.T) {
	r := startRole(t, with(fixture, "relayclients", "127.0.0.2\n"))
	c := r.dial(t)
	c.hello()
	c.say("MAIL FROM:<>\r\n", 1)
	for _, tt := range []struct{ rcpt, want string }{
		{"u@test.example", "250 2.1.5"}, {"u@test.example", "250 2.1.5"}, {"nouser@test.example", "550 5.1.1"}, {"nouser@test.example", "550 5.1.1"},
		{"trouble@test.example", "451 4.3.0"}, {"trouble@test.example", "451 4.3.0"}, {"u@elsewhere.example", "553 5.7.1"},
	} {
		c.expect(tt.want, "RCPT TO:<"+tt.rcpt+">\r\n", 1)
	}
	if got := fmt.Sprint(r.asked); got != "[u@test.example nouser@test.example trouble@test.example trouble@test.example]" {
		t.Errorf("asked %s", got) // what is known is not asked again, what is not allowed never
	}
}

func TestTheLinkComesAndGoes(t *testing.T) {
	r := startRole(t, fixture)
	c := r.dial(t)
	c.hello()
	c.expect("354", toData, 3)
	r.theirs.Close()
	other := r.dial(t) // until the role has noticed, it may give a message away, and then say nothing of it
	other.hello()
	other.say("MAIL FROM:<>\r\n", 1)
	for i := 0; !strings.HasPrefix(other.say(fmt.Sprintf("RCPT TO:<u%d@test.example>\r\n", i), 1), "451"); i++ {
		if i > 1000 {
			t.Fatal("recipients are known without a link")
		}
	}
	c.expect("451 4.3.0", "x\r\n.\r\n", 1)
	c.expect("451 4.3.0", "MAIL FROM:<>\r\nRCPT TO:<v@test.example>\r\n", 2)
	ours, _ := r.link(t)
	r.order(env.Order{Kind: env.Link, Name: "send", Link: ours})
	c.expect("250 2.1.5", "RCPT TO:<v@test.example>\r\n", 1)
	c.expect("354", "DATA\r\n", 1)
	c.expect("250 2.0.0", "x\r\n.\r\n", 1)
}

func TestLinkLostWithinALargeMessage(t *testing.T) {
	r := startRole(t, fixture)
	c := r.dial(t)
	c.hello()
	c.expect("354", toData, 3)
	half := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 5000)
	io.WriteString(c.conn, half)
	r.waitFor(t, "a spool", func() bool { return r.spooled == 1 })
	r.theirs.Close()
	c.expect("451 4.3.0", half+".\r\n", 1)
	c.expect("250 2.0.0", "NOOP\r\n", 1)
}

func TestARefusalBeforeTheEnd(t *testing.T) {
	r := startRole(t, fixture)
	r.mu.Lock()
	r.refusing = errors.New("disk full")
	r.mu.Unlock()
	c := r.dial(t)
	c.hello()
	c.expect("354", toData, 3)
	c.expect("451 4.3.0 qq write error or disk full", strings.Repeat(strings.Repeat("x", 98)+"\r\n", 20000)+".\r\n", 1)
	if len(r.bodies()) != 0 {
		t.Error("it arrived")
	}
}

// waitFor polls what only the backend can tell.
func (r *running) waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		ok := cond()
		r.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatalf("no %s", what)
}

func TestReload(t *testing.T) {
	r := startRole(t, fixture)
	c := r.dial(t)
	c.hello()
	c.expect("553", "MAIL FROM:<>\r\nRCPT TO:<u@new.example>\r\n", 2)
	writeControl(t, r.home, "rcpthosts", "test.example\nnew.example\n")
	r.order(env.Order{Kind: env.Reload})
	c.expect("553", "RCPT TO:<u@new.example>\r\n", 1)
	c.expect("250 2.1.5", "RSET\r\nMAIL FROM:<>\r\nRCPT TO:<u@new.example>\r\n", 3)
	writeControl(t, r.home, "rcpthosts", "test.example\n*\n")
	r.order(env.Order{Kind: env.Reload})
	c.expect("250 2.1.5", "RSET\r\nMAIL FROM:<>\r\nRCPT TO:<u@new.example>\r\n", 3)
	if !strings.Contains(r.log.String(), "control/rcpthosts:2: malformed line") {
		t.Errorf("log %q", r.log)
	}
}

func TestItRefusesToStart(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"without a name", map[string]string{"rcpthosts": "test.example\n"}, "control/me"},
		{"with an empty name", with(fixture, "me", "\n"), "control/me"},
		{"with a greeting that would break the protocol", with(fixture, "smtpgreeting", "mx\x00\n"), "control/smtpgreeting:1:"},
		{"with a malformed list", with(fixture, "relayclients", "10.0.0.0/8\nlocalhost\n"), "control/relayclients:2:"},
		{"with a damaged table", with(fixture, "morercpthosts.cdb", "x"), "control/morercpthosts.cdb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			e := &env.Env{Home: makeHome(t, tt.files), Stderr: &log, Now: time.Now, Orders: make(chan env.Order), Ready: func() error { return nil }}
			if code := Main(t.Context(), e, nil); code != 111 || !strings.HasPrefix(log.String(), "qmail-smtpd: fatal: ") || !strings.Contains(log.String(), tt.want) {
				t.Errorf("exit %d: %q", code, &log)
			}
		})
	}
	for _, name := range []string{"me", "smtpgreeting", "databytes", "maxrecipients", "timeoutsmtpd", "concurrencyincoming", "maxperclient", "maxpernetwork", "maxmemory"} {
		home := makeHome(t, fixture)
		os.Remove(home + "/control/" + name)
		os.Mkdir(home+"/control/"+name, 0o755)
		if _, err := ReadConfig(testEnv(home), nil); err == nil || !strings.Contains(err.Error(), "control/"+name) {
			t.Errorf("%s is a directory: %v", name, err)
		}
	}
	if code := Main(t.Context(), &env.Env{Stderr: io.Discard}, []string{"x"}); code != 100 {
		t.Errorf("with an argument: exit %d", code)
	}
}

func TestConfigFromTheEnvironment(t *testing.T) {
	home := makeHome(t, with(fixture, "databytes", "200\n"))
	for _, tt := range []struct {
		vars []string
		want int64
	}{{nil, 200}, {[]string{"DATABYTES=500"}, 500}, {[]string{"DATABYTES="}, 0}, {[]string{"DATABYTES=x"}, 0}} {
		c, err := ReadConfig(testEnv(home, tt.vars...), nil)
		if err != nil || c.Session.Databytes != tt.want {
			t.Errorf("%q: %v, %v", tt.vars, c, err)
		}
	}
}

func TestTooManyConnections(t *testing.T) {
	r := startRole(t, with(fixture, "maxperclient", "3\n", "concurrencyincoming", "100\n"))
	var open []*talk
	for range 3 {
		c := r.dial(t)
		c.hello()
		open = append(open, c)
	}
	r.dial(t).expect("421 4.7.0", "", 1)
	open[0].expect("221", "QUIT\r\n", 1)
	open[0].conn.Close()
	for end := time.Now().Add(10 * time.Second); ; {
		if got := r.dial(t).say("", 1); strings.HasPrefix(got, "220") {
			break
		} else if time.Now().After(end) {
			t.Fatal(got)
		}
	}
}

func TestMemoryOfAllMessagesIsBounded(t *testing.T) {
	r := startRole(t, with(fixture, "maxmemory", "1048576\n"))
	// Two messages of 200 KiB need 256 KiB each, and 64 KiB more while they move there.
	text := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 2000)
	var open []*talk
	accepted, refused := 0, 0
	for range 12 {
		c := r.dial(t)
		c.hello()
		c.expect("354", toData, 3)
		if _, err := io.WriteString(c.conn, text); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	for _, c := range open {
		switch got := c.say("end\r\n.\r\n", 1); {
		case strings.HasPrefix(got, "250 2.0.0"):
			accepted++
		case strings.HasPrefix(got, "451 4.3.0 too many messages"):
			refused++
		default:
			t.Fatal(got)
		}
	}
	if accepted == 0 || refused == 0 {
		t.Errorf("%d accepted, %d refused", accepted, refused)
	}
	for range 10 { // all is given back
		open[0].expect("354", toData, 3)
		open[0].expect("250 2.0.0", text+".\r\n", 1)
	}
}

func TestAnOrderlyStop(t *testing.T) {
	r := startRole(t, fixture)
	idle, busy := r.dial(t), r.dial(t)
	idle.hello()
	busy.hello()
	busy.expect("354", toData, 3)
	orders := r.orders
	r.orders = nil
	orders <- env.Order{Kind: env.Stop}
	idle.expect("421 4.3.2", "", 1)
	busy.expect("250 2.0.0", "x\r\n.\r\n", 1)
	if code := <-r.code; code != 0 || len(r.bodies()) != 1 {
		t.Errorf("exit %d, %d arrived", code, len(r.bodies()))
	}
	if conn, err := net.Dial("tcp", r.address); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
}
