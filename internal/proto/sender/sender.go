// Package sender takes a message to a domain: by control/smtproutes or the DNS to addresses, by an idle
// connection or a new one to the first that speaks SMTP with us, and back with the words of qmail-remote. Where
// control/qmtproutes has a relay for the domain it goes there by QMTP, with others over one connection, and where
// control/lmtproutes has a server for it, by LMTP.
//
// control/tlspolicy says how much TLS a destination is asked for. A handshake that fails leads to plain text where the
// policy is may, for that message only.
//
// An address that does not answer, a greeting that is not 220, a refused HELO or a session that ends before
// the server has said anything to the message lead to the next address; once it has, its word counts
// (RFC 5321 5.1). Connections stay open a few seconds for the next message to the same address. One that
// turns out to be dead, before anything was answered on it, is no verdict: the message goes over a new one.
package sender

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"qmail/internal/format/smtproute"
	"qmail/internal/format/tlspolicy"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/tcpto"
	"qmail/internal/system/dns"
)

// Resolver is the part of dns.Resolver that is used.
type Resolver interface {
	Lookup(ctx context.Context, name string, kind dns.Type) (dns.Answer, error)
	Prefetch(name string, kind dns.Type)
}

// Config is what the control files say. It is replaced whole.
type Config struct {
	Hello          string        // helohost
	ConnectTimeout time.Duration // timeoutconnect
	Timeout        time.Duration // timeoutremote
	// Route is the entry of smtproutes for a domain, QMTP that of qmtproutes, which counts first; nil has none.
	Route, QMTP func(domain string) (smtproute.Relay, bool)
	// LMTP is the entry of lmtproutes, which counts before all others; nil has none.
	LMTP   func(domain string) (smtproute.Relay, bool)
	Safety Safety
}

// World is what the machine gives.
type World struct {
	Resolver Resolver
	Dial     func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	Local    func() ([]netip.Addr, error) // the addresses that are us
	Random   func(n int) int              // from 0 to n-1
	Now      func() time.Time
	Log      *slog.Logger
}

// Sender sends. It is safe for concurrent use.
type Sender struct {
	world  World
	config atomic.Pointer[Config]
	local  atomic.Pointer[local]
	slow   *tcpto.Table
	pool   pool
	links  links
	// buffers are shared by all connections.
	buffers client.Buffers
}

// New makes a sender; Close ends it. Until Configure it defers everything.
func New(w World) *Sender {
	s := &Sender{world: w, slow: tcpto.New(w.Random)}
	s.pool.now, s.links.now = w.Now, w.Now
	return s
}

// Dialer is a World.Dial that opens plain TCP connections.
func Dialer() func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := &net.Dialer{KeepAlive: -1} // every wait has its own deadline
	d.SetMultipathTCP(false)
	return func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", addr.String())
	}
}

// Configure puts a configuration into force for the messages to come.
func (s *Sender) Configure(c *Config) {
	old := s.config.Swap(c)
	if old != nil && old.Hello != c.Hello {
		s.pool.drop() // they know us by another name
	}
}

// Slow is the memory of addresses that do not answer.
func (s *Sender) Slow() *tcpto.Table { return s.slow }

// Close ends idle connections in peace and cuts those in use; messages under way get Z.
func (s *Sender) Close() {
	s.links.close()
	s.pool.close()
}

// verdict is a result that needs no server: a letter and a text, with its final LF.
func verdict(letter byte, text string, recipients int) client.Result {
	return client.Failure(client.Report{Letter: letter, Text: text}, recipients)
}

// Texts of qmail-remote.
const (
	// NoControls is said where the configuration cannot be read.
	NoControls  = "Unable to read control files. (#4.3.0)\n"
	noResources = "System resources temporarily unavailable. (#4.3.0)\n"
	noConnect   = "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n"
)

// searchFor is how long another target may be begun: hosts that take connections and then say nothing must
// not hold a message for hours.
const searchFor = 10 * time.Minute

