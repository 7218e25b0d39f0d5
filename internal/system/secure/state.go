// Package secure puts TLS on the connections of our servers: 1.2 and 1.3 by crypto/tls, with curves of which the hybrid
// with a post-quantum half comes first, and no others than ciphers that keep yesterday's sessions secret.
//
// It holds no private key. Certificates come from a Source, whose signers are elsewhere, in the process that
// nobody from outside talks to.
package secure

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// State is what a session that runs inside TLS knows of it. It is not changed after the handshake.
type State struct {
	tls.ConnectionState
	// Own is the certificate that we have shown.
	Own *x509.Certificate
}

// Client is the certificate that the client has shown, or nil. That it holds the key is proved; who has signed it, and
// for what, is up to who asks.
func (s *State) Client() *x509.Certificate {
	if s == nil || len(s.PeerCertificates) == 0 {
		return nil
	}
	return s.PeerCertificates[0]
}

// Clause says in the words of RFC 8314 4.3 how a message came, for its Received field: only names out of our own tables.
func (s *State) Clause() string {
	if s == nil {
		return ""
	}
	clause := "(" + tls.VersionName(s.Version) + ") tls " + tls.CipherSuiteName(s.CipherSuite)
	if s.CurveID != 0 {
		clause += " group " + s.CurveID.String()
	}
	return clause
}

// errBinding is the answer where a kind of channel binding does not exist.
var errBinding = errors.New("secure: no such channel binding here")

// Binding is the channel binding of a kind: "tls-exporter" (RFC 9266), "tls-server-end-point" and, up to TLS 1.2,
// "tls-unique" (RFC 5929).
func (s *State) Binding(kind string) ([]byte, error) {
	switch {
	case s == nil:
	case kind == "tls-exporter":
		return s.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	case kind == "tls-unique" && s.Version < tls.VersionTLS13 && len(s.TLSUnique) > 0:
		return s.TLSUnique, nil
	case kind == "tls-server-end-point" && s.Own != nil:
		h := endPointHash(s.Own.SignatureAlgorithm).New()
		h.Write(s.Own.Raw)
		return h.Sum(nil), nil
	}
	return nil, errBinding
}

// endPointHash is the hash of a certificate's signature, or SHA-256 where that is weaker or none (RFC 5929 4.1).
func endPointHash(a x509.SignatureAlgorithm) crypto.Hash {
	switch a {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		return crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		return crypto.SHA512
	}
	return crypto.SHA256
}
