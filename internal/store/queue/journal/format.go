package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"qmail/internal/store/queue"
)

// The format of a segment, as docs/queue.md tells it. All numbers are little endian, all checksums CRC-32C.
const (
	version = 2 // what is written
	oldest  = 1 // what is read: it has no fails and no times

	headerRoom  = 4096 // two copies of the header, headerCopy apart, so that one bad sector does not lose the stamp
	headerCopy  = 2048
	headerSize  = 64
	trailerSize = 64 // the last bytes of a sealed segment's file

	headSize = 40 // of a record
	itemSize = 16 // of an item without its own fields
	pageSize = 12 // of a footer entry without its items
	align    = 8  // records begin at multiples of it

	acceptSize = itemSize + 32
	closeSize  = itemSize + 8
	noteSize   = itemSize + 12
	failSize   = itemSize + 4

	smallEnvelope = 512 // longest envelope repeated in the footer

	headerMagic  = "qmailseg"
	trailerMagic = "qmailend"
)

var (
	errHeader  = errors.New("journal: no valid header")
	errTrailer = errors.New("journal: no valid footer")
	errRecord  = errors.New("journal: no valid record")
	errItem    = errors.New("journal: malformed item")

	le = binary.LittleEndian
)

// castagnoli is made when it is first wanted, and once: this package is linked into programs that start for each message
// and never see a journal.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }

func aligned(n int64) int64 { return (n + align - 1) &^ (align - 1) }

// header begins a segment. The stamp is random, new for each use of a file, and in every record, so that
// neither what an earlier use left behind nor bytes inside a body can pass for a record.
type header struct {
	seq, stamp uint64
	prevSeq    uint64 // segment that ends at prevEnd whatever else it holds; 0 for none
	prevEnd    int64
	nextID     uint64 // no id at or above it, and below the next ids file, was given before
}

func (h header) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, headerMagic...)
	dst = le.AppendUint32(dst, version)
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint64(dst, h.seq)
	dst = le.AppendUint64(dst, h.stamp)
	dst = le.AppendUint64(dst, h.prevSeq)
	dst = le.AppendUint64(dst, uint64(h.prevEnd))
	dst = le.AppendUint64(dst, h.nextID)
	dst = le.AppendUint32(dst, 0)
	return le.AppendUint32(dst, checksum(dst[at:]))
}

// room is the header as it lies in the file: both copies and zeros.
func (h header) room() []byte {
	b := make([]byte, headerRoom)
	h.append(b[:0])
	h.append(b[headerCopy:headerCopy])
	return b
}

// parseHeader reads the first good copy of room. A header of another version is an error that says so,
// unless the other copy is good: then it was damage.
func parseHeader(room []byte) (header, error) {
	err := errHeader
	for at := 0; at+headerSize <= len(room) && at <= headerCopy; at += headerCopy {
		b := room[at : at+headerSize]
		if string(b[:8]) != headerMagic {
			continue
		}
		if v := le.Uint32(b[8:]); v < oldest || v > version {
			err = fmt.Errorf("journal: format version %d, this program knows %d to %d", v, oldest, version)
			continue
		}
		if le.Uint32(b[60:]) != checksum(b[:60]) {
			continue
		}
		return header{
			seq: le.Uint64(b[16:]), stamp: le.Uint64(b[24:]), prevSeq: le.Uint64(b[32:]),
			prevEnd: int64(le.Uint64(b[40:])), nextID: le.Uint64(b[48:]),
		}, nil
	}
	return header{}, err
}

// trailer ends a sealed segment and finds its footer.
type trailer struct {
	seq, stamp uint64
	at, length int64 // of the footer
	end        int64 // of the last record
	sum        uint32
}

func (t trailer) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, trailerMagic...)
	dst = le.AppendUint32(dst, version)
	dst = le.AppendUint32(dst, t.sum)
	dst = le.AppendUint64(dst, t.seq)
	dst = le.AppendUint64(dst, t.stamp)
	dst = le.AppendUint64(dst, uint64(t.at))
	dst = le.AppendUint64(dst, uint64(t.length))
	dst = le.AppendUint64(dst, uint64(t.end))
	dst = le.AppendUint32(dst, 0)
	return le.AppendUint32(dst, checksum(dst[at:]))
}

func parseTrailer(b []byte, h header, size int64) (trailer, error) {
	if len(b) != trailerSize || string(b[:8]) != trailerMagic || le.Uint32(b[8:]) < oldest || le.Uint32(b[8:]) > version ||
		le.Uint32(b[60:]) != checksum(b[:60]) {
		return trailer{}, errTrailer
	}
	t := trailer{
		sum: le.Uint32(b[12:]), seq: le.Uint64(b[16:]), stamp: le.Uint64(b[24:]), at: int64(le.Uint64(b[32:])),
		length: int64(le.Uint64(b[40:])), end: int64(le.Uint64(b[48:])),
	}
	if t.seq != h.seq || t.stamp != h.stamp || t.end < headerRoom || t.at < t.end || t.length < 0 ||
		t.at > size || t.length > size-t.at-trailerSize {
		return trailer{}, errTrailer
	}
	return t, nil
}

