package secure

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
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// certificate makes one for names, with an ECDSA key unless given another.
func certificate(t testing.TB, key crypto.Signer, names ...string) Certificate {
	t.Helper()
	var err error
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Certificate{Chain: [][]byte{der}, Leaf: leaf, Signer: key}
}

func newServer(s Settings, list ...Certificate) *Server {
	v := &Server{Settings: func() Settings { return s }}
	v.Use(list)
	return v
}

// connect makes a connection with room for what one side says before the other listens, as a pipe has not.
func connect(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// meet lets a client and v shake hands, and returns both ends.
func meet(t *testing.T, v *Server, config *tls.Config, resume bool) (client, server *tls.Conn, state *State, clientErr, serverErr error) {
	t.Helper()
	a, b := connect(t)
	client = tls.Client(a, config)
	done := make(chan error, 1)
	go func() {
		err := client.Handshake()
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	server, state, serverErr = v.Handshake(t.Context(), b, resume)
	if serverErr != nil {
		b.Close()
	}
	return client, server, state, <-done, serverErr
}

func anybody() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func TestTheCertificateIsThatOfTheNameAskedFor(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	preferred := certificate(t, nil, "default.example")
	preferred.Prefer = true
	v := newServer(Settings{Time: time.Minute},
		certificate(t, nil, "a.example", "*.a.example"), certificate(t, nil, "b.example"), certificate(t, key, "B.example"), preferred)
	tests := []struct {
		name, asked string
		change      func(*tls.Config)
		want        string
		rsa         bool
	}{
		{"a name", "b.example", nil, "b.example", false},
		{"a name in capitals", "A.EXAMPLE", nil, "a.example", false},
		{"a name under a star", "mx.a.example", nil, "a.example", false},
		{"a name too deep for the star", "x.mx.a.example", nil, "default.example", false},
		{"a name that nobody has", "c.example", nil, "default.example", false},
		{"no name", "", nil, "default.example", false},
		{"a client that knows RSA only", "b.example", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
		}, "B.example", true},
		{"a client that knows RSA only and asks for an unknown name", "c.example", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
		}, "B.example", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			config := anybody()
			config.ServerName = tt.asked
			if tt.change != nil {
				tt.change(config)
			}
			client, _, state, err1, err2 := meet(t, v, config, false)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			leaf := client.ConnectionState().PeerCertificates[0]
			if got := leaf.DNSNames[0]; got != tt.want {
				t.Errorf("got that of %s, wanted %s", got, tt.want)
			}
			if _, isRSA := leaf.PublicKey.(*rsa.PublicKey); isRSA != tt.rsa {
				t.Errorf("the key is a %T", leaf.PublicKey)
			}
			if !leaf.Equal(state.Own) {
				t.Error("the state names another certificate")
			}
		})
	}
}

func TestWhatIsAgreed(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v := newServer(Settings{Time: time.Minute}, certificate(t, nil, "a.example"))
	edServer := newServer(Settings{Time: time.Minute}, certificate(t, ed, "a.example"))
	tests := []struct {
		name   string
		v      *Server
		change func(*tls.Config)
		want   string // the clause, or a prefix; empty for a failed handshake
	}{
		{"the hybrid curve comes first", v, func(*tls.Config) {}, "(TLS 1.3) tls TLS_"},
		{"a client without it", v, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, "(TLS 1.3) tls TLS_"},
		{"TLS 1.2", v, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "(TLS 1.2) tls TLS_ECDHE_ECDSA_WITH_"},
		{"an Ed25519 key", edServer, func(*tls.Config) {}, "(TLS 1.3) tls TLS_"},
		{"an Ed25519 key with TLS 1.2", edServer, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "(TLS 1.2) tls TLS_ECDHE_ECDSA_WITH_"},
		{"TLS 1.1", v, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			config := anybody()
			tt.change(config)
			client, _, state, _, err := meet(t, tt.v, config, false)
			if (err == nil) != (tt.want != "") {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			clause := state.Clause()
			group := tls.X25519MLKEM768
			if config.CurvePreferences != nil {
				group = tls.X25519
			}
			if config.MaxVersion == tls.VersionTLS12 {
				group = tls.X25519
			}
			if !strings.HasPrefix(clause, tt.want) || !strings.HasSuffix(clause, " group "+group.String()) {
				t.Errorf("%s", clause)
			}
			for _, kind := range []string{"tls-exporter", "tls-server-end-point", "tls-unique"} {
				theirs, there := (&State{ConnectionState: client.ConnectionState(), Own: client.ConnectionState().PeerCertificates[0]}).Binding(kind)
				ours, here := state.Binding(kind)
				if (there == nil) != (here == nil) || !bytes.Equal(ours, theirs) || here == nil && len(ours) == 0 {
					t.Errorf("%s: %x %v here, %x %v there", kind, ours, here, theirs, there)
				}
				if (kind == "tls-unique") == (here == nil) && state.Version == tls.VersionTLS13 {
					t.Errorf("%s: %v", kind, here)
				}
			}
		})
	}
}

