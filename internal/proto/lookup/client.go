package lookup

import (
	"context"
	"os"
	"sync"

	"qmail/internal/store/users"
	"qmail/internal/system/ipc"
)

// Client asks a spawner; any number of goroutines may use it.
type Client struct {
	conn *ipc.Conn
	done chan struct{}

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]chan result // room for one result each
	gone    bool
}

type result struct {
	account users.Account
	pipe    *os.File
	source  *users.Source // only of those who asked why
	err     error
}

var errGone = later("connection to qmail-lspawn lost")

// NewClient takes over conn.
func NewClient(conn *ipc.Conn) *Client {
	c := &Client{conn: conn, done: make(chan struct{}), waiting: map[uint32]chan result{}}
	go c.read()
	return c
}

// Close ends the connection; waiting calls get a temporary error.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Done is closed when the connection has ended, from either side.
func (c *Client) Done() <-chan struct{} { return c.done }

// Find asks whose mail local is. The error is a *Refusal.
func (c *Client) Find(ctx context.Context, local string) (users.Account, error) {
	r := c.ask(ctx, kindLookup, local)
	return r.account, r.err
}

// Explain is Find that also says where the account was found.
func (c *Client) Explain(ctx context.Context, local string) (users.Account, users.Source, error) {
	r := c.ask(ctx, kindWhy, local)
	if r.err != nil {
		return users.Account{}, users.Source{}, r.err
	}
	return r.account, *r.source, nil
}

// Pipe asks for the account and a connection to a new qmail-local that runs as its user and ends when the
// connection does. The error is a *Refusal.
func (c *Client) Pipe(ctx context.Context, local string) (users.Account, *ipc.Conn, error) {
	r := c.ask(ctx, kindPipe, local)
	if r.err != nil {
		return users.Account{}, nil, r.err
	}
	conn, err := ipc.FromFile(r.pipe)
	if err != nil {
		return users.Account{}, nil, later("no usable pipe from qmail-lspawn")
	}
	return r.account, conn, nil
}

func (c *Client) ask(ctx context.Context, kind byte, local string) result {
	if len(local) > maxLocal {
		return result{err: &Refusal{"DSorry, no mailbox here by that name. (#5.1.1)\n"}}
	}
	stream, ch, ok := c.open()
	if !ok {
		return result{err: errGone}
	}
	if err := c.conn.Send(kind, stream, appendRequest(nil, local)); err != nil {
		c.forget(stream, ch)
		return result{err: errGone}
	}
	select {
	case r, ok := <-ch:
		if !ok {
			return result{err: errGone}
		}
		return check(r, kind)
	case <-ctx.Done():
		c.forget(stream, ch)
		return result{err: later("no answer from qmail-lspawn")}
	}
}

// check refuses an answer of the wrong form.
func check(r result, kind byte) result {
	if r.err == nil && ((r.pipe != nil) != (kind == kindPipe) || (r.source != nil) != (kind == kindWhy)) {
		if r.pipe != nil {
			r.pipe.Close()
		}
		return result{err: later("garbled answer of qmail-lspawn")}
	}
	return r
}

// open takes a stream number and a place for its answer.
func (c *Client) open() (uint32, chan result, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return 0, nil, false
	}
	for c.last++; c.waiting[c.last] != nil; c.last++ {
	}
	ch := make(chan result, 1)
	c.waiting[c.last] = ch
	return c.last, ch, true
}

// forget stops waiting; what came in the meantime is closed.
func (c *Client) forget(stream uint32, ch chan result) {
	c.mu.Lock()
	delete(c.waiting, stream)
	c.mu.Unlock()
	select {
	case r := <-ch:
		if r.pipe != nil {
			r.pipe.Close()
		}
	default:
	}
}

func (c *Client) read() {
	defer close(c.done)
	for {
		f, err := c.conn.Read()
		if err != nil {
			break
		}
		c.deliver(f.Stream, parseAnswer(f))
	}
	c.conn.Close()
	c.mu.Lock()
	c.gone = true
	for _, ch := range c.waiting {
		close(ch)
	}
	c.waiting = nil
	c.mu.Unlock()
}

// deliver hands a result to who waits for it.
func (c *Client) deliver(stream uint32, r result) {
	c.mu.Lock()
	ch := c.waiting[stream]
	delete(c.waiting, stream)
	if ch != nil {
		ch <- r
	}
	c.mu.Unlock()
	if ch == nil && r.pipe != nil {
		r.pipe.Close()
	}
}

func parseAnswer(f ipc.Frame) result {
	switch f.Kind {
	case kindDone:
		account, rest, err := parseAccount(f.Payload)
		r := result{account: account, pipe: f.File}
		if err == nil && len(rest) > 0 {
			r.source = new(users.Source)
			*r.source, err = parseSource(rest)
		}
		if err == nil && account.Check() == nil && usable(f.File) {
			return r
		}
	case kindLater, kindNever:
		if f.File == nil {
			return result{err: &Refusal{string(f.Kind) + string(f.Payload)}}
		}
	}
	if f.File != nil {
		f.File.Close()
	}
	return result{err: later("garbled answer of qmail-lspawn")}
}

// usable reports whether f, if any, is a socket.
func usable(f *os.File) bool {
	if f == nil {
		return true
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeSocket != 0
}
