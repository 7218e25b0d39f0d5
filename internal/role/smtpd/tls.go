package smtpd

import (
	"context"
	"crypto/sha256"
	"fmt"

	"qmail/internal/proto/smtp/server"
	"qmail/internal/store/keys"
	"qmail/internal/system/secure"
)

// startTLS shakes hands by v. On port 25 there are no session tickets: what mail servers have to say to each other is
// not so much that it would pay to be recognised by them.
func startTLS(v *secure.Server) func(context.Context, server.Stream) (server.Stream, *secure.State, error) {
	return func(ctx context.Context, stream server.Stream) (server.Stream, *secure.State, error) {
		conn, state, err := v.Handshake(ctx, stream, false)
		if err != nil {
			return nil, nil, err
		}
		return conn, state, nil
	}
}

// tlsLine is what the log hears of a handshake.
func tlsLine(p *server.Peer) string {
	line := "tls " + p.IP + ": " + p.TLS.Clause()
	if c := p.TLS.Client(); c != nil {
		line += fmt.Sprintf(" client sha256:%x", sha256.Sum256(c.Raw))
		if p.Relay != nil {
			line += " may relay"
		}
	}
	return line
}

// ownKeys are the certificates of a process that serves one connection: those that it can read itself, as under the
// TLS patches. There is nobody to be asked, and it will not live long.
func ownKeys(home string) (list []secure.Certificate) {
	pairs, _, err := keys.Load(home)
	if err != nil {
		return nil // keys/ is not for us; nothing has been promised
	}
	for _, p := range pairs {
		list = append(list, secure.Certificate{Chain: p.Chain, Leaf: p.Leaf, Signer: p.Key, Prefer: p.Prefer})
	}
	return list
}
