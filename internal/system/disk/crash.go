package disk

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// Crash says what a power cut leaves of that which was not synced.
type Crash int

// The ways to find a disk after a power cut.
const (
	Lost   Crash = iota // nothing of it
	Kept                // all of it, but for what a failed sync lost
	Random              // any part: torn writes, in any order, names without files and files without names
)

func (c Crash) String() string { return [...]string{"lost", "kept", "random"}[c] }

// Crash cuts the power and returns the disk as found afterwards; m itself is dead. rnd decides what Random
// leaves and may be nil otherwise. It may be called several times, for several ways it could have ended.
func (m *Memory) Crash(how Crash, rnd *rand.Rand) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	c := &crash{how: how, rnd: rnd, block: 512, names: map[*node]map[string]*node{}, made: map[*node]*node{}}
	if how == Random && rnd.IntN(2) == 0 {
		c.block = 4096
	}
	for _, change := range m.t.changes {
		if how == Lost || how == Random && rnd.IntN(2) == 0 {
			continue
		}
		for _, e := range change {
			e.apply(c.of(e.dir))
		}
	}
	return &Memory{t: &tree{root: c.clone(m.t.root), dirty: map[*node]bool{}, space: -1}, mu: &sync.Mutex{}}
}

type crash struct {
	how   Crash
	rnd   *rand.Rand
	block int64
	names map[*node]map[string]*node // of directories that changed
	made  map[*node]*node            // a file with two names stays one
}

// of returns the names of a directory after the crash, to be changed.
func (c *crash) of(dir *node) map[string]*node {
	if c.names[dir] == nil {
		c.names[dir] = maps.Clone(dir.durable)
	}
	return c.names[dir]
}

func (c *crash) clone(n *node) *node {
	if c.made[n] != nil {
		return c.made[n]
	}
	made := &node{dir: n.dir, mode: n.mode, links: 1}
	c.made[n] = made
	if !n.dir {
		made.platter = c.content(n)
		made.data = append([]byte(nil), made.platter...)
		return made
	}
	made.durable = map[string]*node{}
	names := c.of(n)
	for _, name := range slices.Sorted(maps.Keys(names)) { // in order, so that one seed gives one result
		made.durable[name] = c.clone(names[name])
	}
	made.names = maps.Clone(made.durable)
	return made
}

// content is what is left of a file.
func (c *crash) content(n *node) []byte {
	platter := append([]byte(nil), n.platter...)
	switch {
	case c.how == Lost || len(n.pending) == 0:
		return platter
	case c.how == Kept:
		for _, e := range n.pending {
			platter = e.apply(platter)
		}
		return platter
	}
	return c.torn(n, platter)
}

// torn gives each block the state it had after some number of the edits, and the size likewise: that is what write-back
// in any order can leave.
func (c *crash) torn(n *node, platter []byte) []byte {
	states := c.rnd.IntN(len(n.pending) + 1)
	size := int64(len(platter))
	longest := size
	for i, e := range n.pending {
		after := max(size, e.off+int64(len(e.bytes)))
		if e.bytes == nil {
			after = e.off
		}
		longest = max(longest, after)
		if i < states {
			size = after
		}
	}
	out := make([]byte, longest)
	copy(out, platter)
	for at := int64(0); at < longest; at += c.block {
		block := out[at:min(at+c.block, longest)]
		for _, e := range n.pending[:c.rnd.IntN(len(n.pending)+1)] {
			e.within(block, at)
		}
	}
	return out[:size]
}

// within does the part of an edit that lies in the block at offset at.
func (e edit) within(block []byte, at int64) {
	if e.bytes == nil {
		if e.off < at+int64(len(block)) {
			clear(block[max(0, e.off-at):])
		}
		return
	}
	if e.off <= at {
		if skip := at - e.off; skip < int64(len(e.bytes)) {
			copy(block, e.bytes[skip:])
		}
	} else if skip := e.off - at; skip < int64(len(block)) {
		copy(block[skip:], e.bytes)
	}
}
