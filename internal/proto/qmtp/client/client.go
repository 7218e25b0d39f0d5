// Package client is the sending half of QMTP (https://cr.yp.to/proto/qmtp.txt): packages of many callers go out over
// one connection, one after another, without waiting for the answers to those before; each caller gets the
// answers to its own.
//
// Lines go out as they are stored, in the encoding of lines that end in LF, so that a message arrives byte for byte.
// The server is not trusted: answers are bounded in bytes and time. A package that was cut short is never taken
// (the protocol says so), so it may be sent again at once; one that went out whole and got no answer is in doubt.
package client

import (
	"bufio"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/netstring"
)

// Message is what one package holds. Of its body Head comes first and Rest, if not nil, after it; Size is the exact
// length of both.
type Message struct {
	Sender     string
	Recipients []string
	Head       []byte
	Rest       io.Reader
	Size       int64
}

// Result is what came of a package.
type Result struct {
	Answers []string // of each recipient: K, Z or D and a text; nil if there are not all of them
	Sent    bool     // the whole package went out
	Err     error    // why there are no answers
}

var (
	// ErrUnreadable is a message that could not be read to its end.
	ErrUnreadable = errors.New("qmtp: the message cannot be read")
	errSyntax     = errors.New("qmtp: the server breaks the protocol")
	errClosed     = errors.New("qmtp: the connection is closed")
)

const (
	// maxAnswer bounds the answer for one recipient, in bytes.
	maxAnswer = 8 << 10
	blockSize = 32 << 10
	blockTime = 3 * time.Minute
	// answerTime is how long the next answer may take. A server may need the disk of a package of any size.
	answerTime = 10 * time.Minute
)

// Conn is a connection to one server. It is safe for concurrent use.
type Conn struct {
	conn    net.Conn
	timeout time.Duration // caps every wait
	waiting atomic.Int32  // callers that want to write, or do

	writing chan struct{} // holds one token while somebody writes
	out     *bufio.Writer

	mu     sync.Mutex
	queue  []*pending // packages without all their answers, in order
	closed bool       // takes no more packages
	err    error      // why
	done   chan struct{}
}

// pending is a package without all its answers.
type pending struct {
	want    int
	answers []string
	sent    bool
	ready   chan Result
}

// New takes a connected socket; it belongs to the Conn. timeout caps every wait, and may be 0.
func New(conn net.Conn, timeout time.Duration) *Conn {
	c := &Conn{conn: conn, timeout: timeout, writing: make(chan struct{}, 1), done: make(chan struct{})}
	c.out = bufio.NewWriterSize(timed{c}, blockSize)
	go c.read()
	return c
}

// timed writes with a deadline.
type timed struct{ c *Conn }

func (w timed) Write(p []byte) (int, error) {
	if err := w.c.conn.SetWriteDeadline(time.Now().Add(w.c.within(blockTime))); err != nil {
		return 0, err
	}
	return w.c.conn.Write(p)
}

func (c *Conn) within(d time.Duration) time.Duration {
	if c.timeout > 0 {
		return min(d, c.timeout)
	}
	return d
}

// Load is how many packages wait for their answers, and whether another may be sent.
func (c *Conn) Load() (packages int, usable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) + int(c.waiting.Load()), !c.closed
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Finish takes no more packages, and closes the connection once those sent are answered.
func (c *Conn) Finish() {
	c.mu.Lock()
	c.stop(errClosed)
	c.mu.Unlock()
	c.reap()
}

// reap closes a connection that nobody needs any more.
func (c *Conn) reap() {
	c.mu.Lock()
	over := c.closed && len(c.queue) == 0 && c.waiting.Load() == 0
	c.mu.Unlock()
	if over {
		c.conn.Close()
	}
}

// Close ends the connection; packages without an answer fail.
func (c *Conn) Close() {
	c.fail(errClosed)
	<-c.done
}

// stop takes no more packages; mu is held.
func (c *Conn) stop(err error) {
	if !c.closed {
		c.closed, c.err = true, err
	}
}

// fail ends the connection.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	c.stop(err)
	c.mu.Unlock()
	c.conn.Close() // which ends read
}

// Send sends one package and waits for its answers.
func (c *Conn) Send(m *Message) Result {
	p := &pending{want: len(m.Recipients), ready: make(chan Result, 1)}
	if p.want == 0 {
		return Result{Answers: []string{}, Sent: true}
	}
	c.waiting.Add(1)
	c.writing <- struct{}{}
	err := c.write(m, p)
	// Whoever waits behind us writes more at once; the last one sends it off.
	if last := c.waiting.Add(-1) == 0; last && err == nil {
		err = c.out.Flush()
	}
	<-c.writing
	if err != nil && err != ErrUnreadable {
		c.fail(err)
	}
	c.reap()
	return <-p.ready
}

