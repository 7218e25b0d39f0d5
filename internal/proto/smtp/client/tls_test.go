package client

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/tlspolicy"
	"qmail/internal/proto/sasl"
)

// authority signs certificates that pool believes.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certify makes a certificate for names that is good until a time.
func (a *authority) certify(t *testing.T, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until, DNSNames: names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// safe is a server with TLS.
type safe struct {
	config   *tls.Config // nil: no TLS
	starttls string      // reply to STARTTLS; "" is 220
	after    string      // said behind it, in plain text
	offer    string      // another line of the EHLO reply, in TLS
	plain    string      // and outside of it
	atOnce   bool
	users    sasl.Users
	broken   bool // ends the connection in the place of a handshake

	addr string
	mu   sync.Mutex
	log  []string // commands; those in TLS begin with a "*"
}

// start serves any number of connections.
func (s *safe) start(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); s.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
}

func (s *safe) serve(c net.Conn) {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	secure := false
	if s.atOnce {
		c, secure = tls.Server(c, s.config), true
	}
	r := bufio.NewReader(c)
	fmt.Fprint(c, "220 safe\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\r\n")
		mark := ""
		if secure {
			mark = "*"
		}
		s.mu.Lock()
		s.log = append(s.log, mark+line)
		s.mu.Unlock()
		switch verb, rest, _ := strings.Cut(line, " "); verb {
		case "EHLO", "LHLO":
			fmt.Fprint(c, "250-safe\r\n")
			more := s.plain
			if secure {
				more = s.offer
			} else if s.config != nil {
				fmt.Fprint(c, "250-STARTTLS\r\n")
			}
			if more != "" {
				fmt.Fprintf(c, "250-%s\r\n", more)
			}
			fmt.Fprint(c, "250 8BITMIME\r\n")
		case "STARTTLS":
			if s.starttls != "" {
				fmt.Fprint(c, s.starttls)
				continue
			}
			fmt.Fprint(c, "220 go\r\n"+s.after)
			if s.broken {
				return
			}
			c, secure = tls.Server(c, s.config), true
			r = bufio.NewReader(c)
		case "AUTH":
			if !s.auth(c, r, rest) {
				fmt.Fprint(c, "535 no\r\n")
				continue
			}
			fmt.Fprint(c, "235 yes\r\n")
		case "DATA":
			fmt.Fprint(c, "354 go\r\n")
			if _, err := readData(r); err != nil {
				return
			}
			fmt.Fprint(c, "250 taken\r\n")
		case "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		default:
			fmt.Fprint(c, "250 ok\r\n")
		}
	}
}

// auth is the server's side of an exchange, in the lines of RFC 4954.
func (s *safe) auth(c net.Conn, r *bufio.Reader, rest string) bool {
	mechanism, first, given := strings.Cut(rest, " ")
	var bindings []sasl.Binding
	if secure, ok := c.(*tls.Conn); ok {
		state := secure.ConnectionState()
		leaf, _ := x509.ParseCertificate(s.config.Certificates[0].Certificate[0])
		bindings = sasl.Bindings(&state, leaf)
	}
	x, err := sasl.NewServer(mechanism, bindings, s.users)
	if err != nil {
		return false
	}
	var response []byte
	if given {
		response, _ = base64.StdEncoding.DecodeString(strings.TrimPrefix(first, "="))
		if response == nil {
			response = []byte{}
		}
	}
	for {
		challenge, done, err := x.Next(response)
		if done || err != nil {
			return done && err == nil
		}
		fmt.Fprintf(c, "334 %s\r\n", base64.StdEncoding.EncodeToString(challenge))
		line, err := r.ReadString('\n')
		if err != nil || line == "*\r\n" {
			return false
		}
		response, _ = base64.StdEncoding.DecodeString(strings.TrimSuffix(line, "\r\n"))
	}
}

func (s *safe) saw() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, "|")
}

