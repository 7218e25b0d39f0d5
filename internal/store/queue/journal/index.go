package journal

import (
	"maps"
	"slices"

	"qmail/internal/store/queue"
)

// entry is a live message. There may be millions: it holds no envelope and no body.
type entry struct {
	seg        *segment // that holds its accept, or the newest copy of it
	off        uint32   // of the record in it
	meta       uint32   // length of the record's items
	body       uint32   // where the body begins, counted from the record
	sum        uint32   // of the body
	size       int64    // of the body
	recipients uint32   // all
	open       uint32   // of them
	next       int64    // newest note of all that are open, unix nanoseconds; 0 for none
	state      uint64   // the segment of this number, and none before, has all of the state
	more       *more    // of messages whose recipients differ
	bytes      uint32   // what a copy takes in the journal
	flags      uint8
}

// The flags of entries.
const (
	inFile   = 1 << iota // the body has a file of its own
	held                 // on hold
	heldOnce             // a hold may lie in an old segment, so that silence does not mean released
	verified             // the file's content was checked, or written by this process
)

// more is the state of a message whose recipients are not all alike.
type more struct {
	closed []uint64 // a bit for each recipient
	next   []int64  // newest note of each; nil while entry.next holds for all
	failed failures
}

func (e *entry) closed(i uint32) bool {
	return e.more != nil && e.more.closed[i/64]&(1<<(i%64)) != 0
}

func (e *entry) detail() *more {
	if e.more == nil {
		e.more = &more{closed: make([]uint64, (e.recipients+63)/64)}
	}
	return e.more
}

// shut closes recipients and tells how many were open.
func (e *entry) shut(who runs) (n uint32) {
	if len(who) == 0 {
		n, e.open = e.open, 0
		return n
	}
	if e.more != nil {
		e.more.failed.forget(who, e.recipients)
	}
	if e.recipients == 1 {
		who.each(1, func(uint32) { n, e.open = e.open, 0 })
		return n
	}
	m := e.detail()
	who.each(e.recipients, func(i uint32) {
		if bit := uint64(1) << (i % 64); m.closed[i/64]&bit == 0 {
			m.closed[i/64] |= bit
			n++
		}
	})
	e.open -= n
	return n
}

// note sets the next try and tells whether that is now all there is to know of the message's recipients.
func (e *entry) note(who runs, next int64) (all bool) {
	if e.more != nil {
		e.more.failed.forget(who, e.recipients)
	}
	n := e.open
	if len(who) > 0 {
		n = 0
		who.each(e.recipients, func(i uint32) {
			if !e.closed(i) {
				n++
			}
		})
	}
	if n == e.open {
		e.next = next
		if e.more != nil {
			e.more.next = nil
		}
		return e.open == e.recipients
	}
	m := e.detail()
	if m.next == nil {
		m.next = slices.Repeat([]int64{e.next}, int(e.recipients))
	}
	who.each(e.recipients, func(i uint32) { m.next[i] = next })
	return false
}

// fail takes recipients as failed for good.
func (e *entry) fail(who runs, outcome queue.Outcome, text string) {
	one := func(i uint32) {
		if !e.closed(i) {
			e.detail().failed.put(failure{i, outcome, text})
		}
	}
	if len(who) > 0 {
		who.each(e.recipients, one)
		return
	}
	for i := range e.recipients {
		one(i)
	}
}

func (e *entry) failedAt(i uint32) bool { return e.more != nil && e.more.failed.has(i) }

func (e *entry) nextOf(i uint32) int64 {
	if e.more != nil && e.more.next != nil {
		return e.more.next[i]
	}
	return e.next
}

