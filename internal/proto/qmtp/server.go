// Package qmtp is the Quick Mail Transfer Protocol, both sides of it (https://cr.yp.to/proto/qmtp.txt): packages of a
// message, a sender and recipients, one after another, each answered by one line for each recipient.
//
// The server reads netstrings in their one spelling. A message goes to the queue as it comes, whatever its size;
// of the rest one address is held, and for each recipient its text if it is welcome, and a byte for its answer.
// Packages are answered in order, but the next one is read while those before are on their way to the disk.
// What the client breaks off is thrown away; what it was told before stands.
package qmtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/envelope"
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
	Settings func() *Config                    // asked at each package
	Open     func() (Message, error)           // begins a message
	Verify   func(recipient string) error      // nil if the queue would take mail for recipient
	Hold     func(bytes int) bool              // as in package smtp/server; nil for no bound
	Refused  func(p *Peer, what, reply string) // is told each refusal; nil for nobody
	Now      func() time.Time

	blocks sync.Pool // of *block
}

type block [32 << 10]byte

const (
	small      = 512      // what an idle session reads into
	flushAt    = 8 << 10  // answers beyond this wait for no more
	maxPending = 32       // packages that are not answered yet
	freeHold   = 4 << 10  // memory for recipients that is not asked for
	holdStep   = 16 << 10 // and how much is asked for at a time
	verifyTime = time.Minute
	// maxStrangers is how many recipients that nobody has here a session may try: lists of names are no mail. The others
	// are put off, and may be in another session.
	maxStrangers = 200
)

var (
	errTimeout  = errors.New("qmtp: timeout")
	errStopping = errors.New("qmtp: stopping")
)

// Serve holds one session and returns when it is over, with why: io.EOF if the client has ended it; closing the
// stream is up to the caller. When ctx ends the session ends with the package at hand.
func (v *Server) Serve(ctx context.Context, stream Stream, peer *Peer) error {
	s := &session{server: v, stream: stream, peer: peer, began: time.Now(), pending: make(chan *pending, maxPending)}
	defer context.AfterFunc(ctx, s.interrupt)()
	err := s.both()
	if err != io.EOF {
		serve.Linger(stream)
	}
	return err
}

// both reads packages and writes answers. It leaves nothing behind, also if it panics: what the message and
// the lists hold is not only ours.
func (s *session) both() error {
	var writer sync.WaitGroup
	writer.Go(s.answer)
	defer writer.Wait()
	defer close(s.pending)
	defer s.commits.Wait()
	defer s.release()
	defer s.drop()
	return s.run()
}

// session is a connection with the package that is coming in.
type session struct {
	server   *Server
	stream   Stream
	peer     *Peer
	began    time.Time
	parser   parser
	stopping atomic.Bool

	small [small]byte
	block *block

	delivery *delivery // nil between packages
	message  Message   // nil if there is none to write to
	open     bool      // the message has begun
	start    time.Time // of the package

	strangers int   // recipients that the queue would not take
	received  int64 // bytes of it
	asking    time.Duration
	held      int // bytes asked for with Hold

	commits sync.WaitGroup
	pending chan *pending
	broken  atomic.Bool // nobody takes our answers
}

// pending is a package whose answers are due.
type pending struct {
	answers answers
	ready   chan struct{} // closed when texts[0] is known
	doubt   bool          // or rather will never be
	held    int
}

// interrupt wakes the session up when the server stops.
func (s *session) interrupt() {
	s.stopping.Store(true)
	s.stream.SetReadDeadline(time.Unix(1, 0))
}

func (s *session) run() error {
	for {
		b, err := s.read()
		if err != nil {
			return err
		}
		for {
			e, n, err := s.parser.next(b)
			b = b[n:]
			s.received += int64(n)
			if err != nil {
				s.tell("", err.Error())
				return err
			}
			if e.kind == nothing {
				break
			}
			s.step(e)
			if e.kind == packageEnd && s.stopping.Load() {
				return errStopping
			}
		}
	}
}

// read waits for input. Between packages it waits in a small buffer.
func (s *session) read() ([]byte, error) {
	patience := &s.server.Settings().Patience
	buf := s.small[:]
	if s.delivery != nil || s.received > 0 {
		if s.block == nil {
			if s.block, _ = s.server.blocks.Get().(*block); s.block == nil {
				s.block = new(block)
			}
		}
		buf = s.block[:]
	} else {
		s.release()
	}
	for {
		deadline := patience.Read(time.Now(), s.began, s.start, s.received)
		if err := s.stream.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
		switch {
		case s.broken.Load():
			return nil, io.ErrClosedPipe
		case s.stopping.Load() && s.received == 0:
			return nil, errStopping
		}
		n, err := s.stream.Read(buf)
		switch {
		case n > 0:
			if s.received == 0 {
				s.start = time.Now()
			}
			return buf[:n], nil // an error will come again
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		case !time.Now().Before(deadline):
			return nil, errTimeout
		} // nothing was read, or interrupt woke us up in the middle of a package: go on
	}
}

func (s *session) release() {
	if s.block != nil {
		s.server.blocks.Put(s.block)
		s.block = nil
	}
}

// drop throws away the package at hand.
func (s *session) drop() {
	if s.message != nil {
		s.message.Abort()
		s.message = nil
	}
	s.letGo(s.held)
}