func TestTheEndPointIsTheHashOfTheCertificate(t *testing.T) {
	c := certificate(t, nil, "a.example")
	sum := sha256.Sum256(c.Leaf.Raw)
	got, err := (&State{Own: c.Leaf}).Binding("tls-server-end-point")
	if err != nil || !bytes.Equal(got, sum[:]) {
		t.Errorf("%x %v", got, err)
	}
	var none *State
	if _, err := none.Binding("tls-exporter"); err == nil {
		t.Error("outside TLS there is a binding")
	}
	if none.Clause() != "" || none.Client() != nil {
		t.Error("outside TLS there is something to say of it")
	}
}

func TestSessionTicketsAreForThoseWhoMayComeBack(t *testing.T) {
	for _, resume := range []bool{false, true} {
		for _, clients := range []bool{false, true} {
			v := newServer(Settings{Time: time.Minute, Clients: clients}, certificate(t, nil, "a.example"))
			config := anybody()
			config.ClientSessionCache, config.ServerName = tls.NewLRUClientSessionCache(1), "a.example"
			for i := range 2 {
				client, server, state, err1, err2 := meet(t, v, config, resume)
				if err1 != nil || err2 != nil {
					t.Fatal(err1, err2)
				}
				if want := resume && i == 1; state.DidResume != want {
					t.Errorf("tickets %v, visit %d: resumed is %v", resume, i+1, state.DidResume)
				}
				go server.Write([]byte("x")) // the ticket comes before it
				if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestWithoutACertificateNobodyIsKeptWaiting(t *testing.T) {
	v := newServer(Settings{Time: time.Minute})
	if v.Ready() {
		t.Error("it is ready")
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := v.Handshake(t.Context(), b, false); err != errNone {
		t.Error(err)
	}
}

func TestAHandshakeHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newServer(Settings{Time: 20 * time.Second}, certificate(t, nil, "a.example"))
		for _, slowly := range []bool{false, true} {
			a, b := net.Pipe()
			go func() { // a client that sends a byte now and then of a record that would take hours
				for slowly {
					if _, err := a.Write([]byte{0x16}); err != nil {
						return
					}
					time.Sleep(5 * time.Second)
				}
			}()
			began := time.Now()
			_, _, err := v.Handshake(t.Context(), b, false)
			if took := time.Since(began); err == nil || took > 20*time.Second {
				t.Errorf("%v after %v", err, took)
			}
			a.Close()
			b.Close()
			time.Sleep(time.Minute) // the client sees it
		}
		if v.under.Len() != 0 {
			t.Errorf("%d are under way", v.under.Len())
		}
	})
}

func TestTheEndOfTheServerEndsAHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newServer(Settings{Time: time.Hour}, certificate(t, nil, "a.example"))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		began := time.Now()
		if _, _, err := v.Handshake(ctx, b, false); err == nil || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestWhoHoldsTheDoorLosesItToWhoComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newServer(Settings{Time: time.Hour, HalfOpen: 3}, certificate(t, nil, "a.example"))
		var mu sync.Mutex
		var ended []int
		var all sync.WaitGroup
		for i := range 10 {
			a, b := net.Pipe()
			all.Go(func() {
				_, _, err := v.Handshake(t.Context(), b, false)
				mu.Lock()
				defer mu.Unlock()
				if err == errCrowded {
					ended = append(ended, i)
				}
			})
			synctest.Wait()
			defer a.Close()
		}
		if len(ended) != 7 || ended[0] != 0 || ended[6] != 6 {
			t.Errorf("%v had to go", ended)
		}
		if _, _, _, err1, err2 := meet(t, v, anybody(), false); err1 != nil || err2 != nil {
			t.Errorf("who means it is not let in: %v, %v", err1, err2)
		}
		v.mu.Lock()
		for e := v.under.Front(); e != nil; e = e.Next() {
			e.Value.(*wire).cut()
		}
		v.mu.Unlock()
		all.Wait()
	})
}

func TestAClientsCertificateIsAskedForOnlyIfSomebodyCares(t *testing.T) {
	theirs := certificate(t, nil, "client.example")
	for _, asked := range []bool{false, true} {
		v := newServer(Settings{Time: time.Minute, Clients: asked}, certificate(t, nil, "a.example"))
		config := anybody()
		config.Certificates = []tls.Certificate{{Certificate: theirs.Chain, PrivateKey: theirs.Signer}}
		_, _, state, err1, err2 := meet(t, v, config, false)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if got := state.Client(); (got != nil) != asked || asked && !got.Equal(theirs.Leaf) {
			t.Errorf("asked %v, got %v", asked, got)
		}
		if _, _, _, err1, err2 := meet(t, v, anybody(), false); err1 != nil || err2 != nil {
			t.Errorf("asked %v: a client without one is not let in: %v %v", asked, err1, err2)
		}
	}
}

// FuzzHandshake: whatever a client sends, a handshake ends, with an error unless it was one.
func FuzzHandshake(f *testing.F) {
	v := newServer(Settings{Time: 50 * time.Millisecond}, certificate(f, nil, "a.example"))
	f.Add([]byte("EHLO x\r\n"))
	f.Add([]byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3})
	f.Add([]byte{0x80, 0x2e, 1, 0, 2})
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := net.Pipe()
		defer b.Close()
		go io.Copy(io.Discard, a)
		go func() { a.Write(in); a.Close() }()
		if _, _, err := v.Handshake(t.Context(), b, false); err == nil {
			t.Errorf("%x is a whole handshake", in)
		}
	})
}
