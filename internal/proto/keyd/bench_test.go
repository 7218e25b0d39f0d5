package keyd

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"qmail/internal/system/secure"
)

// BenchmarkHandshake is full handshakes with a client in the same process, the key in it, too, or behind a link.
func BenchmarkHandshake(b *testing.B) {
	for _, kind := range []string{"p256", "rsa"} {
		for _, where := range []string{"here", "elsewhere"} {
			b.Run(kind+"/"+where, func(b *testing.B) {
				k := keyOf(b, kind, "a.example", TLS)
				leaf, err := x509.ParseCertificate(k.Chain[0])
				if err != nil {
					b.Fatal(err)
				}
				v := &secure.Server{Settings: func() secure.Settings { return secure.Settings{Time: time.Minute} }}
				if where == "here" {
					v.Use([]secure.Certificate{{Chain: k.Chain, Leaf: leaf, Signer: k.Signer}})
				} else {
					s := newSite(b, k)
					s.link(all)
					v.Use(Served(s.list()))
				}
				b.SetParallelism(16)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := shake(b, v, &tls.Config{InsecureSkipVerify: true}); err != nil {
							b.Error(err)
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
			})
		}
	}
}

// BenchmarkSign is signatures over a link, many at a time.
func BenchmarkSign(b *testing.B) {
	s := newSite(b, keyOf(b, "p256", "a.example", TLS))
	s.link(all)
	c := s.list()[0]
	digest := sha256.Sum256(nil)
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Signer.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
				b.Error(err)
			}
		}
	})
}
