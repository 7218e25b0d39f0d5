package keyd

import (
	"context"
	"crypto"
	"crypto/rand"
	"strings"
	"sync"
	"time"

	"qmail/internal/system/ipc"
)

// Key is a private key and what it is for.
type Key struct {
	ID     ID
	Use    Use
	Signer crypto.Signer
	Chain  [][]byte // certificates, our own first
	Prefer bool     // its certificate counts where no name fits
}

// Rights are what a peer may have signed.
type Rights struct {
	Uses string // the keys with these
	Rate int    // signatures per second, and as many at once after a second of rest
}

// Server holds keys and signs with them. The zero value has none.
type Server struct {
	// Note, if set, is told of each request that is refused.
	Note func(peer, why string)

	mu    sync.Mutex
	keys  map[ID]*Key
	list  []Key // in the order in which it is sent
	peers map[*peer]struct{}
}

type peer struct {
	name   string
	rights Rights
	conn   *ipc.Conn
	tokens bucket
}

// maxAtOnce bounds the signatures that are in the making for one peer. More wait in its socket.
const maxAtOnce = 64

const (
	notYours = "no such key for you"
	tooMuch  = "too many signatures"
	badAsk   = "garbled request to qmail-keyd"
	cannot   = "that cannot be signed"
)

// Replace changes the keys, and lets all peers know. What is signed at the moment is signed with the old ones.
func (v *Server) Replace(list []Key) {
	keys := make(map[ID]*Key, len(list))
	for i := range list {
		keys[list[i].ID] = &list[i]
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list, v.keys = list, keys
	for p := range v.peers {
		v.publish(p)
	}
}

// publish sends the public halves that a peer has a use for. The lock is held, so that lists come in order; Post does
// not wait.
func (v *Server) publish(p *peer) {
	for _, k := range v.list {
		if len(k.Chain) > 0 && p.may(k.Use) {
			_ = p.conn.Post(kindCertificate, 0, appendPublic(nil, public{k.ID, k.Use, k.Prefer, k.Chain}))
		}
	}
	_ = p.conn.Post(kindEnd, 0) // a failure has ended the connection, which the reader sees
}

func (p *peer) may(use Use) bool { return strings.IndexByte(p.rights.Uses, byte(use)) >= 0 }

// Serve answers the requests of a peer until the connection ends, whose error it returns, or ctx does.
func (v *Server) Serve(ctx context.Context, conn *ipc.Conn, name string, rights Rights) error {
	p := &peer{name: name, rights: rights, conn: conn, tokens: bucket{rate: rights.Rate, left: float64(rights.Rate), last: time.Now()}}
	v.enter(p)
	defer v.leave(p)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	slots := make(chan struct{}, maxAtOnce)
	defer func() { // wait for all that still sign
		for range maxAtOnce {
			slots <- struct{}{}
		}
	}()
	for {
		f, err := conn.Read()
		if err != nil {
			return err
		}
		if f.File != nil {
			f.File.Close()
		}
		k, r, refusal := v.admit(p, f)
		if refusal != "" {
			v.refuse(p, f.Stream, refusal)
			continue
		}
		r.input = append([]byte(nil), r.input...)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			v.sign(p, f.Stream, k, r)
		}()
	}
}

func (v *Server) enter(p *peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.peers == nil {
		v.peers = map[*peer]struct{}{}
	}
	v.peers[p] = struct{}{}
	v.publish(p)
}

func (v *Server) leave(p *peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.peers, p)
}

// admit says what is to be signed with which key, or why not.
func (v *Server) admit(p *peer, f ipc.Frame) (*Key, request, string) {
	r, err := parseRequest(f.Payload)
	if f.Kind != kindSign || f.File != nil || err != nil {
		return nil, r, badAsk
	}
	v.mu.Lock()
	k := v.keys[r.id]
	v.mu.Unlock()
	switch {
	case k == nil || !p.may(k.Use):
		return nil, r, notYours
	case !p.tokens.take(time.Now()):
		return nil, r, tooMuch
	}
	return k, r, ""
}

func (v *Server) sign(p *peer, stream uint32, k *Key, r request) {
	opts, err := r.options(k.Signer.Public())
	if err != nil {
		v.refuse(p, stream, cannot)
		return
	}
	signature, err := k.Signer.Sign(rand.Reader, r.input, opts)
	if err != nil {
		v.refuse(p, stream, cannot)
		return
	}
	_ = p.conn.Send(kindDone, stream, signature) // a failure has ended the connection
}

func (v *Server) refuse(p *peer, stream uint32, why string) {
	kind := byte(kindNever)
	if why == tooMuch {
		kind = kindLater
	}
	_ = p.conn.Send(kind, stream, []byte(why))
	if v.Note != nil {
		v.Note(p.name, why)
	}
}

// bucket lets through rate tokens per second, and after a rest as many at once. It belongs to one goroutine.
type bucket struct {
	rate int
	left float64
	last time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.left = min(b.left+now.Sub(b.last).Seconds()*float64(b.rate), float64(b.rate))
	b.last = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
