package checker

import (
	"context"
	"sync"

	"qmail/internal/system/ipc"
)

// Backend knows who is who.
type Backend interface {
	// Mechanisms are those that it offers now to a peer.
	Mechanisms(peer string) []string
	// Begin starts a conversation with a client of peer, which is a server of ours.
	Begin(peer string, who Who, mechanism string) Conversation
}

// Conversation is one exchange from the side that knows. Its calls come one after the other.
type Conversation interface {
	// Next takes a response; nil at first if the client sent none. It may take its time, until ctx ends. After any
	// answer but More it is not called again.
	Next(ctx context.Context, response []byte) Answer
}

// Server answers any number of peers.
type Server struct {
	Backend Backend

	mu    sync.Mutex
	peers map[*peer]struct{}
}

// peer is a server that asks.
type peer struct {
	name string
	conn *ipc.Conn

	mu   sync.Mutex
	open map[uint32]*open
	wait sync.WaitGroup
}

// open is an exchange under way.
type open struct {
	responses chan []byte // room for one: a second before the answer breaks the rules
	cancel    context.CancelFunc
}

// Announce tells all peers which mechanisms there are now.
func (v *Server) Announce() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for p := range v.peers {
		v.announce(p)
	}
}

func (v *Server) announce(p *peer) {
	_ = p.conn.Post(kindMechanisms, 0, appendMechanisms(nil, v.Backend.Mechanisms(p.name))) // a failure ends the connection
}

// Serve answers a peer until the connection ends, whose error it returns, or ctx does.
func (v *Server) Serve(ctx context.Context, conn *ipc.Conn, name string) error {
	ctx, cancel := context.WithCancel(ctx)
	p := &peer{name: name, conn: conn, open: map[uint32]*open{}}
	defer p.wait.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	v.mu.Lock()
	if v.peers == nil {
		v.peers = map[*peer]struct{}{}
	}
	v.peers[p] = struct{}{}
	v.announce(p)
	v.mu.Unlock()
	defer func() { v.mu.Lock(); delete(v.peers, p); v.mu.Unlock() }()
	for {
		f, err := conn.Read()
		if err != nil {
			return err
		}
		if f.File != nil {
			f.File.Close()
		}
		v.take(ctx, p, f)
	}
}

// take takes one frame; one that breaks the rules ends its exchange, not the others.
func (v *Server) take(ctx context.Context, p *peer, f ipc.Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.open[f.Stream]
	switch {
	case f.Kind == kindBegin && x == nil:
		b, err := parseBegin(f.Payload)
		switch {
		case err != nil:
			p.answer(f.Stream, Answer{Verdict: Malformed})
		case len(p.open) >= maxExchanges:
			p.answer(f.Stream, Answer{Verdict: Later, Text: "too many logins at once, try again later (#4.7.0)"})
		default:
			v.begin(ctx, p, f.Stream, b)
		}
	case f.Kind == kindResponse && x != nil && len(f.Payload) <= maxMessage:
		select {
		case x.responses <- append(make([]byte, 0, len(f.Payload)), f.Payload...):
		default:
			x.cancel()
		}
	case x != nil:
		x.cancel() // also what kindAbort means
	case f.Kind != kindAbort:
		p.answer(f.Stream, Answer{Verdict: Malformed})
	}
}

// answer does not wait: a peer that does not read loses its connection.
func (p *peer) answer(stream uint32, a Answer) {
	_ = p.conn.Post(byte(a.Verdict), stream, a.payload())
}

// begin starts a goroutine that belongs to the exchange. The lock is held.
func (v *Server) begin(ctx context.Context, p *peer, stream uint32, b begin) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	x := &open{responses: make(chan []byte, 1), cancel: cancel}
	p.open[stream] = x
	p.wait.Go(func() {
		defer cancel()
		conversation := v.Backend.Begin(p.name, b.who, b.mechanism)
		response := b.initial
		if b.hasInitial && response == nil {
			response = []byte{}
		}
		for {
			answer := conversation.Next(ctx, response)
			if ctx.Err() != nil { // nobody waits for it any more
				answer = Answer{Verdict: Malformed}
			}
			if answer.Verdict != More {
				p.end(stream, answer)
				return
			}
			p.answer(stream, answer)
			select {
			case response = <-x.responses:
			case <-ctx.Done():
				p.end(stream, Answer{Verdict: Malformed})
				return
			}
		}
	})
}

// end takes the exchange off the list before its answer goes out: its number may be used again then.
func (p *peer) end(stream uint32, a Answer) {
	p.mu.Lock()
	delete(p.open, stream)
	p.mu.Unlock()
	p.answer(stream, a)
}
