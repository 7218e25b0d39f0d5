package server

import (
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/date822"
)

// appendReceived writes the Received field of qmail's received.c: two lines, LF at their ends.
func appendReceived(dst []byte, p *Peer, helo, with string, now time.Time) []byte {
	host := or(p.Host, "unknown")
	dst = appendSafe(append(dst, "Received: from "...), host)
	if helo != "" && !address.EqualFold(helo, host) {
		dst = append(appendSafe(append(dst, " (HELO "...), helo), ')')
	}
	dst = append(dst, " ("...)
	if p.Info != "" {
		dst = append(appendSafe(dst, p.Info), '@')
	}
	dst = appendSafe(dst, or(p.IP, "unknown"))
	dst = appendSafe(append(dst, ")\n  by "...), or(p.Local, "unknown"))
	dst = append(append(append(dst, " with "...), with...), "; "...)
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
