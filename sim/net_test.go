package sim

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// here is the machine's address.
var here = netip.MustParseAddr("192.0.2.1")

// network joins the machine, its clients and the servers of others.
type network struct {
	sim *sim

	mu       sync.Mutex
	backlog  []*end // for qmail-smtpd, from clients; the sockets outlive the process
	arrived  sync.Cond
	servers  map[netip.Addr]*host
	blocked  map[netip.Addr]time.Time // until then nothing goes to or comes from there
	dialled  map[netip.Addr]uint64
	refusing map[netip.Addr]time.Time
}

func newNetwork(s *sim) *network {
	n := &network{
		sim: s, servers: map[netip.Addr]*host{}, blocked: map[netip.Addr]time.Time{}, dialled: map[netip.Addr]uint64{},
		refusing: map[netip.Addr]time.Time{},
	}
	n.arrived.L = &n.mu
	return n
}

// block parts a host from the others for a while.
func (n *network) block(a netip.Addr, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if until := time.Now().Add(d); n.blocked[a].Before(until) {
		n.blocked[a] = until
	}
}

// refuse has a host refuse connections for a while.
func (n *network) refuse(a netip.Addr, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refusing[a] = time.Now().Add(d)
}

// path says how much longer the way to a host is blocked.
func (n *network) path(a netip.Addr) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return max(time.Until(n.blocked[a]), 0)
}

func tcp(a netip.Addr, port uint16) *net.TCPAddr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, port))
}

// connect makes a connection between the machine and a far host or client, with the end that was planned for it.
func (n *network) connect(client, server net.Addr, far netip.Addr) (a, b *end) {
	n.mu.Lock()
	n.dialled[far]++
	count := n.dialled[far]
	n.mu.Unlock()
	r := dice(n.sim.seed, "wire "+far.String(), count)
	a, b = wire(client, server, between(r, 200*time.Microsecond, n.sim.plan.latency), func() time.Duration { return n.path(far) })
	if n.sim.calm() || !chance(r, n.sim.plan.badWire) {
		return a, b
	}
	h := []*half{a.out, b.out}[r.IntN(2)]
	h.left, h.silent = int64(r.IntN(3000)), chance(r, 0.3)
	if chance(r, 0.5) {
		h.left = int64(r.IntN(400)) // replies are short
	}
	return a, b
}

// dial is how the machine reaches others.
func (n *network) dial(ctx context.Context, p *process, addr netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	h, refusing := n.servers[addr.Addr()], time.Now().Before(n.refusing[addr.Addr()])
	n.mu.Unlock()
	wait := n.path(addr.Addr())
	if h == nil || h.dead {
		wait = time.Hour
	}
	if wait == 0 {
		wait = n.sim.plan.latency
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-p.ctx.Done():
		return nil, net.ErrClosed
	}
	if h == nil || h.dead || refusing {
		return nil, syscall.ECONNREFUSED
	}
	a, b := n.connect(tcp(here, 20000), tcp(addr.Addr(), 25), addr.Addr())
	p.owns(a)
	h.accept(b)
	return a, nil
}

// call is how a client reaches the machine.
func (n *network) call(from netip.Addr) (*end, error) {
	if !n.sim.machine.running() {
		return nil, syscall.ECONNREFUSED
	}
	a, b := n.connect(tcp(from, 30000), tcp(here, 25), from)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.backlog = append(n.backlog, b)
	n.arrived.Broadcast()
	return a, nil
}

// listener is the machine's socket in the hands of one process.
func (n *network) listener(p *process) net.Listener {
	l := &listener{n: n, of: p}
	context.AfterFunc(p.ctx, func() { l.Close() })
	return l
}

type listener struct {
	n      *network
	of     *process
	closed bool // guarded by n.mu
}

func (l *listener) Accept() (net.Conn, error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for {
		if l.closed {
			return nil, net.ErrClosed
		}
		if len(l.n.backlog) > 0 {
			e := l.n.backlog[0]
			l.n.backlog = l.n.backlog[1:]
			l.of.owns(e)
			return e, nil
		}
		l.n.arrived.Wait()
	}
}

func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	l.closed = true
	l.n.arrived.Broadcast()
	return nil
}

func (l *listener) Addr() net.Addr { return tcp(here, 25) }
