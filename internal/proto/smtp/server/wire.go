package server

import (
	"errors"
	"os"
	"time"

	"qmail/internal/system/serve"
)

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

// finish sends what is due, and sees to it that it is heard.
func (c *conversation) finish(reason error) error {
	if err := c.flush(); err != nil {
		return err
	}
	serve.Linger(c.stream)
	return reason
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
