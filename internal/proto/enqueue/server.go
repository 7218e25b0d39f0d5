package enqueue

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"qmail/internal/format/date822"
	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/system/ipc"
)

const (
	// inMemory is the largest message body that the server holds in memory, in bytes.
	inMemory = 256 << 10
	// perConnection bounds what all unfinished messages of a connection hold in memory, in bytes;
	// beyond it even small bodies go to a spool file.
	perConnection = 32 << 20
	// maxStreams bounds the unfinished messages of a connection, and its questions without an answer;
	// beyond, and beyond perConnection bytes that wait for the disk, the server stops reading.
	maxStreams = 20000
)

// doubt is the answer that is none: the message may be in the queue, or not.
const doubt = "?"

// Peer is who is at the other end, as the kernel or the supervisor says.
type Peer struct {
	UID, PID int
	How      string // of the Received line: "from network", "by alias", "for bounce" or "by uid N"
	Network  bool   // a network role: its messages show their own id as "qp", not a process number
	// MaxRecipients limits a message's recipients; 0 means that only MaxEnvelope does.
	MaxRecipients int
}

// Spool is a body file in the making.
type Spool interface {
	io.Writer
	Close() error // throws it away unless it was accepted
}

// Arrival is one complete message. Either Body or Spool holds the bytes, our Received line included.
type Arrival struct {
	ID       uint64
	Envelope *envelope.Envelope // UID and QP are set, Birth is not
	Body     []byte             // the receiver may keep it
	Spool    Spool
}

// Backend is the queue behind the door. Its calls must not block for long: while one runs, the connection
// reads nothing.
type Backend interface {
	NewID() uint64
	Spool() (Spool, error)
	// Accept takes the message and calls done once, from any goroutine, when it is on disk or refused.
	Accept(m *Arrival, done func(error))
	// Verify calls done once with nil or a refusal.
	Verify(address string, done func(error))
	Now() time.Time
}

// Serve answers one connection until it ends and returns why; io.EOF is the ordinary end.
func Serve(conn *ipc.Conn, peer Peer, b Backend) error {
	s := &server{conn: conn, peer: peer, backend: b, streams: map[uint32]*incoming{}}
	s.room.L = &s.mu
	defer conn.Close()
	defer s.dropAll()
	for {
		f, err := conn.Read()
		if err != nil {
			return err
		}
		if err := s.frame(f); err != nil {
			return err
		}
	}
}

type server struct {
	conn    *ipc.Conn
	peer    Peer
	backend Backend
	streams map[uint32]*incoming
	held    int // bytes in memory of unfinished messages

	mu           sync.Mutex
	room         sync.Cond
	pending      int // questions handed to the backend and not yet answered
	pendingBytes int // and the bytes in memory that they hold
}

// incoming is a message that is not complete. Once refused it only waits for its end.
type incoming struct {
	records  []byte // until the envelope is complete
	envelope *envelope.Envelope
	late     bool // the envelope comes after the body
	id       uint64
	body     []byte
	spool    Spool
	refused  bool
}

var errBroken = errors.New("enqueue: the peer breaks the protocol")

func (s *server) frame(f ipc.Frame) error {
	if f.File != nil {
		f.File.Close()
		return errBroken
	}
	m := s.streams[f.Stream]
	switch f.Kind {
	case kindEnvelope:
		return s.envelope(f, m)
	case kindBody:
		return s.bodyFrame(f, m)
	case kindDone:
		if m == nil {
			return errBroken
		}
		return s.done(f.Stream, m)
	case kindAbort:
		if m != nil {
			s.drop(f.Stream, m)
		}
	case kindVerify:
		if m != nil || len(f.Payload) > envelope.MaxAddress {
			return errBroken
		}
		return s.verify(f.Stream, string(f.Payload))
	default:
		return errBroken
	}
	return nil
}

func (s *server) envelope(f ipc.Frame, m *incoming) error {
	if m == nil {
		var err error
		if m, err = s.open(f.Stream); err != nil {
			return err
		}
	} else if m.envelope != nil {
		return errBroken
	}
	if m.refused {
		return nil
	}
	if len(m.records)+len(f.Payload) > MaxEnvelope || s.held+len(f.Payload) > 2*MaxEnvelope {
		s.refuse(f.Stream, m, reply.Permanent("5.5.3", "envelope too large", nil))
		return nil
	}
	s.held += len(f.Payload)
	m.records = append(m.records, f.Payload...)
	return nil
}

func (s *server) open(stream uint32) (*incoming, error) {
	if len(s.streams) >= maxStreams {
		return nil, errBroken
	}
	m := &incoming{}
	s.streams[stream] = m
	return m, nil
}

// address parses the envelope when the first byte of the body, or the end, comes.
func (s *server) address(stream uint32, m *incoming) {
	e, err := envelope.Parse(m.records, false, s.peer.MaxRecipients)
	s.held -= len(m.records)
	m.records = nil
	if err != nil {
		s.refuse(stream, m, refuse(err))
		return
	}
	e.UID, e.QP = s.peer.UID, s.qp(m)
	m.envelope = e
}

