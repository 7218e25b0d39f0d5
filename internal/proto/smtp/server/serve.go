package server

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/system/secure"
)

// Queue is where recipients are known and messages go. Its calls return within a time of its own choice.
type Queue interface {
	// Verify returns nil if the queue would take mail for recipient, else a *reply.Error.
	Verify(recipient string) error
	// Open begins a message. The envelope is the caller's again after Commit or Abort.
	Open(e *envelope.Envelope) (Message, error)
}

// Message is a message on its way into the queue. It ends with Commit or with Abort.
type Message interface {
	// Write takes the next bytes; p may be overwritten afterwards. After an error the message can only be
	// aborted, and the error is what the client is told.
	Write(p []byte) error
	// Commit returns nil once the message will survive whatever happens to us.
	Commit() (id uint64, err error)
	Abort()
}

// Stream is a connection, or two descriptors that make one. A CloseWrite method is used where there is one.
type Stream interface {
	io.Reader
	io.Writer
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Limits are the patience of a session. Zero is none at all; all must be set.
type Limits struct {
	Command     time.Duration // for a whole command line, and for a reply to be taken (RFC 5321 4.5.3.2.7)
	Block       time.Duration // for the next bytes of a message
	Transaction time.Duration // from the last message, or the start, to the end of the next one
	Grace       time.Duration // of a message, before Rate counts
	Rate        int64         // bytes per second that a message has to come in with
}

// Server holds what all sessions share.
type Server struct {
	Settings func() *Config // what holds for new transactions
	Queue    Queue
	Now      func() time.Time
	// Hold, if set, is asked before recipients of one message take up more memory than every session may, and
	// told with a negative number when that is given back.
	Hold func(bytes int) bool
	// Refused, if set, is told each refusal and what it was a reply to. Both may hold any bytes.
	Refused func(p *Peer, command, reply string)
	// StartTLS shakes hands on a connection of which nothing has been read that was not asked for, within a time of
	// its own choice. It has to be there where a Config says StartTLS.
	StartTLS func(ctx context.Context, stream Stream) (Stream, *secure.State, error)
	// Secured, if set, is told that a peer runs in TLS by now, and may give it rights for it.
	Secured func(p *Peer)
	// Admit, if set, is shown the envelope of each message before the queue is, and may add options to it.
	Admit func(p *Peer, e *envelope.Envelope)
	// Accepted, if set, is told of each message that the queue has taken, before the client is.
	Accepted func(p *Peer, e *envelope.Envelope, id uint64)
	// Auth is asked who somebody is. It has to be there where a Config says Mechanisms.
	Auth Auth
	// Random fills in bytes that nobody can guess. It has to be there for Submission.
	Random func(b []byte)

	blocks sync.Pool // of *block
}

const (
	smallInput = 1 << 10  // what an idle session holds
	flushAt    = 4 << 10  // replies beyond this wait for no more
	freeHold   = 4 << 10  // memory for recipients that is not asked for
	holdStep   = 16 << 10 // and how much is asked for at a time
	maxDiscard = 64 << 20 // of a message known to be refused, beyond databytes
)

type block [32 << 10]byte

var (
	errTimeout  = errors.New("smtp: timeout")
	errStopping = errors.New("smtp: stopping")
	errLine     = errors.New("smtp: malformed line")
	errEndless  = errors.New("smtp: endless message")
	errMemory   = reply.Temporary("4.3.0", "too many recipients for all clients together, try again later (#4.3.0)", nil)
)

// Serve holds one session and returns when it is over; closing the stream is up to the caller. When ctx ends,
// the session is told 421 as soon as it is not in the middle of a message. The error is why it ended, nil
// after QUIT and refusals of ours.
func (v *Server) Serve(ctx context.Context, stream Stream, peer *Peer) error {
	c := &conversation{server: v, ctx: ctx, stream: stream, wire: stream, peer: peer, session: New(v.Settings, peer)}
	c.in, c.out, c.began = c.smallIn[:], c.smallOut[:0], time.Now()
	defer c.release()
	defer c.letGo()
	defer c.leave()
	defer context.AfterFunc(ctx, c.interrupt)()
	return c.run()
}
