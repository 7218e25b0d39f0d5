package sasl

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"

	"github.com/xdg-go/scram"
)

// Binding ties an exchange to the TLS connection that it runs over (RFC 5056): who stands in the middle of two
// connections has two of them.
type Binding struct {
	Type string // such as "tls-exporter"
	Data []byte
}

// The types of channel binding.
const (
	tlsExporter = string(scram.ChannelBindingTLSExporter)
	tlsUnique   = string(scram.ChannelBindingTLSUnique)
	tlsEndpoint = string(scram.ChannelBindingTLSServerEndpoint)
)

// exporterLabel and exporterSize are RFC 9266's.
const (
	exporterLabel = "EXPORTER-Channel-Binding"
	exporterSize  = 32
)

// Bindings are those that a connection has, the best first: tls-exporter (RFC 9266), or before TLS 1.3 tls-unique, which
// is valid only there and only with an extended master secret (RFC 7627), which crypto/tls looks after; and
// tls-server-end-point (RFC 5929 4), if leaf, the server's certificate, is known.
func Bindings(state *tls.ConnectionState, leaf *x509.Certificate) []Binding {
	if state == nil || !state.HandshakeComplete {
		return nil
	}
	var list []Binding
	if state.Version >= tls.VersionTLS13 {
		if data, err := state.ExportKeyingMaterial(exporterLabel, nil, exporterSize); err == nil {
			list = append(list, Binding{tlsExporter, data})
		}
	} else if len(state.TLSUnique) > 0 {
		list = append(list, Binding{tlsUnique, state.TLSUnique})
	}
	if data := endpoint(leaf); data != nil {
		list = append(list, Binding{tlsEndpoint, data})
	}
	return list
}

// endpoint is the hash of a certificate: the one that its signature was made with, but nothing weaker than SHA-256.
// Signatures without a hash of their own (Ed25519) have no such binding.
func endpoint(leaf *x509.Certificate) []byte {
	if leaf == nil {
		return nil
	}
	hash := crypto.SHA256
	switch leaf.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	case x509.PureEd25519, x509.UnknownSignatureAlgorithm:
		return nil
	}
	if !hash.Available() {
		return nil
	}
	h := hash.New()
	h.Write(leaf.Raw)
	return h.Sum(nil)
}

func (b Binding) scram() scram.ChannelBinding {
	return scram.ChannelBinding{Type: scram.ChannelBindingType(b.Type), Data: b.Data}
}
