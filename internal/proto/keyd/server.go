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
	gone  map[ID]fading // keys of earlier lists
	list  []Key         // in the order in which it is sent
	peers map[*peer]struct{}
}

type peer struct {
	name   string
	rights Rights
	conn   *ipc.Conn
	tokens bucket
}

// fading is a key that was taken away a moment ago. Handshakes that have begun with it may still end.
type fading struct {
	key   *Key
	until time.Time
}

// fadeTime is how long such a key still signs: longer than handshakes take.
const fadeTime = time.Minute

// maxAtOnce bounds the signatures that are in the making for one peer. More wait in its socket.
const maxAtOnce = 64

const (
	notYours = "no such key for you"
	tooMuch  = "too many signatures"
	badAsk   = "garbled request to qmail-keyd"
	cannot   = "that cannot be signed"
)

// Replace changes the keys, and lets all peers know. Who has begun with an old one can end with it.
func (v *Server) Replace(list []Key) {
	keys := make(map[ID]*Key, len(list))
	for i := range list {
		keys[list[i].ID] = &list[i]
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fade(time.Now())
	v.list, v.keys = list, keys
	for p := range v.peers {
		v.publish(p)
	}
}

// fade lets the keys of now become those of before. The lock is held.
func (v *Server) fade(now time.Time) {
	if v.gone == nil {
		v.gone = map[ID]fading{}
	}
	for id, f := range v.gone {
		if now.After(f.until) {
			delete(v.gone, id)
		}
	}
	for id, k := range v.keys {
		v.gone[id] = fading{k, now.Add(fadeTime)}
	}
}

// find returns a key, also one that is fading.
func (v *Server) find(id ID, now time.Time) *Key {
	v.mu.Lock()
	defer v.mu.Unlock()
	if k := v.keys[id]; k != nil {
		return k
	}
	if f, ok := v.gone[id]; ok && now.Before(f.until) {
		return f.key
	}
	return nil
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
	now := time.Now()
	k := v.find(r.id, now)
	switch {
	case k == nil || !p.may(k.Use):
		return nil, r, notYours
	case !p.tokens.take(now):
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
