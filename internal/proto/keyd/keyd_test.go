package keyd

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/system/ipc"
	"qmail/internal/system/secure"
)

// keyOf makes a key of a kind, with a certificate for host, as a Key for use.
func keyOf(t testing.TB, kind, host string, use Use) Key {
	t.Helper()
	var signer crypto.Signer
	var err error
	switch kind {
	case "rsa":
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case "p256":
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ed25519":
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	id, err := IDOf(signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	return Key{ID: id, Use: use, Signer: signer, Chain: [][]byte{der}}
}

// site is a server and an agent linked to it, as the supervisor would.
type site struct {
	t      testing.TB
	server Server
	agent  Agent
	lists  chan []Certificate
	serves sync.WaitGroup
}

func newSite(t testing.TB, keys ...Key) *site {
	s := &site{t: t, lists: make(chan []Certificate, 10)}
	s.server.Replace(keys)
	s.agent.Changed = func(list []Certificate) { s.lists <- list }
	t.Cleanup(func() { s.agent.Connect(nil); s.serves.Wait() })
	return s
}

var all = Rights{Uses: "t", Rate: 1 << 20}

// link gives both a new link, and returns keyd's end.
func (s *site) link(rights Rights) *ipc.Conn {
	s.t.Helper()
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		s.t.Fatal(err)
	}
	s.serves.Go(func() { s.server.Serve(context.Background(), theirs, "smtpd", rights) })
	s.agent.Connect(ours)
	return theirs
}

func (s *site) list() []Certificate {
	s.t.Helper()
	select {
	case list := <-s.lists:
		return list
	case <-time.After(10 * time.Second):
		s.t.Fatal("no certificates come")
		return nil
	}
}

func TestSignaturesAreThoseOfTheKey(t *testing.T) {
	message := []byte("to be signed")
	d256, d384, d512 := sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	pssWith := func(h crypto.Hash) crypto.SignerOpts {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	tests := []struct {
		name, kind string
		digest     []byte
		opts       crypto.SignerOpts
		ok         bool
	}{
		{"RSA, PKCS #1", "rsa", d256[:], crypto.SHA256, true},
		{"RSA, PKCS #1, SHA-512", "rsa", d512[:], crypto.SHA512, true},
		{"RSA, PSS", "rsa", d384[:], pssWith(crypto.SHA384), true},
		{"RSA, PSS with another salt", "rsa", d256[:], &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}, false},
		{"RSA, SHA-1", "rsa", make([]byte, 20), crypto.SHA1, false},
		{"RSA, bytes without a hash", "rsa", d256[:], crypto.Hash(0), false},
		{"ECDSA with P-256", "p256", d256[:], crypto.SHA256, true},
		{"ECDSA with P-384", "p384", d384[:], crypto.SHA384, true},
		{"ECDSA, a digest that is too short", "p256", d256[:31], crypto.SHA256, false},
		{"Ed25519", "ed25519", message, crypto.Hash(0), true},
		{"Ed25519, hashed before", "ed25519", d512[:], crypto.SHA512, false},
		{"Ed25519, with a context", "ed25519", message, &ed25519.Options{Context: "x"}, false},
		{"Ed25519, too long for anything of TLS", "ed25519", make([]byte, maxInput+1), crypto.Hash(0), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, keyOf(t, tt.kind, "a.example", TLS))
			s.link(all)
			c := s.list()[0]
			signature, err := c.Signer.Sign(rand.Reader, tt.digest, tt.opts)
			if (err == nil) != tt.ok {
				t.Fatal(err)
			}
			if err == nil && !verifies(c.Signer.Public(), tt.digest, signature, tt.opts) {
				t.Error("the signature is wrong")
			}
		})
	}
}

func verifies(public crypto.PublicKey, digest, signature []byte, opts crypto.SignerOpts) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if o, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(k, o.Hash, digest, signature, o) == nil
		}
		return rsa.VerifyPKCS1v15(k, opts.HashFunc(), digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, signature)
	}
	return false
}