// qp is what the injector prints as "qp".
func (s *server) qp(m *incoming) int64 {
	if m.id == 0 {
		m.id = s.backend.NewID()
	}
	if s.peer.Network {
		return int64(m.id)
	}
	return int64(s.peer.PID)
}

// bodyFrame takes bytes of a message. One that begins with them has its envelope after them.
func (s *server) bodyFrame(f ipc.Frame, m *incoming) error {
	if m == nil {
		var err error
		if m, err = s.open(f.Stream); err != nil {
			return err
		}
		m.late = true
	}
	if m.late && m.records != nil {
		return errBroken
	}
	s.body(f.Stream, m, f.Payload)
	return nil
}

func (s *server) body(stream uint32, m *incoming, p []byte) {
	if !m.refused && !m.late && m.envelope == nil {
		s.address(stream, m)
	}
	if m.refused {
		return
	}
	if m.spool == nil && m.body == nil {
		m.body = s.received(make([]byte, 0, 96+len(p)), s.qp(m))
		s.held += len(m.body)
	}
	if m.spool == nil && len(m.body)+len(p) <= inMemory && s.held+len(p) <= perConnection {
		m.body = append(m.body, p...)
		s.held += len(p)
		return
	}
	if err := s.spool(m, p); err != nil {
		s.refuse(stream, m, reply.Temporary("4.3.0", "qq write error or disk full", err))
	}
}

// spool moves a body that is too large for memory into a file, and adds p.
func (s *server) spool(m *incoming, p []byte) error {
	if m.spool == nil {
		sp, err := s.backend.Spool()
		if err != nil {
			return err
		}
		m.spool = sp
		if _, err := sp.Write(m.body); err != nil {
			return err
		}
		s.held -= len(m.body)
		m.body = nil
	}
	_, err := m.spool.Write(p)
	return err
}

func (s *server) done(stream uint32, m *incoming) error {
	if !m.refused && m.spool == nil && m.body == nil {
		s.body(stream, m, nil) // a message without a byte
	}
	if !m.refused && m.late {
		s.address(stream, m)
	}
	delete(s.streams, stream)
	if m.refused {
		return nil
	}
	size, id := len(m.body), m.id
	s.held -= size
	s.ask(size)
	s.backend.Accept(&Arrival{id, m.envelope, m.body, m.spool}, func(err error) {
		report := "K" + strconv.FormatUint(id, 10)
		switch {
		case errors.Is(err, reply.ErrInDoubt):
			report = doubt
		case err != nil:
			report = reply.Of(err).Report()
		}
		s.answer(stream, size, report)
	})
	return nil
}

func (s *server) verify(stream uint32, address string) error {
	s.ask(len(address))
	s.backend.Verify(address, func(err error) {
		report := "K"
		if err != nil {
			report = reply.Of(err).Report()
		}
		s.answer(stream, len(address), report)
	})
	return nil
}

// ask waits until there is room for one more question that holds size bytes.
func (s *server) ask(size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.pending >= maxStreams || s.pendingBytes > perConnection {
		s.room.Wait()
	}
	s.pending++
	s.pendingBytes += size
}

func (s *server) answer(stream uint32, size int, report string) {
	s.mu.Lock()
	s.pending--
	s.pendingBytes -= size
	s.room.Signal()
	s.mu.Unlock()
	s.conn.Post(kindResult, stream, []byte(report)) // a failure ends the reading side, which cleans up
}

// refuse answers at once; the rest of the message is read and dropped.
func (s *server) refuse(stream uint32, m *incoming, err *reply.Error) {
	s.release(m)
	m.refused = true
	s.conn.Send(kindResult, stream, []byte(err.Report()))
}

func (s *server) drop(stream uint32, m *incoming) {
	s.release(m)
	delete(s.streams, stream)
}

func (s *server) release(m *incoming) {
	s.held -= len(m.records) + len(m.body)
	m.records, m.body, m.envelope = nil, nil, nil
	if m.spool != nil {
		m.spool.Close()
		m.spool = nil
	}
}

func (s *server) dropAll() {
	for stream, m := range s.streams {
		s.drop(stream, m)
	}
}

// received is the line qmail-queue puts first: "Received: (qmail QP invoked HOW); DATE".
func (s *server) received(dst []byte, qp int64) []byte {
	return AppendReceived(dst, qp, s.peer.How, s.backend.Now())
}

// AppendReceived writes the trace line of qmail-queue, with its newline.
func AppendReceived(dst []byte, qp int64, how string, now time.Time) []byte {
	dst = append(dst, "Received: (qmail "...)
	dst = strconv.AppendInt(dst, qp, 10)
	dst = append(dst, " invoked "...)
	dst = append(dst, how...)
	dst = append(dst, "); "...)
	dst = date822.Append(dst, now)
	return append(dst, '\n')
}

// ByUID is the How of an injector without a name of its own.
func ByUID(uid int) string { return fmt.Sprintf("by uid %d", uid) }
