package server

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
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

	blocks sync.Pool // of *block
}

const (
	smallInput = 1 << 10  // what an idle session holds
	flushAt    = 4 << 10  // replies beyond this wait for no more
	freeHold   = 4 << 10  // memory for recipients that is not asked for
	holdStep   = 16 << 10 // and how much is asked for at a time
	maxDiscard = 64 << 20 // of a message known to be refused, beyond databytes
	maxLinger  = 64 << 10 // of input after our last word
	lingerTime = time.Second
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
	c := &conversation{server: v, stream: stream, peer: peer, session: New(v.Settings, peer)}
	c.in, c.out, c.began = c.smallIn[:], c.smallOut[:0], time.Now()
	defer c.release()
	defer c.letGo()
	defer context.AfterFunc(ctx, c.interrupt)()
	return c.run()
}

// conversation is a session and its connection.
type conversation struct {
	server  *Server
	stream  Stream
	peer    *Peer
	session Session

	in       []byte // in[r:w] is input not yet used
	r, w     int
	block    *block // in, when the small buffer will not do
	out      []byte // replies not yet sent
	began    time.Time
	held     int // bytes asked for with Hold
	stopping atomic.Bool

	smallIn  [smallInput]byte
	smallOut [512]byte
}

// interrupt wakes the session up when the server stops. Between two messages it then ends; within one it
// goes on, see fill.
func (c *conversation) interrupt() {
	c.stopping.Store(true)
	c.stream.SetReadDeadline(time.Unix(1, 0))
}

func (c *conversation) run() error {
	c.out = c.session.Banner(c.out)
	for {
		line, err := c.line()
		if err != nil {
			return c.lastWord(err)
		}
		next, err := c.step(line)
		if err != nil {
			return c.lastWord(err)
		}
		if next == Close {
			return c.finish(nil)
		}
	}
}

// line returns the next command. It is valid until the next input is read.
func (c *conversation) line() ([]byte, error) {
	var deadline time.Time
	for {
		if c.stopping.Load() {
			return nil, errStopping
		}
		line, n, bad := cutLine(c.in[c.r:c.w])
		if bad {
			return nil, errLine
		}
		if n > 0 {
			c.r += n
			return line, nil
		}
		if deadline.IsZero() { // one for the whole line, however many pieces it comes in
			limits := &c.session.config.Limits
			now := time.Now()
			deadline = earlier(now.Add(limits.Command), c.began.Add(limits.Transaction))
		}
		if err := c.fill(deadline, false); err != nil {
			return nil, err
		}
	}
}

// step does one command and all that it leads to.
func (c *conversation) step(line []byte) (Next, error) {
	from := len(c.out)
	var next Next
	c.out, next = c.session.Step(c.out, line)
	for {
		c.note(line, from)
		from = len(c.out)
		switch next {
		case Verify:
			c.out, next = c.session.Verified(c.out, c.verify())
		case Open:
			m, err := c.server.Queue.Open(c.session.Envelope())
			c.out, next = c.session.Opened(c.out, err)
			if next != Body {
				continue
			}
			if next, err = c.message(m); err != nil {
				return next, err
			}
			line, from = nil, len(c.out) // the line is overwritten, and message has told what is to tell
		default:
			if c.session.Held() == 0 {
				c.letGo()
			}
			if len(c.out) >= flushAt {
				return next, c.flush()
			}
			return next, nil
		}
	}
}

// verify asks for the recipient, and for the memory that it takes.
func (c *conversation) verify() error {
	if err := c.server.Queue.Verify(c.session.Asked()); err != nil {
		return err
	}
	if c.server.Hold == nil || c.session.Held() <= freeHold+c.held {
		return nil
	}
	if !c.server.Hold(holdStep) {
		return errMemory
	}
	c.held += holdStep
	return nil
}

// letGo gives back the memory of a transaction that is over.
func (c *conversation) letGo() {
	if c.held > 0 {
		c.server.Hold(-c.held)
		c.held = 0
	}
}

// note tells of a refusal that stands at from in the replies.
func (c *conversation) note(command []byte, from int) {
	if len(c.out) > from && c.out[from] >= '4' {
		c.tell(string(command), string(c.out[from:]))
	}
}

func (c *conversation) tell(command, reply string) {
	if c.server.Refused != nil {
		c.server.Refused(c.peer, command, reply)
	}
}

// message reads a message and puts it into the queue.
func (c *conversation) message(m Message) (Next, error) {
	from := len(c.out)
	c.out = c.session.Received(c.out, c.server.Now())
	c.put(m, c.out[from:])
	c.out = c.out[:from]

	err := c.body(m)
	if err != nil && err != errEndless {
		m.Abort()
		c.tell("DATA", "message cut short: "+err.Error())
		return Close, err
	}
	if refusal := c.session.Refusal(); refusal != nil {
		m.Abort()
		next := c.end(0, refusal)
		if err == errEndless { // its end was not seen
			next = Close
		}
		return next, nil
	}
	id, err := m.Commit()
	return c.end(id, err), nil
}

