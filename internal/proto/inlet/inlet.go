// Package inlet is how the servers for strangers, qmail-smtpd, qmail-qmtpd and qmail-qmqpd, ask the queue about
// recipients and give it messages.
//
// Link is for a process that holds many sessions: messages stay in memory until they are complete or too large,
// within one bound for all, and go to qmail-send over the link of the day. Once is for a process that holds one
// session: its messages take the way of all injectors (proto/qq), QMAILQUEUE included. Refusals are *reply.Error
// whose texts are for strangers, with the status at their end as qmail's texts have it.
package inlet

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/ipc"
)

// Queue is what both kinds are.
type Queue interface {
	// Verify returns nil if the queue would take mail for recipient, else a *reply.Error.
	Verify(recipient string) error
	// Open begins a message. The envelope may be nil if it comes only after the message; otherwise it is the
	// caller's again after Commit or Abort.
	Open(e *envelope.Envelope) (Message, error)
}

// Message is a message on its way into the queue. It ends with Commit or with Abort.
type Message interface {
	// Write takes the next bytes; p may be overwritten afterwards. After an error the message can only be
	// aborted, and the error is what the client is told.
	Write(p []byte) error
	// Commit returns nil once the message will survive whatever happens to us. e is what Open was given, if
	// that was not nil. qp is the number to be shown as "qp".
	Commit(e *envelope.Envelope) (qp uint64, err error)
	Abort()
}

const (
	// inMemory is the largest message that is kept here until it is complete.
	inMemory = 256 << 10
	// verifyTime and commitTime are how long qmail-send may take. Clients wait five and ten minutes (RFC 5321
	// 4.5.3.2.3 and 6), so they are still there to be told.
	verifyTime = 30 * time.Second
	commitTime = 5 * time.Minute
)

// sizes are those of the buffers that messages grow through.
var sizes = [...]int{8 << 10, 64 << 10, inMemory}

// room is a buffer of one of the sizes.
type room struct{ b []byte }

var (
	errNoLink   = reply.Temporary("4.3.0", "unable to reach the queue (#4.3.0)", nil)
	errNoMemory = reply.Temporary("4.3.0", "too many messages are coming in, try again later (#4.3.0)", nil)
)

// Link is the queue behind a link to qmail-send. It is made with Memory set.
type Link struct {
	Memory func() int64 // bytes that messages and lists of recipients may hold

	client atomic.Pointer[enqueue.Client] // nil until Connect
	held   atomic.Int64
	known  verdicts
	rooms  [len(sizes)]sync.Pool // of *room
}

// Connect takes over a link; one from before is closed, and what was under way on it fails for now. nil leaves
// none.
func (l *Link) Connect(conn *ipc.Conn) {
	var client *enqueue.Client
	if conn != nil {
		client = enqueue.NewClient(conn)
	}
	if old := l.client.Swap(client); old != nil {
		old.Close()
	}
}

// Hold takes memory out of what there is for all, or gives it back if bytes is negative.
func (l *Link) Hold(bytes int) bool {
	if l.held.Add(int64(bytes)) > l.Memory() && bytes > 0 {
		l.held.Add(-int64(bytes))
		return false
	}
	return true
}

// Verify is Queue's. What it learns it knows for a few seconds, since clients repeat themselves.
func (l *Link) Verify(recipient string) error {
	now := time.Now()
	refusal, known := l.known.get(recipient, now)
	if !known {
		client := l.client.Load()
		if client == nil {
			return errNoLink
		}
		refusal = verify(client, recipient)
		l.known.put(recipient, refusal, now)
	}
	if refusal == nil {
		return nil // not a nil *reply.Error
	}
	return refusal
}

// verify asks qmail-send; the answer has the code that RCPT wants.
func verify(client *enqueue.Client, recipient string) *reply.Error {
	ctx, cancel := context.WithTimeout(context.Background(), verifyTime)
	defer cancel()
	e := reply.Of(client.Verify(ctx, recipient))
	if e == nil {
		return nil
	}
	welcome := spelled(e)
	if welcome.Code = 451; e.Letter() == 'D' {
		welcome.Code = 550
	}
	return welcome
}

// spelled is a refusal of the queue as the client shall read it: with the status in its text.
func spelled(err error) *reply.Error {
	e := *reply.Of(err)
	e.Text += " (#" + e.Status + ")"
	return &e
}

// Open is Queue's.
func (l *Link) Open(e *envelope.Envelope) (Message, error) {
	client := l.client.Load()
	if client == nil {
		return nil, errNoLink
	}
	m := &linked{link: l, client: client, envelope: e}
	if !m.grow(0) {
		return nil, errNoMemory
	}
	return m, nil
}

// linked is a message on its way: in memory first, and once it is too large for that, on the link.
type linked struct {
	link     *Link
	client   *enqueue.Client
	envelope *envelope.Envelope // nil if it comes last
	room     *room
	size     int // index of room's size
	stream   *enqueue.Message
}

// grow moves the message to a buffer of a size, if the bound for all allows.
func (m *linked) grow(size int) bool {
	l := m.link
	if !l.Hold(sizes[size]) {
		return false
	}
	r, _ := l.rooms[size].Get().(*room)
	if r == nil {
		r = &room{make([]byte, 0, sizes[size])}
	}
	r.b = r.b[:0]
	if m.room != nil {
		r.b = append(r.b, m.room.b...)
		m.release()
	}
	m.room, m.size = r, size
	return true
}

func (m *linked) release() {
	if m.room != nil {
		m.link.rooms[m.size].Put(m.room)
		m.link.Hold(-sizes[m.size])
		m.room = nil
	}
}

func (m *linked) Write(p []byte) error {
	if m.stream != nil {
		return m.send(p)
	}
	need := len(m.room.b) + len(p)
	if need > inMemory {
		return m.spill(p)
	}
	for size := m.size; need > cap(m.room.b); {
		if size++; need > sizes[size] {
			continue
		}
		if !m.grow(size) {
			m.release()
			return errNoMemory
		}
	}
	m.room.b = append(m.room.b, p...)
	return nil
}

// spill begins to send a message that will not fit.
func (m *linked) spill(p []byte) error {
	stream, err := m.begin()
	if err != nil {
		return spelled(err)
	}
	m.stream = stream
	err = m.send(m.room.b)
	m.release()
	if err != nil {
		return err
	}
	return m.send(p)
}

func (m *linked) begin() (*enqueue.Message, error) {
	if m.envelope == nil {
		return m.client.BeginBody()
	}
	return m.client.Begin(m.envelope)
}

// send gives p to the queue. An error that is no refusal only says that the queue has answered already: the
// rest need not be sent, and the answer is Commit's.
func (m *linked) send(p []byte) error {
	_, err := m.stream.Write(p)
	if _, refused := errors.AsType[*reply.Error](err); refused {
		return spelled(err)
	}
	return nil
}

func (m *linked) Commit(e *envelope.Envelope) (uint64, error) {
	defer m.release()
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	accepted, err := m.submit(ctx, e)
	if err != nil {
		return 0, spelled(err)
	}
	return accepted.ID, nil
}

func (m *linked) submit(ctx context.Context, e *envelope.Envelope) (enqueue.Accepted, error) {
	if m.stream == nil {
		return m.client.Submit(ctx, e, m.room.b)
	}
	if m.envelope == nil {
		if err := m.stream.Address(e); err != nil {
			m.stream.Abort()
			return enqueue.Accepted{}, err
		}
	}
	return m.stream.Commit(ctx)
}

func (m *linked) Abort() {
	m.release()
	if m.stream != nil {
		m.stream.Abort()
	}
}
