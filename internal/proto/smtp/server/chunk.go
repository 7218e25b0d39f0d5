package server

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// chunk is what a BDAT command announced (RFC 3030).
type chunk struct {
	left    int64 // bytes still to come
	size    int64
	last    bool
	open    bool   // there is a chunk
	refusal string // the reply, whatever the chunk holds; empty if it is the message's
}

// maxChunk is the largest chunk where messages may be of any size.
const maxChunk = 1 << 40

const (
	badChunk  = "501 5.5.4 syntax: BDAT size [LAST] (#5.5.4)\r\n"
	hugeChunk = "552 5.3.4 no message here may be that large (#5.3.4)\r\n"
)

// bdat announces bytes, which come whatever we think of the command: those of one that is out of order are read and
// thrown away. Only where their number is not known, or there are too many of them, is the session over.
func (s *Session) bdat(dst, arg []byte) ([]byte, Next) {
	if s.config.NoChunking { // what follows is no list of commands, and must not be read as one
		return s.foreign(dst, arg)
	}
	number, rest, _ := strings.Cut(string(arg), " ")
	n, ok := size(number)
	rest = strings.TrimLeft(rest, " ")
	last := len(rest) == 4 && equalFold([]byte(rest), "last")
	if !ok || rest != "" && !last {
		return append(dst, badChunk...), Close
	}
	if n > maxChunk || s.config.Databytes > 0 && n > maxDiscard+s.config.Databytes {
		return append(dst, hugeChunk...), Close
	}
	s.chunk = chunk{left: n, size: n, last: last, open: true}
	switch s.at {
	case rcpt:
		return dst, Open
	case chunked:
		return dst, Chunk
	}
	s.chunk.refusal = s.order(command{in: rcpt})
	return dst, Chunk
}

// Chunking reports whether a message is open of which chunks are still to come.
func (s *Session) Chunking() bool { return s.at == chunked }

// FeedChunk takes a block of the chunk and returns what the queue shall get, in b's memory, and how much of b was the
// chunk's; end says that it is complete.
func (s *Session) FeedChunk(b []byte) (stored []byte, n int, end bool) {
	b = b[:min(int64(len(b)), s.chunk.left)]
	n = len(b)
	s.chunk.left -= int64(n)
	end = s.chunk.left == 0
	if s.chunk.refusal != "" {
		return nil, n, end
	}
	stored = s.tx.body.Raw(b, end && s.chunk.last)
	if s.Refusal() != nil {
		stored = nil
	}
	return stored, n, end
}

// Chunked replies to a chunk, unless Next is Commit: then the message is complete, and can be queued. After a
// refusal there is no transaction any more.
func (s *Session) Chunked(dst []byte, now time.Time) ([]byte, Next) {
	c := s.chunk
	s.chunk = chunk{}
	if c.refusal != "" {
		return s.judge(append(dst, c.refusal...), len(dst), More)
	}
	err := s.Refusal()
	switch {
	case err != nil && c.last:
		return s.Ended(dst, 0, err, now)
	case err != nil:
		s.reset()
		return s.judge(appendError(dst, err), len(dst), More)
	case c.last:
		return dst, Commit
	}
	s.at = chunked
	dst = append(dst, "250 2.0.0 "...)
	dst = strconv.AppendInt(dst, c.size, 10)
	return append(dst, " bytes, go on\r\n"...), More
}

// Raw takes bytes that are not dot-stuffed: CRLF becomes LF, in place. What stands for no line end but looks like one to
// others, a bare CR or LF, and a NUL, is remembered as Bare. end says that no more will come.
func (d *Decoder) Raw(b []byte, end bool) []byte {
	r, w := 0, 0
	for r < len(b) {
		if d.at == afterCR {
			if b[r] != '\n' {
				d.Bare = true
			}
			d.at = inLine
			if b[r] == '\n' { // the only line end there is
				if !d.trace.InBody() {
					d.trace.End()
					d.Hops = d.trace.Seen
				}
				b[w] = '\n'
				w++
				r++
			}
			continue
		}
		i := bytes.IndexByte(b[r:], '\r')
		if i < 0 {
			i = len(b) - r
		} else {
			d.at = afterCR
		}
		line := b[r : r+i]
		if bytes.IndexByte(line, '\n') >= 0 || bytes.IndexByte(line, 0) >= 0 {
			d.Bare = true
		}
		if !d.trace.InBody() {
			d.trace.Line(line)
		}
		if w != r {
			copy(b[w:], line)
		}
		w += i
		r += i
		if d.at == afterCR {
			r++
		}
	}
	if end && d.at == afterCR {
		d.Bare = true
	}
	d.Size += int64(w)
	return b[:w]
}

// Wasted reports whether the bytes of the chunk are read only to be thrown away.
func (s *Session) Wasted() bool { return s.chunk.refusal != "" || s.Refusal() != nil }

// chunk reads a chunk. m is the message that it belongs to; nil where it belongs to none.
func (c *conversation) chunk(m Message) error {
	limits := &c.session.config.Limits
	last := c.session.chunk.last
	start := time.Now()
	var received int64
	for {
		if c.r == c.w && c.session.chunk.left > 0 {
			if err := c.fill(c.patience(limits, start, received), true); err != nil {
				return err
			}
		}
		stored, n, end := c.session.FeedChunk(c.in[c.r:c.w])
		c.r += n
		received += int64(n)
		if m != nil {
			c.pass(m, stored, end && last)
		}
		if end {
			return nil
		}
		if received > maxDiscard+c.session.config.Databytes && c.session.Wasted() {
			return errEndless
		}
	}
}

// chunks does what BDAT leads to: it reads the chunk, and queues the message if that was the last one.
func (c *conversation) chunks() (Next, error) {
	from := len(c.out)
	switch err := c.chunk(c.open); {
	case err == errEndless:
		c.out = append(c.out, hugeChunk...)
		c.note([]byte("BDAT"), from)
		return Close, nil
	case err != nil:
		c.tell("BDAT", "message cut short: "+err.Error())
		return Close, err
	}
	from = len(c.out)
	var next Next
	c.out, next = c.session.Chunked(c.out, c.server.Now())
	if next == Commit {
		m := c.open
		c.open = nil
		return c.commit(m)
	}
	c.note([]byte("BDAT"), from)
	return next, nil
}

// leave ends what a session has begun elsewhere.
func (c *conversation) leave() {
	if c.open != nil {
		c.open.Abort()
	}
	if c.exchange != nil {
		c.exchange.Abort()
	}
}

// abandon throws away the message of a transaction that is over.
func (c *conversation) abandon() {
	if c.open != nil && !c.session.Chunking() {
		c.open.Abort()
		c.open = nil
	}
}
