package smtpd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/proto/keyd"
	"qmail/internal/store/keys"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// secure gives a running role a keeper of keys, with one for mx.test.example.
func (r *running) secure(t *testing.T) {
	t.Helper()
	text, err := keys.SelfSigned("mx.test.example", time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(keys.Dir(r.home), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(keys.Dir(r.home), "mx.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	pairs, troubles, err := keys.Load(r.home)
	if err != nil || len(pairs) != 1 {
		t.Fatal(err, troubles)
	}
	id, err := keyd.IDOf(pairs[0].Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	server := &keyd.Server{}
	server.Replace([]keyd.Key{{ID: id, Use: keyd.TLS, Signer: pairs[0].Key, Chain: pairs[0].Chain}})
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(context.Background(), theirs, "smtpd", keyd.Rights{Uses: "t", Rate: 1 << 20})
	t.Cleanup(func() { theirs.Close() })
	r.order(env.Order{Kind: env.Link, Name: keyd.Role, Link: ours})
}

// listen opens one more door and returns its address.
func (r *running) listen(t *testing.T, service string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.order(env.Order{Kind: env.Listen, Name: service, Listener: ln})
	return ln.Addr().String()
}

func anyServer() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// startTLS goes on inside TLS.
func (c *talk) startTLS(config *tls.Config) *tls.Conn {
	c.t.Helper()
	c.expect("220 2.0.0 ready for TLS", "STARTTLS\r\n", 1)
	conn := tls.Client(c.conn, config)
	if err := conn.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn = conn
	return conn
}

func TestAMessageComesThroughTLS(t *testing.T) {
	r := startRole(t, fixture)
	r.secure(t)
	c := r.dial(t)
	if got := c.say("EHLO client.example\r\n", 2); got != "250-mx.test.example" {
		t.Fatal(got)
	}
	c.startTLS(anyServer())
	c.expect("503", "MAIL FROM:<s@client.example>\r\n", 1) // EHLO is forgotten
	c.expect("250", "EHLO inside.example\r\n", 1)
	c.expect("354", toData, 3)
	c.expect("250", "Subject: x\r\n\r\nx\r\n.\r\n", 1)
	c.expect("221", "QUIT\r\n", 1)
	if _, err := c.conn.Read(make([]byte, 1)); err != io.EOF { // a close_notify, not a cut
		t.Errorf("the end is %v", err)
	}
	body := r.bodies()[0]
	want := regexp.MustCompile(`(?m)^Received: from unknown \(HELO inside\.example\) \(127\.0\.0\.1\)\n  by mx\.test\.example with ESMTPS \(TLS 1\.3\) tls TLS_[A-Z0-9_]+ group X25519MLKEM768; `)
	if !want.MatchString(body) {
		t.Errorf("the message is\n%s", body)
	}
	r.stop(t)
	if !strings.Contains(r.log.String(), "qmail-smtpd: tls 127.0.0.1: (TLS 1.3) tls TLS_") {
		t.Errorf("the log is\n%s", r.log)
	}
}

func TestWhereSTARTTLSIsOffered(t *testing.T) {
	r := startRole(t, fixture)
	offered := func(c *talk) bool {
		t.Helper()
		if _, err := io.WriteString(c.conn, "EHLO x\r\n"); err != nil {
			t.Fatal(err)
		}
		var got []byte
		b := make([]byte, 1024)
		for !bytes.Contains(got, []byte("\r\n250 ")) {
			n, err := c.conn.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b[:n]...)
		}
		return bytes.Contains(got, []byte("STARTTLS"))
	}
	bare := r.dial(t)
	if offered(bare) {
		t.Error("without a certificate it is offered")
	}
	bare.expect("502", "STARTTLS\r\n", 1)
	r.secure(t)
	c := r.dial(t)
	if !offered(c) {
		t.Error("with a certificate it is not offered")
	}
	c.startTLS(anyServer())
	if offered(c) {
		t.Error("inside TLS it is offered")
	}
	c.expect("503", "STARTTLS\r\n", 1)
}

func TestSubmissionsBeginWithAHandshake(t *testing.T) {
	r := startRole(t, fixture)
	r.secure(t)
	conn, err := tls.Dial("tcp", r.listen(t, "submissions"), anyServer())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &talk{t, conn}
	c.expect("220", "", 1)
}

// tlsCase is a case of the file of hostile clients.
type tlsCase struct {
	Name   string
	Side   string
	Setup  struct{ Listener string }
	Chunks []struct {
		B64        []byte
		Await      string
		TLS        string
		MaxVersion string `json:"max_version"`
	}
	Expect struct {
		Class   string
		Or      []string
		MustNot []string `json:"must_not"`
		Replies int      `json:"tls_replies"`
	}
}

// elsewherePlayed are cases that a Go client cannot play, and the test that does.
var elsewherePlayed = map[string]string{"starttls/renegotiation-1.2": "TestRenegotiationIsRefused"}

func TestHostileStartTLS(t *testing.T) {
	r := startRole(t, with(fixture, "timeouttls", "1\n"))
	r.secure(t)
	addresses := map[string]string{"": r.address, "smtp": r.address, "submission": r.listen(t, "submission")}
	played := 0
	readJSONL(t, "starttls.jsonl", func(c tlsCase) {
		if c.Side == "client" || elsewherePlayed[c.Name] != "" {
			return
		}
		played++
		t.Run(c.Name, func(t *testing.T) {
			class, inside := playTLS(t, addresses[c.Setup.Listener], &c)
			if class != c.Expect.Class && !slices.Contains(c.Expect.Or, class) {
				t.Errorf("%s, wanted %s or %v", class, c.Expect.Class, c.Expect.Or)
			}
			if inside > c.Expect.Replies && c.Expect.Replies > 0 {
				t.Errorf("%d replies inside TLS, wanted %d: something was executed that came before it", inside, c.Expect.Replies)
			}
			if n := len(r.bodies()); n > 0 {
				t.Errorf("%d messages are queued", n)
			}
		})
	})
	if played < 20 {
		t.Errorf("only %d cases", played)
	}
}

// playTLS returns what became of the last thing said, and how many replies came inside TLS.
func playTLS(t *testing.T, address string, c *tlsCase) (class string, inside int) {
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := net.Conn(raw)
	raw.SetDeadline(time.Now().Add(15 * time.Second))
	var got []byte
	b := make([]byte, 4096)
	secured, extra := false, 0
	// reply waits for one more.
	reply := func() bool {
		have := len(parseComplete(string(got)))
		for len(parseComplete(string(got))) <= have {
			n, err := conn.Read(b)
			if got = append(got, b[:n]...); err != nil {
				if e, ok := err.(net.Error); ok && e.Timeout() {
					t.Fatalf("nothing comes after %q", got)
				}
				return false
			}
		}
		return true
	}
	if !reply() {
		t.Fatal("no banner")
	}
	for _, chunk := range c.Chunks {
		if chunk.TLS != "" {
			if n := len(parseComplete(string(got))); n > 4 { // banner, EHLO, and what else was said before STARTTLS
				extra = n
			}
			config := anyServer()
			if chunk.MaxVersion == "1.0" {
				config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS10
			}
			client := tls.Client(raw, config)
			if client.Handshake() != nil {
				return "close", 0
			}
			conn, secured, got = client, true, nil
			continue
		}
		if _, err := conn.Write(chunk.B64); err != nil {
			return "close", len(parseComplete(string(got)))
		}
		if chunk.Await == "close" {
			rest, err := io.ReadAll(conn)
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Errorf("the connection stays open; %q", rest)
			}
			return "close", 0
		}
		if !reply() {
			if secured {
				inside = len(parseComplete(string(got)))
			}
			return "close", inside
		}
	}
	last := parseComplete(string(got))
	conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // whatever else there may be
	for {
		n, err := conn.Read(b)
		if got = append(got, b[:n]...); err != nil {
			break
		}
	}
	if secured {
		inside = len(parseComplete(string(got)))
	}
	if extra > 0 && !secured {
		t.Errorf("%d replies before TLS", extra)
	}
	switch last[len(last)-1].code[0] {
	case '5':
		return "reject", inside
	case '4':
		return "tempfail", inside
	}
	return "accept", inside
}

func TestRenegotiationIsRefused(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("Debian's package openssl is not installed")
	}
	r := startRole(t, fixture)
	r.secure(t)
	cmd := exec.Command("openssl", "s_client", "-starttls", "smtp", "-tls1_2", "-connect", r.address)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() }).Stop()
	out, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { err := cmd.Wait(); w.Close(); ended <- err }()
	var said bytes.Buffer
	for b := make([]byte, 1024); !strings.Contains(said.String(), "---\n250 SMTPUTF8"); {
		n, err := out.Read(b)
		if said.Write(b[:n]); err != nil {
			t.Fatalf("%v\n%s", err, &said)
		}
	}
	go io.Copy(&said, out)
	io.WriteString(in, "R\n")
	if err := <-ended; err == nil {
		t.Errorf("openssl is content:\n%s", &said)
	}
}

