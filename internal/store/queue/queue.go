// Package queue is the interface of the place where accepted mail waits.
//
// A message enters by an Accept, which carries its envelope and body. Each recipient leaves by exactly one
// Close, which says what became of it. The state of the queue is the fold of these records and nothing
// else: a message is in the queue while one of its recipients is open. Notes (deferrals), fails and holds change
// who is tried when, never whether the message is there.
//
// The first implementation is queue/journal, a log on the local disk; a second one may keep the same
// records on several machines. So nothing here speaks of files, ids have room for a node number, and a
// message is claimed before it is worked on. Package queue/queuetest is the contract as a test.
package queue

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"qmail/internal/format/envelope"
)

// ID names one message for ever: it is never given twice, not even after the queue was empty and the
// machine restarted. Logs print it in decimal.
type ID uint64

// An ID's high NodeBits bits are the node that gave it, 0 on a single machine; the rest counts up.
const (
	NodeBits  = 10
	NodeShift = 64 - NodeBits
)

// Node is the machine that gave the id.
func (id ID) Node() int { return int(id >> NodeShift) }

func (id ID) String() string { return strconv.FormatUint(uint64(id), 10) }

// ParseID reads what String writes.
func ParseID(s string) (ID, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, errors.New("queue: not a message id")
	}
	return ID(n), nil
}

var (
	// ErrNotFound is an id that no live message has: never accepted, or wholly closed.
	ErrNotFound = errors.New("queue: no such message")
	// ErrDamaged is a message whose stored bytes are not those that were accepted.
	ErrDamaged = errors.New("queue: message is damaged")
	// ErrTooLarge is a batch that no single record can hold: spool its bodies.
	ErrTooLarge = errors.New("queue: batch too large for one record")
	// ErrClosed is a Store used after Close.
	ErrClosed = errors.New("queue: closed")
	// ErrFull is a batch with an Accept refused for lack of room; closes may still be possible.
	ErrFull = errors.New("queue: no room")
	// ErrInDoubt is a batch of which nobody knows: its bytes may be on a disk that said it failed, and nothing could be
	// written that says they do not count. It is as after a crash: all of it, or nothing.
	ErrInDoubt = errors.New("queue: the outcome is not known")
	// ErrClaimed is a message that another node works on.
	ErrClaimed = errors.New("queue: claimed elsewhere")
	// ErrLocked is a queue that another process has open.
	ErrLocked = errors.New("queue: in use by another process")
)

// Store is a queue. All methods may be called from many goroutines at once.
type Store interface {
	// NewID returns an id for a message to be accepted. It does not block; ids given later are larger.
	NewID() ID

	// Spool makes an unnamed place for a body too large to be held in memory (callers spool above
	// 256 KiB). Close discards it unless a successful Commit has taken it.
	Spool() (Spool, error)

	// Commit queues b, all of it or nothing. done is called once, from the store's own goroutine, after b
	// is durable (nil) or has failed; it must not block nor call Commit. After an error nothing of b
	// will ever be delivered by this store, unless the error is ErrInDoubt. Commit returns at once but for
	// spooled bodies, whose data it makes durable first. The store keeps what b points to: neither the
	// envelopes nor the bodies may be changed afterwards.
	Commit(b Batch, done func(error))

	// Write is Commit without waiting, for closes, notes, fails and holds whose loss in a crash only means that
	// something is done again. They are durable with the next sync, after a second at the latest; if
	// the disk fails or is full they are written again later. b must have no Accepts.
	Write(b Batch)

	// Envelope returns a live message's envelope, which is shared: do not change it.
	Envelope(ctx context.Context, id ID) (*envelope.Envelope, error)

	// Body opens a live message's body, which is then readable until it is closed, even if
	// the message leaves the queue meanwhile. Its bytes are those accepted, or the error wraps ErrDamaged.
	Body(ctx context.Context, id ID) (Body, error)

	// Entry is what Scan would tell of one message. Its Envelope is nil if it is damaged.
	Entry(ctx context.Context, id ID) (*Entry, error)

	// Scan calls f with every message live when Scan began and still so when its turn comes, roughly oldest
	// first, not exactly in the order of ids. The entry and its Open slice are
	// f's for that call only; its Envelope may be kept. An error from f ends the scan and is returned. A message
	// that cannot be read does not end it: its entry comes with a nil Envelope.
	Scan(f func(*Entry) error) error

	// History calls f with what is still stored about a message, in order, whether it is in the queue or not; that may
	// be little. The Event is f's for that call only. An error from f ends it and is returned. It may take long.
	History(ctx context.Context, id ID, f func(*Event) error) error

	// Claim makes this node the one that works on the message: nil, ErrClaimed, or ErrNotFound. On a
	// single machine every live message is claimed from the start.
	Claim(ctx context.Context, id ID) error

	Stats() Stats

	// Close makes everything written durable and ends the store's goroutines.
	Close() error
}

// Batch is one indivisible change: a bounce message and the close that caused it are one batch.
type Batch struct {
	Accepts []Accept
	Closes  []Close
	Notes   []Note
	Fails   []Fail
	Holds   []Hold
}

// Accept puts a message into the queue. A message without recipients is done the moment it is accepted.
type Accept struct {
	ID       ID                 // from NewID; a new one for each try
	Envelope *envelope.Envelope // must pass its Check; a zero Birth is replaced by now in what is stored
	Body     [][]byte           // the body in pieces, written as they are
	Spool    Spool              // or the body's place, from this Store's Spool; then Body is nil
}

