package rspawn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"qmail/internal/format/spawn"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/resolve"
	"qmail/internal/store/control"
	"qmail/internal/system/dns"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// rig is a running qmail-rspawn, with a home, a link as qmail-send has it, and what it reported.
type rig struct {
	t      *testing.T
	home   string
	orders chan env.Order
	client *jobs.Client
	names  *dns.Resolver // qmail-resolve's
	log    *lines
	done   chan int

	mu      sync.Mutex
	changed sync.Cond
	results map[uint32]map[int]string
	over    map[uint32]bool
	gone    error
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func (r *rig) Results(job uint32, results []jobs.Result, over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.results[job] == nil {
		r.results[job] = map[int]string{}
	}
	for _, one := range results {
		r.results[job][one.Recipient] = one.Text
	}
	r.over[job] = r.over[job] || over
	r.changed.Broadcast()
}

func (r *rig) Gone(_ []uint32, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = err
	r.changed.Broadcast()
}

// wait returns the reports of a job once it is over.
func (r *rig) wait(job uint32) map[int]string {
	r.t.Helper()
	stop := time.AfterFunc(20*time.Second, func() { r.Gone(nil, fmt.Errorf("job %d takes too long", job)) })
	defer stop.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.over[job] && r.gone == nil {
		r.changed.Wait()
	}
	if !r.over[job] {
		r.t.Fatalf("job %d: %v; the log: %s", job, r.gone, r.log)
	}
	return r.results[job]
}

func (r *rig) control(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.home, "control", name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func start(t *testing.T, files map[string]string) *rig {
	t.Helper()
	r := &rig{t: t, home: t.TempDir(), orders: make(chan env.Order), log: &lines{}, done: make(chan int, 1), results: map[uint32]map[int]string{}, over: map[uint32]bool{}}
	r.changed.L = &r.mu
	if err := os.Mkdir(filepath.Join(r.home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		r.control(name, text)
	}
	ready := make(chan struct{}, 1)
	e := &env.Env{Home: r.home, Stderr: r.log, Now: time.Now, Orders: r.orders, Ready: func() error { ready <- struct{}{}; return nil }}
	go func() { r.done <- Main(t.Context(), e, nil) }()
	select {
	case <-ready:
	case code := <-r.done:
		r.done <- code
		return r
	}
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	r.orders <- env.Order{Kind: env.Link, Name: "send", Link: theirs}
	r.client = jobs.NewClient(ours, r)
	r.linkNames()
	t.Cleanup(func() {
		r.client.Close()
		r.stop()
		r.names.Close()
	})
	return r
}

// servers is what qmail-resolve makes of the home's files.
func (r *rig) servers() dns.Config {
	r.t.Helper()
	c, err := resolve.Servers(control.Open(r.home))
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// linkNames stands for a qmail-resolve that has been started, and the supervisor who links us to it.
func (r *rig) linkNames() (theirs *ipc.Conn) {
	r.t.Helper()
	if r.names == nil {
		r.names = dns.New(r.servers())
	}
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		r.t.Fatal(err)
	}
	r.orders <- env.Order{Kind: env.Link, Name: "resolve", Link: ours}
	go resolve.Serve(r.t.Context(), theirs, r.names.Lookup, time.Now)
	return theirs
}

func (r *rig) stop() {
	select {
	case r.orders <- env.Order{Kind: env.Stop}:
	case code := <-r.done:
		r.done <- code
	}
	if code := <-r.done; code != 0 {
		r.t.Errorf("exit %d; the log: %s", code, r.log)
	}
	r.done <- 0
}

// sink is a server that takes everything and remembers it; a recipient "no@" is refused.
type sink struct {
	ln     net.Listener
	mu     sync.Mutex
	bodies []string
	conns  int
	stall  chan struct{} // if not nil, the verdict on a message waits for it
	wg     sync.WaitGroup
}

func startSink(t testing.TB) *sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{ln: ln}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
			s.wg.Go(func() { defer c.Close(); s.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); s.wg.Wait() })
	return s
}

func (s *sink) serve(c net.Conn) {
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	w.WriteString("220 sink\r\n")
	recipients := 0
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(line, []byte("EHLO")):
			w.WriteString("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n")
		case bytes.HasPrefix(line, []byte("RCPT TO:<no@")):
			w.WriteString("550 no such user\r\n")
		case bytes.HasPrefix(line, []byte("RCPT")):
			recipients++
			w.WriteString("250 ok\r\n")
		case bytes.HasPrefix(line, []byte("DATA")) && recipients == 0:
			w.WriteString("554 no recipients\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			recipients = 0
			w.WriteString("354 go\r\n")
			if w.Flush() != nil || !s.data(r) {
				return
			}
			w.WriteString("250 taken\r\n")
		default:
			w.WriteString("250 ok\r\n")
		}
	}
}

