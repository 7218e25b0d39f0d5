package sender

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/smtproute"
	"qmail/internal/format/tlspolicy"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/control"
	"qmail/internal/system/dns"
)

// relay is a server at 127.0.0.1 that may know TLS.
type relay struct {
	ln     net.Listener
	config *tls.Config
	broken bool // offers TLS and then does not want it

	mu  sync.Mutex
	log []string // "conn" for each connection, and commands; those in TLS begin with a "*"
}

func startRelay(t *testing.T, config *tls.Config) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, config: config}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); r.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return r
}

func (r *relay) note(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, s)
}

func (r *relay) story() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.log, " ")
	r.log = nil
	return s
}

func (r *relay) serve(c net.Conn) {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r.note("conn")
	in, mark := bufio.NewReader(c), ""
	say := func(s string) { io.WriteString(c, s+"\r\n") }
	say("220 relay")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if verb != "RSET" && verb != "QUIT" {
			r.note(mark + verb)
		}
		switch verb {
		case "EHLO", "LHLO":
			say("250-relay")
			if r.config != nil && mark == "" {
				say("250-STARTTLS")
			}
			say("250 8BITMIME")
		case "STARTTLS":
			say("220 go")
			if r.broken {
				return
			}
			c = tls.Server(c, r.config)
			in, mark = bufio.NewReader(c), "*"
		case "DATA":
			say("354 go")
			for line != ".\r\n" {
				if line, err = in.ReadString('\n'); err != nil {
					return
				}
			}
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

// certificate is for a name, signed by itself.
func certificate(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// silent is a DNS that is not asked.
type silent struct{ t *testing.T }

func (s silent) Prefetch(string, dns.Type) {}
func (s silent) Lookup(_ context.Context, name string, _ dns.Type) (dns.Answer, error) {
	s.t.Errorf("asked for %s", name)
	return dns.Answer{}, nil
}

// home makes control files.
func home(t *testing.T, files map[string]string) control.Dir {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, "control", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return control.Open(dir)
}

// through makes a sender whose connections all lead to r.
func through(t *testing.T, r *relay, roots *x509.CertPool, files map[string]string) *Sender {
	t.Helper()
	files["me"] = "here.example\n"
	c, err := Load(home(t, files), Strict)
	if err != nil {
		t.Fatal(err)
	}
	c.Safety.Roots = roots
	s := New(World{
		Resolver: silent{t}, Local: Local, Random: func(int) int { return 0 }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", r.ln.Addr().String())
		},
	})
	t.Cleanup(s.Close)
	s.Configure(c)
	return s
}

func post(s *Sender, domain string) string {
	r := s.Send(context.Background(), domain, &client.Message{Recipients: []string{"u@" + domain}, Body: client.Memory([]byte("m\n"))})
	return r.Of(0)
}

const (
	plainMail  = "conn EHLO MAIL RCPT DATA"
	secureMail = "conn EHLO STARTTLS *EHLO *MAIL *RCPT *DATA"
)

// TestWhatIsAskedForCounts: each destination has its policy, and an open connection is used only by those who ask the same.
func TestWhatIsAskedForCounts(t *testing.T) {
	cert, roots := certificate(t, "mx.good.example")
	r := startRelay(t, &tls.Config{Certificates: []tls.Certificate{cert}})
	s := through(t, r, roots, map[string]string{
		"smtproutes": ":[127.0.0.1]\n", "tlspolicy": "127.0.0.1:verify .good.example\n",
	})
	for i, want := range []string{secureMail, "*MAIL *RCPT *DATA"} {
		if got, story := post(s, "a.example"), r.story(); got[0] != 'K' || story != want {
			t.Errorf("%d: %q: %s", i, got, story)
		}
	}
	s2 := through(t, r, roots, map[string]string{
		"smtproutes": ":[127.0.0.1]\n", "tlspolicy": "127.0.0.1:verify .bad.example\n",
	})
	if got, story := post(s2, "a.example"), r.story(); got[0] != 'Z' || !strings.Contains(got, "another name") || strings.Contains(story, "MAIL") {
		t.Errorf("%q: %s", got, story)
	}
}

func TestConnectionsAreNotSharedAcrossPolicies(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:25")
	c := &Config{Safety: Safety{
		Policy: func(d string) tlspolicy.Policy {
			p, _ := tlspolicy.Parse(map[string]string{"n": "none", "e": "encrypt", "v": "verify", "w": "verify", "x": "verify .x"}[d])
			if d == "m" || d == "o" {
				p.Level = tlspolicy.May
			}
			return p
		},
		Login: func(host string, _ uint16) *client.Login {
			if host == "login" {
				return &client.Login{Name: "me"}
			}
			return nil
		},
	}}
	seen := map[place]string{}
	for _, d := range []string{"n", "m", "e", "v", "w", "x", "login"} {
		p := &Plan{}
		if d == "login" {
			p.Relay.Host = d
		}
		where := placeOf(at, c.security(p, d, smtproute.Target{Addr: at}), false)
		if other, taken := seen[where]; taken {
			t.Errorf("%s and %s share %v", d, other, where)
		}
		seen[where] = d
	}
	share := func(d string) place { return placeOf(at, c.security(&Plan{}, d, smtproute.Target{Addr: at}), false) }
	if share("m") != share("o") {
		t.Error("destinations without wishes do not share")
	}
}

// TestPlainTextIsForOneMessage: after a broken handshake, and the next begins with TLS again.
func TestPlainTextIsForOneMessage(t *testing.T) {
	cert, roots := certificate(t, "mx.good.example")
	r := startRelay(t, &tls.Config{Certificates: []tls.Certificate{cert}})
	r.broken = true
	s := through(t, r, roots, map[string]string{"smtproutes": ":[127.0.0.1]\n"})
	for range 2 {
		if got, story := post(s, "a.example"), r.story(); got[0] != 'K' || story != "conn EHLO STARTTLS "+plainMail {
			t.Errorf("%q: %s", got, story)
		}
	}
	s = through(t, r, roots, map[string]string{"smtproutes": ":[127.0.0.1]\n", "tlspolicy": ":encrypt\n"})
	if got, story := post(s, "a.example"), r.story(); got[0] != 'Z' || strings.Contains(story, "MAIL") {
		t.Errorf("%q: %s", got, story)
	}
}

func TestLMTPRoutes(t *testing.T) {
	r := startRelay(t, nil)
	s := through(t, r, nil, map[string]string{"lmtproutes": "a.example:[127.0.0.1]\n", "smtproutes": ":[127.0.0.1]\n"})
	if got, story := post(s, "a.example"), r.story(); got[0] != 'K' || story != "conn LHLO MAIL RCPT DATA" {
		t.Errorf("%q: %s", got, story)
	}
	if got, story := post(s, "b.example"), r.story(); got[0] != 'K' || story != plainMail {
		t.Errorf("%q: %s", got, story)
	}
	if e := s.Explain(context.Background(), "a.example"); e.Setting != "lmtproutes" || !e.LMTP || e.Targets[0].Addr.Port() != smtproute.LMTP {
		t.Errorf("%+v", e)
	}
}

func TestDestinations(t *testing.T) {
	for relay, want := range map[string]string{"": "d.example", ":26": "d.example", "relay.example": "relay.example", "[::1]:24": "::1"} {
		r, err := smtproute.ParseRelay(relay, 25)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Plan{Relay: r}).destination("d.example"); got != want {
			t.Errorf("%q: %q", relay, got)
		}
	}
}

func TestTLSComesFirstAtItsPort(t *testing.T) {
	for relay, want := range map[string]bool{"r.example:465": true, "r.example:587": false, ":465": false} {
		r, _ := smtproute.ParseRelay(relay, 25)
		s := (&Config{}).security(&Plan{Relay: r}, "d.example", smtproute.Target{Addr: netip.AddrPortFrom(netip.IPv6Loopback(), r.Port)})
		if s.AtOnce != want {
			t.Errorf("%s: %v", relay, s.AtOnce)
		}
	}
}

func TestSafetyIsReadStrictly(t *testing.T) {
	for _, c := range []struct{ file, text, want string }{
		{"tlspolicy", "a.example:may\nb.example:maybe\n", "tlspolicy: line 2: not one of"},
		{"tlspolicy", "a.example\n", "tlspolicy: line 1: there is no colon"},
		{"smtplogins", "relay.example me\n", "smtplogins: line 1: not a host"},
		{"smtplogins", "# none\n\nrelay.example\n", "smtplogins: line 3: not a host"},
	} {
		for _, care := range []Care{Strict, Classic} {
			_, err := Load(home(t, map[string]string{"me": "x\n", c.file: c.text}), care)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s %q: %v", c.file, c.text, err)
			}
		}
	}
}

func TestLoginsAreForOurEyes(t *testing.T) {
	dir := home(t, map[string]string{"smtplogins": "Relay.example:587 me correct horse: battery\nrelay.example\tyou\tx\n"})
	s, err := LoadSafety(dir)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{"relay.example 587": "me correct horse: battery", "RELAY.example 25": "you x", "other.example 25": ""} {
		var host string
		var port uint16
		fmt.Sscan(at, &host, &port)
		got := ""
		if l := s.Login(host, port); l != nil {
			got = l.Name + " " + l.Password
		}
		if got != want {
			t.Errorf("%s: %q", at, got)
		}
	}
	if err := os.Chmod(dir.Path("smtplogins"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSafety(dir); err == nil || !strings.Contains(err.Error(), "smtplogins: it is readable by everybody") {
		t.Errorf("%v", err)
	}
}
