package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
)

// The format, as docs/queue.md tells it. Numbers are little endian.
const (
	version     = 1
	fileMagic   = "qmailldg"
	blockMagic  = "qbl1"
	headerSize  = 96
	blockHeader = 80
	maxBlock    = 256 << 20 // no envelope is longer

	kindAccept = 1
	kindClose  = 2
	flagCarry  = 0x10
)

var (
	errHeader = errors.New("ledger: no valid header")
	errEntry  = errors.New("ledger: malformed entry")
	le        = binary.LittleEndian
	crcTable  = crc32.MakeTable(crc32.Castagnoli)
)

type hash [sha256.Size]byte

func sumOf(b []byte) hash { return sha256.Sum256(b) }

const suffix = ".ledger"

func fileName(n uint64) string { return fmt.Sprintf("%s/%016x%s", Dir, n, suffix) }

func numberOf(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil
}

// header begins a file.
type header struct {
	number   uint64
	made     int64    // unix nanoseconds
	previous mark     // the file before, and where it ends, whatever else is in it
	chain    hash     // up to there
	serial   uint64   // of the last block before
	seen     queue.ID // the highest id accepted before
}

func (h header) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, fileMagic...)
	dst = le.AppendUint32(dst, version)
	dst = le.AppendUint64(dst, h.number)
	dst = le.AppendUint64(dst, uint64(h.made))
	dst = le.AppendUint64(dst, h.previous.number)
	dst = le.AppendUint64(dst, uint64(h.previous.end))
	dst = le.AppendUint64(dst, uint64(h.seen))
	dst = append(dst, h.chain[:]...)
	dst = le.AppendUint64(dst, h.serial)
	return le.AppendUint32(dst, crc32.Checksum(dst[at:], crcTable))
}

func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize || string(b[:8]) != fileMagic {
		return header{}, errHeader
	}
	if v := le.Uint32(b[8:]); v != version {
		return header{}, fmt.Errorf("ledger: format version %d, this program knows %d", v, version)
	}
	if crc32.Checksum(b[:headerSize-4], crcTable) != le.Uint32(b[headerSize-4:]) {
		return header{}, errHeader
	}
	h := header{
		number: le.Uint64(b[12:]), made: int64(le.Uint64(b[20:])),
		previous: mark{le.Uint64(b[28:]), int64(le.Uint64(b[36:]))}, seen: queue.ID(le.Uint64(b[44:])),
	}
	copy(h.chain[:], b[52:])
	h.serial = le.Uint64(b[84:])
	return h, nil
}

// block is some entries with what holds them together.
type block struct {
	entries []byte
	count   int
	time    int64          // which the entries count from, unix milliseconds
	at      queue.Position // of the last record that it tells of
	seen    queue.ID       // the highest id that it accepts
	written time.Time
	serial  uint64 // as read
	durable uint64 // as read: the last block that was known to be, by then
	sum     hash   // as read
}

// header makes what stands before the entries, and the new end of the chain.
func (b *block) header(serial, durable uint64, chain hash) ([]byte, hash) {
	h := make([]byte, 0, blockHeader)
	h = append(h, blockMagic...)
	h = le.AppendUint32(h, uint32(len(b.entries)))
	h = le.AppendUint64(h, serial)
	h = le.AppendUint64(h, b.at.Segment)
	h = le.AppendUint64(h, uint64(b.at.Offset))
	h = le.AppendUint64(h, uint64(b.time))
	h = le.AppendUint32(h, uint32(b.count))
	h = le.AppendUint32(h, uint32(serial-1-durable))
	sum := chainSum(chain, h, b.entries)
	return append(h, sum[:]...), sum
}

func chainSum(chain hash, head, entries []byte) (sum hash) {
	s := sha256.New()
	s.Write(chain[:])
	s.Write(head)
	s.Write(entries)
	s.Sum(sum[:0])
	return sum
}

// parseBlock reads a block's header; the entries are not there yet. size is theirs.
func parseBlock(b []byte) (k block, size int, ok bool) {
	if len(b) < blockHeader || string(b[:4]) != blockMagic {
		return k, 0, false
	}
	k.serial = le.Uint64(b[8:])
	k.at = queue.Position{Segment: le.Uint64(b[16:]), Offset: int64(le.Uint64(b[24:]))}
	k.time = int64(le.Uint64(b[32:]))
	k.count = int(le.Uint32(b[40:]))
	k.durable = k.serial - 1 - uint64(le.Uint32(b[44:]))
	copy(k.sum[:], b[48:])
	size = int(le.Uint32(b[4:]))
	return k, size, size <= maxBlock
}

