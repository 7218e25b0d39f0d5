// Package qq gives messages to the queue the way qmail's programs do (qmail.c).
//
// If QMAILQUEUE is set, the program it names gets the message on descriptor 0, the envelope on descriptor 1
// and a pipe for its own words on descriptor 6, and its exit code says what became of the message. Otherwise
// the message goes through the one door (proto/enqueue); where no qmail-send answers there, it is left as a
// drop file for the next one. Outcomes are *reply.Error with qmail's texts.
//
// A message takes no more memory than 256 KiB here. What is larger passes through if the envelope was given
// first, and waits in an unnamed file if not.
package qq

import (
	"context"
	"errors"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/system/env"
)

const (
	// inMemory is how much of a message is held here, in bytes.
	inMemory = 256 << 10
	// Lifetime bounds everything about one message: qmail-queue gives itself 24 hours, so that an abandoned
	// message can be told from a slow one.
	Lifetime = 24 * time.Hour
	// answerTime is how long a complete message may take to get onto the disk.
	answerTime = time.Hour
)

// Queue is where messages go.
type Queue struct {
	Home     string
	Program  string // of QMAILQUEUE; relative to Home, no search
	Replaced bool   // QMAILQUEUE is set, perhaps to nothing
	Vars     []string
	Now      func() time.Time
}

// New reads QMAILQUEUE.
func New(e *env.Env) *Queue {
	q := &Queue{Home: e.Home, Vars: e.Vars, Now: e.Now}
	q.Program, q.Replaced = e.Lookup("QMAILQUEUE")
	return q
}

// Accepted is what became of a message that was taken.
type Accepted struct {
	QP   uint64 // the number that callers print as "qp": the message's, or that of the program's process
	Time time.Time
}

// Message is a message on its way: Write its bytes, then Commit or Abort.
type Message struct {
	way  way
	done bool
}

// way is how a message travels.
type way interface {
	Write(p []byte) (int, error)
	commit(e *envelope.Envelope) (Accepted, error)
	abort()
}

// errStopped is a Write after which nothing more is wanted; Commit knows why.
var errStopped = errors.New("qq: no more of this message is wanted")

// Open begins a message. The envelope may be nil if it comes only after the message; the one given to Commit
// counts. Errors are temporary. ctx bounds everything until Commit or Abort returns.
func (q *Queue) Open(ctx context.Context, e *envelope.Envelope) (*Message, error) {
	if !q.Replaced {
		return &Message{way: q.direct(ctx, e)}, nil
	}
	p, err := q.start(ctx)
	if err != nil {
		return nil, err
	}
	return &Message{way: p}, nil
}

// Write takes bytes of the message. After an error nothing more of it is wanted; Commit says why, or Abort
// ends it.
func (m *Message) Write(p []byte) (int, error) { return m.way.Write(p) }

// Commit ends the message and returns when it is in the queue. The error is a *reply.Error.
func (m *Message) Commit(e *envelope.Envelope) (Accepted, error) {
	m.done = true
	return m.way.commit(e)
}

// Abort throws the message away. After Commit it does nothing.
func (m *Message) Abort() {
	if !m.done {
		m.done = true
		m.way.abort()
	}
}