// write puts a package into the buffer, and p into the queue.
func (c *Conn) write(m *Message, p *pending) error {
	if err := c.enter(p); err != nil {
		p.ready <- Result{Err: err}
		return nil
	}
	head := netstring.AppendLength(make([]byte, 0, 64), m.Size+1)
	c.out.Write(append(head, '\n'))
	if _, err := c.out.Write(m.Head); err != nil { // also if that of the length failed
		return err
	}
	if m.Rest != nil {
		if err := c.copy(m.Rest, m.Size-int64(len(m.Head))); err != nil {
			if err == ErrUnreadable {
				c.abandon(p)
			}
			return err
		}
	} else if int64(len(m.Head)) != m.Size {
		c.abandon(p)
		return ErrUnreadable
	}
	size := 0
	for _, r := range m.Recipients {
		size += int(netstring.Size(int64(len(r))))
	}
	tail := netstring.Append(append(make([]byte, 0, 64+len(m.Sender)+size), ','), m.Sender)
	tail = netstring.AppendLength(tail, int64(size))
	for _, r := range m.Recipients {
		tail = netstring.Append(tail, r)
	}
	c.mu.Lock()
	p.sent = true // before it is: from here on we cannot know
	if len(c.queue) > 0 && c.queue[0] == p {
		c.expect()
	}
	c.mu.Unlock()
	_, err := c.out.Write(append(tail, ','))
	return err
}

// enter puts a package into the queue before its first byte is written.
func (c *Conn) enter(p *pending) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.err
	}
	c.queue = append(c.queue, p)
	if len(c.queue) == 1 {
		c.expect()
	}
	return nil
}

// expect gives the server time for its next answer.
func (c *Conn) expect() { c.conn.SetReadDeadline(time.Now().Add(c.within(answerTime))) }

// copy writes exactly n bytes of r.
func (c *Conn) copy(r io.Reader, n int64) error {
	buf := make([]byte, max(min(n, blockSize), 1))
	for n > 0 {
		k, err := r.Read(buf[:min(n, int64(len(buf)))])
		if k > 0 {
			if _, err := c.out.Write(buf[:k]); err != nil {
				return err
			}
			c.mu.Lock()
			if len(c.queue) == 1 {
				c.expect() // nobody answers what is still on its way
			}
			c.mu.Unlock()
		}
		if n -= int64(k); n > 0 && err != nil {
			return ErrUnreadable
		}
	}
	if k, err := io.ReadFull(r, buf[:1]); k > 0 || err != io.EOF { // better none than one cut short
		return ErrUnreadable
	}
	return nil
}

// abandon ends what we write in the middle of a package, which the server then throws away, and goes on to read
// the answers to those before.
func (c *Conn) abandon(p *pending) {
	c.mu.Lock()
	c.stop(errClosed)
	if i := slices.Index(c.queue, p); i >= 0 { // else it has its result already
		c.queue = slices.Delete(c.queue, i, i+1)
		p.ready <- Result{Err: ErrUnreadable}
	}
	c.mu.Unlock()
	c.out.Flush() // should this fail, read will see it, too
	if half, ok := c.conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		c.conn.Close()
	}
}

// read hands out answers until the connection ends.
func (c *Conn) read() {
	defer close(c.done)
	defer c.conn.Close()
	in := bufio.NewReader(c.conn)
	for {
		answer, err := readAnswer(in)
		if err == nil {
			var more bool
			if more, err = c.take(answer); err == nil && more {
				continue
			}
		}
		c.finish(err)
		return
	}
}

// take gives an answer to the package that it is for. more is false after the last answer of a closed connection.
func (c *Conn) take(answer string) (more bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return false, errSyntax
	}
	p := c.queue[0]
	p.answers = append(p.answers, answer)
	if len(p.answers) == p.want {
		c.queue[0] = nil
		c.queue = c.queue[1:]
		p.ready <- Result{Answers: p.answers, Sent: true}
	}
	if len(c.queue) > 0 {
		c.expect()
		return true, nil
	}
	c.conn.SetReadDeadline(time.Time{})
	return !c.closed, nil
}

// finish fails what is left.
func (c *Conn) finish(err error) {
	if err == nil {
		err = errClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop(err)
	for _, p := range c.queue {
		p.ready <- Result{Sent: p.sent, Err: err}
	}
	c.queue = nil
}

// readAnswer reads one answer; whatever it holds, it begins with K, Z or D.
func readAnswer(in *bufio.Reader) (string, error) {
	var length netstring.Length
	for !length.Done() {
		b, err := in.ReadByte()
		if err != nil {
			return "", err
		}
		if _, err := length.Read([]byte{b}, maxAnswer); err != nil {
			return "", errSyntax
		}
	}
	b := make([]byte, length.Value()+1)
	if _, err := io.ReadFull(in, b); err != nil {
		return "", err
	}
	if b[len(b)-1] != ',' || len(b) == 1 || b[0] != 'K' && b[0] != 'Z' && b[0] != 'D' {
		return "", errSyntax
	}
	return string(b[:len(b)-1]), nil
}
