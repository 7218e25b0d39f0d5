package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"qmail/internal/system/dns"
	"qmail/internal/system/ipc"
)

const (
	// linkTime is how long a question waits for a link while there is none: qmail-resolve is being started again.
	linkTime = 10 * time.Second
	// maxUnanswered is how many questions of a link may be without an answer, those that nobody waits for any more
	// counted. A qmail-resolve that lets it come to this is out of order.
	maxUnanswered = 4 * maxAsked
)

var (
	errNoLink = errors.New("qmail-resolve is not there")
	errLost   = errors.New("link to qmail-resolve lost")
)

// Link is a dns.Source at the other end of a link to qmail-resolve. Connect gives it the link of the day; any number
// of goroutines may ask. The zero value, with Now set, has no link yet.
type Link struct {
	Now func() time.Time

	mu      sync.Mutex
	client  *client       // nil while there is none
	changed chan struct{} // closed when client changes; nil while nobody waits
}

// Connect takes over a link; one from before is closed, and what was asked over it is asked again. nil leaves none.
func (l *Link) Connect(conn *ipc.Conn) {
	var c *client
	if conn != nil {
		c = &client{conn: conn, waiting: map[uint32]*question{}, now: l.Now}
	}
	old := l.swap(c, nil)
	if old != nil {
		old.conn.Close()
	}
	if c != nil {
		go func() {
			c.read()
			l.swap(nil, c)
		}()
	}
}

// swap puts c in the place of the client there is, if that is only or if only is nil.
func (l *Link) swap(c, only *client) (old *client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if only != nil && l.client != only {
		return nil
	}
	old, l.client = l.client, c
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return old
}

// Ask is dns.Source. A question whose link is lost is put once more, over the next one.
func (l *Link) Ask(ctx context.Context, name string, kind dns.Type) (a dns.Answer, err error) {
	for range 2 {
		c, err := l.wait(ctx)
		if err != nil {
			return dns.Answer{}, err
		}
		if a, err = c.ask(ctx, name, kind); !errors.Is(err, errLost) {
			return a, err
		}
	}
	return dns.Answer{}, errLost
}

// wait returns the link there is, or the one that comes in time.
func (l *Link) wait(ctx context.Context) (*client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, linkTime, errNoLink)
	defer cancel()
	for {
		l.mu.Lock()
		c := l.client
		if c == nil && l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		if c != nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// client is one link.
type client struct {
	conn *ipc.Conn
	now  func() time.Time

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]*question // nil once the link is gone
}

// question waits for its answer.
type question struct {
	kind   dns.Type
	done   chan struct{}
	answer dns.Answer
	err    error
}

func (c *client) ask(ctx context.Context, name string, kind dns.Type) (dns.Answer, error) {
	q := &question{kind: kind, done: make(chan struct{})}
	stream, ok := c.enter(q)
	if !ok {
		c.conn.Close()
		return dns.Answer{}, errLost
	}
	if err := c.conn.Send(kindQuestion, stream, binary.BigEndian.AppendUint16(nil, uint16(kind)), []byte(name)); err != nil {
		c.leave(stream)
		return dns.Answer{}, errLost
	}
	select {
	case <-q.done:
		return q.answer, q.err
	case <-ctx.Done():
		// The number stays taken until the answer comes, so that it cannot be taken for another's.
		return dns.Answer{}, context.Cause(ctx)
	}
}

// enter gives a question its number; it is false if the link is gone, or not worth keeping.
func (c *client) enter(q *question) (uint32, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil || len(c.waiting) >= maxUnanswered {
		return 0, false
	}
	for c.last++; c.waiting[c.last] != nil; c.last++ {
	}
	c.waiting[c.last] = q
	return c.last, true
}

// leave takes a question off the list: nil if it is not there.
func (c *client) leave(stream uint32) *question {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.waiting[stream]
	delete(c.waiting, stream)
	return q
}

// read hears answers until the link ends, or until something comes that is none.
func (c *client) read() {
	for {
		f, err := c.conn.Read()
		if err == nil {
			err = c.frame(f)
		}
		if err != nil {
			break
		}
	}
	c.conn.Close()
	c.mu.Lock()
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	for _, q := range waiting {
		q.err = errLost
		close(q.done)
	}
}

func (c *client) frame(f ipc.Frame) error {
	if f.File != nil {
		f.File.Close()
		return errPeer
	}
	if f.Kind != kindAnswer && f.Kind != kindTrouble {
		return errPeer
	}
	q := c.leave(f.Stream)
	if q == nil {
		return errPeer
	}
	if f.Kind == kindTrouble {
		q.err = errors.New(string(f.Payload[:min(len(f.Payload), maxTrouble)]))
	} else if q.answer, q.err = parseAnswer(f.Payload, q.kind, c.now()); q.err != nil {
		defer close(q.done)
		return q.err
	}
	close(q.done)
	return nil
}
