package server

import (
	"bytes"

	"qmail/internal/format/received"
)

// Decoder reads the bytes between 354 and the final reply (RFC 5321 4.5.2): CRLF becomes LF, the dot in front
// of a line is taken off, and nothing but CRLF . CRLF ends the message. A bare CR, a bare LF or a NUL is
// remembered as Bare and never taken for a line end, whatever a laxer reader would make of it.
//
// It works in blocks, in place, and its state is a few bytes: memory does not grow with lines or messages.
type Decoder struct {
	Size int64 // stored bytes so far
	Hops int   // Received and Delivered-To fields seen in the header
	Bare bool  // the message cannot be stored

	at    position
	trace received.Hops
}

type position byte

const (
	lineStart position = iota // after CRLF, or at the very start
	inLine
	afterCR
	afterDot   // line start and a dot
	afterDotCR // line start, a dot and a CR
)

// Decode takes a block. stored is what to keep of it and shares b's memory; n is how much of b belongs to the
// message, less than len(b) only at its end.
func (d *Decoder) Decode(b []byte) (stored []byte, n int, end bool) {
	r, w, pairs := 0, 0, 0
	for r < len(b) && !end {
		switch d.at {
		case lineStart:
			d.at = inLine
			if b[r] == '.' {
				d.at = afterDot
				r++
			}
		case inLine:
			i := bytes.IndexByte(b[r:], '\r')
			if i < 0 {
				i = len(b) - r
			} else {
				d.at = afterCR
			}
			if !d.trace.InBody() {
				d.trace.Line(b[r : r+i])
			}
			if w != r {
				copy(b[w:], b[r:r+i])
			}
			w += i
			r += i
			if d.at == afterCR {
				r++
			}
		case afterCR:
			switch b[r] {
			case '\n':
				b[w] = '\n'
				w++
				r++
				pairs++
				d.at = lineStart
				if !d.trace.InBody() {
					d.trace.End()
					d.Hops = d.trace.Seen
				}
			case '\r':
				d.Bare = true
				r++
			default:
				d.Bare = true
				d.at = inLine
			}
		case afterDot:
			d.at = inLine
			if b[r] == '\r' {
				d.at = afterDotCR
				r++
			}
		case afterDotCR:
			switch b[r] {
			case '\n':
				end = true
				r++
			case '\r':
				d.Bare = true
				d.at = afterCR
				r++
			default:
				d.Bare = true
				d.at = inLine
			}
		}
	}
	// What was stored holds one LF for each CRLF; any more came without a CR.
	if !d.Bare && (bytes.Count(b[:w], []byte{'\n'}) != pairs || bytes.IndexByte(b[:w], 0) >= 0) {
		d.Bare = true
	}
	d.Size += int64(w)
	return b[:w], r, end
}

// equalFold compares b with a word in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
