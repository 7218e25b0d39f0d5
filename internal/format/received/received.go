// Package received writes the trace field of qmail's network servers, and counts the trace fields that a message
// has already (received.c of qmail; RFC 5321 4.4 and 6.3).
package received

import (
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/date822"
)

// From is where a message came from and under which name it found us. Empty means unknown.
type From struct {
	IP    string
	Host  string // its name, from the DNS
	Info  string // what an ident server says of it
	Helo  string // what it calls itself
	Local string // our name or address on this connection
	TLS   string // the clause that says how it came through TLS; of our own making, unlike the others
}

// Append writes the field: two lines, with LF at their ends. with is the protocol.
func Append(dst []byte, f From, with string, now time.Time) []byte {
	host := or(f.Host, "unknown")
	dst = appendSafe(append(dst, "Received: from "...), host)
	if f.Helo != "" && !address.EqualFold(f.Helo, host) {
		dst = append(appendSafe(append(dst, " (HELO "...), f.Helo), ')')
	}
	dst = append(dst, " ("...)
	if f.Info != "" {
		dst = append(appendSafe(dst, f.Info), '@')
	}
	dst = appendSafe(dst, or(f.IP, "unknown"))
	dst = appendSafe(append(dst, ")\n  by "...), or(f.Local, "unknown"))
	dst = append(append(dst, " with "...), with...)
	if f.TLS != "" {
		dst = append(append(dst, ' '), f.TLS...)
	}
	dst = append(dst, "; "...)
	return append(date822.Append(dst, now), '\n')
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// appendSafe lets through what can do no harm in a header field: letters, digits and .@%+/=:-[]. Anything
// else becomes a question mark.
func appendSafe(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '@', c == '%', c == '+', c == '/', c == '=', c == ':', c == '-', c == '[', c == ']':
		default:
			c = '?'
		}
		dst = append(dst, c)
	}
	return dst
}