func TestHandshakesWithAKeyElsewhere(t *testing.T) {
	for _, kind := range []string{"rsa", "p256", "p384", "ed25519"} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(kind+" "+tls.VersionName(version), func(t *testing.T) {
				s := newSite(t, keyOf(t, kind, "a.example", TLS))
				s.link(all)
				v := &secure.Server{Settings: func() secure.Settings { return secure.Settings{Time: time.Minute} }}
				list := s.list()
				v.Use(Served(list))
				roots := x509.NewCertPool()
				roots.AddCert(list[0].Leaf)
				if err := shake(t, v, &tls.Config{RootCAs: roots, ServerName: "a.example", MinVersion: version, MaxVersion: version}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func shake(t testing.TB, v *secure.Server, config *tls.Config) error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	client := make(chan error, 1)
	go func() {
		err := tls.Client(a, config).Handshake()
		if err != nil {
			a.Close()
		}
		client <- err
	}()
	_, _, err := v.Handshake(t.Context(), b, false)
	if err != nil {
		b.Close()
	}
	return errors.Join(<-client, err)
}

func TestARoleHasItsOwnRightsOnly(t *testing.T) {
	mail, dkim := keyOf(t, "p256", "a.example", TLS), keyOf(t, "p256", "dkim.example", DKIM)
	s := newSite(t, mail, dkim)
	var notes []string
	s.server.Note = func(peer, why string) { notes = append(notes, peer+": "+why) }
	s.link(all)
	list := s.list()
	if len(list) != 1 || list[0].Leaf.DNSNames[0] != "a.example" {
		t.Fatalf("it is shown %d certificates", len(list))
	}
	stolen := &signer{agent: &s.agent, id: dkim.ID, public: dkim.Signer.Public()}
	digest := sha256.Sum256(nil)
	if _, err := stolen.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), notYours) {
		t.Errorf("a key for another use: %v", err)
	}
	other := &signer{agent: &s.agent, id: mail.ID, public: ed25519.PublicKey(make([]byte, 32))}
	if _, err := other.Sign(nil, []byte("x"), crypto.Hash(0)); !errors.Is(err, ErrRefused) {
		t.Errorf("a key of another kind: %v", err)
	}
	if _, err := list[0].Signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("and then its own: %v", err)
	}
	s.agent.Connect(nil)
	s.serves.Wait()
	if want := []string{"smtpd: " + notYours, "smtpd: " + cannot}; len(notes) != 2 || notes[0] != want[0] || notes[1] != want[1] {
		t.Errorf("noted: %q", notes)
	}
}

func TestARoleThatAsksTooMuchIsRefused(t *testing.T) {
	b := bucket{rate: 10, left: 10, last: time.Unix(0, 0)}
	granted := func(at float64, n int) (got int) {
		for range n {
			if b.take(time.Unix(0, int64(at*1e9))) {
				got++
			}
		}
		return got
	}
	for _, tt := range []struct {
		at       float64
		ask, got int
	}{{0, 20, 10}, {0.05, 5, 0}, {0.1, 5, 1}, {0.5, 100, 4}, {100, 100, 10}} {
		if got := granted(tt.at, tt.ask); got != tt.got {
			t.Errorf("at %v: %d of %d, wanted %d", tt.at, got, tt.ask, tt.got)
		}
	}
	s := newSite(t, keyOf(t, "p256", "a.example", TLS))
	s.link(Rights{Uses: "t", Rate: 1})
	c := s.list()[0]
	refused := 0
	for range 50 { // one a second: fifty take less than that
		digest := sha256.Sum256(nil)
		if _, err := c.Signer.Sign(nil, digest[:], crypto.SHA256); errors.Is(err, ErrRefused) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("there is no limit")
	}
}

func TestChangedKeysAreToldToAllWhoHaveAUseForThem(t *testing.T) {
	one, two := keyOf(t, "p256", "one.example", TLS), keyOf(t, "p256", "two.example", TLS)
	s := newSite(t, one)
	s.link(all)
	old := s.list()[0]
	two.Prefer = true
	s.server.Replace([]Key{one, two})
	list := s.list()
	if len(list) != 2 || list[0].Prefer || !list[1].Prefer || list[1].Leaf.DNSNames[0] != "two.example" {
		t.Fatalf("%+v", list)
	}
	digest := sha256.Sum256(nil)
	if _, err := old.Signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("who has begun with the old list: %v", err)
	}
	s.server.Replace(nil)
	if list := s.list(); len(list) != 0 {
		t.Errorf("%d are left", len(list))
	}
	if _, err := old.Signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("who has begun with the key of a moment ago: %v", err)
	}
	now := time.Now()
	if s.server.find(one.ID, now.Add(fadeTime-time.Second)) == nil || s.server.find(one.ID, now.Add(2*fadeTime)) != nil {
		t.Error("a key that was taken away does not go, or goes too soon")
	}
	s.server.mu.Lock()
	s.server.fade(now.Add(2 * fadeTime))
	s.server.mu.Unlock()
	if len(s.server.gone) != 0 {
		t.Errorf("%d keys are kept for nothing", len(s.server.gone))
	}
}