// send says hello and, if that went well, sends a message. What it returns is all that was said.
func (s *safe) send(t *testing.T, o Options) (*Conn, string) {
	t.Helper()
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	o.Hello, o.Timeout = "here.example", 5*time.Second
	c := New(nc, o)
	defer c.Quit()
	if r := c.Hello(); r.Letter != 0 {
		return c, string(r.Letter) + r.Text
	}
	r := c.Deliver(&Message{Sender: "a@here.example", Recipients: []string{"b@there.example"}, Body: Memory([]byte("secret\n"))})
	return c, r.Of(0)
}

// TestPolicies plays each policy with servers of all kinds.
func TestPolicies(t *testing.T) {
	a := newAuthority(t)
	ours := a.certify(t, time.Now().Add(time.Hour), "mx.there.example")
	other := a.certify(t, time.Now().Add(time.Hour), "mx.elsewhere.example")
	old := a.certify(t, time.Now().Add(-time.Hour), "mx.there.example")
	stranger := newAuthority(t).certify(t, time.Now().Add(time.Hour), "mx.there.example")
	print := fmt.Sprintf("sha256:%x", sha256.Sum256(ours.Certificate[0]))
	with := func(c tls.Certificate) *safe { return &safe{config: &tls.Config{Certificates: []tls.Certificate{c}}} }
	const sent = "K127.0.0.1 accepted message."
	for _, c := range []struct {
		name, policy string
		server       *safe
		want         string
		secure       bool // the message went in TLS
		plainNext    bool // or may be tried without
	}{
		{"none goes without, though it is offered", "none", with(ours), sent, false, false},
		{"may uses what is offered", "may", with(ours), sent, true, false},
		{"may believes anybody", "may", with(stranger), sent, true, false},
		{"may goes on without an offer", "may", &safe{}, sent, false, false},
		{"may goes on where STARTTLS is refused", "may", &safe{config: with(ours).config, starttls: "454 not now\r\n"}, sent, false, false},
		{"may asks for another connection after a broken handshake", "may", &safe{config: with(ours).config, broken: true}, "the TLS handshake failed", false, true},
		{"may does without a server that only knows the TLS of old", "may",
			&safe{config: &tls.Config{Certificates: []tls.Certificate{ours}, MaxVersion: tls.VersionTLS11}}, "the TLS handshake failed", false, true},
		{"bytes before the handshake are nobody's replies", "may", &safe{config: with(ours).config, after: "250 AUTH PLAIN\r\n"}, "spoke between STARTTLS and TLS", false, false},
		{"encrypt believes anybody", "encrypt", with(stranger), sent, true, false},
		{"encrypt waits for an offer", "encrypt", &safe{}, "does not offer TLS", false, false},
		{"encrypt defers where STARTTLS is refused for good", "encrypt", &safe{config: with(ours).config, starttls: "501 no\r\n"}, "refused TLS", false, false},
		{"encrypt defers after a broken handshake", "encrypt", &safe{config: with(ours).config, broken: true}, "the TLS handshake failed", false, false},
		{"verify takes the destination's own name and those below", "verify", with(ours), sent, true, false},
		{"verify takes a name in the policy", "verify .elsewhere.example", with(other), sent, true, false},
		{"verify takes no other name", "verify", with(other), "its certificate is for another name", false, false},
		{"verify takes no name that only begins alike", "verify mx.there.example.org", with(ours), "its certificate is for another name", false, false},
		{"verify takes no old certificate", "verify", with(old), "expired", false, false},
		{"verify takes no stranger's", "verify", with(stranger), "unknown authority", false, false},
		{"verify waits for an offer", "verify", &safe{}, "does not offer TLS", false, false},
		{"a fingerprint is enough", "fingerprint " + print, with(ours), sent, true, false},
		{"another fingerprint is not", "fingerprint " + print, with(stranger), "none of the fingerprints", false, false},
		{"TLS from the first byte on", "may", &safe{config: with(ours).config, atOnce: true}, sent, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			policy, err := tlspolicy.Parse(c.policy)
			if err != nil {
				t.Fatal(err)
			}
			c.server.start(t)
			conn, got := c.server.send(t, Options{Security: &Security{
				Policy: policy, Server: "mx.there.example", Names: []string{"there.example", ".there.example"}, Roots: a.pool, AtOnce: c.server.atOnce,
			}})
			if !strings.Contains(got, c.want) || c.want != sent && got[0] != 'Z' {
				t.Errorf("%q", got)
			}
			saw := c.server.saw()
			if in := strings.Contains(saw, "*MAIL"); in != c.secure {
				t.Errorf("in TLS: %v; %s", in, saw)
			}
			if c.want != sent && strings.Contains(saw, "MAIL") {
				t.Errorf("it went on: %s", saw)
			}
			if conn.StartTLSFailed() != c.plainNext {
				t.Errorf("plain next: %v", !c.plainNext)
			}
			if conn.Usable() && c.want != sent {
				t.Error("it is still used")
			}
		})
	}
}

