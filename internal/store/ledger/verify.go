package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// Balance is what the account comes to, in recipients.
type Balance struct {
	Files, Blocks, Entries int64
	Messages               int64
	Accepted               int64
	Closed                 [6]int64 // by outcome
	Queued                 int64    // as the queue has it
	Before                 int64    // closed, and accepted before the account begins
	Unwritten              int64    // entries that only the queue has yet

	Since, Until time.Time
	Serial       uint64 // of the last block
	Chain        string // its hash, in hex

	// Broken are places where the chain does not hold.
	Broken []string
	// Differences are what does not come out even, by message.
	Differences []Difference
	// Omitted is how many more of them there are.
	Omitted int64
}

// Even tells whether everything is as it should be.
func (b *Balance) Even() bool {
	sum := b.Queued
	for _, n := range b.Closed {
		sum += n
	}
	return len(b.Broken) == 0 && len(b.Differences) == 0 && sum == b.Accepted
}

// Difference is something wrong about a message.
type Difference struct {
	ID         queue.ID
	What       string
	Recipients []string // whom it is about
	Sender     string
	Accepted   time.Time
	who        []uint32
}

const maxDifferences = 1000

// pages are a set of ids, which come mostly in order.
type pages map[uint64]*[1024]uint64

func (p pages) add(id queue.ID) (was bool) {
	page := p[uint64(id)>>16]
	if page == nil {
		page = new([1024]uint64)
		p[uint64(id)>>16] = page
	}
	word, bit := &page[id>>6&1023], uint64(1)<<(id&63)
	was = *word&bit != 0
	*word |= bit
	return was
}

func (p pages) has(id queue.ID) bool {
	page := p[uint64(id)>>16]
	return page != nil && page[id>>6&1023]&(1<<(id&63)) != 0
}

// message is one that is open, as the account has it.
type message struct {
	recipients uint32
	open       uint32
	closed     []uint64 // a bit for each; nil while none is
}

// auditor folds the account.
type auditor struct {
	Balance
	live    map[queue.ID]*message
	seen    pages
	before  queue.ID // ids up to here may have been accepted before the account begins
	touched map[queue.ID]bool
}

func (a *auditor) differ(id queue.ID, what string, who ...uint32) {
	if len(a.Differences) >= maxDifferences {
		a.Omitted++
		return
	}
	a.Differences = append(a.Differences, Difference{ID: id, What: what, who: who})
}

func (a *auditor) entry(e *Entry) error {
	a.Entries++
	if a.Since.IsZero() {
		a.Since = e.Time
	}
	a.Until = e.Time
	if e.Accept {
		a.accept(e)
		return nil
	}
	a.close(e)
	return nil
}

func (a *auditor) accept(e *Entry) {
	a.Messages++
	a.Accepted += int64(e.Recipients)
	if a.seen.add(e.ID) {
		a.differ(e.ID, "accepted twice")
		return
	}
	if e.Recipients > 0 {
		a.live[e.ID] = &message{recipients: uint32(e.Recipients), open: uint32(e.Recipients)}
	}
}

func (a *auditor) close(e *Entry) {
	m := a.live[e.ID]
	switch {
	case m != nil:
	case a.seen.has(e.ID):
		if !e.All() { // what is closed as a whole may have been closed before
			a.differ(e.ID, "closed twice: "+e.Outcome.String(), setOf(e)...)
		}
		return
	case e.ID <= a.before:
		if a.Before++; !e.All() {
			a.Before += int64(len(setOf(e))) - 1
		}
		return
	default:
		a.differ(e.ID, "closed, and never accepted: "+e.Outcome.String())
		return
	}
	var again []uint32
	e.EachClosed(m.recipients, func(i uint32) {
		if m.closed == nil {
			m.closed = make([]uint64, (m.recipients+63)/64)
		}
		bit := uint64(1) << (i % 64)
		if m.closed[i/64]&bit != 0 {
			if !e.All() {
				again = append(again, i)
			}
			return
		}
		m.closed[i/64] |= bit
		m.open--
		switch {
		case e.Outcome == 0:
			a.Accepted-- // before the account began
		case int(e.Outcome) < len(a.Closed):
			a.Closed[e.Outcome]++
		}
	})
	if len(again) > 0 {
		a.differ(e.ID, "closed twice: "+e.Outcome.String(), again...)
	}
	if m.open == 0 {
		delete(a.live, e.ID)
	}
}

// setOf are the recipients that a close names.
func setOf(e *Entry) (set []uint32) {
	if !e.All() {
		e.EachClosed(1<<24, func(i uint32) { set = append(set, i) })
	}
	return set
}

// state is what the queue has of a message: who is open.
type state map[uint32]bool

// Snapshot is a queue as Verify sees it: an account of what came after some position, and the messages that are there.
type Snapshot func(after queue.Account, each func(*queue.Entry) error) error

