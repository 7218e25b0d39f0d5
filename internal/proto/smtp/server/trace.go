package server

import (
	"time"

	"qmail/internal/format/received"
)

// appendReceived writes the Received field.
func appendReceived(dst []byte, p *Peer, helo, with string, now time.Time) []byte {
	return received.Append(dst, received.From{IP: p.IP, Host: p.Host, Info: p.Info, Helo: helo, Local: p.Local, TLS: p.TLS.Clause()}, with, now)
}
