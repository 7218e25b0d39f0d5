package jobs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"qmail/internal/format/text0"
	"qmail/internal/system/ipc"
)

// Body is a message as a job sees it. It stays valid until the job's handler returns.
type Body struct {
	bytes []byte
	file  *os.File
	at    int64
	size  int64
}

// NewBody makes a body of bytes at hand.
func NewBody(b []byte) *Body { return &Body{bytes: b, size: int64(len(b))} }

// NewFileBody makes a body of a part of a file.
func NewFileBody(f *os.File, offset, size int64) *Body { return &Body{file: f, at: offset, size: size} }

// Size is the message's length in bytes.
func (b *Body) Size() int64 { return b.size }

// Bytes returns the whole message if it is at hand, else nil.
func (b *Body) Bytes() []byte { return b.bytes }

// Reader reads the message from its start; any number of readers may be in use.
func (b *Body) Reader() io.ReadSeeker {
	if b.file == nil {
		return bytes.NewReader(b.bytes)
	}
	return io.NewSectionReader(b.file, b.at, b.size)
}

// Report tells qmail-send what became of recipients; it may be called several times, for each recipient once.
type Report func(results ...Result)

// Handler carries out one job. What it returns is reported together with the end of the job; recipients
// neither reported nor returned are tried again later. ctx ends when the worker has to stop at once.
type Handler func(ctx context.Context, j *Job, body *Body, report Report) []Result

// Serve carries out jobs until the connection ends, then waits for those that run. io.EOF is the ordinary end.
func Serve(ctx context.Context, conn *ipc.Conn, handle Handler) error {
	return ServeAsked(ctx, conn, handle, func(context.Context, *Question) []byte { return nil })
}

// Answerer answers a question; nothing is no answer.
type Answerer func(ctx context.Context, q *Question) []byte

// ServeAsked is Serve for a worker that answers questions, too.
func ServeAsked(ctx context.Context, conn *ipc.Conn, handle Handler, answer Answerer) error {
	s := &server{conn: conn, handle: handle, answer: answer, bodies: map[uint32]*loaded{}, asked: make(chan struct{}, maxAsked)}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := s.read(ctx)
	s.jobs.Wait()
	for number := range s.bodies {
		s.forget(number)
	}
	return err
}

type server struct {
	conn   *ipc.Conn
	handle Handler
	answer Answerer
	bodies map[uint32]*loaded
	held   int // bytes in memory
	jobs   sync.WaitGroup
	asked  chan struct{} // holds a token for each question that is being answered

	mu      sync.Mutex
	running map[uint32]bool
}

// loaded is a body with the number of those who use it; the sender's number is one of them.
type loaded struct {
	Body
	mu   sync.Mutex
	uses int
}

func (l *loaded) use() {
	l.mu.Lock()
	l.uses++
	l.mu.Unlock()
}

func (l *loaded) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uses--
	if l.uses == 0 && l.file != nil {
		l.file.Close()
	}
}

func (s *server) read(ctx context.Context) error {
	s.running = map[uint32]bool{}
	for {
		f, err := s.conn.Read()
		if err != nil {
			return err
		}
		if f.File != nil && f.Kind != kindFile {
			f.File.Close()
			return errPeer
		}
		if err := s.frame(ctx, f); err != nil {
			return err
		}
	}
}

func (s *server) frame(ctx context.Context, f ipc.Frame) error {
	switch f.Kind {
	case kindBody:
		return s.load(f.Stream, f.Payload)
	case kindFile:
		return s.loadFile(f)
	case kindForget:
		s.forget(f.Stream)
	case kindJob:
		return s.start(ctx, f)
	case kindAsk:
		return s.ask(ctx, f)
	default:
		return errPeer
	}
	return nil
}

func (s *server) load(number uint32, p []byte) error {
	l := s.bodies[number]
	if l == nil {
		l = &loaded{uses: 1}
		s.bodies[number] = l
	}
	if number == 0 || l.file != nil || len(l.bytes)+len(p) > maxBody || s.held+len(p) > maxHeld {
		return errPeer
	}
	if l.bytes == nil {
		l.bytes = make([]byte, 0, len(p))
	}
	l.bytes = append(l.bytes, p...)
	l.size = int64(len(l.bytes))
	s.held += len(p)
	return nil
}

func (s *server) loadFile(f ipc.Frame) error {
	if f.File == nil {
		return errPeer
	}
	offset, size, err := parsePlace(f.Payload)
	if err != nil || f.Stream == 0 || s.bodies[f.Stream] != nil {
		f.File.Close()
		return errPeer
	}
	s.bodies[f.Stream] = &loaded{Body: Body{file: f.File, at: offset, size: size}, uses: 1}
	return nil
}

func parsePlace(b []byte) (offset, size int64, err error) {
	for _, place := range []struct {
		letter byte
		value  *int64
	}{{'o', &offset}, {'l', &size}} {
		letter, value, rest, err := text0.Cut(b)
		if err != nil || letter != place.letter {
			return 0, 0, errPeer
		}
		if *place.value, err = text0.Int(value); err != nil || *place.value < 0 {
			return 0, 0, errPeer
		}
		b = rest
	}
	if len(b) > 0 || offset+size < offset {
		return 0, 0, errPeer
	}
	return offset, size, nil
}

func (s *server) forget(number uint32) {
	if l := s.bodies[number]; l != nil {
		s.held -= len(l.bytes)
		delete(s.bodies, number)
		l.release()
	}
}

func (s *server) start(ctx context.Context, f ipc.Frame) error {
	j, err := parseJob(f.Payload)
	if err != nil {
		return err
	}
	l := s.bodies[j.Body]
	if l == nil && !j.Verify {
		return errPeer
	}
	if !s.take(f.Stream) {
		return errPeer
	}
	body := NewBody(nil)
	if l != nil {
		l.use()
		body = &Body{l.bytes, l.file, l.at, l.size} // more bytes may follow for the original only by mistake
	}
	number := f.Stream
	s.jobs.Go(func() {
		if l != nil {
			defer l.release()
		}
		results := s.handle(ctx, j, body, func(results ...Result) {
			s.send(kindResults, number, results)
		})
		s.mu.Lock()
		delete(s.running, number)
		s.mu.Unlock()
		s.send(kindEnd, number, results)
	})
	return nil
}

// ask answers a question.
func (s *server) ask(ctx context.Context, f ipc.Frame) error {
	q, err := parseQuestion(f.Payload)
	if err != nil {
		return err
	}
	select {
	case s.asked <- struct{}{}:
	default:
		return errPeer
	}
	number := f.Stream
	s.jobs.Go(func() {
		defer func() { <-s.asked }()
		answer := s.answer(ctx, q)
		if len(answer) > MaxAnswer {
			answer = nil
		}
		s.conn.Send(kindAnswer, number, answer) // a failure ends the reading side, too
	})
	return nil
}

func (s *server) take(number uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[number] || len(s.running) >= maxJobs {
		return false
	}
	s.running[number] = true
	return true
}

// send reports results, in several frames if they are many. Jobs that end together share a write. A failure ends
// the reading side too.
func (s *server) send(kind byte, number uint32, results []Result) {
	var space [512]byte
	payload := space[:0]
	for i, r := range results {
		payload = appendResults(payload, results[i:i+1])
		if len(payload)+len(r.Text)+MaxText > ipc.MaxPayload && i+1 < len(results) {
			s.conn.Send(kindResults, number, payload)
			payload = payload[:0]
		}
	}
	s.conn.SendSoon(kind, number, payload)
}

// Ended reports whether err, from Serve, is the ordinary end of a connection.
func Ended(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, ipc.ErrClosed)
}
