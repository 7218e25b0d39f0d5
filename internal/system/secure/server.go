package secure

import (
	"container/list"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Certificate is a certificate that we can show.
type Certificate struct {
	Chain  [][]byte
	Leaf   *x509.Certificate
	Signer crypto.Signer // it may be elsewhere
	Prefer bool          // it counts where no name fits
}

// Stream is a connection, or two descriptors that make one.
type Stream interface {
	io.Reader
	io.Writer
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Settings are what control files say.
type Settings struct {
	Time    time.Duration // for a handshake
	Clients bool          // ask clients for a certificate; none is needed, and who asks has to look at it
	// HalfOpen is how many handshakes may be under way. One more ends the oldest.
	HalfOpen int
}

// Server shakes hands with clients. The zero value has no certificate yet; Settings must be set.
type Server struct {
	Settings func() Settings

	shown   atomic.Pointer[shown]
	mu      sync.Mutex
	under   list.List // of *wire: the handshakes under way, the oldest first
	once    sync.Once
	configs [4]*tls.Config
}

var (
	errNone    = errors.New("no certificate to show")
	errCrowded = errors.New("too many handshakes at a time")
	errTooSlow = errors.New("handshake timeout")
)

// Use takes over a list of certificates, for handshakes to come.
func (v *Server) Use(list []Certificate) { v.shown.Store(newShown(list)) }

// Ready reports whether there is a certificate to show.
func (v *Server) Ready() bool { s := v.shown.Load(); return s != nil && len(s.all) > 0 }

// Handshake begins TLS on a connection, of which nothing has been read that was not asked for. resume says that
// clients may come back by a session ticket. It returns after Settings.Time, or when ctx ends, at the latest; the
// deadlines of the stream are then the caller's to set.
func (v *Server) Handshake(ctx context.Context, stream Stream, resume bool) (*tls.Conn, *State, error) {
	certificates := v.shown.Load()
	if certificates == nil || len(certificates.all) == 0 {
		return nil, nil, errNone
	}
	settings := v.Settings()
	w := &wire{Stream: stream, shown: certificates}
	w.deadline(time.Now().Add(settings.Time))
	v.enter(w, settings.HalfOpen)
	defer v.leave(w)
	defer context.AfterFunc(ctx, w.cut)()
	c := tls.Server(w, v.config(settings, resume))
	if err := shake(c); err != nil {
		switch {
		case w.crowded.Load():
			err = errCrowded
		case isTimeout(err):
			err = errTooSlow
		}
		return nil, nil, err
	}
	w.shown = nil
	return c, &State{ConnectionState: c.ConnectionState(), Own: w.own}, nil
}

// shake shakes hands in a goroutine of its own. It takes a deep stack, which is then gone at once; that of a session
// would keep it.
func shake(c *tls.Conn) error {
	done := make(chan error, 1)
	go func() { done <- c.HandshakeContext(context.Background()) }()
	return <-done
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// enter notes a handshake, and ends the oldest one if there are too many: a client that means it needs a few round
// trips, so that who loses is one of those who only hold the door.
func (v *Server) enter(w *wire, most int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if most > 0 && v.under.Len() >= most {
		oldest := v.under.Front()
		v.under.Remove(oldest)
		victim := oldest.Value.(*wire)
		victim.crowded.Store(true)
		victim.cut()
	}
	w.place = v.under.PushBack(w)
}

func (v *Server) leave(w *wire) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.under.Remove(w.place) // does nothing if it is out already
}

// config is one of four; each seals session tickets with keys of its own, which live as long as this process.
func (v *Server) config(s Settings, resume bool) *tls.Config {
	v.once.Do(func() {
		for i := range v.configs {
			v.configs[i] = newConfig(i&1 != 0, i&2 != 0)
		}
	})
	i := 0
	if resume {
		i |= 1
	}
	if s.Clients {
		i |= 2
	}
	return v.configs[i]
}

// newConfig leaves curves and ciphers to crypto/tls: X25519MLKEM768 comes first, and all of them keep secret today what
// is found out of a key tomorrow.
func newConfig(resume, clients bool) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: choose, SessionTicketsDisabled: !resume}
	if clients {
		c.ClientAuth = tls.RequestClientCert
	}
	return c
}

// choose finds the certificate for a client, and notes which one it was.
func choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	w, ok := hello.Conn.(*wire)
	if !ok || w.shown == nil {
		return nil, errNone
	}
	c := w.shown.choose(hello)
	w.own = c.Leaf
	return c, nil
}

// wire is what TLS takes a connection for.
type wire struct {
	Stream
	shown   *shown
	own     *x509.Certificate
	place   *list.Element
	crowded atomic.Bool
}

// cut ends what goes on at the connection.
func (w *wire) cut() { w.deadline(time.Unix(1, 0)) }

func (w *wire) deadline(t time.Time) {
	w.SetReadDeadline(t) // a stream that has no deadlines never waits long
	w.SetWriteDeadline(t)
}

// What follows is for net.Conn. Closing the connection is up to who has it.
func (w *wire) Close() error         { return nil }
func (w *wire) LocalAddr() net.Addr  { return nowhere{} }
func (w *wire) RemoteAddr() net.Addr { return nowhere{} }
func (w *wire) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}

type nowhere struct{}

func (nowhere) Network() string { return "stream" }
func (nowhere) String() string  { return "" }

// shown are the certificates that there are to show, by the names in them.
type shown struct {
	all    []*tls.Certificate
	prefer []*tls.Certificate // where no name fits
	names  map[string][]*tls.Certificate
}

func newShown(list []Certificate) *shown {
	s := &shown{names: map[string][]*tls.Certificate{}}
	for _, c := range list {
		t := &tls.Certificate{Certificate: c.Chain, PrivateKey: c.Signer, Leaf: c.Leaf}
		s.all = append(s.all, t)
		if c.Prefer {
			s.prefer = append(s.prefer, t)
		}
		for _, name := range c.Leaf.DNSNames {
			name = lower(name)
			s.names[name] = append(s.names[name], t)
		}
	}
	return s
}

// choose takes the first certificate that fits the name which the client asks for, or the star over it, and its
// algorithms; then one that is preferred, and then any.
func (s *shown) choose(hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(s.all) == 1 {
		return s.all[0]
	}
	name := lower(strings.TrimSuffix(hello.ServerName, "."))
	lists := [][]*tls.Certificate{s.names[name], nil, s.prefer, s.all}
	if _, parent, ok := strings.Cut(name, "."); ok {
		lists[1] = s.names["*."+parent]
	}
	// SupportsCertificate would look at the name, too, and a client without a fitting one gets what there is.
	nameless := *hello
	nameless.ServerName = ""
	for _, list := range lists {
		for _, c := range list {
			if nameless.SupportsCertificate(c) == nil {
				return c
			}
		}
	}
	return s.all[0]
}

// lower folds ASCII letters.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
