// Package sink is an SMTP server that takes everything and counts it.
//
// It speaks enough of RFC 5321 for any sending server, with PIPELINING (RFC 2920), 8BITMIME and SIZE, and keeps
// nothing but counts. A message counts when its final dot has come, as its number of accepted recipients. All
// sessions run on one thread: see package poll.
package sink

import (
	"context"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"qmail/cmd/bench/internal/poll"
)

// Counts is what came since the last Expect.
type Counts struct {
	Sessions, Messages, Recipients, Bytes int64

	// Distinct is how many different pairs of sender and recipient were among them, if that was asked for.
	Distinct int64

	// Last is when the last message came.
	Last time.Time
}

// Sink counts on the addresses it was opened on.
type Sink struct {
	loop  *poll.Loop
	addrs []netip.AddrPort
	buf   []byte // one read buffer for all sessions: only one is read at a time
	seed  maphash.Seed

	mu     sync.Mutex // taken once per message
	counts Counts
	target int64
	seen   map[uint64]struct{} // hashes of sender and recipient, while Distinct is wanted
	done   chan Counts
}

// Open listens on every address; port 0 of the first is chosen by the kernel and then used for all that say 0.
func Open(addrs ...netip.AddrPort) (*Sink, error) {
	loop, err := poll.New()
	if err != nil {
		return nil, err
	}
	s := &Sink{loop: loop, buf: make([]byte, 64<<10), seed: maphash.MakeSeed()}
	for _, a := range addrs {
		if a.Port() == 0 && len(s.addrs) > 0 {
			a = netip.AddrPortFrom(a.Addr(), s.addrs[0].Port())
		}
		fd, got, err := poll.Listen(a)
		if err == nil {
			err = loop.Add(fd, &listener{s, fd})
		}
		if err != nil {
			loop.Close()
			return nil, err
		}
		s.addrs = append(s.addrs, got)
	}
	return s, nil
}

// Addr is the first address.
func (s *Sink) Addr() netip.AddrPort { return s.addrs[0] }

// Run serves until ctx ends and closes the sink.
func (s *Sink) Run(ctx context.Context) error {
	defer s.loop.Close()
	err := s.loop.Run(ctx, func() bool { return false })
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Expect begins to count anew. The channel gets the counts once that many recipients have come; it is never
// closed, and an earlier Expect is forgotten.
func (s *Sink) Expect(recipients int64, distinct bool) <-chan Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts = Counts{}
	s.target = recipients
	s.seen = nil
	if distinct {
		s.seen = make(map[uint64]struct{}, recipients)
	}
	s.done = make(chan Counts, 1)
	return s.done
}

// Counts is what has come so far.
func (s *Sink) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot()
}

func (s *Sink) snapshot() Counts {
	c := s.counts
	c.Distinct = int64(len(s.seen))
	return c
}

// took counts one message.
func (s *Sink) took(pairs []uint64, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.counts.Recipients
	s.counts.Messages++
	s.counts.Recipients += int64(len(pairs))
	s.counts.Bytes += bytes
	s.counts.Last = time.Now()
	if s.seen != nil {
		for _, p := range pairs {
			s.seen[p] = struct{}{}
		}
	}
	if s.done != nil && before < s.target && s.counts.Recipients >= s.target {
		s.done <- s.snapshot()
	}
}

func (s *Sink) began() {
	s.mu.Lock()
	s.counts.Sessions++
	s.mu.Unlock()
}

// listener takes new sessions.
type listener struct {
	sink *Sink
	fd   int
}

func (l *listener) Tick(time.Time) {}

func (l *listener) Ready() {
	for {
		fd, ok, err := poll.Accept(l.fd)
		if err != nil || !ok {
			// Out of descriptors: the connection waits in the backlog until a session ends.
			return
		}
		c := &session{sink: l.sink, fd: fd, last: time.Now()}
		if err := l.sink.loop.Add(fd, c); err != nil {
			l.sink.loop.Drop(fd)
			continue
		}
		l.sink.began()
		c.reply("220 sink.example ESMTP\r\n")
		c.flush()
	}
}

// String says where the sink listens.
func (s *Sink) String() string {
	if len(s.addrs) == 1 {
		return s.addrs[0].String()
	}
	return fmt.Sprintf("%v and %d more addresses", s.addrs[0], len(s.addrs)-1)
}
