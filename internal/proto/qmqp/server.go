// Package qmqp is the server of the Quick Mail Queueing Protocol (https://cr.yp.to/proto/qmqp.html): one message for
// any number of recipients anywhere, from a client that is trusted to send it, and one answer for all of it.
//
// Netstrings are read in their one spelling. The message goes to the queue as it comes, whatever its size; of the
// rest one address is held, and the list of recipients within the bound of Hold.
package qmqp

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/netstring"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
	"qmail/internal/system/serve"
)

// Message is a message on its way into the queue. It ends with Commit or with Abort.
type Message interface {
	// Write takes the next bytes; p may be overwritten afterwards. After an error the message can only be
	// aborted, and the error is what the client is told.
	Write(p []byte) error
	// Commit returns nil once the message will survive whatever happens to us.
	Commit(e *envelope.Envelope) (qp uint64, err error)
	Abort()
}

// Stream is a connection, or two descriptors that make one.
type Stream interface {
	io.Reader
	io.Writer
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Server holds what all sessions share.
type Server struct {
	Patience func() serve.Patience
	Open     func() (Message, error)                        // begins a message
	Hold     func(bytes int) bool                           // as in package smtp/server; nil for no bound
	Refused  func(from *received.From, what, answer string) // is told each refusal; nil for nobody
	Now      func() time.Time

	blocks sync.Pool // of *block
}

type block [32 << 10]byte

const (
	recipientSize = 48       // what a recipient costs besides its text
	freeHold      = 4 << 10  // memory for recipients that is not asked for
	holdStep      = 64 << 10 // and how much is asked for at a time
)

var (
	errTimeout  = errors.New("qmqp: timeout")
	errStopping = errors.New("qmqp: stopping")

	errAddress = &reply.Error{Code: 553, Status: "5.1.3", Text: "sorry, I can't accept addresses like that (#5.1.3)"}
	errHops    = &reply.Error{Code: 554, Status: "5.4.6", Text: "too many hops, this message is looping (#5.4.6)"}
	errMemory  = &reply.Error{Code: 451, Status: "4.3.0", Text: "too many recipients for all clients together, try again later (#4.3.0)"}
)

// Serve holds one session and returns when it is over: with nil if the client has got an answer, else with why it
// has none. Closing the stream is up to the caller. When ctx ends a request that has begun is still served.
func (v *Server) Serve(ctx context.Context, stream Stream, from *received.From) error {
	s := &session{server: v, stream: stream, from: from, began: time.Now(), patience: v.Patience()}
	defer context.AfterFunc(ctx, s.interrupt)()
	answer, err := s.run()
	if err == nil {
		err = s.answer(answer)
	} else if err != io.EOF {
		s.tell("", err.Error())
	}
	if s.unread || err != nil && err != io.EOF {
		serve.Linger(stream)
	}
	return err
}

// session is a connection and its request.
type session struct {
	server   *Server
	stream   Stream
	from     *received.From
	patience serve.Patience
	began    time.Time
	stopping atomic.Bool

	parser   parser
	start    time.Time // of the request
	received int64     // bytes of it
	begun    bool      // the message has been begun
	message  Message   // nil if there is none to write to
	hops     received.Hops
	envelope envelope.Envelope
	size     int // about how many bytes the recipients hold
	held     int // bytes asked for with Hold
	failure  error
	unread   bool // there is input that is none of ours
}

// interrupt wakes the session up when the server stops.
func (s *session) interrupt() {
	s.stopping.Store(true)
	s.stream.SetReadDeadline(time.Unix(1, 0))
}

// run reads the request and gives it to the queue.
func (s *session) run() (answer string, err error) {
	defer s.drop()
	b, _ := s.server.blocks.Get().(*block)
	if b == nil {
		b = new(block)
	}
	defer s.server.blocks.Put(b)
	for {
		in, err := s.read(b[:])
		if err != nil {
			return "", err
		}
		for {
			e, n, err := s.parser.next(in)
			in = in[n:]
			if err != nil {
				return "", err
			}
			if e.kind == end {
				s.unread = len(in) > 0
				return s.commit()
			}
			if e.kind == nothing {
				break
			}
			s.step(e)
		}
	}
}

// drop leaves nothing behind, also if we panic: what is held is not only ours.
func (s *session) drop() {
	if s.message != nil {
		s.message.Abort()
		s.message = nil
	}
	if s.held > 0 {
		s.server.Hold(-s.held)
	}
}

func (s *session) read(buf []byte) ([]byte, error) {
	for {
		deadline := s.patience.Read(time.Now(), s.began, s.start, s.received)
		if err := s.stream.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
		if s.stopping.Load() && s.received == 0 {
			return nil, errStopping
		}
		n, err := s.stream.Read(buf)
		switch {
		case n > 0:
			if s.received == 0 {
				s.start = time.Now()
			}
			s.received += int64(n)
			return buf[:n], nil // an error will come again
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		case !time.Now().Before(deadline):
			return nil, errTimeout
		} // nothing was read, or interrupt woke us up in the middle of a request: go on
	}
}

func (s *session) step(e event) {
	if !s.begun {
		s.begun = true
		s.begin()
	}
	switch e.kind {
	case body:
		if s.hops.Add(e.bytes); s.hops.Seen >= received.MaxHops {
			s.fail(errHops)
		}
		s.put(e.bytes)
	case sender:
		if !clean(e) {
			s.fail(errAddress)
		}
		s.envelope.Sender = string(e.bytes)
	case recipient:
		s.recipient(e)
	}
}

// begin opens the message, with our trace field.
func (s *session) begin() {
	m, err := s.server.Open()
	if err != nil {
		s.fail(err)
		return
	}
	s.message = m
	s.put(received.Append(make([]byte, 0, 256), *s.from, "QMQP", s.server.Now()))
}

func (s *session) put(b []byte) {
	if s.failure != nil {
		return
	}
	if err := s.message.Write(b); err != nil {
		s.fail(err)
	}
}

// fail notes that the request cannot be served. It is read to its end all the same, so that the client can be told.
func (s *session) fail(err error) {
	if s.failure == nil {
		s.failure = err
		s.envelope.Recipients = nil
		if s.message != nil {
			s.message.Abort()
			s.message = nil
		}
	}
}

func (s *session) recipient(e event) {
	if !clean(e) {
		s.fail(errAddress)
	}
	if s.failure != nil {
		return
	}
	s.size += len(e.bytes) + recipientSize
	if s.server.Hold != nil && s.size > freeHold+s.held {
		if !s.server.Hold(holdStep) {
			s.fail(errMemory)
			return
		}
		s.held += holdStep
	}
	s.envelope.Recipients = append(s.envelope.Recipients, string(e.bytes))
}

// clean reports whether an address can be stored and shown: not too long, and no control bytes.
func clean(e event) bool {
	for _, c := range e.bytes {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return !e.long
}

// commit lets the queue have the message, and returns what the client is told: nothing, and an error, if the queue
// does not answer, since a refusal would promise that the message is not delivered.
func (s *session) commit() (answer string, err error) {
	if s.failure != nil {
		return s.refuse(s.failure), nil
	}
	m := s.message
	s.message = nil
	qp, err := m.Commit(&s.envelope)
	switch {
	case errors.Is(err, reply.ErrInDoubt):
		return "", err
	case err != nil:
		return s.refuse(err), nil
	}
	return "K" + reply.Accepted(s.server.Now(), qp), nil
}

func (s *session) refuse(err error) string {
	line := reply.Line(err)
	s.tell("message", line)
	return line
}

func (s *session) tell(what, answer string) {
	if s.server.Refused != nil {
		s.server.Refused(s.from, what, answer)
	}
}

func (s *session) answer(text string) error {
	if err := s.stream.SetWriteDeadline(s.patience.Write(time.Now(), s.began)); err != nil {
		return err
	}
	_, err := s.stream.Write(netstring.Append(nil, text))
	return err
}
