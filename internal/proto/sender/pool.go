package sender

import (
	"net"
	"sync"
	"time"

	"qmail/internal/proto/smtp/client"
)

const (
	maxIdle   = 512             // connections that wait for a message, in all
	idleFor   = 5 * time.Second // how long they do
	maxUses   = 1000            // messages over one connection
	sweepEach = time.Second
)

// pooled is a connection and where it leads.
type pooled struct {
	*client.Conn
	place place
	raw   net.Conn
	uses  int
	since time.Time // idle since
	epoch int       // of the pool when it was opened
}

// pool holds the open connections. All but those in idle are in use by one message each.
type pool struct {
	now func() time.Time

	mu     sync.Mutex
	idle   map[place][]*pooled // the last is the one used last
	count  int                 // in idle
	inUse  map[*pooled]bool
	sweep  *time.Timer // runs while something is idle
	epoch  int
	closed bool
}

// open registers a new connection as in use; nil if the pool is closed.
func (p *pool) open(at place, nc net.Conn, o client.Options) *pooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if p.inUse == nil {
		p.inUse = map[*pooled]bool{}
		p.idle = map[place][]*pooled{}
	}
	c := &pooled{Conn: client.New(nc, o), place: at, raw: nc, epoch: p.epoch}
	p.inUse[c] = true
	return c
}

// take returns an idle connection, or nil.
func (p *pool) take(at place) *pooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[at]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	list[len(list)-1] = nil
	p.idle[at] = list[:len(list)-1]
	p.count--
	p.inUse[c] = true
	return c
}

// put takes back a connection after a message: it waits for the next, or ends.
func (p *pool) put(c *pooled) {
	c.uses++
	p.mu.Lock()
	delete(p.inUse, c)
	keep := c.Usable() && c.uses < maxUses && c.place.asked != once && p.count < maxIdle && !p.closed && c.epoch == p.epoch
	if keep {
		c.since = p.now()
		p.idle[c.place] = append(p.idle[c.place], c)
		p.count++
		if p.sweep == nil {
			p.sweep = time.AfterFunc(sweepEach, p.clean)
		}
	}
	p.mu.Unlock()
	if !keep {
		c.Quit()
	}
}

// clean ends what has been idle for long.
func (p *pool) clean() {
	p.mu.Lock()
	before := p.now().Add(-idleFor)
	old := p.remove(func(c *pooled) bool { return c.since.Before(before) })
	p.sweep = nil
	if p.count > 0 && !p.closed {
		p.sweep = time.AfterFunc(sweepEach, p.clean)
	}
	p.mu.Unlock()
	quit(old)
}

// remove takes what is picked out of idle. The lock is held.
func (p *pool) remove(pick func(c *pooled) bool) []*pooled {
	var out []*pooled
	for addr, list := range p.idle {
		keep := list[:0]
		for _, c := range list {
			if pick(c) {
				out = append(out, c)
				continue
			}
			keep = append(keep, c)
		}
		clear(list[len(keep):])
		p.idle[addr] = keep
		if len(keep) == 0 {
			delete(p.idle, addr)
		}
	}
	p.count -= len(out)
	return out
}

// drop ends all idle connections, and those in use once their message is done.
func (p *pool) drop() {
	p.mu.Lock()
	p.epoch++
	old := p.remove(func(*pooled) bool { return true })
	p.mu.Unlock()
	quit(old)
}

// close ends idle connections and cuts those in use.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	old := p.remove(func(*pooled) bool { return true })
	if p.sweep != nil {
		p.sweep.Stop()
	}
	for c := range p.inUse {
		c.raw.Close()
	}
	p.mu.Unlock()
	quit(old)
}

func quit(list []*pooled) {
	for _, c := range list {
		c.Quit()
	}
}
