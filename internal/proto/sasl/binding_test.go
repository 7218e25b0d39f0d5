package sasl

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"
)

func certificate(t *testing.T, key any, public any) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"test.example"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// connect makes a TLS connection and returns what both sides see of it.
func connect(t *testing.T, cert tls.Certificate, version uint16) (client, server tls.ConnectionState) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c := tls.Client(a, &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
	s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: version})
	failed := make(chan error, 1)
	go func() { failed <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState(), s.ConnectionState()
}

func TestBothSidesHaveTheSameBindings(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecdsaCert, edCert := certificate(t, ec, ec.Public()), certificate(t, ed, public)
	tests := []struct {
		name    string
		cert    tls.Certificate
		version uint16
		want    []string
	}{
		{"TLS 1.3", ecdsaCert, tls.VersionTLS13, []string{tlsExporter, tlsEndpoint}},
		{"TLS 1.2", ecdsaCert, tls.VersionTLS12, []string{tlsUnique, tlsEndpoint}},
		{"a signature without a hash", edCert, tls.VersionTLS13, []string{tlsExporter}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, s := connect(t, tt.cert, tt.version)
			client, server := Bindings(&c, c.PeerCertificates[0]), Bindings(&s, tt.cert.Leaf)
			if len(client) != len(tt.want) || len(server) != len(tt.want) {
				t.Fatalf("%v and %v", client, server)
			}
			for i, want := range tt.want {
				if client[i].Type != want || server[i].Type != want || !bytes.Equal(client[i].Data, server[i].Data) || len(client[i].Data) < 12 {
					t.Errorf("%v and %v, want %s", client[i], server[i], want)
				}
			}
			if i := len(tt.want) - 1; tt.want[i] == tlsEndpoint {
				if sum := sha256.Sum256(tt.cert.Certificate[0]); !bytes.Equal(client[i].Data, sum[:]) {
					t.Error("the end point is not the certificate's hash")
				}
			}
			again, _ := connect(t, tt.cert, tt.version)
			if other := Bindings(&again, nil); len(other) != 1 || bytes.Equal(other[0].Data, client[0].Data) {
				t.Error("another connection has the same binding")
			}
		})
	}
	if Bindings(nil, nil) != nil || Bindings(&tls.ConnectionState{}, ecdsaCert.Leaf) != nil {
		t.Error("a connection without TLS has bindings")
	}
}
