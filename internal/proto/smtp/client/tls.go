package client

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/tlspolicy"
)

// Security is what a connection has to have besides SMTP.
type Security struct {
	Policy tlspolicy.Policy
	// Server is the name that the server is asked for (SNI), if it is one.
	Server string
	// Names are those that its certificate may have, as in Policy; they count where the policy has none.
	Names []string
	// AtOnce means TLS from the first byte on (RFC 8314 3), not after STARTTLS.
	AtOnce   bool
	Roots    *x509.CertPool         // whom to believe; nil for whom the system believes
	Sessions tls.ClientSessionCache // may be nil
	Now      func() time.Time       // nil for the clock
	// Login, if not nil, is what the server shall know us by. It is shown to no server whose certificate does not say that
	// it is the right one.
	Login *Login
}

// Login is a name and a password.
type Login struct{ Name, Password string }

// policy is what is asked for in fact.
func (s *Security) policy() tlspolicy.Policy {
	switch {
	case s == nil:
		return tlspolicy.Policy{}
	case s.Login != nil && s.Policy.Level < tlspolicy.Verify:
		return tlspolicy.Policy{Level: tlspolicy.Verify}
	case s.AtOnce && s.Policy.Level < tlspolicy.Encrypt:
		return tlspolicy.Policy{Level: tlspolicy.Encrypt}
	}
	return s.Policy
}

// handshakeTime is how long a TLS handshake may take.
const handshakeTime = time.Minute

// errCertificate is a certificate that is not what the policy asks for.
var errCertificate = errors.New("its certificate has none of the fingerprints wanted")

// StartTLSFailed reports whether Hello failed in the handshake with a server that offers TLS, and the policy would do
// without: then a new connection may be made, in plain text.
func (c *Conn) StartTLSFailed() bool { return c.handshakeFailed }

// TLS is the state of the connection, nil without TLS, and whether the certificate was found to be the right one.
func (c *Conn) TLS() (state *tls.ConnectionState, verified bool) {
	if c.secure == nil {
		return nil, false
	}
	s := c.secure.ConnectionState()
	return &s, c.verified
}

// noTLS is a refusal to go on without.
func (c *Conn) noTLS(why string) Report {
	c.dead = true
	return Report{'Z', "Connected to " + c.addr + " but " + why + " (#4.7.5)\n"}
}

// startTLS makes the connection secure if the server offers that and the policy wants it (RFC 3207). A letter other than
// 0 ends the connection; otherwise again says that the server must be greeted once more.
func (c *Conn) startTLS() (again bool, r Report) {
	policy := c.options.Security.policy()
	switch {
	case policy.Level == tlspolicy.None || c.secure != nil:
		return false, Report{}
	case !c.starttls && policy.Required():
		return false, c.noTLS("it does not offer TLS, which is required.")
	case !c.starttls:
		return false, Report{}
	}
	code, err := c.command("STARTTLS", nil)
	switch {
	case err != nil:
		c.handshakeFailed = !policy.Required()
		return false, c.died("")
	case code != 220 && policy.Required(): // a refusal, even for good, says nothing of the message
		return false, c.noTLS("it refused TLS, which is required.\n" + c.remoteSaid())
	case code != 220:
		return false, Report{}
	case !c.in.empty(): // put there by somebody on the way, to be taken for replies inside of TLS
		c.dead, c.gone = true, true
		return false, c.noTLS("it spoke between STARTTLS and TLS.")
	}
	if err := c.handshake(policy); err != nil {
		c.gone, c.handshakeFailed = true, !policy.Required()
		return false, c.noTLS("the TLS handshake failed: " + visible(err.Error()) + ".")
	}
	c.in = reader{conn: c.conn} // and nothing of before
	return true, Report{}
}

// handshake puts TLS between us and the server.
func (c *Conn) handshake(policy tlspolicy.Policy) error {
	if err := c.conn.SetDeadline(time.Now().Add(c.within(handshakeTime))); err != nil {
		return err
	}
	secure := tls.Client(c.conn, c.config(policy))
	if err := secure.Handshake(); err != nil {
		return err
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	c.conn, c.secure = secure, secure
	return nil
}

// config leaves it to us to judge certificates, since in most cases there is no name that they must have.
func (c *Conn) config(policy tlspolicy.Policy) *tls.Config {
	s := c.options.Security
	server := strings.TrimSuffix(s.Server, ".")
	if net.ParseIP(strings.Trim(server, "[]")) != nil {
		server = ""
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: server, ClientSessionCache: s.Sessions, Time: s.Now,
		InsecureSkipVerify: true, // VerifyConnection does it, also for sessions that are resumed
		VerifyConnection: func(state tls.ConnectionState) error {
			err := s.judge(policy, &state)
			if c.verified = err == nil; policy.Level < tlspolicy.Verify {
				return nil
			}
			return err
		},
	}
}

// judge returns nil if the server has shown that it is who it should be.
func (s *Security) judge(policy tlspolicy.Policy, state *tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("there is no certificate")
	}
	leaf := state.PeerCertificates[0]
	if policy.Level == tlspolicy.Fingerprint {
		whole, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		for _, p := range policy.Prints {
			if p == whole || p == key {
				return nil
			}
		}
		return errCertificate
	}
	options := x509.VerifyOptions{Roots: s.Roots, Intermediates: x509.NewCertPool()}
	if s.Now != nil {
		options.CurrentTime = s.Now()
	}
	for _, chained := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(chained)
	}
	if _, err := leaf.Verify(options); err != nil {
		return err
	}
	names := policy.Names
	if len(names) == 0 {
		names = s.Names
	}
	for _, name := range names {
		if has(leaf, name) {
			return nil
		}
	}
	return errors.New("its certificate is for another name")
}

// has reports whether a certificate is one for name, or if that begins with a dot, for any name below it.
func has(leaf *x509.Certificate, name string) bool {
	if !strings.HasPrefix(name, ".") {
		return leaf.VerifyHostname(name) == nil
	}
	for _, dns := range leaf.DNSNames {
		if dns = strings.TrimPrefix(dns, "*"); len(dns) > len(name) && address.EqualFold(dns[len(dns)-len(name):], name) || address.EqualFold(dns, name) {
			return true
		}
	}
	return false
}

// visible shows text that the server may have had a hand in.
func visible(s string) string {
	const longest = 200
	b := []byte(s[:min(len(s), longest)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