func (s *sink) data(r *bufio.Reader) bool {
	var body []byte
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return false
		}
		if string(line) == ".\r\n" {
			break
		}
		body = append(body, line...)
	}
	if s.stall != nil {
		<-s.stall
	}
	s.mu.Lock()
	s.bodies = append(s.bodies, string(body))
	s.mu.Unlock()
	return true
}

func (s *sink) route() string { return ":" + s.ln.Addr().String() + "\n" }

func TestJobs(t *testing.T) {
	s := startSink(t)
	r := start(t, map[string]string{"me": "here.example\n", "smtproutes": s.route()})
	if err := r.client.Load(1, []byte("Subject: x\n\nHello.\n")); err != nil {
		t.Fatal(err)
	}
	const ok = "K127.0.0.1 accepted message.\nRemote host said: 250 taken\n"
	const no = "D127.0.0.1 does not like recipient.\nRemote host said: 550 no such user\nGiving up on 127.0.0.1.\n"
	tests := []struct {
		name string
		job  jobs.Job
		want []string
	}{
		{"one recipient", jobs.Job{Recipients: []string{"u@far.example"}}, []string{ok}},
		{"each has a report of its own", jobs.Job{Recipients: []string{"u@far.example", "no@far.example", "v@far.example"}}, []string{ok, no, ok}},
		{"all refused", jobs.Job{Recipients: []string{"no@far.example"}}, []string{no}},
		{"no host name", jobs.Job{Recipients: []string{"u", "u@far.example"}}, []string{spawn.NoHost, ok}},
		{"no host name at all", jobs.Job{Recipients: []string{"u", "v"}}, []string{spawn.NoHost, spawn.NoHost}},
		{"bytes that SMTP cannot carry", jobs.Job{Recipients: []string{"u@far.example>\r\nRSET", "u@far.example"}},
			[]string{"DSorry, that recipient address has bytes that SMTP cannot carry. (#5.1.3)\nGiving up on 127.0.0.1.\n", ok}},
		{"a sender with such bytes", jobs.Job{Sender: "a\r\n@x", Recipients: []string{"u@far.example"}}, []string{"DSorry, the sender address has bytes that SMTP cannot carry. (#5.1.7)\n"}},
		{"a question that is not for us", jobs.Job{Verify: true, Recipients: []string{"u@far.example"}}, []string{notHere}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.job.Body, tt.job.Host = 1, "far.example"
			if err := r.client.Start(uint32(i+1), &tt.job); err != nil {
				t.Fatal(err)
			}
			got := r.wait(uint32(i + 1))
			for k, want := range tt.want {
				if got[k] != want {
					t.Errorf("recipient %d: %q, want %q", k, got[k], want)
				}
			}
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns != 1 {
		t.Errorf("%d connections; one is enough", s.conns)
	}
	for _, b := range s.bodies {
		if b != "Subject: x\r\n\r\nHello.\r\n" {
			t.Errorf("%q", b)
		}
	}
}

func TestBodiesInFiles(t *testing.T) {
	s := startSink(t)
	r := start(t, map[string]string{"me": "here.example\n", "smtproutes": s.route()})
	text := strings.Repeat("0123456789\n", 30000)
	path := filepath.Join(t.TempDir(), "segment")
	if err := os.WriteFile(path, []byte("before\n"+text+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tests := []struct {
		name   string
		length int
		letter byte
		bodies int
	}{
		{"a small one", 1100, 'K', 1},
		{"a large one", len(text), 'K', 2},
		{"none", 0, 'K', 3},
		{"shorter than was said", len(text) + 1000, 'Z', 3},
		{"shorter than the beginning that is read", 0, 'Z', 3},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := uint32(i + 1)
			offset := int64(7)
			if n == 5 {
				offset, tt.length = int64(len(text)), 10000
			}
			if err := r.client.LoadFile(n, f, offset, int64(tt.length)); err != nil {
				t.Fatal(err)
			}
			if err := r.client.Start(n, &jobs.Job{Body: n, Host: "far.example", Recipients: []string{"u@far.example"}}); err != nil {
				t.Fatal(err)
			}
			if got := r.wait(n)[0]; got[0] != tt.letter {
				t.Errorf("%q", got)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.bodies) != tt.bodies {
				t.Fatalf("%d messages came, want %d", len(s.bodies), tt.bodies)
			}
			if tt.letter == 'K' && s.bodies[i] != strings.ReplaceAll(text[:tt.length], "\n", "\r\n") {
				t.Errorf("%d bytes came of %d", len(s.bodies[i]), tt.length)
			}
		})
	}
}

func TestReload(t *testing.T) {
	one, two := startSink(t), startSink(t)
	r := start(t, map[string]string{"me": "here.example\n", "smtproutes": one.route()})
	if err := r.client.Load(1, []byte("x\n")); err != nil {
		t.Fatal(err)
	}
	count := func(s *sink) int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.bodies) }
	steps := []struct {
		name     string
		routes   string
		log      string
		one, two int
	}{
		{"a new route counts from now on", two.route(), "", 0, 1},
		{"a malformed one keeps the old", "x\n", "smtproutes: line 1", 0, 2},
		{"and back", one.route(), "", 1, 2},
	}
	for i, st := range steps {
		t.Run(st.name, func(t *testing.T) {
			r.control("smtproutes", st.routes)
			r.orders <- env.Order{Kind: env.Reload}
			r.orders <- env.Order{Kind: '?'} // taken only after the reload is done
			if err := r.client.Start(uint32(i+1), &jobs.Job{Body: 1, Host: "far.example", Recipients: []string{"u@far.example"}}); err != nil {
				t.Fatal(err)
			}
			if got := r.wait(uint32(i + 1))[0]; got[0] != 'K' {
				t.Errorf("%q", got)
			}
			if count(one) != st.one || count(two) != st.two {
				t.Errorf("%d and %d messages", count(one), count(two))
			}
			if !strings.Contains(r.log.String(), st.log) {
				t.Errorf("the log: %s", r.log)
			}
		})
	}
}

