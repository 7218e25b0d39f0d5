package sink

import (
	"bytes"
	"hash/maphash"
	"time"

	"qmail/cmd/bench/internal/poll"
)

const (
	// maxLine bounds a command without its end. RFC 5321 4.5.3.1.4 asks for 512; extensions add some hundred.
	maxLine = 4096

	// maxRecipients bounds one message.
	maxRecipients = 100_000

	// idle is how long a session may say nothing (RFC 5321 4.5.3.2.7).
	idle = 5 * time.Minute
)

// session is one connection from the server under test.
type session struct {
	sink *Sink
	fd   int
	last time.Time

	part   []byte // an unfinished command line
	out    []byte
	waits  bool // for room to write
	quit   bool // close once out is written
	closed bool

	mail   bool
	sender uint64   // hash of the reverse path
	pairs  []uint64 // a hash of sender and recipient for each recipient
	data   bool
	tail   [len(ending) - 1]byte // the last bytes of the data so far
	bytes  int64
}

// ending ends the data (RFC 5321 4.1.1.4).
const ending = "\r\n.\r\n"

func (c *session) Tick(now time.Time) {
	if now.Sub(c.last) > idle {
		c.close()
	}
}

func (c *session) Ready() {
	if len(c.out) > 0 {
		c.flush()
	}
	if c.closed {
		return
	}
	n, eof, err := poll.Read(c.fd, c.sink.buf)
	if err != nil || eof {
		c.close()
		return
	}
	if n == 0 {
		return
	}
	c.last = time.Now()
	c.take(c.sink.buf[:n])
	c.flush()
}

// take eats what was read: commands, or data up to its end.
func (c *session) take(in []byte) {
	for len(in) > 0 && !c.quit && !c.closed {
		if c.data {
			in = c.body(in)
		} else {
			in = c.line(in)
		}
	}
}

// line eats one command, or keeps its beginning.
func (c *session) line(in []byte) (rest []byte) {
	i := bytes.IndexByte(in, '\n')
	if i < 0 {
		c.part = append(c.part, in...)
		if len(c.part) > maxLine {
			c.reply("500 5.5.2 line too long\r\n")
			c.quit = true
		}
		return nil
	}
	cmd := in[:i+1]
	if len(c.part) > 0 {
		cmd = append(c.part, cmd...)
		c.part = c.part[:0]
	}
	c.command(bytes.TrimRight(cmd, "\r\n"))
	return in[i+1:]
}

func (c *session) command(line []byte) {
	verb, arg := line, []byte(nil)
	if len(line) > 4 {
		verb, arg = line[:4], line[4:]
	}
	switch upper(verb) {
	case "HELO":
		c.reset()
		c.reply("250 sink.example\r\n")
	case "EHLO":
		c.reset()
		c.reply("250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250-SMTPUTF8\r\n250 SIZE 0\r\n")
	case "MAIL":
		c.reset()
		c.mail, c.sender = true, maphash.Bytes(c.sink.seed, path(arg))
		c.reply("250 2.1.0 ok\r\n")
	case "RCPT":
		if !c.mail {
			c.reply("503 5.5.1 MAIL first\r\n")
			return
		}
		if len(c.pairs) >= maxRecipients {
			c.reply("452 4.5.3 too many recipients\r\n")
			return
		}
		// The product with an odd number keeps different senders apart for the same recipient.
		c.pairs = append(c.pairs, c.sender*3+maphash.Bytes(c.sink.seed, path(arg)))
		c.reply("250 2.1.5 ok\r\n")
	case "DATA":
		if len(c.pairs) == 0 {
			c.reply("503 5.5.1 RCPT first\r\n")
			return
		}
		c.data, c.bytes = true, 0
		copy(c.tail[:], "\x00\x00\r\n")
		c.reply("354 go on\r\n")
	case "RSET":
		c.reset()
		c.reply("250 2.0.0 ok\r\n")
	case "NOOP":
		c.reply("250 2.0.0 ok\r\n")
	case "QUIT":
		c.reply("221 2.0.0 bye\r\n")
		c.quit = true
	default:
		c.reply("502 5.5.1 unimplemented\r\n")
	}
}

// body eats data and looks for its end, which may have begun in what was eaten before.
func (c *session) body(in []byte) (rest []byte) {
	var seam [2 * len(c.tail)]byte
	copy(seam[:], c.tail[:])
	n := len(c.tail) + copy(seam[len(c.tail):], in)
	if i := bytes.Index(seam[:n], []byte(ending)); i >= 0 {
		return c.end(in, i+len(ending)-len(c.tail))
	}
	if i := bytes.Index(in, []byte(ending)); i >= 0 {
		return c.end(in, i+len(ending))
	}
	c.bytes += int64(len(in))
	if len(in) >= len(c.tail) {
		copy(c.tail[:], in[len(in)-len(c.tail):])
	} else {
		copy(c.tail[:], seam[n-len(c.tail):n])
	}
	return nil
}

func (c *session) end(in []byte, n int) (rest []byte) {
	c.sink.took(c.pairs, c.bytes+int64(n))
	c.reset()
	c.reply("250 2.0.0 ok\r\n")
	return in[n:]
}

func (c *session) reset() {
	c.mail, c.data, c.pairs = false, false, c.pairs[:0]
}

func (c *session) reply(s string) { c.out = append(c.out, s...) }

// flush writes what can be written now; the loop says when the rest can.
func (c *session) flush() {
	if c.closed || len(c.out) == 0 {
		return
	}
	n, err := poll.Write(c.fd, c.out)
	if err != nil {
		c.close()
		return
	}
	c.out = c.out[:copy(c.out, c.out[n:])]
	if len(c.out) == 0 && c.quit {
		c.close()
		return
	}
	if waits := len(c.out) > 0; waits != c.waits {
		c.waits = waits
		if err := c.sink.loop.Want(c.fd, waits); err != nil {
			c.close()
		}
	}
}

func (c *session) close() {
	if !c.closed {
		c.closed = true
		c.sink.loop.Drop(c.fd)
	}
}

// path is what stands between < and > in the argument of MAIL and RCPT.
func path(arg []byte) []byte {
	i := bytes.IndexByte(arg, '<')
	j := bytes.LastIndexByte(arg, '>')
	if i < 0 || j < i {
		return arg
	}
	return arg[i+1 : j]
}

// upper folds a verb without allocating for the usual spelling.
func upper(verb []byte) string {
	switch string(verb) {
	case "EHLO", "MAIL", "RCPT", "DATA", "QUIT", "RSET":
		return string(verb)
	}
	return string(bytes.ToUpper(verb))
}
