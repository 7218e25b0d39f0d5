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
	// maxAsked is how many questions of one link are under way at once: as many as a dns.Resolver in front of a Link
	// has, so that who keeps to the rules is never told to come again. What is beyond gets Z at once, so that one asker
	// cannot take the places of the others.
	maxAsked = dns.Flights
	// maxTrouble bounds the text of a Z, in bytes.
	maxTrouble = 400
)

// Flights is how many questions qmail-resolve has under way at once, those of all links together.
const Flights = 4 * maxAsked

// Lookup answers a question, as dns.Resolver does.
type Lookup func(ctx context.Context, name string, kind dns.Type) (dns.Answer, error)

var errPeer = errors.New("resolve: the peer breaks the protocol")

// Broken reports whether a link ended because the peer broke the protocol.
func Broken(err error) bool { return errors.Is(err, errPeer) || errors.Is(err, ipc.ErrFrame) }

// Serve answers the questions of one link until it or ctx ends, and returns why; io.EOF is the ordinary end.
func Serve(ctx context.Context, conn *ipc.Conn, lookup Lookup, now func() time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{ctx: ctx, conn: conn, lookup: lookup, now: now, asked: map[uint32]bool{}}
	defer s.wg.Wait()
	defer conn.Close()
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		f, err := conn.Read()
		if err != nil {
			return err
		}
		if f.File != nil {
			f.File.Close()
			return errPeer
		}
		if err := s.question(f); err != nil {
			return err
		}
	}
}

type server struct {
	ctx    context.Context
	conn   *ipc.Conn
	lookup Lookup
	now    func() time.Time
	wg     sync.WaitGroup

	mu    sync.Mutex
	asked map[uint32]bool // questions under way
}

func (s *server) question(f ipc.Frame) error {
	if f.Kind != kindQuestion || len(f.Payload) < 3 {
		return errPeer
	}
	kind, name := dns.Type(binary.BigEndian.Uint16(f.Payload)), string(f.Payload[2:])
	if !clean(name) {
		return errPeer
	}
	s.mu.Lock()
	used, full := s.asked[f.Stream], len(s.asked) >= maxAsked
	if !used && !full {
		s.asked[f.Stream] = true
	}
	s.mu.Unlock()
	switch {
	case used:
		return errPeer
	case full:
		return s.conn.Post(kindTrouble, f.Stream, []byte("too many questions at once"))
	}
	stream := f.Stream
	s.wg.Go(func() { s.answer(stream, name, kind) })
	return nil
}

func (s *server) answer(stream uint32, name string, kind dns.Type) {
	a, err := s.lookup(s.ctx, name, kind)
	s.mu.Lock()
	delete(s.asked, stream) // before the answer, so that the number may be used again after it
	s.mu.Unlock()
	// A failed Post ends the reading side, which cleans up.
	if err != nil {
		why := err.Error()
		if e, ok := errors.AsType[*dns.Error](err); ok {
			why = e.Err.Error() // who asked knows what
		}
		s.conn.Post(kindTrouble, stream, []byte(why[:min(len(why), maxTrouble)]))
		return
	}
	s.conn.Post(kindAnswer, stream, appendAnswer(nil, a, kind, s.now()))
}
