package smtpd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/ipc"
)

// door is the sessions' side of the queue: it holds messages until they are complete or too large for
// memory, within one bound for all, and gives them to qmail-send over the link of the day.
type door struct {
	link   atomic.Pointer[enqueue.Client] // nil until the supervisor has brought one
	memory func() int64                   // bytes that all messages and lists of recipients may hold
	held   atomic.Int64
	known  verdicts
	rooms  [len(sizes)]sync.Pool // of *room
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

// connect takes over a link; one from before is closed, and what was under way on it fails for now.
func (d *door) connect(conn *ipc.Conn) { d.replace(enqueue.NewClient(conn)) }

func (d *door) replace(client *enqueue.Client) {
	if old := d.link.Swap(client); old != nil {
		old.Close()
	}
}

// Verify is server.Queue.
func (d *door) Verify(recipient string) error {
	now := time.Now()
	refusal, known := d.known.get(recipient, now)
	if !known {
		client := d.link.Load()
		if client == nil {
			return errNoLink
		}
		ctx, cancel := context.WithTimeout(context.Background(), verifyTime)
		defer cancel()
		refusal = unwelcome(client.Verify(ctx, recipient))
		d.known.put(recipient, refusal, now)
	}
	if refusal == nil {
		return nil // not a nil *reply.Error
	}
	return refusal
}

// unwelcome gives the queue's answer the code that RCPT wants.
func unwelcome(err error) *reply.Error {
	e := reply.Of(err)
	if e == nil {
		return nil
	}
	told := *e
	if told.Code = 451; e.Letter() == 'D' {
		told.Code = 550
	}
	return spelled(&told)
}

// spelled adds the status to the text, as qmail's texts have it.
func spelled(e *reply.Error) *reply.Error {
	told := *e
	told.Text += " (#" + told.Status + ")"
	return &told
}

// Open is server.Queue.
func (d *door) Open(e *envelope.Envelope) (server.Message, error) {
	client := d.link.Load()
	if client == nil {
		return nil, errNoLink
	}
	m := &message{door: d, client: client, envelope: e}
	if !m.grow(0) {
		return nil, errNoMemory
	}
	return m, nil
}

// message is one on its way: in memory first, and once it is too large for that, on the link.
type message struct {
	door     *door
	client   *enqueue.Client
	envelope *envelope.Envelope
	room     *room
	size     int // index of room's size
	stream   *enqueue.Message
}

// hold takes memory out of what there is for all, or gives it back.
func (d *door) hold(bytes int) bool {
	if d.held.Add(int64(bytes)) > d.memory() && bytes > 0 {
		d.held.Add(-int64(bytes))
		return false
	}
	return true
}

// grow moves the message to a buffer of a size, if the bound for all allows.
func (m *message) grow(size int) bool {
	d := m.door
	if !d.hold(sizes[size]) {
		return false
	}
	r, _ := d.rooms[size].Get().(*room)
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

func (m *message) release() {
	if m.room != nil {
		m.door.rooms[m.size].Put(m.room)
		m.door.hold(-sizes[m.size])
		m.room = nil
	}
}

// Write is server.Message.
func (m *message) Write(p []byte) error {
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
func (m *message) spill(p []byte) error {
	stream, err := m.client.Begin(m.envelope)
	if err != nil {
		return told(err)
	}
	m.stream = stream
	err = m.send(m.room.b)
	m.release()
	if err != nil {
		return err
	}
	return m.send(p)
}

// send gives p to the queue. An error that is no refusal only says that the queue has answered already: the
// rest need not be sent, and the answer is Commit's.
func (m *message) send(p []byte) error {
	_, err := m.stream.Write(p)
	if _, refused := errors.AsType[*reply.Error](err); refused {
		return told(err)
	}
	return nil
}

// Commit is server.Message.
func (m *message) Commit() (uint64, error) {
	defer m.release()
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	var accepted enqueue.Accepted
	var err error
	if m.stream != nil {
		accepted, err = m.stream.Commit(ctx)
	} else {
		accepted, err = m.client.Submit(ctx, m.envelope, m.room.b)
	}
	if err != nil {
		return 0, told(err)
	}
	return accepted.ID, nil
}

// Abort is server.Message.
func (m *message) Abort() {
	m.release()
	if m.stream != nil {
		m.stream.Abort()
	}
}

// told is a refusal of the queue as the client shall read it.
func told(err error) error { return spelled(reply.Of(err)) }