// head begins a record: one batch, all or nothing. Items follow it, then the bodies of its accepts.
type head struct {
	length int // of all, without padding
	meta   int // of the items
	sum    uint32
	time   int64 // when it was written, unix nanoseconds; 0 if that is not known
}

// putHead writes a head into b, whose first headSize bytes it takes.
func putHead(b []byte, seq, stamp uint64, r head) {
	le.PutUint32(b, uint32(r.length))
	le.PutUint32(b[4:], uint32(r.meta))
	le.PutUint64(b[8:], seq)
	le.PutUint64(b[16:], stamp)
	le.PutUint64(b[24:], uint64(r.time))
	le.PutUint32(b[32:], r.sum)
	le.PutUint32(b[36:], checksum(b[:36]))
}

// parseHead reads a head that promises no more than limit bytes.
func parseHead(b []byte, seq, stamp uint64, limit int64) (head, error) {
	if len(b) < headSize || le.Uint64(b[16:]) != stamp || le.Uint64(b[8:]) != seq ||
		le.Uint32(b[36:]) != checksum(b[:36]) {
		return head{}, errRecord
	}
	r := head{int(le.Uint32(b)), int(le.Uint32(b[4:])), le.Uint32(b[32:]), int64(le.Uint64(b[24:]))}
	if int64(r.length) > limit || r.meta > r.length-headSize || r.length < headSize {
		return head{}, errRecord
	}
	return r, nil
}

// kind is what an item does.
type kind uint8

const (
	kindAccept kind = 1 + iota
	kindClose
	kindNote
	kindHold
	kindFail
)

// The flags of items.
const (
	flagCopy   = 1 << iota // moved here by the collector: no news
	flagFile               // accept: the body has a file of its own
	flagCut                // in a footer: the envelope or text must be read from the record
	flagOn                 // hold: stopped
	flagState              // hold: with the items before it, this is all the state of the message
	flagsKnown = 1<<iota - 1
)

// item is one part of a batch as read. Its slices share memory with what it was read from.
type item struct {
	kind  kind
	flags uint8
	id    queue.ID

	birth      int64  // accept: unix nanoseconds
	recipients uint32 // accept: how many
	envelope   []byte // accept; empty in a footer that cut it
	length     uint32 // accept: of the envelope
	size       int64  // accept: of the body
	sum        uint32 // accept: of the body
	body       uint32 // accept: where it begins, counted from its record

	outcome queue.Outcome // close, fail
	as      queue.ID      // close
	who     runs          // close, note, fail
	next    int64         // note: unix nanoseconds
	text    []byte        // note, fail
}

func (it *item) live() int64 { // bytes that a copy of an accept takes, roughly
	if it.flags&flagFile != 0 {
		return headSize + acceptSize + int64(it.length)
	}
	return headSize + acceptSize + int64(it.length) + it.size
}

// begin starts an item whose length end fills in.
func begin(dst []byte, k kind, flags uint8, extra uint8, id queue.ID) []byte {
	dst = append(dst, 0, 0, 0, 0, byte(k), flags, extra, 0)
	return le.AppendUint64(dst, uint64(id))
}

func end(dst []byte, at int) []byte {
	le.PutUint32(dst[at:], uint32(len(dst)-at))
	return dst
}

// append writes an item as cut reads it.
func (it *item) append(dst []byte) []byte {
	at := len(dst)
	dst = begin(dst, it.kind, it.flags, uint8(it.outcome), it.id)
	switch it.kind {
	case kindAccept:
		dst = it.appendAccept(dst)
		dst = append(dst, it.envelope...)
	case kindClose:
		dst = le.AppendUint64(dst, uint64(it.as))
		dst = append(dst, it.who...)
	case kindNote:
		dst = le.AppendUint64(dst, uint64(it.next))
		dst = le.AppendUint32(dst, uint32(len(it.who)))
		dst = append(dst, it.who...)
		dst = append(dst, it.text...)
	case kindFail:
		dst = le.AppendUint32(dst, uint32(len(it.who)))
		dst = append(dst, it.who...)
		dst = append(dst, it.text...)
	}
	return end(dst, at)
}

func (it *item) appendAccept(dst []byte) []byte {
	dst = le.AppendUint64(dst, uint64(it.birth))
	dst = le.AppendUint32(dst, it.recipients)
	dst = le.AppendUint64(dst, uint64(it.size))
	dst = le.AppendUint32(dst, it.sum)
	dst = le.AppendUint32(dst, it.body)
	return le.AppendUint32(dst, it.length)
}