// appendState writes all that is known of a message beyond its accept, as items that make it known again.
func (e *entry) appendState(dst []byte, id queue.ID) []byte {
	if e.open < e.recipients {
		var set []uint32
		for i := range e.recipients {
			if e.closed(i) {
				set = append(set, i)
			}
		}
		it := item{kind: kindClose, flags: flagCopy, id: id, who: makeRuns(nil, set)}
		dst = it.append(dst)
	}
	if e.more == nil || e.more.next == nil {
		if e.next != 0 {
			it := item{kind: kindNote, flags: flagCopy, id: id, next: e.next}
			dst = it.append(dst)
		}
	} else {
		groups := map[int64][]uint32{}
		for i, next := range e.more.next {
			if next != 0 && !e.closed(uint32(i)) && !e.failedAt(uint32(i)) {
				groups[next] = append(groups[next], uint32(i))
			}
		}
		for _, next := range slices.Sorted(maps.Keys(groups)) {
			it := item{kind: kindNote, flags: flagCopy, id: id, next: next, who: makeRuns(nil, groups[next])}
			dst = it.append(dst)
		}
	}
	if e.more != nil {
		dst = e.more.failed.append(dst, id)
	}
	it := item{kind: kindHold, flags: flagCopy | flagState, id: id}
	if e.flags&held != 0 {
		it.flags |= flagOn
	}
	return it.append(dst)
}

// index is the fold of the journal: every live message.
type index struct {
	live       map[queue.ID]*entry
	recipients int // open
	held       int
	dead       []death // not yet durable
	files      []queue.ID
}

// death is a message that left its segment by a record that may not be durable yet. Only when it is may
// the segment, and the body's file, go.
type death struct {
	id    queue.ID
	seg   *segment
	bytes uint32
	file  bool
}

// fold takes one item of the record at p in seg into account. It is the same code that runs after a commit and
// at opening, so that what is in memory is what will be read back.
func (x *index) fold(seg *segment, p place, it *item) {
	e := x.live[it.id]
	if it.kind == kindAccept {
		x.accept(seg, p, it, e)
		return
	}
	if e == nil {
		return
	}
	seg.needs(e.seg)
	switch it.kind {
	case kindClose:
		x.recipients -= int(e.shut(it.who))
		if e.open == 0 {
			x.remove(it.id, e)
		}
	case kindNote:
		if e.note(it.who, it.next) && e.flags&heldOnce == 0 {
			e.state = seg.seq
		}
	case kindFail:
		e.fail(it.who, it.outcome, string(it.text))
	case kindHold:
		x.hold(e, it.flags&flagOn != 0)
		if it.flags&flagOn != 0 {
			e.flags |= heldOnce
		}
		if it.flags&flagState != 0 {
			e.state = seg.seq
		}
	}
}

func (x *index) accept(seg *segment, p place, it *item, e *entry) {
	seg.accepts = append(seg.accepts, uint64(it.id))
	if e == nil {
		if it.recipients == 0 {
			if it.flags&flagFile != 0 {
				x.files = append(x.files, it.id)
			}
			return
		}
		e = &entry{recipients: it.recipients, open: it.recipients}
		x.live[it.id] = e
		x.recipients += int(it.recipients)
	} else {
		seg.needs(e.seg)
		e.seg.live--
		e.seg.liveBytes -= int64(e.bytes)
	}
	e.seg, e.off, e.meta, e.body = seg, uint32(p.off), uint32(p.meta), it.body
	e.size, e.sum, e.bytes, e.state = it.size, it.sum, uint32(it.live()), seg.seq
	if it.flags&flagFile != 0 {
		e.flags |= inFile
	}
	seg.live++
	seg.liveBytes += int64(e.bytes)
}

func (x *index) hold(e *entry, on bool) {
	if on == (e.flags&held != 0) {
		return
	}
	e.flags ^= held
	if on {
		x.held++
	} else {
		x.held--
	}
}

func (x *index) remove(id queue.ID, e *entry) {
	x.hold(e, false)
	delete(x.live, id)
	x.dead = append(x.dead, death{id, e.seg, e.bytes, e.flags&inFile != 0})
}

// bury takes the dead out of their segments, now that what killed them is durable. It tells whether one of
// those, the head aside, is now as ripe says.
func (x *index) bury(ripe func(*segment) bool, head *segment) (found bool) {
	for _, d := range x.dead {
		d.seg.live--
		d.seg.liveBytes -= int64(d.bytes)
		if d.file {
			x.files = append(x.files, d.id)
		}
		found = found || d.file || d.seg != head && ripe(d.seg)
	}
	if cap(x.dead) > 1<<16 {
		x.dead = nil
	}
	x.dead = x.dead[:0]
	return found
}
