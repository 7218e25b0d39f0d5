package resolve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"qmail/internal/proto/resolve"
	"qmail/internal/system/dns"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

const patience = 20 * time.Second

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// rig is a running qmail-resolve.
type rig struct {
	t      *testing.T
	home   string
	orders chan env.Order
	log    buffer
	code   chan int
}

func start(t *testing.T, resolvers string) *rig {
	t.Helper()
	r := &rig{t: t, home: t.TempDir(), orders: make(chan env.Order), code: make(chan int, 1)}
	if err := os.Mkdir(filepath.Join(r.home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.resolvers(resolvers)
	ready := make(chan struct{}, 1)
	e := &env.Env{Home: r.home, Stderr: &r.log, Now: time.Now, Orders: r.orders, Ready: func() error { ready <- struct{}{}; return nil }}
	go func() { r.code <- Main(context.Background(), e, nil) }() // t.Context() ends before the stop
	select {
	case <-ready:
		t.Cleanup(r.stop)
	case code := <-r.code:
		r.code <- code
	}
	return r
}

func (r *rig) resolvers(text string) {
	if err := os.WriteFile(filepath.Join(r.home, "control/resolvers"), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) stop() {
	r.orders <- env.Order{Kind: env.Stop}
	select {
	case code := <-r.code:
		if code != 0 {
			r.t.Errorf("exit %d", code)
		}
	case <-time.After(patience):
		r.t.Error("it does not stop")
	}
}

// asker is a role with a link of its own.
func (r *rig) asker(name string) *dns.Resolver {
	r.t.Helper()
	l := &resolve.Link{Now: time.Now}
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		r.t.Fatal(err)
	}
	r.orders <- env.Order{Kind: env.Link, Name: name, Link: theirs}
	l.Connect(ours)
	a := dns.Over(l, time.Now)
	r.t.Cleanup(func() { a.Close(); l.Connect(nil) })
	return a
}

// server answers each A question with an address, and counts them.
func server(t *testing.T, address string, wait <-chan struct{}) (string, *atomic.Int64) {
	t.Helper()
	var asked atomic.Int64
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	s := &wire.Server{PacketConn: conn, NotifyStartedFunc: func() { close(ready) }, Handler: wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
		asked.Add(1)
		if wait != nil && strings.HasPrefix(m.Question[0].Name, "slow") {
			<-wait
		}
		out := new(wire.Msg).SetReply(m)
		rr, err := wire.NewRR(m.Question[0].Name + " 300 IN A " + address)
		if err == nil {
			out.Answer = append(out.Answer, rr)
		}
		w.WriteMsg(out)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() { s.Shutdown(); <-done })
	return conn.LocalAddr().String(), &asked
}

func (r *rig) expect(a *dns.Resolver, name, address string) {
	r.t.Helper()
	got, err := a.Lookup(r.t.Context(), name, dns.TypeA)
	if err != nil || len(got.Addrs) != 1 || got.Addrs[0] != netip.MustParseAddr(address) {
		r.t.Errorf("%s: %+v %v, want %s", name, got, err, address)
	}
}

func TestOneCacheForAll(t *testing.T) {
	address, asked := server(t, "192.0.2.1", nil)
	r := start(t, address+"\n")
	for _, name := range []string{"rspawn", "smtpd", "rspawn"} { // the second rspawn is a restarted one
		r.expect(r.asker(name), "x.example", "192.0.2.1")
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
}

func TestAReloadChangesWhomItAsks(t *testing.T) {
	one, _ := server(t, "192.0.2.1", nil)
	two, _ := server(t, "192.0.2.2", nil)
	r := start(t, one+"\n")
	a := r.asker("rspawn")
	steps := []struct{ name, resolvers, want, log string }{
		{"at first", one + "\n", "192.0.2.1", "asking " + one},
		{"other servers may know other things", two + "\n", "192.0.2.2", "asking " + two},
		{"a malformed file keeps the old", "ns.example\n", "192.0.2.2", "control/resolvers: line 1"},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			r.resolvers(s.resolvers)
			r.orders <- env.Order{Kind: env.Reload}
			r.orders <- env.Order{Kind: '?'} // taken only after the reload is done
			a.Forget()
			r.expect(a, "x.example", s.want)
			if !strings.Contains(r.log.String(), s.log) {
				t.Errorf("no %q on the log:\n%s", s.log, r.log.String())
			}
		})
	}
}

// TestAFloodOfOneRoleLeavesRoomForOthers has one role ask for more slow names than it may: another is answered meanwhile.
func TestAFloodOfOneRoleLeavesRoomForOthers(t *testing.T) {
	gate := make(chan struct{})
	address, _ := server(t, "192.0.2.1", gate)
	r := start(t, address+"\n")
	flooder := r.asker("smtpd")
	for i := range 2 * dns.Flights {
		flooder.Prefetch("slow"+strings.Repeat("x", i%60+1)+strings.Repeat("y", i/60+1)+".example", dns.TypeA)
	}
	r.expect(r.asker("rspawn"), "x.example", "192.0.2.1")
	close(gate)
}

func TestWhoBreaksTheProtocolIsNamedAndCutOff(t *testing.T) {
	address, _ := server(t, "192.0.2.1", nil)
	r := start(t, address+"\n")
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	ours.SetReadDeadline(time.Now().Add(patience))
	r.orders <- env.Order{Kind: env.Link, Name: "smtpd", Link: theirs}
	ours.Send('?', 1)
	if f, err := ours.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("%+v %v", f, err)
	}
	r.expect(r.asker("rspawn"), "x.example", "192.0.2.1")
	for end := time.Now().Add(patience); !strings.Contains(r.log.String(), "qmail-smtpd broke the protocol"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log: %s", r.log.String())
		}
	}
}

func TestItDoesNotStart(t *testing.T) {
	r := start(t, "ns.example\n")
	if code := <-r.code; code != 111 || !strings.Contains(r.log.String(), "control/resolvers: line 1") {
		t.Errorf("exit %d: %s", code, r.log.String())
	}
	var log bytes.Buffer
	if code := Main(t.Context(), &env.Env{Stderr: &log}, nil); code != 100 {
		t.Errorf("by hand: exit %d", code)
	}
}