// end replies to a message.
func (c *conversation) end(id uint64, err error) (next Next) {
	from := len(c.out)
	c.out, next = c.session.Ended(c.out, id, err, c.server.Now())
	if err != nil {
		c.tell("DATA", string(c.out[from:]))
	}
	c.began = time.Now()
	return next
}

func (c *conversation) put(m Message, p []byte) {
	if len(p) > 0 && c.session.Refusal() == nil {
		if err := m.Write(p); err != nil {
			c.session.Fail(err)
		}
	}
}

// body feeds blocks to the session until the message ends.
func (c *conversation) body(m Message) error {
	limits := &c.session.config.Limits
	start := time.Now()
	var received int64
	for {
		if c.r == c.w {
			if err := c.fill(c.patience(limits, start, received), true); err != nil {
				return err
			}
		}
		stored, n, end := c.session.Feed(c.in[c.r:c.w])
		c.r += n
		received += int64(n)
		c.put(m, stored)
		if end {
			return nil
		}
		if received > maxDiscard+c.session.config.Databytes && c.session.Refusal() != nil {
			return errEndless
		}
	}
}

// patience is when a message of which received bytes came since start must go on.
func (c *conversation) patience(limits *Limits, start time.Time, received int64) time.Time {
	deadline := earlier(time.Now().Add(limits.Block), c.began.Add(limits.Transaction))
	if seconds := received / max(limits.Rate, 1); seconds < 1<<20 {
		deadline = earlier(deadline, start.Add(limits.Grace+time.Duration(seconds)*time.Second))
	}
	return deadline
}

// fill sends the replies that are due and reads more input, at most until deadline.
func (c *conversation) fill(deadline time.Time, inMessage bool) error {
	if err := c.flush(); err != nil {
		return err
	}
	c.makeRoom(inMessage)
	for {
		if err := c.stream.SetReadDeadline(deadline); err != nil {
			return err
		}
		if !inMessage && c.stopping.Load() {
			return errStopping
		}
		n, err := c.stream.Read(c.in[c.w:])
		c.w += n
		switch {
		case n > 0:
			return nil // an error will come again
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case !inMessage && c.stopping.Load():
			return errStopping
		case !time.Now().Before(deadline):
			return errTimeout
		} // nothing was read, or interrupt woke us up in the middle of a message: go on
	}
}

// makeRoom sees to it that there is room behind w. An empty session goes back to its small buffer; messages
// and full buffers get a block.
func (c *conversation) makeRoom(inMessage bool) {
	if c.r == c.w {
		c.r, c.w = 0, 0
		if !inMessage {
			c.release()
		}
	}
	if c.block == nil && (inMessage || c.w == len(c.in) && c.r == 0) {
		b, _ := c.server.blocks.Get().(*block)
		if b == nil {
			b = new(block)
		}
		c.w = copy(b[:], c.in[c.r:c.w])
		c.block, c.in, c.r = b, b[:], 0
	}
	if c.r > 0 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
}

// release gives the block back.
func (c *conversation) release() {
	if c.block != nil {
		c.server.blocks.Put(c.block)
		c.block, c.in, c.r, c.w = nil, c.smallIn[:], 0, 0
	}
}

// flush sends all replies in one write.
func (c *conversation) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if err := c.stream.SetWriteDeadline(time.Now().Add(c.session.config.Limits.Command)); err != nil {
		return err
	}
	_, err := c.stream.Write(c.out)
	c.out = c.smallOut[:0]
	return err
}

// lastWord ends a session that did not QUIT.
func (c *conversation) lastWord(err error) error {
	from := len(c.out)
	switch err {
	case errTimeout:
		c.out = append(c.out, timedOut...)
	case errStopping:
		c.out = append(c.out, stopping...)
	case errLine:
		c.out = append(c.out, badLine...)
	default: // nobody is listening
		return err
	}
	c.note(nil, from)
	return c.finish(err)
}

// finish sends what is due. Where the client has more to say it is heard for a moment: closing at once would
// reset the connection, and our last reply with it.
func (c *conversation) finish(reason error) error {
	if err := c.flush(); err != nil {
		return err
	}
	half, ok := c.stream.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return reason
	}
	deadline := time.Now().Add(lingerTime)
	for total := 0; total < maxLinger; {
		if c.stream.SetReadDeadline(deadline) != nil {
			break
		}
		n, err := c.stream.Read(c.in)
		if err != nil {
			break
		}
		total += n
	}
	return reason
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