// cut reads the first item of b.
func cut(b []byte) (it item, rest []byte, err error) {
	if len(b) < itemSize {
		return it, nil, errItem
	}
	n := le.Uint32(b)
	if int64(n) > int64(len(b)) || n < itemSize || b[7] != 0 || b[5] > flagsKnown {
		return it, nil, errItem
	}
	it = item{kind: kind(b[4]), flags: b[5], outcome: queue.Outcome(b[6]), id: queue.ID(le.Uint64(b[8:]))}
	rest, b = b[n:], b[itemSize:n]
	switch it.kind {
	case kindAccept:
		if len(b) < acceptSize-itemSize {
			return it, nil, errItem
		}
		it.birth, it.recipients = int64(le.Uint64(b)), le.Uint32(b[8:])
		it.size, it.sum, it.body = int64(le.Uint64(b[12:])), le.Uint32(b[20:]), le.Uint32(b[24:])
		it.length, it.envelope = le.Uint32(b[28:]), b[acceptSize-itemSize:]
		want := int64(it.length)
		if it.flags&flagCut != 0 {
			want = 0
		}
		if it.size < 0 || it.outcome != 0 || int64(len(it.envelope)) != want {
			return it, nil, errItem
		}
	case kindClose:
		if len(b) < closeSize-itemSize {
			return it, nil, errItem
		}
		it.as, it.who = queue.ID(le.Uint64(b)), runs(b[8:])
	case kindNote:
		if len(b) < noteSize-itemSize {
			return it, nil, errItem
		}
		n := int64(le.Uint32(b[8:]))
		if n > int64(len(b)-12) || it.outcome != 0 {
			return it, nil, errItem
		}
		it.next, it.who, it.text = int64(le.Uint64(b)), runs(b[12:12+n]), b[12+n:]
	case kindHold:
		if len(b) != 0 || it.outcome != 0 {
			return it, nil, errItem
		}
	case kindFail:
		if len(b) < failSize-itemSize {
			return it, nil, errItem
		}
		n := int64(le.Uint32(b))
		if n > int64(len(b)-4) || it.outcome != queue.Bounced && it.outcome != queue.Expired {
			return it, nil, errItem
		}
		it.who, it.text = runs(b[4:4+n]), b[4+n:]
	default:
		return it, nil, errItem
	}
	if !it.who.valid() {
		return it, nil, errItem
	}
	return it, rest, nil
}

// items calls f for each item of meta; the item is f's for that call.
func items(meta []byte, f func(*item) error) error { return itemsIn(new(item), meta, f) }

// itemsIn is items with memory for them, since most records have but one.
func itemsIn(it *item, meta []byte, f func(*item) error) (err error) {
	for len(meta) > 0 {
		if *it, meta, err = cut(meta); err != nil {
			return err
		}
		if err := f(it); err != nil {
			return err
		}
	}
	return nil
}

// runs is a set of recipients: pairs of numbers, how many are left out and how many more than one follow. None at all
// means every recipient still open.
type runs []byte

// makeRuns writes a set; the slice may be in any order.
func makeRuns(dst []byte, set []uint32) []byte {
	if !slices.IsSorted(set) {
		set = slices.Sorted(slices.Values(set))
	}
	next := uint64(0) // first recipient not yet spoken of
	for i := 0; i < len(set); {
		first, last := set[i], set[i]
		for i++; i < len(set) && (set[i] == last || set[i]-last == 1); i++ {
			last = set[i]
		}
		dst = binary.AppendUvarint(dst, uint64(first)-next)
		dst = binary.AppendUvarint(dst, uint64(last-first))
		next = uint64(last) + 1
	}
	return dst
}

// step takes one run off r.
func (r runs) step(from uint64) (first, last uint64, rest runs, ok bool) {
	gap, n := binary.Uvarint(r)
	if n <= 0 || gap > math.MaxUint32 {
		return 0, 0, nil, false
	}
	r = r[n:]
	more, n := binary.Uvarint(r)
	if n <= 0 || more > math.MaxUint32 || from+gap+more > math.MaxUint32 {
		return 0, 0, nil, false
	}
	return from + gap, from + gap + more, r[n:], true
}

func (r runs) valid() bool {
	for from := uint64(0); len(r) > 0; {
		_, last, rest, ok := r.step(from)
		if !ok {
			return false
		}
		from, r = last+1, rest
	}
	return true
}

// each calls f for the recipients in r below limit.
func (r runs) each(limit uint32, f func(uint32)) {
	for from := uint64(0); len(r) > 0; {
		first, last, rest, ok := r.step(from)
		if !ok || first >= uint64(limit) {
			return
		}
		for i := first; i <= last && i < uint64(limit); i++ {
			f(uint32(i))
		}
		from, r = last+1, rest
	}
}

