package admin

import (
	"context"
	"errors"
	"io"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/system/ipc"
)

const (
	// idle is how long the server waits for a question, or for N.
	idle = time.Hour
	// patience is how long an answer of one page may take.
	patience = 2 * time.Minute
)

// Peer is who asks, as the kernel says.
type Peer struct {
	UID, PID int
	Owner    bool // may see and do everything
}

// Backend is qmail-send behind the door. An error that is no *reply.Error is shown as temporary trouble. Where there is
// an out to call, its calls may take as long as the peer likes, and its errors are to be returned: nothing may be
// held meanwhile.
type Backend interface {
	List(ctx context.Context, peer Peer, f *Filter, out *Out) (Totals, error)
	Show(ctx context.Context, peer Peer, id uint64, out *Out) error
	// Body opens a message.
	Body(ctx context.Context, peer Peer, id uint64) (Body, error)
	Life(ctx context.Context, peer Peer, id uint64, out func(*Event) error) error
	Order(ctx context.Context, peer Peer, o *Order) (Effect, error)
	Explain(ctx context.Context, peer Peer, address string) ([]Step, error)
	Slow(ctx context.Context, peer Peer, forget bool) ([]Slow, error)
	Size(ctx context.Context, peer Peer) (Size, error)
}

// Body is the bytes of a message.
type Body interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Out takes messages and recipients that are to be sent.
type Out struct{ s *server }

// Message sends a message.
func (o *Out) Message(m *Message) error { return o.s.item(kindMessage, m.codec()) }

// Recipient sends a recipient of the message before.
func (o *Out) Recipient(r *Recipient) error { return o.s.item(kindRecipients, r.codec()) }

// Serve answers one connection until it ends, ctx does, or the peer breaks the rules; io.EOF is the ordinary end.
func Serve(ctx context.Context, conn *ipc.Conn, peer Peer, b Backend) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s := &server{conn: conn, peer: peer, backend: b}
	for {
		f, err := s.read()
		if err == nil {
			err = s.question(ctx, f)
		}
		if err != nil {
			return err
		}
	}
}

// server is one connection. What it sends is gathered in frames, and frames make pages.
type server struct {
	conn    *ipc.Conn
	peer    Peer
	backend Backend

	kind  byte // of the frame being filled; 0 if there is none
	frame []byte
	sent  int // bytes of this page
}

var errBroken = errors.New("admin: the peer breaks the protocol")

func (s *server) read() (ipc.Frame, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(idle)); err != nil {
		return ipc.Frame{}, err
	}
	f, err := s.conn.Read()
	if err != nil {
		return f, err
	}
	if f.File != nil {
		f.File.Close()
		return f, errBroken
	}
	if f.Stream != 0 {
		return f, errBroken
	}
	return f, nil
}

// item adds one item to what is sent. A message has a frame to itself.
func (s *server) item(kind byte, c codec) error {
	if s.kind != kind || len(s.frame) >= chunk || kind == kindMessage {
		if err := s.flush(); err != nil {
			return err
		}
		if s.sent >= page {
			if err := s.turn(); err != nil {
				return err
			}
		}
	}
	s.kind = kind
	s.frame = c.append(s.frame)
	return nil
}

// flush sends the frame being filled.
func (s *server) flush() error {
	if s.kind == 0 {
		return nil
	}
	s.sent += len(s.frame) + 10
	err := s.conn.Send(s.kind, 0, s.frame)
	s.kind, s.frame = 0, s.frame[:0]
	return err
}

// turn ends a page and waits until the client wants the next.
func (s *server) turn() error {
	s.sent = 0
	if err := s.conn.Send(kindMore, 0); err != nil {
		return err
	}
	f, err := s.read()
	if err != nil {
		return err
	}
	if f.Kind != kindNext || len(f.Payload) != 0 {
		return errBroken
	}
	return nil
}

// end completes an answer: by what last says, or, if the backend has an error, by that. Errors of the connection
// end it.
func (s *server) end(last codec, err error) error {
	if ferr := s.flush(); ferr != nil {
		return ferr
	}
	s.sent = 0
	if err == nil {
		return s.conn.Send(kindEnd, 0, last.append(nil))
	}
	if errors.Is(err, errBroken) {
		return err
	}
	report := reply.Of(err).Report()
	return s.conn.Send(kindRefusal, 0, []byte(report[:min(len(report), MaxText)]))
}

// question answers one.
func (s *server) question(ctx context.Context, f ipc.Frame) error {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch f.Kind {
	case kindList:
		q := &Filter{}
		if err := q.codec().parse(f.Payload); err != nil {
			return err
		}
		totals, err := s.backend.List(ctx, s.peer, q, &Out{s})
		return s.end(totals.codec(), err)
	case kindOrder:
		q := &Order{}
		if err := q.codec().parse(f.Payload); err != nil {
			return err
		}
		effect, err := s.backend.Order(short, s.peer, q)
		return s.end(effect.codec(), err)
	case kindExplain:
		q := &address{}
		if err := q.codec().parse(f.Payload); err != nil {
			return err
		}
		steps, err := s.backend.Explain(short, s.peer, q.address)
		return sendAll(s, kindSteps, steps, (*Step).codec, err)
	case kindSlow:
		q := &slowQuestion{}
		if err := q.codec().parse(f.Payload); err != nil {
			return err
		}
		list, err := s.backend.Slow(short, s.peer, q.forget)
		return sendAll(s, kindAddresses, list, (*Slow).codec, err)
	case kindSize:
		if len(f.Payload) != 0 {
			return errBroken
		}
		size, err := s.backend.Size(short, s.peer)
		return s.end(size.codec(), err)
	case kindShow, kindCopy, kindLife:
		q := &which{}
		if err := q.codec().parse(f.Payload); err != nil {
			return err
		}
		return s.end(codec{}, s.about(ctx, f.Kind, q.id))
	}
	return errBroken
}

// about answers a question about one message, whose answer may be long.
func (s *server) about(ctx context.Context, kind byte, id uint64) error {
	switch kind {
	case kindShow:
		return s.backend.Show(ctx, s.peer, id, &Out{s})
	case kindLife:
		return s.backend.Life(ctx, s.peer, id, func(e *Event) error { return s.item(kindEvents, e.codec()) })
	}
	body, err := s.backend.Body(ctx, s.peer, id)
	if err != nil {
		return err
	}
	defer body.Close()
	buf := make([]byte, chunk)
	for at := int64(0); at < body.Size(); {
		n, err := body.ReadAt(buf[:min(int64(len(buf)), body.Size()-at)], at)
		if n == 0 {
			return err
		}
		at += int64(n)
		if err := s.bytes(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// bytes sends a piece of a message.
func (s *server) bytes(p []byte) error {
	if s.sent >= page {
		if err := s.turn(); err != nil {
			return err
		}
	}
	s.sent += len(p)
	return s.conn.Send(kindBytes, 0, p)
}

func sendAll[T any](s *server, kind byte, list []T, codecOf func(*T) codec, err error) error {
	for i := range list {
		if err != nil {
			break
		}
		err = s.item(kind, codecOf(&list[i]))
	}
	return s.end(codec{}, err)
}