// TestOffersBeforeTLSDoNotCount: what the server said before may have been said by somebody else.
func TestOffersBeforeTLSDoNotCount(t *testing.T) {
	a := newAuthority(t)
	s := &safe{plain: "SIZE 3", config: &tls.Config{Certificates: []tls.Certificate{a.certify(t, time.Now().Add(time.Hour), "x")}}}
	s.start(t)
	c, got := s.send(t, Options{Security: &Security{Policy: tlspolicy.Policy{Level: tlspolicy.May}}})
	if got[0] != 'K' {
		t.Errorf("%q", got)
	}
	state, verified := c.TLS()
	if state == nil || state.Version != tls.VersionTLS13 || verified {
		t.Errorf("%+v %v", state, verified)
	}
}

// one is the only user.
type one struct{ name, password string }

func (o one) Password(login, password string) error {
	if login == o.name && password == o.password {
		return nil
	}
	return sasl.ErrRefused
}

func (o one) Verifier(string, string) (sasl.Verifier, error) {
	return sasl.Verifier{}, sasl.ErrMechanism
}

func TestLogins(t *testing.T) {
	a := newAuthority(t)
	good := &tls.Config{Certificates: []tls.Certificate{a.certify(t, time.Now().Add(time.Hour), "relay.example")}}
	bad := &tls.Config{Certificates: []tls.Certificate{newAuthority(t).certify(t, time.Now().Add(time.Hour), "relay.example")}}
	users := one{"me", "correct horse"}
	for _, c := range []struct {
		name     string
		server   *safe
		password string
		want     string
		login    bool // the password went out
	}{
		{"PLAIN inside of TLS", &safe{config: good, offer: "AUTH PLAIN", users: users}, "correct horse", "Kaccepted", true},
		{"LOGIN inside of TLS", &safe{config: good, offer: "AUTH LOGIN", users: users}, "correct horse", "Kaccepted", true},
		{"offered in the way of old", &safe{config: good, offer: "AUTH=LOGIN", users: users}, "correct horse", "Kaccepted", true},
		{"a wrong password only defers", &safe{config: good, offer: "AUTH PLAIN", users: users}, "x", "Zlogin was rejected", true},
		{"never to a stranger", &safe{config: bad, offer: "AUTH PLAIN", users: users}, "correct horse", "Zunknown authority", false},
		{"never in plain text", &safe{plain: "AUTH PLAIN LOGIN CRAM-MD5", users: users}, "correct horse", "Zdoes not offer TLS", false},
		{"a server without logins", &safe{config: good, plain: "AUTH PLAIN", users: users}, "correct horse", "Zno way to log in", false},
		{"a server with unknown ones", &safe{config: good, offer: "AUTH NTLM", users: users}, "correct horse", "Zno way to log in", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.server.start(t)
			_, got := c.server.send(t, Options{Security: &Security{
				Policy: tlspolicy.Policy{Level: tlspolicy.May}, Server: "relay.example", Names: []string{"relay.example"}, Roots: a.pool,
				Login: &Login{"me", c.password},
			}})
			if got[0] != c.want[0] || !strings.Contains(got, c.want[1:]) {
				t.Errorf("%q", got)
			}
			saw := c.server.saw()
			if out := strings.Contains(saw, "AUTH "); out != c.login {
				t.Errorf("login: %v; %s", out, saw)
			}
			if got[0] != 'K' && strings.Contains(saw, "MAIL") {
				t.Errorf("it went on: %s", saw)
			}
		})
	}
}

