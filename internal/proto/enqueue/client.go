package enqueue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/system/ipc"
)

// Client puts messages into the queue over one connection; any number of goroutines may use it.
type Client struct {
	conn *ipc.Conn

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]chan string // room for one answer each
	gone    error
	done    chan struct{}
}

// NewClient takes over conn.
func NewClient(conn *ipc.Conn) *Client {
	c := &Client{conn: conn, waiting: map[uint32]chan string{}, done: make(chan struct{})}
	go c.read()
	return c
}

// Dial connects to the qmail-send of a home. Any error means that none can be reached.
func Dial(home string) (*Client, error) {
	u, err := ipc.Dial(SocketPath(home), 5*time.Second)
	if err != nil {
		return nil, err
	}
	return NewClient(ipc.New(ipc.Unix(u))), nil
}

// Close ends the connection; waiting calls get a temporary error.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Done is closed when the connection has ended, from either side.
func (c *Client) Done() <-chan struct{} { return c.done }

func (c *Client) read() {
	defer close(c.done)
	for {
		f, err := c.conn.Read()
		if err == nil && f.Kind != kindResult {
			if f.File != nil {
				f.File.Close()
			}
			err = ipc.ErrFrame
		}
		c.mu.Lock()
		if err != nil {
			c.gone = err
			for _, ch := range c.waiting {
				close(ch)
			}
			c.waiting = nil
			c.mu.Unlock()
			c.conn.Close()
			return
		}
		if ch, ok := c.waiting[f.Stream]; ok {
			delete(c.waiting, f.Stream)
			ch <- string(f.Payload)
		} // else the caller has stopped waiting
		c.mu.Unlock()
	}
}

// open takes a stream number and a place for its answer.
func (c *Client) open() (uint32, chan string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone != nil {
		return 0, nil, &reply.Error{Code: 451, Status: errGone.Status, Text: errGone.Text, Err: c.gone}
	}
	for {
		c.last++
		if _, used := c.waiting[c.last]; !used {
			break
		}
	}
	ch := make(chan string, 1)
	c.waiting[c.last] = ch
	return c.last, ch, nil
}

func (c *Client) forget(stream uint32) {
	c.mu.Lock()
	delete(c.waiting, stream)
	c.mu.Unlock()
}

// wait returns the answer. Without one the outcome is in doubt.
func (c *Client) wait(ctx context.Context, stream uint32, ch chan string) (Accepted, error) {
	select {
	case report, ok := <-ch:
		if !ok || report == doubt {
			return Accepted{}, inDoubt(errGone)
		}
		return parse(report)
	case <-ctx.Done():
		c.forget(stream)
		return Accepted{}, inDoubt(errTimeout)
	}
}

func inDoubt(e *reply.Error) *reply.Error {
	return &reply.Error{Code: e.Code, Status: e.Status, Text: e.Text, Err: reply.ErrInDoubt}
}

func parse(report string) (Accepted, error) {
	if err := reply.Parse(report); err != nil {
		return Accepted{}, err
	}
	a := Accepted{Time: time.Now()}
	if len(report) > 1 {
		id, err := strconv.ParseUint(report[1:], 10, 64)
		if err != nil {
			return Accepted{}, reply.Temporary("4.3.0", "report mangled", err)
		}
		a.ID = id
	}
	return a, nil
}

// Submit queues a message whose bytes are at hand and returns when it is on disk. The error, if any, is a
// *reply.Error. The parts are copied before Submit waits.
func (c *Client) Submit(ctx context.Context, e *envelope.Envelope, body ...[]byte) (Accepted, error) {
	size := 0
	for _, part := range body {
		size += len(part)
	}
	if size > piece || len(e.Recipients) > 20 {
		m, err := c.Begin(e)
		if err != nil {
			return Accepted{}, err
		}
		for _, part := range body {
			if _, err := m.Write(part); err != nil {
				break // Commit knows why
			}
		}
		return m.Commit(ctx)
	}
	if err := e.Check(); err != nil {
		return Accepted{}, refuse(err)
	}
	stream, ch, err := c.open()
	if err != nil {
		return Accepted{}, err
	}
	var space [512]byte
	err = c.conn.SendAll(stream,
		ipc.Message{Kind: kindEnvelope, Parts: [][]byte{e.Append(space[:0], false)}},
		ipc.Message{Kind: kindBody, Parts: body},
		ipc.Message{Kind: kindDone})
	if err != nil {
		c.forget(stream)
		return Accepted{}, lost(err)
	}
	return c.wait(ctx, stream, ch)
}

