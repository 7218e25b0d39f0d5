package relay

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"qmail/internal/store/control"
	"qmail/internal/system/secure"
)

// Certificates are the clients that may send anywhere because of the certificate that they show: tlsclients, which is a
// list of two kinds of lines. An address, as with the TLS patches of qmail, stands for certificates with this address in
// them that somebody in clientca.pem has signed, and not taken back in clientcrl.pem. sha256:FINGERPRINT stands for
// one certificate, whoever has signed it. The zero value has none.
type Certificates struct {
	prints    map[[sha256.Size]byte]bool
	addresses control.Set
	roots     *x509.CertPool // nil: no address counts
	revoked   map[string]bool
}

// LoadCertificates reads tlsclients, clientca.pem and clientcrl.pem.
func LoadCertificates(dir control.Dir) (c Certificates, err error) {
	entries, present, err := dir.Entries("tlsclients")
	if err != nil || !present {
		return c, err
	}
	c.prints = map[[sha256.Size]byte]bool{}
	var addresses []string
	for _, e := range entries {
		if print, ok := strings.CutPrefix(e.Text, "sha256:"); ok {
			b, err := hex.DecodeString(strings.ReplaceAll(print, ":", ""))
			if err != nil || len(b) != sha256.Size {
				return c, malformed(dir, "tlsclients", e)
			}
			c.prints[[sha256.Size]byte(b)] = true
			continue
		}
		if !isAddressPattern(e.Text) || strings.IndexByte(e.Text, '@') < 1 {
			return c, malformed(dir, "tlsclients", e)
		}
		addresses = append(addresses, e.Text)
	}
	c.addresses = control.NewSet(addresses)
	return c, c.loadRoots(dir)
}

func (c *Certificates) loadRoots(dir control.Dir) error {
	text, present, err := dir.Read("clientca.pem")
	if err != nil || !present {
		return err
	}
	var cas []*x509.Certificate
	c.roots = x509.NewCertPool()
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%s: %w", dir.Path("clientca.pem"), err)
		}
		cas = append(cas, ca)
		c.roots.AddCert(ca)
	}
	return c.loadRevoked(dir, cas)
}

// loadRevoked believes a list only if one of the roots has signed it.
func (c *Certificates) loadRevoked(dir control.Dir, cas []*x509.Certificate) error {
	text, present, err := dir.Read("clientcrl.pem")
	if err != nil || !present {
		return err
	}
	c.revoked = map[string]bool{}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err == nil {
			err = signedByOne(list, cas)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dir.Path("clientcrl.pem"), err)
		}
		for _, r := range list.RevokedCertificateEntries {
			c.revoked[revocation(list.RawIssuer, r.SerialNumber.Bytes())] = true
		}
	}
	return nil
}

var errUnsigned = errors.New("a list that nobody in clientca.pem has signed")

func signedByOne(list *x509.RevocationList, cas []*x509.Certificate) error {
	for _, ca := range cas {
		if list.CheckSignatureFrom(ca) == nil {
			return nil
		}
	}
	return errUnsigned
}

func revocation(issuer, serial []byte) string { return string(issuer) + "\x00" + string(serial) }

// maxPresented bounds the certificates of a client that are looked at.
const maxPresented = 10

// Has reports whether who is at the other end of s may send anywhere.
func (c *Certificates) Has(s *secure.State, now time.Time) bool {
	leaf := s.Client()
	if leaf == nil {
		return false
	}
	if c.prints[sha256.Sum256(leaf.Raw)] {
		return true
	}
	return c.roots != nil && c.listed(leaf) && c.verified(s.PeerCertificates, now)
}

// emailAddress is the attribute of a subject (RFC 5280, PKCS #9).
var emailAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}

func (c *Certificates) listed(leaf *x509.Certificate) bool {
	for _, a := range leaf.EmailAddresses {
		if c.addresses.Has(a) {
			return true
		}
	}
	for _, n := range leaf.Subject.Names {
		if text, ok := n.Value.(string); ok && n.Type.Equal(emailAddress) && c.addresses.Has(text) {
			return true
		}
	}
	return false
}

func (c *Certificates) verified(presented []*x509.Certificate, now time.Time) bool {
	if len(presented) > maxPresented {
		return false
	}
	others := x509.NewCertPool()
	for _, cert := range presented[1:] {
		others.AddCert(cert)
	}
	chains, err := presented[0].Verify(x509.VerifyOptions{
		Roots: c.roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return false
	}
	for _, chain := range chains {
		if !c.anyRevoked(chain) {
			return true
		}
	}
	return false
}

func (c *Certificates) anyRevoked(chain []*x509.Certificate) bool {
	for _, cert := range chain {
		if c.revoked[revocation(cert.RawIssuer, cert.SerialNumber.Bytes())] {
			return true
		}
	}
	return false
}
