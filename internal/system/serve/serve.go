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

// Limits bound the sessions that run at once. Zero sessions in all, or for a client, means none at all.
type Limits struct {
	Total     int
	PerClient int // an IPv4 address or an IPv6 /64 network
	// PerNetwork is for all clients of an IPv4 /24 or an IPv6 /56 network; 0 is any number, else less than PerClient
	// means PerClient.
	PerNetwork int
	// Lines is how many lines of log a minute a client may cause; 0 is a sensible number.
	Lines int
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
	// Proxy, if set, names those who pass on the connections of others: PerClient and PerNetwork are not for them.
	Proxy func(client netip.Addr) bool

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	clients map[netip.Prefix]int // sessions of each client and of each network
	cut     int                  // sessions that Drain closed
	wg      sync.WaitGroup       // listeners and sessions
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
	limits := g.Limits()
	proxy := g.Proxy != nil && g.Proxy(client)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= limits.Total || !proxy && !g.room(client, limits) {
		return false
	}
	if g.conns == nil {
		g.conns = map[net.Conn]struct{}{}
	}
	g.conns[conn] = struct{}{}
	g.count(client, 1)
	return true
}

// room reports whether a client may have one more session. The lock is held.
func (g *Group) room(client netip.Addr, limits Limits) bool {
	if !client.IsValid() {
		return true
	}
	one, all := networks(client)
	return g.clients[one] < limits.PerClient && (limits.PerNetwork == 0 || g.clients[all] < max(limits.PerNetwork, limits.PerClient))
}

// count adds n to the sessions of a client and of its network. The lock is held.
func (g *Group) count(client netip.Addr, n int) {
	if !client.IsValid() {
		return
	}
	if g.clients == nil {
		g.clients = map[netip.Prefix]int{}
	}
	one, all := networks(client)
	for _, key := range [...]netip.Prefix{one, all} {
		if g.clients[key] += n; g.clients[key] <= 0 {
			delete(g.clients, key)
		}
	}
}

// admit counts somebody whose connection a proxy passes on; leave ends that.
func (g *Group) admit(client netip.Addr) (leave func(), ok bool) {
	limits := g.Limits()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.room(client, limits) {
		return nil, false
	}
	g.count(client, 1)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.count(client, -1)
	}, true
}

func (g *Group) leave(conn net.Conn, client netip.Addr) {
	conn.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, conn)
	g.count(client, -1)
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

// networks are what counts as one client, and what all clients of one network are counted by.
func networks(ip netip.Addr) (one, all netip.Prefix) {
	own, wide := 32, 24
	if ip.Is6() {
		own, wide = 64, 56
	}
	one, _ = ip.Prefix(own) // the lengths fit the families
	all, _ = ip.Prefix(wide)
	return one, all
}