// Verify asks whether address would be taken: nil, or a *reply.Error with a permanent or temporary class.
func (c *Client) Verify(ctx context.Context, address string) error {
	if len(address) > envelope.MaxAddress {
		return refuse(envelope.ErrAddress)
	}
	stream, ch, err := c.open()
	if err != nil {
		return err
	}
	if err := c.conn.Send(kindVerify, stream, []byte(address)); err != nil {
		c.forget(stream)
		return lost(err)
	}
	_, err = c.wait(ctx, stream, ch)
	return err
}

// Message is a message on its way into the queue: Write its bytes, then Commit or Abort.
type Message struct {
	c      *Client
	stream uint32
	answer chan string
	err    error
}

// Begin starts a message. Nothing is kept in memory here: what is written goes to qmail-send at once.
func (c *Client) Begin(e *envelope.Envelope) (*Message, error) {
	if err := e.Check(); err != nil {
		return nil, refuse(err)
	}
	records := e.Append(nil, false)
	if len(records) > MaxEnvelope {
		return nil, refuse(fmt.Errorf("envelope of %d bytes", len(records)))
	}
	stream, ch, err := c.open()
	if err != nil {
		return nil, err
	}
	m := &Message{c: c, stream: stream, answer: ch}
	m.send(kindEnvelope, records)
	return m, m.begun()
}

// BeginBody starts a message whose envelope is not known yet: Address comes after the last Write.
func (c *Client) BeginBody() (*Message, error) {
	stream, ch, err := c.open()
	if err != nil {
		return nil, err
	}
	m := &Message{c: c, stream: stream, answer: ch}
	m.err = m.c.conn.Send(kindBody, stream)
	if m.err != nil {
		m.err = lost(m.err)
	}
	return m, m.begun()
}

// Address gives the envelope of a message that BeginBody started. An error is a *reply.Error, and Abort is what
// is left to do.
func (m *Message) Address(e *envelope.Envelope) error {
	if err := e.Check(); err != nil {
		return refuse(err)
	}
	records := e.Append(nil, false)
	if len(records) > MaxEnvelope {
		return refuse(fmt.Errorf("envelope of %d bytes", len(records)))
	}
	m.send(kindEnvelope, records)
	return nil // Commit knows why it could not be sent
}

func (m *Message) begun() error {
	if m.err != nil {
		m.c.forget(m.stream)
	}
	return m.err
}

func (m *Message) send(kind byte, p []byte) {
	for len(p) > 0 && m.err == nil {
		n := min(len(p), piece)
		if err := m.c.conn.Send(kind, m.stream, p[:n]); err != nil {
			m.err = lost(err)
		}
		p = p[n:]
	}
}

// Write sends bytes of the message. It fails once the connection is gone or the queue has refused.
func (m *Message) Write(p []byte) (int, error) {
	if m.err == nil && len(m.answer) > 0 {
		m.err = errRefused
	}
	m.send(kindBody, p)
	if m.err != nil {
		return 0, m.err
	}
	return len(p), nil
}

// errRefused stops a Write after an early refusal, which Commit then returns.
var errRefused = errors.New("enqueue: refused before the end")

// Commit ends the message and returns when it is on disk, or an error that is a *reply.Error.
func (m *Message) Commit(ctx context.Context) (Accepted, error) {
	if m.err != nil && m.err != errRefused {
		m.c.forget(m.stream)
		return Accepted{}, m.err
	}
	if err := m.c.conn.Send(kindDone, m.stream); err != nil {
		m.c.forget(m.stream)
		return Accepted{}, lost(err)
	}
	return m.c.wait(ctx, m.stream, m.answer)
}

// Abort throws the message away. After Commit it does nothing.
func (m *Message) Abort() {
	m.c.mu.Lock()
	_, open := m.c.waiting[m.stream]
	delete(m.c.waiting, m.stream)
	m.c.mu.Unlock()
	if open || len(m.answer) > 0 {
		m.c.conn.Send(kindAbort, m.stream) // if this fails the connection is gone, and the message with it
	}
}

// ReadFrom makes io.Copy use our own piece size.
func (m *Message) ReadFrom(r io.Reader) (total int64, err error) {
	buf := make([]byte, piece)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := m.Write(buf[:n]); werr != nil {
				return total, werr
			}
			total += int64(n)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func lost(err error) *reply.Error {
	return &reply.Error{Code: 451, Status: errGone.Status, Text: errGone.Text, Err: err}
}

func refuse(err error) *reply.Error {
	if errors.Is(err, envelope.ErrAddress) {
		return reply.Permanent("5.1.3", "envelope address too long for qq", err)
	}
	return reply.Permanent("5.3.0", "unusable envelope", err)
}