// TestOneConnectionWithAKeyOfItsOwn: what serves one connection reads what it can, as the TLS patches do.
func TestOneConnectionWithAKeyOfItsOwn(t *testing.T) {
	home := makeHome(t, fixture)
	text, err := keys.SelfSigned("mx.test.example", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keys.Classic(home), text, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	q := &fakeQueue{}
	served := make(chan int, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		e := testEnv(home, "TCPREMOTEIP=192.0.2.7")
		served <- single(t.Context(), e, conn, q, e.Log("qmail-smtpd"), netip.AddrPort{}, netip.AddrPort{})
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	c := &talk{t, raw}
	c.hello()
	c.startTLS(anyServer())
	c.expect("250", "EHLO x\r\n", 1)
	c.expect("354", toData, 3)
	c.expect("250", "x\r\n.\r\n", 1)
	c.expect("221", "QUIT\r\n", 1)
	if code := <-served; code != 0 || len(q.queued) != 1 || !strings.Contains(q.queued[0].message, " with ESMTPS (TLS 1.3) ") {
		t.Errorf("exit %d, %q", code, q.queued)
	}
}

// TestACipherScan has nmap look at both doors, and lets nothing through that it does not give the best grade.
func TestACipherScan(t *testing.T) {
	if _, err := exec.LookPath("nmap"); err != nil {
		t.Skip("Debian's package nmap is not installed")
	}
	r := startRole(t, with(fixture, "maxperclient", "1000\n"))
	r.secure(t)
	_, port, err := net.SplitHostPort(r.listen(t, "submissions"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nmap", "-Pn", "-n", "-sT", "-p", port, "--script", "+ssl-enum-ciphers", "127.0.0.1").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	scan := string(out)
	for _, want := range []string{"TLSv1.2", "TLSv1.3", "least strength: A\n"} {
		if !strings.Contains(scan, want) {
			t.Errorf("the scan does not say %q:\n%s", want, scan)
		}
	}
	for _, bad := range []string{"SSLv3", "TLSv1.0", "TLSv1.1", "warnings:"} {
		if strings.Contains(scan, bad) {
			t.Errorf("the scan says %q:\n%s", bad, scan)
		}
	}
	graded := regexp.MustCompile(`(?m)^\| +TLS_.* - ([A-Z])$`).FindAllStringSubmatch(scan, -1)
	for _, g := range graded {
		if g[1] != "A" {
			t.Errorf("%s", g[0])
		}
	}
	if len(graded) < 3 {
		t.Errorf("only %d ciphers were graded:\n%s", len(graded), scan)
	}
}

// certifier signs certificates of clients.
type certifier struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCertifier(t *testing.T, name string) *certifier {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &certifier{key: key}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	a.cert = template
	a.cert = a.sign(t, template, key)
	return a
}

func (a *certifier) sign(t *testing.T, template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// client makes a certificate for an address.
func (a *certifier) client(t *testing.T, serial int64, mail string, expires time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(serial), EmailAddresses: []string{mail}, NotAfter: time.Now().Add(expires),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestACertificateMayRelay(t *testing.T) {
	ours, theirs := newCertifier(t, "ours"), newCertifier(t, "theirs")
	listed := ours.client(t, 2, "Joe@client.example", time.Hour)
	revoked := ours.client(t, 3, "joe@client.example", time.Hour)
	printed := theirs.client(t, 4, "x@y.example", time.Hour)
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(3), RevocationTime: time.Now()}}}, ours.cert, ours.key)
	if err != nil {
		t.Fatal(err)
	}
	r := startRole(t, with(fixture,
		"tlsclients", fmt.Sprintf("joe@client.example\nsha256:%X\n", sha256.Sum256(printed.Leaf.Raw)),
		"clientca.pem", pemText("CERTIFICATE", ours.cert.Raw), "clientcrl.pem", pemText("X509 CRL", crl)))
	r.secure(t)
	tests := []struct {
		name string
		cert *tls.Certificate
		want string
	}{
		{"one that is listed by its address", &listed, "250"},
		{"one that is listed by its fingerprint", &printed, "250"},
		{"none", nil, "553"},
		{"one with the address, of somebody else", ptr(theirs.client(t, 2, "joe@client.example", time.Hour)), "553"},
		{"one of ours with another address", ptr(ours.client(t, 5, "jim@client.example", time.Hour)), "553"},
		{"one that is over", ptr(ours.client(t, 6, "joe@client.example", -time.Minute)), "553"},
		{"one that was taken back", &revoked, "553"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := r.dial(t)
			c.hello()
			config := anyServer()
			if tt.cert != nil {
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
			}
			c.startTLS(config)
			c.expect("250", "EHLO client.example\r\n", 1)
			c.expect("250", "MAIL FROM:<a@b.example>\r\n", 1)
			c.expect(tt.want, "RCPT TO:<u@elsewhere.example>\r\n", 1)
		})
	}
	for name, text := range map[string]string{"tlsclients": "not an address\n", "clientcrl.pem": "-----BEGIN X509 CRL-----\neA==\n-----END X509 CRL-----\n", "clientca.pem": "-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n"} {
		before, err := os.ReadFile(filepath.Join(r.home, "control", name))
		if err != nil {
			t.Fatal(err)
		}
		writeControl(t, r.home, name, text)
		if _, err := ReadConfig(testEnv(r.home), nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		writeControl(t, r.home, name, string(before))
	}
}

func ptr[T any](v T) *T { return &v }

// TestHalfOpenHandshakes: thousands who begin a handshake and say no more leave both doors to others.
func TestHalfOpenHandshakes(t *testing.T) {
	const half = 5000
	raiseFiles(t, 3*half)
	r := startRole(t, with(fixture, "timeouttls", "60\n"))
	r.secure(t)
	address := r.listen(t, "submissions")
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range half {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i/40/200), byte(1+i/40%200))}, Timeout: 20 * time.Second}
		c, err := d.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if _, err := c.Write([]byte{0x16, 3, 1, 2, 0, 1}); err != nil && i < 100 {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for name, try := range map[string]func() error{
		"TLS": func() error {
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, anyServer())
			if err != nil {
				return err
			}
			defer conn.Close()
			return banner(conn)
		},
		"plain": func() error {
			conn, err := net.DialTimeout("tcp", r.address, 5*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			return banner(conn)
		},
	} {
		err := try()
		for err != nil && time.Now().Before(deadline) {
			err = try()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func banner(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 4)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "220 " {
		return fmt.Errorf("%q %v", b, err)
	}
	return nil
}

// TestAHandshakeFlood: many who do nothing but shake hands, as fast as they can, leave the door to others.
func TestAHandshakeFlood(t *testing.T) {
	r := startRole(t, with(fixture, "maxperclient", "1000\n"))
	r.secure(t)
	address := r.listen(t, "submissions")
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop()
	for range 50 {
		flood.Go(func() {
			for ctx.Err() == nil {
				if conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", address, anyServer()); err == nil {
					conn.Close()
				}
			}
		})
	}
	for range 5 {
		c := r.dial(t)
		c.expect("220", "", 1)
		c.expect("250", "EHLO client.example\r\n", 1)
		c.startTLS(anyServer())
		c.expect("250", "EHLO x\r\n", 1)
		c.expect("221", "QUIT\r\n", 1)
	}
}

// TestIdleTLSSessionsAreSmall holds sessions to 40 KiB, each of which has sent a message inside TLS. What the ends of the
// clients hold, in this process, too, is taken off: half of what pairs of two ends without a session hold.
func TestIdleTLSSessionsAreSmall(t *testing.T) {
	const sessions, limit = 200, 40 << 10
	r := startRole(t, with(fixture, "maxperclient", "1000\n"))
	r.secure(t)
	message := []byte("Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 500) + ".\r\n")
	each := func(open func() io.Closer) int64 {
		before := inUse()
		conns := make([]io.Closer, sessions)
		for i := range conns {
			conns[i] = open()
		}
		r.backend.mu.Lock()
		r.backend.arrived = nil // messages are not what is looked at
		r.backend.mu.Unlock()
		used := inUse() - before
		for _, c := range conns {
			c.Close()
		}
		return used / sessions
	}
	fresh := func() io.Closer { return newIdle(t, r, false, nil) }
	each(fresh) // what is made once
	client := each(func() io.Closer { return newPair(t) }) / 2
	after, later := each(fresh)-client, each(func() io.Closer { return newIdle(t, r, true, message) })-client
	t.Logf("an idle TLS session holds %d bytes after its handshake, %d after a message of %d", after, later, len(message))
	if after > limit || later > limit {
		t.Errorf("that is more than %d", limit)
	}
}

// pair is two ends of TLS without a session.
type pair struct{ a, b net.Conn }

func (p *pair) Close() error { p.a.Close(); return p.b.Close() }

func newPair(t *testing.T) *pair {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	text, err := keys.SelfSigned("x.example", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{tls.Client(a, anyServer()), tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}})}
	done := make(chan error, 1)
	go func() { done <- p.b.(*tls.Conn).Handshake() }()
	if err := p.a.(*tls.Conn).Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return p
}

func inUse() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// newIdle opens a session that has nothing to say any more.
func newIdle(t *testing.T, r *running, send bool, message []byte) io.Closer {
	t.Helper()
	c := r.dial(t)
	c.conn.SetDeadline(time.Now().Add(time.Minute))
	c.hello()
	c.startTLS(anyServer())
	c.expect("250", "EHLO x\r\n", 1)
	if send {
		c.expect("354", toData, 3)
		c.expect("250", string(message), 1)
	}
	return c.conn
}

// raiseFiles makes room for so many descriptors, or skips the test.
func raiseFiles(t *testing.T, n uint64) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if old.Cur >= n {
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: max(n, old.Max)}); err != nil {
		t.Skipf("no right to %d descriptors: %v", n, err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}