func TestALostLinkCostsTimeAndNoSignature(t *testing.T) {
	s := newSite(t, keyOf(t, "p256", "a.example", TLS))
	theirs := s.link(all)
	c := s.list()[0]
	theirs.Close()
	done := make(chan error, 1)
	go func() {
		digest := sha256.Sum256(nil)
		_, err := c.Signer.Sign(nil, digest[:], crypto.SHA256)
		done <- err
	}()
	s.link(all)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAServerWaitsForItsFirstCertificates(t *testing.T) {
	s := newSite(t, keyOf(t, "p256", "a.example", TLS))
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	s.serves.Go(func() { s.server.Serve(context.Background(), theirs, "smtpd", all) })
	s.agent.Partner(Role, ours)
	if len(s.lists) != 1 {
		t.Error("it did not wait")
	}
	stray, end, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	s.agent.Partner("stranger", stray)
	if _, err := end.Read(); err == nil {
		t.Error("a link to somebody else is kept")
	}
}

func TestManySignaturesAtOnce(t *testing.T) {
	s := newSite(t, keyOf(t, "p256", "a.example", TLS))
	s.link(all)
	c := s.list()[0]
	var work sync.WaitGroup
	for i := range 500 {
		work.Go(func() {
			digest := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
			signature, err := c.Signer.Sign(nil, digest[:], crypto.SHA256)
			if err != nil || !verifies(c.Signer.Public(), digest[:], signature, crypto.SHA256) {
				t.Errorf("%d: %v, or the signature of another", i, err)
			}
		})
	}
	work.Wait()
}

func TestAnAgentBelievesNobodyWhoSendsNonsense(t *testing.T) {
	for name, send := range map[string]func(c *ipc.Conn) error{
		"no certificate":    func(c *ipc.Conn) error { return c.Send(kindCertificate, 0, []byte("x")) },
		"no chain":          func(c *ipc.Conn) error { return c.Send(kindCertificate, 0, make([]byte, 34)) },
		"a chain of zeroes": func(c *ipc.Conn) error { return c.Send(kindCertificate, 0, make([]byte, 60)) },
	} {
		ours, theirs, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		var a Agent
		a.Connect(ours)
		if err := send(theirs); err != nil {
			t.Fatal(err)
		}
		theirs.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := theirs.Read(); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		a.Connect(nil)
		theirs.Close()
	}
}

// FuzzRequest: what is taken for a request is written just like that.
func FuzzRequest(f *testing.F) {
	digest := sha256.Sum256(nil)
	f.Add(appendRequest(nil, request{scheme: ec, hash: crypto.SHA256, input: digest[:]}))
	f.Add(appendRequest(nil, request{scheme: ed, input: []byte("x")}))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := parseRequest(in)
		if err != nil {
			return
		}
		if !bytes.Equal(appendRequest(nil, r), in) {
			t.Errorf("%x is a second spelling", in)
		}
		if len(r.input) > maxInput {
			t.Errorf("%d bytes are to be signed", len(r.input))
		}
	})
}

// FuzzPublic is the same for certificates.
func FuzzPublic(f *testing.F) {
	f.Add(appendPublic(nil, public{use: TLS, prefer: true, chain: [][]byte{{1, 2}, {3}}}))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parsePublic(in)
		if err == nil && !bytes.Equal(appendPublic(nil, p), in) {
			t.Errorf("%x is a second spelling", in)
		}
	})
}

// FuzzServe: whatever a role sends, it gets no signature that it has no right to, and the next one is served.
func FuzzServe(f *testing.F) {
	secret := keyOf(f, "ed25519", "dkim.example", DKIM)
	f.Add(byte('S'), appendRequest(nil, request{id: secret.ID, scheme: ed, input: []byte("x")}))
	f.Add(byte('Q'), []byte{})
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		ours, theirs, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		var v Server
		v.Replace([]Key{secret})
		ended := make(chan error, 1)
		go func() { ended <- v.Serve(context.Background(), theirs, "smtpd", all) }()
		for range 2 {
			if err := ours.Send(kind, 7, payload); err != nil {
				t.Skip("too large for a frame")
			}
		}
		ours.SetReadDeadline(time.Now().Add(10 * time.Second))
		for answers := 0; answers < 2; {
			f, err := ours.Read()
			switch {
			case err != nil:
				t.Fatal(err)
			case f.Kind == kindEnd || f.Kind == kindCertificate:
			case f.Kind == kindDone:
				t.Fatal("signed")
			default:
				answers++
			}
		}
		ours.Close()
		<-ended
	})
}