func TestItDoesNotStartWithMalformedFiles(t *testing.T) {
	r := start(t, map[string]string{"me": "here.example\n", "smtproutes": "a:b\nc:d:e\n"})
	if code := <-r.done; code != 111 || !strings.Contains(r.log.String(), "smtproutes: line 2") {
		t.Errorf("exit %d; the log: %s", code, r.log)
	}
}

func TestWithoutANameAllWaits(t *testing.T) {
	r := start(t, nil)
	r.client.Load(1, []byte("x\n"))
	r.client.Start(1, &jobs.Job{Body: 1, Host: "far.example", Recipients: []string{"u@far.example"}})
	if got := r.wait(1)[0]; got != "ZUnable to read control files. (#4.3.0)\n" {
		t.Errorf("%q", got)
	}
	if !strings.Contains(r.log.String(), "helohost") {
		t.Errorf("the log: %s", r.log)
	}
}

func TestStopWaitsForWhatIsUnderWay(t *testing.T) {
	s := startSink(t)
	s.stall = make(chan struct{})
	r := start(t, map[string]string{"me": "here.example\n", "smtproutes": s.route()})
	r.client.Load(1, []byte("x\n"))
	r.client.Start(1, &jobs.Job{Body: 1, Host: "far.example", Recipients: []string{"u@far.example"}})
	s.stall <- struct{}{} // the message is there
	r.orders <- env.Order{Kind: env.Stop}
	if got := r.wait(1)[0]; got[0] != 'K' {
		t.Errorf("%q", got)
	}
	r.client.Close()
	if code := <-r.done; code != 0 {
		t.Errorf("exit %d", code)
	}
	r.done <- 0
}

