package server

import (
	"errors"
	"time"

	"qmail/internal/format/reply"
)

// message reads a message and puts it into the queue.
func (c *conversation) message(m Message) (Next, error) {
	open := true
	defer func() { // also if we panic: what m holds is not only ours
		if open {
			m.Abort()
		}
	}()
	c.begin(m)
	err := c.body(m)
	if err != nil && err != errEndless {
		c.tell("DATA", "message cut short: "+err.Error())
		return Close, err
	}
	if refusal := c.session.Refusal(); refusal != nil {
		next := c.end(0, refusal)
		if err == errEndless { // its end was not seen
			next = Close
		}
		return next, nil
	}
	open = false
	return c.commit(m)
}

// begin writes what stands above the message.
func (c *conversation) begin(m Message) {
	from := len(c.out)
	c.out = c.session.Received(c.out, c.server.Now())
	c.put(m, c.out[from:])
	c.out = c.out[:from]
}

// commit puts a complete message into the queue, and replies.
func (c *conversation) commit(m Message) (Next, error) {
	id, err := m.Commit()
	if errors.Is(err, reply.ErrInDoubt) {
		c.tell("DATA", "no answer from the queue, and so none to the client")
		c.flush() // what was said before; if it fails the session ends all the same
		return Close, err
	}
	if err == nil && c.server.Accepted != nil {
		c.server.Accepted(c.peer, c.session.Envelope(), id)
	}
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
		c.pass(m, stored, end)
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