// tries is how often a queue that changes while it is read is read again.
const tries = 5

// Verify balances the account in d against the queue. Both may be in use: the account is read up to where the queue was
// read, and what the account does not have yet is taken from there.
func Verify(d disk.FS, snapshot Snapshot) (*Balance, error) {
	for range tries - 1 {
		b, err := verify(d, snapshot)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	return verify(d, snapshot)
}

func verify(d disk.FS, snapshot Snapshot) (*Balance, error) {
	files, err := list(d)
	if err != nil {
		return nil, err
	}
	news := &news{}
	for i := len(files) - 1; i >= 0; i-- {
		t, err := readTail(d, files[i])
		if errors.Is(err, errHeader) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if news.last = t.at; t.at != (queue.Position{}) {
			break
		}
	}
	news.at = news.last
	there := map[queue.ID]state{}
	err = snapshot(news, func(e *queue.Entry) error {
		s := state{}
		for _, o := range e.Open {
			s[o.Recipient] = true
		}
		for _, f := range e.Failed {
			s[f.Recipient] = true
		}
		there[e.ID] = s
		return nil
	})
	if err != nil {
		return nil, err
	}
	a := &auditor{live: map[queue.ID]*message{}, seen: pages{}, touched: map[queue.ID]bool{}}
	reached, err := a.read(d, news.at)
	if err != nil {
		return nil, err
	}
	for i := range news.entries { // what only the queue tells
		if n := &news.entries[i]; n.at.after(reached) {
			a.Unwritten++
			n.each(a.entry)
		}
	}
	a.compare(there)
	return &a.Balance, a.explain(d, news)
}

// read folds all files, up to the position that the queue was read to; later blocks only say what has changed since. It
// returns the position of the last block that it folded.
func (a *auditor) read(d disk.FS, upTo queue.Position) (reached queue.Position, err error) {
	files, err := list(d)
	if err != nil {
		return reached, err
	}
	var all []header
	for _, n := range files {
		h, err := readHeader(d, n)
		if errors.Is(err, errHeader) {
			a.noHeader(d, n)
			continue
		}
		if err != nil {
			return reached, err
		}
		all = append(all, h)
	}
	line := a.lineage(d, all)
	var last tail
	for i, h := range line {
		if i == 0 {
			a.before = h.seen
		} else if h.chain != last.chain {
			a.broken("%s does not follow %s", fileName(h.number), fileName(line[i-1].number))
		}
		limit := int64(0)
		if i+1 < len(line) {
			limit = line[i+1].previous.end
		}
		if last, err = a.file(d, h, limit, upTo, &reached); err != nil {
			return reached, err
		}
	}
	a.Serial, a.Chain = last.serial, fmt.Sprintf("%x", last.chain)
	return reached, nil
}

// lineage puts the files in order: the newest, the one that it follows, and so on. Others may be there if a disk failed when
// they were begun, but then they are empty.
func (a *auditor) lineage(d disk.FS, all []header) []header {
	var line []header
	for i := len(all) - 1; i >= 0; i-- {
		h := all[i]
		if len(line) == 0 || line[0].previous.number == h.number {
			if empty := a.empty(d, h.number); len(line) > 0 || !empty || i == 0 {
				line = slices.Insert(line, 0, h)
			}
			continue
		}
		if !a.empty(d, h.number) {
			a.broken("nothing follows %s, which is not the newest", fileName(h.number))
		}
	}
	return line
}

// empty tells whether a file has no blocks.
func (a *auditor) empty(d disk.FS, number uint64) bool {
	h, t, err := blocks(d, number, 0, false, func(*block) error { return errEnough })
	return !errors.Is(err, errEnough) && !t.more && t.serial == h.serial
}

// noHeader names a file that has no header, unless it never held anything.
func (a *auditor) noHeader(d disk.FS, n uint64) {
	f, err := d.Open(fileName(n))
	if err != nil {
		return
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	got, _ := f.ReadAt(b, headerSize)
	for _, c := range b[:max(got, 0)] {
		if c != 0 {
			a.broken("%s has no header", fileName(n))
			return
		}
	}
}

func (a *auditor) broken(format string, args ...any) {
	a.Broken = append(a.Broken, fmt.Sprintf(format, args...))
}

// file folds one file; limit is where it must end, if that is known.
func (a *auditor) file(d disk.FS, h header, limit int64, upTo queue.Position, reached *queue.Position) (tail, error) {
	a.Files++
	_, t, err := blocks(d, h.number, limit, true, func(b *block) error {
		a.Blocks++
		if position(b.at).after(upTo) {
			return b.each(func(e *Entry) error { a.touched[e.ID] = true; return nil })
		}
		*reached = b.at
		if err := b.each(a.entry); err != nil {
			a.broken("%s, block %d: %v", fileName(h.number), b.serial, err)
		}
		return nil
	})
	if err != nil {
		return t, err
	}
	switch {
	case t.more && (limit > 0 || t.whole): // else it may be what a crash left
		a.broken("%s was changed after block %d, at byte %d", fileName(h.number), t.serial, t.end)
	case limit > 0 && t.end != limit:
		a.broken("%s ends at byte %d, and should at %d", fileName(h.number), t.end, limit)
	case limit == 0 && behind(d, h.number, t.end+1):
		a.broken("%s was changed or cut after block %d, at byte %d", fileName(h.number), t.serial, t.end)
	}
	return t, nil
}

// behind tells whether a block lies behind the end of the newest file: then it is not an end.
func behind(d disk.FS, number uint64, end int64) bool {
	f, err := d.Open(fileName(number))
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	n, _ := f.ReadAt(b, end)
	for i := 0; i+blockHeader <= max(n, 0); i++ {
		if string(b[i:i+4]) == blockMagic {
			if _, _, ok := parseBlock(b[i:]); ok {
				return true
			}
		}
	}
	return false
}

type position queue.Position

func (p position) after(o queue.Position) bool {
	return p.Segment > o.Segment || p.Segment == o.Segment && p.Offset > o.Offset
}

// compare holds what the account says is open against what the queue has.
func (a *auditor) compare(there map[queue.ID]state) {
	for _, id := range slices.Sorted(maps.Keys(there)) {
		s := there[id]
		m := a.live[id]
		if a.touched[id] { // it changed while we looked: the account counts
			if m != nil {
				a.Queued += int64(m.open)
			}
			continue
		}
		a.Queued += int64(len(s))
		switch {
		case m == nil && a.seen.has(id):
			a.differ(id, "in the queue, and the account says it is done", slices.Sorted(maps.Keys(s))...)
			continue
		case m == nil:
			a.differ(id, "in the queue, and not in the account")
			continue
		}
		var lost, found []uint32
		for i := range m.recipients {
			open := m.closed == nil || m.closed[i/64]&(1<<(i%64)) == 0
			switch {
			case open && !s[i]:
				lost = append(lost, i)
			case !open && s[i]:
				found = append(found, i)
			}
		}
		if lost != nil {
			a.differ(id, "lost: neither in the queue nor closed", lost...)
		}
		if found != nil {
			a.differ(id, "in the queue, and the account says it is done", found...)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.live)) {
		if _, ok := there[id]; ok {
			continue
		}
		m := a.live[id]
		if a.touched[id] {
			a.Queued += int64(m.open)
			continue
		}
		var lost []uint32
		for i := range m.recipients {
			if m.closed == nil || m.closed[i/64]&(1<<(i%64)) == 0 {
				lost = append(lost, i)
			}
		}
		a.differ(id, "lost: neither in the queue nor closed", lost...)
	}
}

// explain gives the differences the addresses that the account knows.
func (a *auditor) explain(d disk.FS, n *news) error {
	if len(a.Differences) == 0 {
		return nil
	}
	about := map[queue.ID][]*Difference{}
	for i := range a.Differences {
		x := &a.Differences[i]
		about[x.ID] = append(about[x.ID], x)
	}
	tell := func(e *Entry) error {
		for _, x := range about[e.ID] {
			if !e.Accept || x.Sender != "" || x.Recipients != nil {
				continue
			}
			x.Sender, x.Accepted = string(e.Sender), e.Time
			e.EachRecipient(func(i uint32, address []byte) {
				if len(x.Recipients) < maxDifferences && (len(x.who) == 0 || slices.Contains(x.who, i)) {
					x.Recipients = append(x.Recipients, string(address))
				}
			})
		}
		return nil
	}
	files, err := list(d)
	for _, number := range files {
		if err := scanFile(d, number, func(_ *block, e *Entry) error { return tell(e) }); err != nil && !errors.Is(err, errHeader) && !errors.Is(err, errEntry) {
			return err
		}
	}
	for i := range n.entries {
		n.entries[i].each(tell)
	}
	return err
}

// news gathers what the queue tells of records that the account may not have.
type news struct {
	last, at queue.Position
	pending  block
	entries  []told
}

// told are the entries of one record.
type told struct {
	block
	at position
}

func (n *news) Begin(func(queue.ID) bool) (queue.Position, error) { return n.last, nil }

func (n *news) Accepted(at time.Time, id queue.ID, e *envelope.Envelope, size int64, carried bool) {
	n.pending.entries = appendAccept(n.pending.entries, at.UnixMilli(), id, e, size, carried)
}

func (n *news) Closed(at time.Time, c *queue.Close) {
	n.pending.entries = appendClose(n.pending.entries, at.UnixMilli(), c)
}

func (n *news) Reached(at queue.Position) {
	n.entries = append(n.entries, told{n.pending, position(at)})
	n.pending, n.at = block{}, at
}

func (n *news) Settle() error { return nil }
func (n *news) Close() error  { return nil }