// appendPage adds a record's entry to a footer: what is small enough of its items.
func appendPage(dst []byte, off int64, meta []byte) []byte {
	dst = le.AppendUint32(dst, uint32(off))
	dst = le.AppendUint32(dst, uint32(len(meta)))
	at := len(dst)
	dst = le.AppendUint32(dst, 0)
	for len(meta) > 0 {
		it, rest, err := cut(meta)
		if err != nil {
			break // never: we wrote or checked it
		}
		if it.kind == kindAccept && len(it.envelope) > smallEnvelope || it.kind == kindNote && len(it.text) > 0 {
			it.envelope, it.text, it.flags = nil, nil, it.flags|flagCut
			dst = it.append(dst)
		} else {
			dst = append(dst, meta[:len(meta)-len(rest)]...)
		}
		meta = rest
	}
	le.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

// pageBytes is what appendPage will add for these items.
func pageBytes(meta []byte) int {
	n := pageSize + len(meta)
	for len(meta) > 0 {
		it, rest, err := cut(meta)
		if err != nil {
			break
		}
		if len(it.envelope) > smallEnvelope {
			n -= len(it.envelope)
		}
		if it.kind == kindNote { // a fail's text is needed by who opens the queue
			n -= len(it.text)
		}
		meta = rest
	}
	return n
}

// place is where a record lies.
type place struct {
	off  int64
	meta int // length of its items
}

// pages calls f for each item of a footer.
func pages(b []byte, end int64, f func(place, *item) error) error {
	var scratch item
	for len(b) > 0 {
		if len(b) < pageSize {
			return errTrailer
		}
		p := place{int64(le.Uint32(b)), int(le.Uint32(b[4:]))}
		n := le.Uint32(b[8:])
		b = b[pageSize:]
		if int64(n) > int64(len(b)) || p.off < headerRoom || p.off%align != 0 || p.off+headSize+int64(p.meta) > end {
			return errTrailer
		}
		if err := itemsIn(&scratch, b[:n], func(it *item) error { return f(p, it) }); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// checkRecord reads the record at the start of b, bodies and all.
func checkRecord(b []byte, seq, stamp uint64) (r head, meta []byte, err error) {
	if r, err = parseHead(b, seq, stamp, int64(len(b))); err != nil {
		return r, nil, err
	}
	meta = b[headSize : headSize+r.meta]
	if checksum(meta) != r.sum {
		return r, nil, errRecord
	}
	err = items(meta, func(it *item) error {
		if it.kind != kindAccept {
			return nil
		}
		if it.flags&flagCut != 0 {
			return errRecord
		}
		if it.flags&flagFile != 0 {
			return nil
		}
		if it.size > int64(r.length) || int64(it.body) < int64(headSize+r.meta) || int64(it.body)+it.size > int64(r.length) {
			return errRecord
		}
		if checksum(b[it.body:int64(it.body)+it.size]) != it.sum {
			return errRecord
		}
		return nil
	})
	return r, meta, err
}

// span is a damaged part of a segment.
type span struct{ from, to int64 }

// scan reads the records in b, a segment from its start, and calls f for each good one. It returns where the
// last of them ends and what lies damaged between them; what follows the last is a torn tail.
func scan(b []byte, seq, stamp uint64, f func(p place, meta []byte)) (end int64, damaged []span) {
	at := int64(headerRoom)
	end = at
	for at+headSize <= int64(len(b)) {
		r, meta, err := checkRecord(b[at:], seq, stamp)
		if err != nil {
			at = resync(b, at+align, seq, stamp)
			continue
		}
		if at > aligned(end) {
			damaged = append(damaged, span{aligned(end), at})
		}
		f(place{at, r.meta}, meta)
		end = at + int64(r.length)
		at = aligned(end)
	}
	return end, damaged
}

// resync finds the next place at or after at where a record may begin.
func resync(b []byte, at int64, seq, stamp uint64) int64 {
	for ; at+headSize <= int64(len(b)); at += align {
		if le.Uint64(b[at+16:]) == stamp && le.Uint64(b[at+8:]) == seq {
			return at
		}
	}
	return int64(len(b))
}

// findStamp guesses the stamp of a segment whose header is lost from the first record that bears its number.
func findStamp(b []byte, seq uint64) (uint64, bool) {
	for at := int64(headerRoom); at+headSize <= int64(len(b)); at += align {
		if le.Uint64(b[at+8:]) != seq {
			continue
		}
		stamp := le.Uint64(b[at+16:])
		if _, _, err := checkRecord(b[at:], seq, stamp); err == nil {
			return stamp, true
		}
	}
	return 0, false
}
