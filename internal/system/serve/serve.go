// Package serve accepts connections for a role: as many as it may, from each client as many as it may, and to
// an orderly end.
package serve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Limits bound the sessions that run at once. Zero means none at all.
type Limits struct {
	Total     int
	PerClient int // an IPv4 address or an IPv6 /64 network
}

// Group is the sessions of one role, from any number of listeners.
type Group struct {
	// Limits is asked at each connection.
	Limits func() Limits
	// Handle holds a session; the connection is closed after it. ctx ends when sessions should. service is the
	// name of the listener.
	Handle func(ctx context.Context, service string, conn net.Conn, client netip.Addr)
	// Refuse says why to a client beyond the limits, in no more than a write that does not wait.
	Refuse func(service string, conn net.Conn, client netip.Addr)
	Log    *slog.Logger
	// Proxy, if set, names those who pass on the connections of others: PerClient is not for them.
	Proxy func(client netip.Addr) bool

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	clients map[netip.Addr]int
	cut     int            // sessions that Drain closed
	wg      sync.WaitGroup // listeners and sessions
}

const (
	firstBackoff = 5 * time.Millisecond
	maxBackoff   = time.Second
	refuseTime   = time.Second
)

// Listen accepts connections, in a goroutine of its own, until ctx ends or the listener is closed, here or by
// who gave it to us. At its end the listener is closed; sessions go on.
func (g *Group) Listen(ctx context.Context, service string, ln net.Listener) {
	g.wg.Go(func() { g.accept(ctx, service, ln) })
}

func (g *Group) accept(ctx context.Context, service string, ln net.Listener) {
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var backoff time.Duration
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			backoff = 0
			g.begin(ctx, service, conn)
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EINVAL):
			return // EINVAL: shut down in another process that has it too
		default: // out of descriptors or memory: those who wait in the kernel's queue can wait longer
			if backoff == 0 {
				g.Log.Warn("unable to accept connections for now", "err", err)
			}
			backoff = min(max(2*backoff, firstBackoff), maxBackoff)
			select {
			case <-time.After(backoff):
			case <-ctx.Done():
				return
			}
		}
	}
}

func (g *Group) begin(ctx context.Context, service string, conn net.Conn) {
	client := addressOf(conn)
	if !g.enter(conn, client) {
		conn.SetWriteDeadline(time.Now().Add(refuseTime))
		g.Refuse(service, conn, client)
		conn.Close()
		return
	}
	g.wg.Go(func() {
		defer g.leave(conn, client)
		g.Handle(ctx, service, conn, client)
	})
}

// enter takes a place for a session, if there is one.
func (g *Group) enter(conn net.Conn, client netip.Addr) bool {
	limits, key := g.Limits(), Network(client)
	proxy := g.Proxy != nil && g.Proxy(client)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= limits.Total || !proxy && key.IsValid() && g.clients[key] >= limits.PerClient {
		return false
	}
	if g.conns == nil {
		g.conns, g.clients = map[net.Conn]struct{}{}, map[netip.Addr]int{}
	}
	g.conns[conn] = struct{}{}
	g.clients[key]++
	return true
}

// admit counts somebody whose connection a proxy passes on; leave ends that.
func (g *Group) admit(client netip.Addr) (leave func(), ok bool) {
	limits, key := g.Limits(), Network(client)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.clients[key] >= limits.PerClient {
		return nil, false
	}
	g.clients[key]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.uncount(key)
	}, true
}

func (g *Group) leave(conn net.Conn, client netip.Addr) {
	conn.Close()
	key := Network(client)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, conn)
	g.uncount(key)
}

// uncount takes one session of a client off. The lock is held.
func (g *Group) uncount(key netip.Addr) {
	if g.clients[key]--; g.clients[key] <= 0 {
		delete(g.clients, key)
	}
}

// Len is how many sessions there are.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}

// Drain waits for listeners, whose ctx must have ended, and for sessions. It closes those that are left after
// grace, and returns how many they were.
func (g *Group) Drain(grace time.Duration) (cut int) {
	defer time.AfterFunc(grace, g.closeAll).Stop()
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cut
}

func (g *Group) closeAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut += len(g.conns)
	for conn := range g.conns {
		conn.Close()
	}
}

// addressOf is the peer's address without a zone, IPv4 in its own form; the zero value if it has none.
func addressOf(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// Network is what counts as one client: who has an IPv6 address has a /64 full of them.
func Network(ip netip.Addr) netip.Addr {
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}
