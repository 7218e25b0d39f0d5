package keyd

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"qmail/internal/system/ipc"
	"qmail/internal/system/secure"
)

// Certificate is a certificate of ours, and what signs for it.
type Certificate struct {
	Use    Use
	Prefer bool
	Chain  [][]byte
	Leaf   *x509.Certificate
	Signer crypto.Signer
}

// Agent is the side that wants something signed. It outlives its links to qmail-keyd: a signer of an earlier link
// works over the next one. Any number of goroutines may use it; the zero value is ready.
type Agent struct {
	// Changed, if set, is told of each list of certificates, the next one after it has returned.
	Changed func(list []Certificate)

	mu    sync.Mutex
	link  *link
	fresh chan struct{} // closed when link changes
	first chan struct{} // closed when the first list has come
}

// link is a connection, as long as it lasts.
type link struct {
	conn *ipc.Conn
	done chan struct{} // closed when it has ended

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]chan answer // room for one answer each
	gone    bool
}

type answer struct {
	signature []byte
	err       error
}

var (
	errGone = errors.New("keyd: connection lost")
	// ErrRefused is a request that qmail-keyd does not grant.
	ErrRefused = errors.New("keyd: refused")
)

// Connect takes over a link; one from before is closed. nil leaves none.
func (a *Agent) Connect(conn *ipc.Conn) {
	var l *link
	if conn != nil {
		l = &link{conn: conn, done: make(chan struct{}), waiting: map[uint32]chan answer{}}
	}
	a.mu.Lock()
	old := a.link
	a.link = l
	if a.fresh != nil {
		close(a.fresh)
		a.fresh = nil
	}
	a.mu.Unlock()
	if old != nil {
		old.conn.Close()
		<-old.done
	}
	if l != nil {
		go a.read(l)
	}
}

// firstTime is how long a server waits for its certificates before it serves without.
const firstTime = 2 * time.Second

// Partner is Connect as serve.Daemon wants it. The first time it waits for certificates, so that no client is told that
// there are none: links come before sockets.
func (a *Agent) Partner(name string, conn *ipc.Conn) {
	switch {
	case conn == nil:
		a.Connect(nil)
		return
	case name != Role:
		conn.Close()
		return
	}
	a.mu.Lock()
	first := a.first
	if first == nil {
		first = make(chan struct{})
		a.first = first
	}
	a.mu.Unlock()
	a.Connect(conn)
	select {
	case <-first:
	case <-time.After(firstTime):
	}
}

// arrived says that there has been a list.
func (a *Agent) arrived() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.first == nil {
		a.first = make(chan struct{})
	}
	select {
	case <-a.first:
	default:
		close(a.first)
	}
}

// read takes what qmail-keyd sends until the link ends.
func (a *Agent) read(l *link) {
	defer close(l.done)
	defer l.end()
	var list []Certificate
	for {
		f, err := l.conn.Read()
		if err != nil {
			return
		}
		if f.File != nil {
			f.File.Close()
		}
		switch f.Kind {
		case kindCertificate:
			c, err := a.certificate(f.Payload)
			if err != nil || len(list) == MaxCertificates {
				l.conn.Close() // whoever this is, it is not qmail-keyd
				return
			}
			list = append(list, c)
		case kindEnd:
			if a.Changed != nil {
				a.Changed(list)
			}
			a.arrived()
			list = nil
		case kindDone:
			if len(f.Payload) > maxSignature {
				l.give(f.Stream, answer{err: errGarbled})
				continue
			}
			l.give(f.Stream, answer{signature: append([]byte(nil), f.Payload...)})
		default:
			l.give(f.Stream, answer{err: fmt.Errorf("%w: %.100q", ErrRefused, f.Payload)})
		}
	}
}

func (a *Agent) certificate(payload []byte) (Certificate, error) {
	p, err := parsePublic(payload)
	if err != nil {
		return Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(p.chain[0])
	if err != nil {
		return Certificate{}, err
	}
	s := &signer{agent: a, id: p.id, public: leaf.PublicKey}
	return Certificate{Use: p.use, Prefer: p.prefer, Chain: p.chain, Leaf: leaf, Signer: s}, nil
}

// end fails all who wait.
func (l *link) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	for _, c := range l.waiting {
		c <- answer{err: errGone}
	}
	l.waiting = nil
}

func (l *link) give(stream uint32, r answer) {
	l.mu.Lock()
	c := l.waiting[stream]
	delete(l.waiting, stream)
	l.mu.Unlock()
	if c != nil { // else who asked has gone away
		c <- r
	}
}

// ask sends a request and waits for its answer.
func (l *link) ask(ctx context.Context, r request) ([]byte, error) {
	c := make(chan answer, 1)
	l.mu.Lock()
	if l.gone {
		l.mu.Unlock()
		return nil, errGone
	}
	l.last++
	stream := l.last
	l.waiting[stream] = c
	l.mu.Unlock()
	if err := l.conn.Send(kindSign, stream, appendRequest(make([]byte, 0, 128), r)); err != nil {
		l.give(stream, answer{})
		return nil, errGone
	}
	select {
	case r := <-c:
		return r.signature, r.err
	case <-ctx.Done():
		l.give(stream, answer{})
		return nil, ctx.Err()
	}
}

// current returns the link there is, and what tells of the next one.
func (a *Agent) current() (*link, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fresh == nil {
		a.fresh = make(chan struct{})
	}
	return a.link, a.fresh
}

// sign has something signed. A lost link costs time, not the signature: qmail-keyd is started again at once.
func (a *Agent) sign(r request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), signTime)
	defer cancel()
	for {
		l, fresh := a.current()
		if l != nil {
			signature, err := l.ask(ctx, r)
			if !errors.Is(err, errGone) {
				return signature, err
			}
		}
		select {
		case <-fresh:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// signer is a crypto.Signer whose key is elsewhere.
type signer struct {
	agent  *Agent
	id     ID
	public crypto.PublicKey
}

// Public is crypto.Signer's.
func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign is crypto.Signer's. Randomness is qmail-keyd's own.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	how, err := schemeOf(s.public, opts)
	if err != nil {
		return nil, err
	}
	r := request{id: s.id, scheme: how, hash: opts.HashFunc(), input: digest}
	if len(digest) > maxInput {
		return nil, errScheme
	}
	return s.agent.sign(r)
}

// Served are the certificates for servers, as package secure wants them.
func Served(list []Certificate) (served []secure.Certificate) {
	for _, c := range list {
		if c.Use == TLS {
			served = append(served, secure.Certificate{Chain: c.Chain, Leaf: c.Leaf, Signer: c.Signer, Prefer: c.Prefer})
		}
	}
	return served
}