// resolver answers from a list of records on 127.0.0.1, and returns its address.
func resolver(t *testing.T, records ...string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	s := &wire.Server{PacketConn: conn, NotifyStartedFunc: func() { close(ready) }, Handler: wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
		out := new(wire.Msg).SetReply(m)
		for _, text := range records {
			if rr, err := wire.NewRR(text); err == nil && rr.Header().Name == m.Question[0].Name && rr.Header().Rrtype == m.Question[0].Qtype {
				out.Answer = append(out.Answer, rr)
			}
		}
		w.WriteMsg(out)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() { s.Shutdown(); <-done })
	return conn.LocalAddr().String()
}

func TestHostsComeFromTheDNS(t *testing.T) {
	s := startSink(t)
	_, port, _ := net.SplitHostPort(s.ln.Addr().String())
	address := resolver(t,
		"loop.example. 60 IN MX 10 mx.loop.example.", "mx.loop.example. 60 IN A 127.0.0.1",
		"null.example. 60 IN MX 0 .",
		"relay.example. 60 IN A 127.0.0.1",
	)
	r := start(t, map[string]string{"me": "here.example\n", "resolvers": address + "\n", "smtproutes": "routed.example:relay.example:" + port + "\n"})
	r.client.Load(1, []byte("x\n"))
	for i, tt := range []struct{ host, want string }{
		{"routed.example", "K127.0.0.1 accepted message.\nRemote host said: 250 taken\n"},
		{"loop.example", "DSorry. Although I'm listed as a best-preference MX or A for that host,\nit isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n"},
		{"null.example", "DSorry, that host says that it does not take mail (null MX). (#5.1.10)\n"},
		{"no.example", "DSorry, I couldn't find any host named no.example. (#5.1.2)\n"},
	} {
		r.client.Start(uint32(i+1), &jobs.Job{Body: 1, Host: tt.host, Recipients: []string{"u@" + tt.host}})
		if got := r.wait(uint32(i + 1))[0]; got != tt.want {
			t.Errorf("%s: %q, want %q", tt.host, got, tt.want)
		}
	}
	r.control("resolvers", resolver(t)+"\n")
	r.names.Configure(r.servers())
	r.orders <- env.Order{Kind: env.Reload}
	r.orders <- env.Order{Kind: '?'}
	r.client.Start(9, &jobs.Job{Body: 1, Host: "loop.example", Recipients: []string{"u@loop.example"}})
	if got := r.wait(9)[0]; !strings.Contains(got, "5.1.2") {
		t.Errorf("other resolvers: %q", got)
	}
}

// TestALookupOutlivesQmailResolve takes the link away while a host is looked up: the next one brings the answer, and the
// message goes out at the first try.
func TestALookupOutlivesQmailResolve(t *testing.T) {
	s := startSink(t)
	_, port, _ := net.SplitHostPort(s.ln.Addr().String())
	address := resolver(t, "relay.example. 60 IN A 127.0.0.1")
	r := start(t, map[string]string{"me": "here.example\n", "resolvers": address + "\n", "smtproutes": ":relay.example:" + port + "\n"})
	mute, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	r.orders <- env.Order{Kind: env.Link, Name: "resolve", Link: mute}
	r.client.Load(1, []byte("x\n"))
	r.client.Start(1, &jobs.Job{Body: 1, Host: "far.example", Recipients: []string{"u@far.example"}})
	if f, err := theirs.Read(); err != nil || f.Kind != 'Q' {
		t.Fatal(f, err)
	}
	theirs.Close() // it dies
	r.linkNames()
	if got := r.wait(1)[0]; got[0] != 'K' {
		t.Errorf("%q", got)
	}
}

// TestLinksOfOthersAreNotServed gives a link that no role of the table has: nobody who is not qmail-send gives jobs.
func TestLinksOfOthersAreNotServed(t *testing.T) {
	r := start(t, map[string]string{"me": "here.example\n"})
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	theirs.SetReadDeadline(time.Now().Add(20 * time.Second))
	r.orders <- env.Order{Kind: env.Link, Name: "smtpd", Link: ours}
	if f, err := theirs.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("%+v %v", f, err)
	}
}