// Entry is one line of the account.
type Entry struct {
	Accept  bool // or else a close
	Carried bool // accept: from before the account began
	Time    time.Time
	ID      queue.ID

	// Of an accept. The texts share memory with what was read, until the next entry.
	UID        int
	Size       int64
	Sender     []byte
	recipients []byte
	Recipients int

	// Of a close.
	Outcome queue.Outcome // 0: closed before the account began
	As      queue.ID
	who     []byte // pairs of numbers; none is all that are open
}

func appendText(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendAccept(dst []byte, at int64, id queue.ID, e *envelope.Envelope, size int64, carried bool) []byte {
	kind := byte(kindAccept)
	if carried {
		kind |= flagCarry
	}
	dst = append(dst, kind)
	dst = binary.AppendUvarint(dst, uint64(id))
	dst = binary.AppendVarint(dst, at)
	dst = binary.AppendUvarint(dst, uint64(size))
	dst = binary.AppendVarint(dst, int64(e.UID))
	dst = appendText(dst, e.Sender)
	dst = binary.AppendUvarint(dst, uint64(len(e.Recipients)))
	for _, r := range e.Recipients {
		dst = appendText(dst, r)
	}
	return dst
}

func appendClose(dst []byte, at int64, c *queue.Close) []byte {
	dst = append(dst, kindClose)
	dst = binary.AppendUvarint(dst, uint64(c.ID))
	dst = binary.AppendVarint(dst, at)
	dst = append(dst, byte(c.Outcome))
	dst = binary.AppendUvarint(dst, uint64(c.As))
	var room [64]byte
	who := appendSet(room[:0], c.Recipients)
	dst = binary.AppendUvarint(dst, uint64(len(who)))
	return append(dst, who...)
}

// appendSet writes a set as pairs: how many are left out, and how many more than one follow. A set need not be in order:
// what does not ascend is said in a pair of its own that begins with a step back.
func appendSet(dst []byte, set []uint32) []byte {
	next := int64(0)
	for i := 0; i < len(set); {
		from := i
		for i++; i < len(set) && set[i] == set[i-1]+1; i++ {
		}
		dst = binary.AppendVarint(dst, int64(set[from])-next)
		dst = binary.AppendUvarint(dst, uint64(i-from-1))
		next = int64(set[i-1]) + 1
	}
	return dst
}

// reader takes an entry apart.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) text() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	s := r.b[:n]
	r.b = r.b[n:]
	return s
}

// next reads the first entry of b into e.
func (e *Entry) next(b []byte, base int64) (rest []byte, err error) {
	r := reader{b: b}
	kind := r.byte()
	*e = Entry{Accept: kind&^flagCarry == kindAccept, Carried: kind&flagCarry != 0, ID: queue.ID(r.uvarint())}
	e.Time = time.UnixMilli(base + r.varint())
	switch {
	case e.Accept:
		e.Size, e.UID, e.Sender = int64(r.uvarint()), int(r.varint()), r.text()
		count := r.uvarint()
		if count > uint64(len(r.b)) {
			return nil, errEntry
		}
		e.Recipients = int(count)
		all := r.b
		for range count {
			r.text()
		}
		e.recipients = all[:len(all)-len(r.b)]
	case kind == kindClose:
		e.Outcome, e.As, e.who = queue.Outcome(r.byte()), queue.ID(r.uvarint()), r.text()
	default:
		return nil, errEntry
	}
	if r.bad || !e.Accept && !validSet(e.who) {
		return nil, errEntry
	}
	return r.b, nil
}

// EachRecipient calls f with the recipients of an accept, in order.
func (e *Entry) EachRecipient(f func(i uint32, address []byte)) {
	r := reader{b: e.recipients}
	for i := range e.Recipients {
		f(uint32(i), r.text())
	}
}

func validSet(b []byte) bool {
	r := reader{b: b}
	for next := int64(0); len(r.b) > 0; {
		first := next + r.varint()
		more := r.uvarint()
		if r.bad || first < 0 || first > 1<<32-1 || more > 1<<32-1 || first+int64(more) > 1<<32-1 {
			return false
		}
		next = first + int64(more) + 1
	}
	return true
}

// EachClosed calls f with the recipients of a close; those that it names, or with all of limit.
func (e *Entry) EachClosed(limit uint32, f func(uint32)) {
	if len(e.who) == 0 {
		for i := range limit {
			f(i)
		}
		return
	}
	r := reader{b: e.who}
	for next := int64(0); len(r.b) > 0; {
		first := next + r.varint()
		more := int64(r.uvarint())
		for i := first; i <= first+more && i < int64(limit); i++ {
			f(uint32(i))
		}
		next = first + more + 1
	}
}

// All tells whether a close is of all recipients that are open.
func (e *Entry) All() bool { return !e.Accept && len(e.who) == 0 }
