package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// maxForeign is how many datagrams that are not the answer are overheard before TCP is asked instead: somebody may
// be guessing ids (RFC 5452 9.2), which he cannot with TCP.
const maxForeign = 16

// network is the Source that asks servers.
type network struct {
	config atomic.Pointer[Config]
	now    func() time.Time
	dialer net.Dialer
}

func newNetwork(now func() time.Time) *network {
	if now == nil {
		now = time.Now
	}
	n := &network{now: now}
	n.dialer.SetMultipathTCP(false)
	return n
}

// configure returns what was before.
func (r *network) configure(c Config) *Config {
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Attempts <= 0 {
		c.Attempts = defaultAttempts
	}
	if len(c.Servers) > maxServers {
		c.Servers = c.Servers[:maxServers]
	}
	return r.config.Swap(&c)
}

// Ask tries the servers in turn until one gives a usable answer.
func (r *network) Ask(ctx context.Context, name string, kind Type) (Answer, error) {
	q, last := question{name, kind}, errServers
	c := r.config.Load()
	for range c.Attempts {
		for _, server := range c.Servers {
			a, err := r.askServer(ctx, server, q, true)
			if rcode, ok := errors.AsType[rcodeError](err); ok && (rcode == rcodeFormat || rcode == rcodeNotImp) {
				a, err = r.askServer(ctx, server, q, false) // it may not know EDNS
			}
			if err == nil {
				a.Secure = a.Secure && c.believes(server)
				return a, nil
			}
			last = err
			if ctx.Err() != nil {
				return Answer{}, err
			}
		}
	}
	return Answer{}, last
}

// believes reports whether the AD bit of a server counts: only if nobody can have set it on the way.
func (c *Config) believes(server string) bool {
	addr, err := netip.ParseAddrPort(server)
	return c.TrustAD || err == nil && addr.Addr().Unmap().IsLoopback()
}

func (r *network) askServer(ctx context.Context, server string, q question, edns bool) (Answer, error) {
	p, err := r.overUDP(ctx, server, q, edns)
	if err == nil && p.truncated {
		p, err = r.overTCP(ctx, server, q, edns)
		if err == nil && p.truncated {
			err = errMalformed
		}
	}
	return p.answer, err
}

// open dials and sends the question; both have one deadline. Each question has a random id, and a
// socket, hence a port chosen by the kernel, of its own (RFC 5452 9.2).
func (r *network) open(ctx context.Context, network, server string, q question, edns bool) (net.Conn, uint16, error) {
	var random [2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, 0, err
	}
	id := binary.BigEndian.Uint16(random[:])
	b, err := pack(q, id, edns)
	if err != nil {
		return nil, 0, err
	}
	if network == "tcp" {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	deadline := time.Now().Add(r.config.Load().Timeout)
	dialing, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := r.dialer.DialContext(dialing, network, server)
	if err != nil {
		return nil, 0, err
	}
	if err := conn.SetDeadline(deadline); err != nil {
		conn.Close()
		return nil, 0, err
	}
	if _, err := conn.Write(b); err != nil {
		conn.Close()
		return nil, 0, err
	}
	return conn, id, nil
}

// overUDP waits for the one datagram that answers; others are overheard until the deadline.
func (r *network) overUDP(ctx context.Context, server string, q question, edns bool) (parsed, error) {
	conn, id, err := r.open(ctx, "udp", server, q, edns)
	if err != nil {
		return parsed{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := make([]byte, 4<<10)
	for range maxForeign {
		n, err := conn.Read(b)
		if err != nil {
			return parsed{}, err
		}
		if !isAnswer(b[:n], id) {
			continue
		}
		p, err := parse(b[:n], q, r.now())
		if errors.Is(err, errForeign) {
			continue
		}
		return p, err
	}
	return parsed{truncated: true}, nil
}

func (r *network) overTCP(ctx context.Context, server string, q question, edns bool) (parsed, error) {
	conn, id, err := r.open(ctx, "tcp", server, q, edns)
	if err != nil {
		return parsed{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return parsed{}, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		return parsed{}, err
	}
	if !isAnswer(b, id) {
		return parsed{}, errForeign
	}
	return parse(b, q, r.now())
}