// Send sends m to the servers of domain.
func (s *Sender) Send(ctx context.Context, domain string, m *client.Message) client.Result {
	n := len(m.Recipients)
	c := s.config.Load()
	if c == nil || c.Hello == "" {
		return verdict('Z', NoControls, n)
	}
	p := s.plan(ctx, c, domain)
	if p.Refusal != nil {
		return verdict(p.Refusal.Letter, p.Refusal.Text, n)
	}
	if p.QMTP {
		return s.sendQMTP(ctx, c, p.Targets, m)
	}
	w := &way{c, &p, domain}
	if r, ok := s.overIdle(w, m); ok {
		return r
	}
	last := verdict('Z', noConnect, n)
	enough := s.world.Now().Add(searchFor)
	for _, t := range p.Targets {
		r, next := s.tryTarget(ctx, w, t, m)
		if r != nil {
			last = *r
		}
		if !next || ctx.Err() != nil || s.world.Now().After(enough) {
			break
		}
	}
	return last
}

// way is where one message goes.
type way struct {
	*Config
	*Plan
	domain string
}

func (w *way) to(t smtproute.Target) (*client.Security, place) {
	s := w.security(w.Plan, w.domain, t)
	return s, placeOf(t.Addr, s, w.Plan.LMTP)
}

// overIdle uses a connection that is open to one of the best targets.
func (s *Sender) overIdle(w *way, m *client.Message) (client.Result, bool) {
	for _, t := range w.Targets {
		if t.Preference != w.Targets[0].Preference {
			break
		}
		_, where := w.to(t)
		for {
			conn := s.pool.take(where)
			if conn == nil {
				break
			}
			r := conn.Deliver(m)
			s.pool.put(conn)
			if r.Answered {
				return r, true
			}
		}
	}
	return client.Result{}, false
}

// tryTarget connects and delivers. next means that another target may do better; r is nil where there is nothing
// to report.
func (s *Sender) tryTarget(ctx context.Context, w *way, t smtproute.Target, m *client.Message) (r *client.Result, next bool) {
	if s.slow.Skip(t.Addr.Addr(), s.world.Now()) {
		return nil, true
	}
	security, where := w.to(t)
	conn, r, next := s.connect(ctx, w, where, security, len(m.Recipients))
	if conn != nil && conn.StartTLSFailed() {
		// Mail in plain text is better than none, where the policy says so. That is for this message only.
		s.world.Log.Warn("TLS failed, going on without", "address", t.Addr, "host", t.Host, "why", strings.TrimSpace(r.Message.Text))
		s.pool.put(conn)
		plain := *security
		plain.Policy = tlspolicy.Policy{Level: tlspolicy.None}
		conn, r, next = s.connect(ctx, w, place{where.addr, once}, &plain, len(m.Recipients))
	}
	if conn == nil {
		return r, next
	}
	defer s.pool.put(conn)
	if r != nil {
		return r, next
	}
	result := conn.Deliver(m)
	return &result, !result.Answered
}

// connect makes a connection and introduces us. What goes wrong is in r; conn is nil without a connection.
func (s *Sender) connect(ctx context.Context, w *way, where place, security *client.Security, recipients int) (conn *pooled, r *client.Result, next bool) {
	nc, err := s.dial(ctx, w.Config, where.addr)
	if err != nil {
		if exhausted(err) {
			s.world.Log.Error("cannot connect", "address", where.addr, "error", err)
			r := verdict('Z', noResources, recipients)
			return nil, &r, false
		}
		return nil, nil, true
	}
	conn = s.pool.open(where, nc, client.Options{
		Hello: w.Hello, Timeout: w.Timeout, Buffers: &s.buffers, Security: security, LMTP: w.Plan.LMTP,
	})
	if conn == nil { // we are closed
		nc.Close()
		return nil, nil, false
	}
	if hello := conn.Hello(); hello.Letter != 0 {
		r := client.Failure(hello, recipients)
		return conn, &r, true
	}
	if state, verified := conn.TLS(); state != nil {
		s.world.Log.Info("connected with TLS", "address", where.addr, "host", security.Server, "version", tls.VersionName(state.Version),
			"cipher", tls.CipherSuiteName(state.CipherSuite), "verified", verified)
	}
	return conn, nil, false
}

func (s *Sender) dial(ctx context.Context, c *Config, addr netip.AddrPort) (net.Conn, error) {
	dialing, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	nc, err := s.world.Dial(dialing, addr)
	switch {
	case err == nil:
		s.slow.Connected(addr.Addr())
	case ctx.Err() == nil && timedOut(err):
		s.slow.TimedOut(addr.Addr(), s.world.Now())
	}
	return nc, err
}

func timedOut(err error) bool {
	netErr, ok := errors.AsType[net.Error](err)
	return ok && netErr.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// exhausted reports whether a failed connect is our own machine's fault, so that no address would do.
func exhausted(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
