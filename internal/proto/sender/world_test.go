package sender

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/smtproute"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/control"
	"qmail/internal/system/dns"
)

// internet is a world in memory: names, and at each address somebody who behaves in some way. It works on
// pipes, so that it may run in the time of testing/synctest.
type internet struct {
	t     *testing.T
	names map[string]dns.Answer // "MX far.example"; absent is no such name
	soft  map[string]bool
	hosts map[string]string // by address: how it behaves; absent refuses

	mu    sync.Mutex
	log   []string // what happened, in order
	conns map[string]int
	slow  error // of Local
	wg    sync.WaitGroup
}

func newInternet(t *testing.T, hosts map[string]string, records ...string) *internet {
	n := &internet{t: t, names: map[string]dns.Answer{}, soft: map[string]bool{}, hosts: hosts, conns: map[string]int{}}
	for _, r := range records {
		n.add(r)
	}
	return n
}

// add takes "MX far.example 10 mx.example", "A mx.example 10.0.0.1", "A x.example ?" (the DNS cannot say).
func (n *internet) add(record string) {
	f := strings.Fields(record)
	key := f[0] + " " + f[1]
	a := n.names[key]
	a.Status = dns.Found
	switch {
	case f[2] == "?":
		n.soft[key] = true
		return
	case f[0] == "MX":
		var p uint16
		fmt.Sscan(f[2], &p)
		mx := dns.MX{Preference: p, Host: strings.TrimSuffix(f[3], ".")}
		if f[3] == "BAD" {
			mx = dns.MX{Preference: p, Bad: true}
		}
		a.MX = append(a.MX, mx)
	default:
		a.Addrs = append(a.Addrs, netip.MustParseAddr(f[2]))
	}
	n.names[key] = a
}

func (n *internet) Prefetch(string, dns.Type) {}

func (n *internet) Lookup(_ context.Context, name string, kind dns.Type) (dns.Answer, error) {
	key := map[dns.Type]string{dns.TypeMX: "MX ", dns.TypeA: "A ", dns.TypeAAAA: "AAAA "}[kind] + name
	if n.soft[key] {
		return dns.Answer{}, &dns.Error{Name: name, Type: kind, Err: errors.New("SERVFAIL")}
	}
	if a, ok := n.names[key]; ok {
		return a, nil
	}
	return dns.Answer{Status: dns.NoName}, nil
}

func (n *internet) note(format string, args ...any) {
	n.mu.Lock()
	n.log = append(n.log, fmt.Sprintf(format, args...))
	n.mu.Unlock()
}

// story is what happened since the last call.
func (n *internet) story() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := strings.Join(n.log, ", ")
	n.log = nil
	return s
}

// wired is a pipe with an address.
type wired struct {
	net.Conn
	addr *net.TCPAddr
}

func (w wired) RemoteAddr() net.Addr { return w.addr }

func (n *internet) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	host := addr.Addr().String()
	if addr.Port() != 25 {
		host = addr.String()
	}
	how := n.hosts[host]
	n.note("dial %s", host)
	switch how {
	case "":
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case "dead":
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	case "qmtp":
		return n.qmtp(host)
	case "no files":
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.EMFILE}
	}
	ours, theirs := net.Pipe()
	n.mu.Lock()
	n.conns[host]++
	count := n.conns[host]
	n.mu.Unlock()
	n.wg.Go(func() {
		defer theirs.Close()
		n.serve(host, how, count, theirs)
	})
	return wired{ours, net.TCPAddrFromAddrPort(addr)}, nil
}

// serve behaves. "stale": after the first message the first connection dies at the next MAIL.
func (n *internet) serve(host, how string, count int, c net.Conn) {
	say := func(s string) bool { _, err := c.Write([]byte(s + "\r\n")); return err == nil }
	switch how {
	case "closes":
		return
	case "mute":
		bufio.NewReader(c).WriteTo(nothing{})
		return
	case "busy":
		say("421 busy")
		return
	case "no service":
		say("554 no")
		return
	case "garbage":
		say("\x00\xff\xfe")
		return
	}
	say("220 " + host)
	r := bufio.NewReader(c)
	messages := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb := strings.ToUpper(line[:min(4, len(line))])
		switch {
		case verb == "QUIT":
			n.note("quit %s", host)
			return
		case verb == "EHLO" && how == "no ehlo", verb == "EHLO" && how == "no helo":
			say("502 no")
		case verb == "EHLO":
			say("250 " + host)
		case verb == "HELO" && how == "no helo":
			say("550 no")
		case verb == "MAIL" && how == "dies at MAIL", verb == "MAIL" && how == "stale" && messages == 1 && count == 1:
			return
		case verb == "MAIL" && how == "shuts down at MAIL":
			say("421 bye")
			return
		case verb == "MAIL" && how == "refuses MAIL":
			say("550 no")
		case verb == "RCPT" && how == "dies at RCPT":
			return
		case verb == "RCPT" && how == "refuses RCPT":
			say("550 no")
		case verb == "DATA":
			say("354 go")
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			messages++
			n.note("message at %s", host)
			if how == "dies at the end" {
				return
			}
			say("250 taken")
		default:
			say("250 ok")
		}
	}
}

type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }

// sender makes a sender in this world; routes are lines of smtproutes.
func (n *internet) sender(routes ...string) *Sender {
	s := New(World{
		Resolver: n, Dial: n.dial, Random: func(int) int { return 0 }, Now: time.Now,
		Local: func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, n.slow
		},
		Log: slog.New(slog.DiscardHandler),
	})
	m := control.NewMap(routes)
	s.Configure(&Config{Hello: "here.example", ConnectTimeout: time.Minute, Timeout: 20 * time.Minute,
		Route: func(domain string) (smtproute.Relay, bool) {
			v, _, ok := m.Domain(domain)
			relay, err := smtproute.ParseRelay(v, smtproute.SMTP)
			return relay, ok && err == nil
		}})
	return s
}

func message() *client.Message {
	return &client.Message{Sender: "s@here.example", Recipients: []string{"u@far.example"}, Body: client.Memory([]byte("x\n"))}
}

// send sends one message and returns the report on its only recipient, in one line.
func send(s *Sender, domain string) string {
	r := s.Send(context.Background(), domain, message())
	return string(bytes.TrimSpace([]byte(strings.ReplaceAll(r.Of(0), "\n", " "))))
}
