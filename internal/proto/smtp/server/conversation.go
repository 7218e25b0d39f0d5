package server

import (
	"context"
	"sync/atomic"
	"time"
)

// conversation is a session and its connection.
type conversation struct {
	server  *Server
	ctx     context.Context
	stream  Stream // what is read and written
	wire    Stream // what that goes over: the same, outside TLS
	peer    *Peer
	session Session

	exchange Exchange // of AUTH, while it goes on
	open     Message  // whose chunks come, until it is queued or given up

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
	c.wire.SetReadDeadline(time.Unix(1, 0))
}

func (c *conversation) run() error {
	c.out = c.session.Banner(c.out)
	for {
		line, err := c.line()
		if err != nil {
			return c.lastWord(err)
		}
		refused := c.session.counted.errors
		next, err := c.step(line)
		if err != nil {
			return c.lastWord(err)
		}
		if next == Close {
			return c.finish(nil)
		}
		if c.session.counted.errors > refused {
			c.tarpit()
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
		line, n, bad := cutLine(c.in[c.r:c.w], c.session.maxLine(c.in[c.r:c.w]))
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
	reply := from
	shown := line
	if c.session.Private(line) {
		shown = []byte("AUTH")
		defer clear(line)
	}
	var next Next
	c.out, next = c.session.Step(c.out, line)
	for {
		c.note(shown, from)
		from = len(c.out)
		switch next {
		case Verify:
			c.out, next = c.session.Verified(c.out, c.verify())
		case Open:
			if c.server.Admit != nil {
				c.server.Admit(c.peer, c.session.Envelope())
			}
			m, err := c.server.Queue.Open(c.session.Envelope())
			c.out, next = c.session.Opened(c.out, err)
			if next == Chunk && err == nil {
				c.open = m
				c.begin(m)
			}
			if next != Body {
				continue
			}
			if next, err = c.message(m); err != nil {
				return next, err
			}
			shown, from = nil, len(c.out) // the line is overwritten, and message has told what is to tell
		case Chunk:
			var err error
			if next, err = c.chunks(); err != nil {
				return next, err
			}
			shown, from = nil, len(c.out)
		case Authenticate:
			answer, err := c.authenticate()
			if err != nil {
				return Close, err
			}
			from = len(c.out)
			c.out, next = c.session.Authenticated(c.out, answer)
		case StartTLS:
			if c.r != c.w {
				c.out, next = c.session.Injected(c.out, reply)
				continue
			}
			return More, c.secure()
		default:
			c.giveUp()
			c.abandon()
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
