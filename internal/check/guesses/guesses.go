// Package guesses bounds the guessing of passwords: by address, by network and by login, with answers that come later
// and later. Nothing here waits or looks at a clock.
//
// What is counted are wrong answers, in buckets that drain with time. A guess takes its place in them before it is
// looked at, so that many at once count as many; one that was right, or could not be looked at, gives its place back.
// Who has logged in before from a network is counted apart there, by login and network: neither those who guess at his
// password from elsewhere, nor a neighbour behind the same address whose telephone has an old password, lock him out.
// Memory is bounded; who has guessed least is forgotten first.
package guesses

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"qmail/internal/format/address"
)

// rule is how a kind of bucket fills and drains.
type rule struct {
	most  float64       // wrong guesses in a row
	drain time.Duration // for one of them to be forgotten
	free  float64       // so many before the answers come later
}

// The rules. A network is an IPv4 /24 or an IPv6 /48, an address in IPv6 a /64: who has one of them has all of it.
var rules = [...]rule{
	byAddress: {15, 30 * time.Second, 0},
	byNetwork: {60, 10 * time.Second, 20},
	byLogin:   {50, 20 * time.Second, 5},
	byPair:    {15, 30 * time.Second, 0},
}

const (
	byAddress = iota
	byNetwork
	byLogin
	byPair
)

const (
	// maxBuckets bounds each kind, and maxKnown the logins that are known from a network.
	maxBuckets = 16384
	maxKnown   = 16384
	// firstDelay is when the first wrong answer comes; each further one takes twice as long, up to lastDelay.
	firstDelay = time.Second
	lastDelay  = 16 * time.Second
)

// Guesses remembers. The zero value is ready.
type Guesses struct {
	mu      sync.Mutex
	buckets [len(rules)]map[string]*bucket
	known   map[string]time.Time // pairs of login and network, and when that was last right
}

// bucket holds wrong guesses.
type bucket struct {
	level float64
	last  time.Time
}

// key is a bucket's place.
type key struct {
	kind int
	name string
}

// keys are the buckets that a guess counts in. The lock is held.
func (g *Guesses) keys(ip netip.Addr, login string) []key {
	place, network := places(ip)
	login = address.Lower(login)
	pair := login + "\x00" + network
	if _, known := g.known[pair]; known {
		return []key{{byPair, pair}}
	}
	return []key{{byAddress, place}, {byNetwork, network}, {byLogin, login}}
}

// places are the address and the network that somebody has; of a client without an address it is one place for all.
func places(ip netip.Addr) (place, network string) {
	ip = ip.Unmap().WithZone("")
	if !ip.IsValid() {
		return "", ""
	}
	bits := [...]int{32, 24}
	if ip.Is6() {
		bits = [...]int{64, 48}
	}
	a, _ := ip.Prefix(bits[0])
	n, _ := ip.Prefix(bits[1])
	return a.String(), n.String()
}

// Take reports whether there may be one more guess, and counts it as wrong until Right or Void says otherwise.
func (g *Guesses) Take(ip netip.Addr, login string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	keys := g.keys(ip, login)
	for _, k := range keys {
		if b := g.buckets[k.kind][k.name]; b != nil && b.drained(k.kind, now)+1 > rules[k.kind].most {
			return false
		}
	}
	for _, k := range keys {
		b := g.bucket(k, now)
		b.level, b.last = b.drained(k.kind, now)+1, now
	}
	return true
}

func (b *bucket) drained(kind int, now time.Time) float64 {
	return max(0, b.level-max(0, now.Sub(b.last).Seconds())/rules[kind].drain.Seconds())
}

// bucket finds or makes one.
func (g *Guesses) bucket(k key, now time.Time) *bucket {
	table := g.buckets[k.kind]
	if table == nil {
		table = map[string]*bucket{}
		g.buckets[k.kind] = table
	}
	if b := table[k.name]; b != nil {
		return b
	}
	if len(table) >= maxBuckets {
		for level := 0.0; len(table) >= maxBuckets; level++ { // from the emptiest on
			for name, b := range table {
				if b.drained(k.kind, now) <= level {
					delete(table, name)
				}
			}
		}
	}
	b := &bucket{last: now}
	table[k.name] = b
	return b
}

// Right takes a guess back that was no guess, and remembers who comes from where.
func (g *Guesses) Right(ip netip.Addr, login string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range g.keys(ip, login) {
		g.give(k, now)
	}
	_, network := places(ip)
	if g.known == nil {
		g.known = map[string]time.Time{}
	}
	if len(g.known) >= maxKnown {
		g.forget()
	}
	g.known[address.Lower(login)+"\x00"+network] = now
}

// Void takes a guess back that could not be looked at.
func (g *Guesses) Void(ip netip.Addr, login string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range g.keys(ip, login) {
		g.give(k, now)
	}
}

func (g *Guesses) give(k key, now time.Time) {
	if b := g.buckets[k.kind][k.name]; b != nil {
		b.level, b.last = max(0, b.drained(k.kind, now)-1), now
	}
}

// forget drops the older half of the known pairs, about: those older than their mean age.
func (g *Guesses) forget() {
	var first time.Time
	for _, at := range g.known {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	var sum time.Duration
	for _, at := range g.known {
		sum += at.Sub(first) / maxKnown
	}
	limit := first.Add(sum)
	for pair, at := range g.known {
		if !at.After(limit) {
			delete(g.known, pair)
		}
	}
}

// Delay is how long after the question a wrong guess is answered: for all the same that know nothing yet, and longer
// with each one.
func (g *Guesses) Delay(ip netip.Addr, login string, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	delay := firstDelay
	for _, k := range g.keys(ip, login) {
		b := g.buckets[k.kind][k.name]
		if b == nil {
			continue
		}
		d := firstDelay
		for n := math.Ceil(b.drained(k.kind, now) - rules[k.kind].free); n > 1 && d < lastDelay; n-- {
			d *= 2
		}
		delay = max(delay, min(d, lastDelay))
	}
	return delay
}