func (s *session) letGo(bytes int) {
	if bytes > 0 {
		s.server.Hold(-bytes)
	}
}

func (s *session) step(e event) {
	if s.delivery == nil {
		s.delivery = newDelivery(s.server.Settings(), s.peer)
	}
	switch e.kind {
	case body:
		s.body(e.bytes)
	case sender:
		s.delivery.sender(e)
	case recipient:
		s.recipient(e)
	case packageEnd:
		s.finish()
	}
}

func (s *session) body(b []byte) {
	d := s.delivery
	if !s.open {
		s.open = true
		d.start(s.parser.size(), s.parser.mode == '\r')
		s.begin()
	}
	if d.add(b) && len(b) > 0 {
		s.put(b)
	}
	if d.failure != nil && s.message != nil {
		s.message.Abort()
		s.message = nil
	}
}

// begin opens the message, with our trace field.
func (s *session) begin() {
	if s.delivery.failure != nil {
		return
	}
	m, err := s.server.Open()
	if err != nil {
		s.delivery.fail(err)
		return
	}
	s.message = m
	s.put(received.Append(make([]byte, 0, 256), s.peer.From, "QMTP", s.server.Now()))
}

func (s *session) put(b []byte) {
	if err := s.message.Write(b); err != nil {
		s.delivery.fail(err)
	}
}

func (s *session) recipient(e event) {
	d := s.delivery
	before := len(d.answers.verdicts)
	if addr := d.recipient(e); addr != "" || len(d.answers.verdicts) == before {
		d.welcome(addr, s.verify(addr))
	}
	if v := d.answers.verdicts[before]; v != 0 {
		s.tell(string(e.bytes), d.answers.texts[v])
	}
}

// verify asks for a recipient, and for the memory that it takes.
func (s *session) verify(addr string) error {
	if d := s.delivery; s.server.Hold != nil && d.held > freeHold+s.held {
		if !s.server.Hold(holdStep) {
			return errMemory
		}
		s.held += holdStep
	}
	switch {
	case s.asking > verifyTime:
		return errSlow
	case s.strangers >= maxStrangers:
		return errStrangers
	}
	began := time.Now()
	err := s.server.Verify(addr)
	s.asking += time.Since(began)
	if reply.Letter(err) == 'D' {
		s.strangers++
	}
	return err
}

// finish lets the queue have the package, and the client know.
func (s *session) finish() {
	d, m := s.delivery, s.message
	p := &pending{answers: d.answers, ready: make(chan struct{}), held: s.held}
	s.delivery, s.message, s.open, s.received, s.asking, s.held = nil, nil, false, 0, 0, 0
	s.start = time.Now() // of the next one, should it be in the same input
	switch {
	case d.failure == nil && len(d.envelope.Recipients) > 0:
		s.commits.Go(func() { s.commit(p, m, d) })
	default:
		if m != nil {
			m.Abort()
		}
		if d.failure != nil {
			p.answers.texts[0] = reply.Line(d.failure)
			s.tell("message", p.answers.texts[0])
		}
		close(p.ready)
	}
	s.pending <- p // while there are too many, nothing is read
}

func (s *session) commit(p *pending, m Message, d *delivery) {
	defer close(p.ready)
	defer func() {
		if bug := recover(); bug != nil { // whatever it is, it does not end the other sessions
			p.answers.texts[0] = "Ztemporary local problem (#4.3.0)"
			s.tell("message", fmt.Sprint("bug: ", bug))
		}
	}()
	qp, err := m.Commit(&d.envelope)
	if errors.Is(err, reply.ErrInDoubt) {
		p.doubt = true
		s.tell("message", "no answer from the queue, and so none to the client")
		return
	}
	if err != nil {
		p.answers.texts[0] = reply.Line(err)
		s.tell("message", p.answers.texts[0])
		return
	}
	p.answers.texts[0] = "K" + reply.Accepted(s.server.Now(), qp)
}

func (s *session) tell(what, answer string) {
	if s.server.Refused != nil {
		s.server.Refused(s.peer, what, answer)
	}
}

// answer sends the answers of all packages, in order.
func (s *session) answer() {
	var out []byte
	for p := range s.pending {
		if len(s.pending) == 0 || !isReady(p) {
			out = s.flush(out)
			<-p.ready
		}
		if p.doubt { // to say Z would promise that it is not delivered, and what comes later cannot be said without
			out = s.flush(out)
			s.hangUp()
		}
		for i := 0; i < len(p.answers.verdicts) && !s.broken.Load(); {
			out, i = p.answers.appendTo(out, i, flushAt)
			if len(out) >= flushAt {
				out = s.flush(out)
			}
		}
		s.letGo(p.held)
		if len(s.pending) == 0 {
			out = s.flush(out)
		}
	}
	s.flush(out)
}

func isReady(p *pending) bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// flush writes answers; when nobody takes them the session ends.
func (s *session) flush(out []byte) []byte {
	if len(out) == 0 || s.broken.Load() {
		return out[:0]
	}
	err := s.stream.SetWriteDeadline(s.server.Settings().Patience.Write(time.Now(), s.began))
	if err == nil {
		_, err = s.stream.Write(out)
	}
	if err != nil {
		s.hangUp()
	}
	return out[:0]
}

// hangUp ends the session: nothing more is said.
func (s *session) hangUp() {
	s.broken.Store(true)
	s.stream.SetReadDeadline(time.Unix(1, 0))
}