// Close ends recipients. Recipients already closed, and ids not in the queue, are passed over.
type Close struct {
	ID         ID
	Recipients []uint32 // indexes into Envelope.Recipients; nil means all that are open
	Outcome    Outcome
	As         ID // Forwarded, Bounced, Expired: the message that carries on, if one does
}

// Note is a deferral: the newest Note or Fail of each open recipient decides what Scan tells about it.
type Note struct {
	ID         ID
	Recipients []uint32 // nil means all that are open
	Next       time.Time
	Text       string // why; kept for readers of the log, not returned by Scan
}

// Fail is a failure for good of recipients whose sender is told of it later, when all others are done. They stay
// open until the Close that comes with that bounce, but Scan tells of them apart.
type Fail struct {
	ID         ID
	Recipients []uint32 // nil means all that are open
	Outcome    Outcome  // Bounced or Expired: what the Close will say
	Text       string   // why, for the bounce; Scan tells
}

// Hold stops (On) or releases a message. The queue only remembers it; Scan tells.
type Hold struct {
	ID ID
	On bool
}

// Outcome is what became of a recipient.
type Outcome uint8

// The outcomes. Their numbers are on disk.
const (
	Delivered Outcome = 1 + iota // handed on, locally or to another machine
	Forwarded                    // replaced by message As
	Bounced                      // refused for good; As tells the sender, 0 if there is none to tell
	Expired                      // too old; As as above
	Dropped                      // thrown away by a rule or by the administrator
)

func (o Outcome) String() string {
	switch o {
	case Delivered:
		return "delivered"
	case Forwarded:
		return "forwarded"
	case Bounced:
		return "bounced"
	case Expired:
		return "expired"
	case Dropped:
		return "dropped"
	}
	return "outcome " + strconv.Itoa(int(o))
}

// Spool is a large body being written. Not for several goroutines at once.
type Spool interface {
	io.Writer
	Size() int64
	io.Closer
}

// Body is an accepted body. Reading it never changes an offset shared with others.
type Body interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// File is the body as an open read-only file whose whole content from offset 0 is the body, so that
	// it can be passed to another process; nil if the body is not in a file of its own (small bodies, and
	// stores without files). It belongs to the Body and is closed with it.
	File() *os.File
}

// Bytes is a Body that can also be had without reading: small bodies implement it.
type Bytes interface {
	// Pieces are the body in order. They must not be changed, and outlive the Body.
	Pieces() [][]byte
}

// Entry is a live message as Scan tells of it.
type Entry struct {
	ID         ID
	Envelope   *envelope.Envelope // nil if it is damaged
	Size       int64              // of the body
	Recipients int                // all, closed or open
	Open       []Open             // to be delivered to, in order of Recipient
	Failed     []Failed           // open too, but not to be tried, in the order in which they failed
	Held       bool
}

// Open is a recipient still to be delivered to.
type Open struct {
	Recipient uint32
	Next      time.Time // of its newest Note; zero if it has none
}

// Failed is a recipient whose newest record is a Fail.
type Failed struct {
	Recipient uint32
	Outcome   Outcome
	Text      string
}

// Event is one record about a message; one of the last five is set.
type Event struct {
	Time   time.Time // when it was written; zero if that is not known
	Copy   bool      // said again by the store itself: no news
	Accept *Entry    // with Envelope (nil if it is damaged), Size and Recipients
	Close  *Close
	Note   *Note
	Fail   *Fail
	Hold   *Hold
}

// Position orders what an Observer sees: it grows with every record of one store, over restarts too.
type Position struct {
	Segment uint64
	Offset  int64
}

// Observer sees every batch once it is durable, in the order of the log, from the store's own goroutine,
// before done is called. It must not block nor keep b. It is where an account of all mail is kept from.
type Observer func(at Position, b Batch)

// Account is kept of what enters the queue and what leaves it, and outlives both (store/ledger). Its methods are called from
// one goroutine at a time, in the order of the log, with what is durable; none may wait but Begin, Settle and Close.
type Account interface {
	// Begin reads what the account has. It returns the position after which it knows nothing, the zero Position if it is
	// new; the store then tells it what came since. live tells, later on, whether a message is in the queue.
	Begin(live func(ID) bool) (Position, error)
	// Accepted tells of a message. carried says that it was accepted before the account began.
	Accepted(at time.Time, id ID, e *envelope.Envelope, size int64, carried bool)
	// Closed tells of recipients. Those of outcome 0 were closed before the account began.
	Closed(at time.Time, c *Close)
	// Reached ends what one record tells.
	Reached(at Position)
	// Settle makes durable what was told: after it the store may forget.
	Settle() error
	Close() error
}

// Stats are facts for the administrator.
type Stats struct {
	Messages   int   // live
	Recipients int   // open
	Held       int   // messages on hold
	Commits    int64 // batches made durable or written since opening
	Syncs      int64 // group commits
	Failures   int64 // failed writes and syncs
	Bytes      int64 // on disk, spare room not counted
	LiveBytes  int64 // of it, needed by live messages
	Segments   int
	Spares     int
	Cached     int64 // bytes of bodies in memory
	Backlog    int   // batches of Write that wait for the disk to work again
	LostNotes  int64 // notes given up while the disk did not work
	Full       bool  // the last Accept was refused for lack of room
	// Quarantined names what was found damaged and set aside, since opening.
	Quarantined []string
}
