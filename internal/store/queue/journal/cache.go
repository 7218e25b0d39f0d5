package journal

import (
	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
)

// cache holds just-accepted messages, so that one which can be delivered at once is never read back. When
// full it forgets the oldest. Guarded by Journal.mu.
type cache struct {
	limit, bytes int64
	byID         map[queue.ID]cached
	order        []queue.ID // oldest first; may name messages that are gone
}

type cached struct {
	envelope *envelope.Envelope
	body     [][]byte
	size     int64
}

func (c *cache) put(id queue.ID, e *envelope.Envelope, body [][]byte, size int64) {
	if size > c.limit {
		return
	}
	for c.bytes+size > c.limit && len(c.order) > 0 {
		c.drop(c.order[0])
		c.order = c.order[1:]
	}
	c.byID[id] = cached{e, body, size}
	c.bytes += size
	c.order = append(c.order, id)
	if len(c.order) > 2*len(c.byID)+1024 {
		c.compact()
	}
}

func (c *cache) drop(id queue.ID) {
	if got, ok := c.byID[id]; ok {
		c.bytes -= got.size
		delete(c.byID, id)
	}
}

func (c *cache) compact() {
	kept := make([]queue.ID, 0, len(c.byID))
	for _, id := range c.order {
		if _, ok := c.byID[id]; ok {
			kept = append(kept, id)
		}
	}
	c.order = kept
}