// TestLMTP has a verdict for each recipient.
func TestLMTP(t *testing.T) {
	s := startSink(t, map[string]string{"rcpt2": "550 no such\r\n", "body": "250 first\r\n452 third is full\r\n552 fourth is too\r\n"})
	c := s.connect(t, Options{Hello: "here.example", Timeout: 5 * time.Second, LMTP: true})
	s.replies["lhlo"] = "250 ok\r\n"
	if r := c.Hello(); r.Letter != 0 {
		t.Fatalf("%+v", r)
	}
	r := c.Deliver(&Message{Recipients: []string{"1@x", "2@x", "3@x", "4@x"}, Body: Memory([]byte("m\n"))})
	var letters []string
	for i := range r.Recipients {
		letters = append(letters, r.Of(i)[:1])
	}
	if got := strings.Join(letters, ""); got != "KDZD" || !strings.Contains(r.Of(2), "third is full") || !strings.Contains(r.Of(3), "fourth") {
		t.Errorf("%s: %+v", got, r)
	}
	if !c.Usable() {
		t.Error("one message only")
	}
}

func TestLimitsOfTheServer(t *testing.T) {
	for _, c := range []struct {
		name, limits string
		rcpt2        string
		want         string // letters
		mails        int
		usable       bool
	}{
		{"no limit", "LIMITS", "", "KKKKK", 1, true},
		{"two recipients at a time", "LIMITS RCPTMAX=2", "", "KKKKK", 3, true},
		{"one of them refused", "LIMITS RCPTMAX=2", "550 no\r\n", "KDKKK", 3, true},
		{"so many messages", "LIMITS MAILMAX=1", "", "KKKKK", 1, false},
		{"both", "LIMITS RCPTMAX=2 MAILMAX=2", "", "KKKKZ", 2, false},
		{"nonsense", "LIMITS RCPTMAX=-1 MAILMAX= =", "", "KKKKK", 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			replies := map[string]string{"ehlo": "250-sink\r\n250 " + c.limits + "\r\n"}
			if c.rcpt2 != "" {
				replies["rcpt2"] = c.rcpt2
			}
			s := startSink(t, replies)
			conn := s.client(t)
			r := conn.Deliver(&Message{Recipients: []string{"1@x", "2@x", "3@x", "4@x", "5@x"}, Body: Memory([]byte("m\n"))})
			got := ""
			for i := range r.Recipients {
				got += r.Of(i)[:1]
			}
			mails := strings.Count(s.saw(), "MAIL FROM")
			if got != c.want || mails != c.mails || conn.Usable() != c.usable {
				t.Errorf("%s in %d, usable %v: %+v", got, mails, conn.Usable(), r)
			}
		})
	}
}

func TestAServerThatTakesNoMail(t *testing.T) {
	s := startSink(t, map[string]string{"greeting": "521 never\r\n"})
	if r := s.connect(t, Options{Hello: "h", Timeout: 5 * time.Second}).Hello(); r.Letter != 'D' || !strings.Contains(r.Text, "521 never") {
		t.Errorf("%+v", r)
	}
	if slices.Contains(strings.Split(s.saw(), "|"), "EHLO h") {
		t.Error("it went on")
	}
}
