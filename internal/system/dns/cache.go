package dns

import (
	"sync"
	"time"
)

// cacheBytes bounds what answers are remembered, by a rough count of their bytes.
const cacheBytes = 16 << 20

// cache remembers answers until they expire. When it is full, entries go in the map's random order, which
// no stranger can steer; most of what is there is rarely asked for twice.
type cache struct {
	mu    sync.RWMutex
	m     map[question]Answer
	bytes int
	// limit and longest bound it in bytes and each of its answers in time.
	limit   int
	longest time.Duration
}

func (c *cache) get(q question, now time.Time) (Answer, bool) {
	c.mu.RLock()
	a, ok := c.m[q]
	c.mu.RUnlock()
	return a, ok && now.Before(a.Expires)
}

func (c *cache) put(q question, a Answer, now time.Time) {
	if !now.Before(a.Expires) {
		return
	}
	if end := now.Add(c.longest); a.Expires.After(end) {
		a.Expires = end
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[question]Answer{}
	}
	c.remove(q)
	size := cost(q, a)
	for other := range c.m {
		if c.bytes+size <= c.limit {
			break
		}
		c.remove(other)
	}
	c.m[q] = a
	c.bytes += size
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m, c.bytes = nil, 0
}

func (c *cache) remove(q question) {
	if a, ok := c.m[q]; ok {
		c.bytes -= cost(q, a)
		delete(c.m, q)
	}
}

func cost(q question, a Answer) int {
	n := 256 + len(q.name) + 32*len(a.Addrs)
	for _, mx := range a.MX {
		n += 32 + len(mx.Host)
	}
	for _, s := range a.Texts {
		n += 16 + len(s)
	}
	for _, s := range a.Names {
		n += 16 + len(s)
	}
	for _, t := range a.TLSA {
		n += 32 + len(t.Data)
	}
	return n
}
