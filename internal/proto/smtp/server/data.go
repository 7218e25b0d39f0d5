package server

import "bytes"

// Decoder reads the bytes between 354 and the final reply (RFC 5321 4.5.2): CRLF becomes LF, the dot in front
// of a line is taken off, and nothing but CRLF . CRLF ends the message. A bare CR, a bare LF or a NUL is
// remembered as Bare and never taken for a line end, whatever a laxer reader would make of it.
//
// It works in blocks, in place, and its state is a few bytes: memory does not grow with lines or messages.
type Decoder struct {
	Size int64 // stored bytes so far
	Hops int   // Received and Delivered-To fields seen in the header
	Bare bool  // the message cannot be stored

	at     position
	inBody bool
	name   [16]byte // how the header line at hand begins
	have   int
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
			if !d.inBody {
				d.header(b[r : r+i])
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
				if !d.inBody {
					d.headerLine()
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

// header remembers the first bytes of a header line, which may come in pieces.
func (d *Decoder) header(piece []byte) { d.have += copy(d.name[d.have:], piece) }

// headerLine counts the line that has just ended if it is a hop, and notices the end of the header.
func (d *Decoder) headerLine() {
	d.inBody = d.have == 0
	if isField(d.name[:d.have], "received") || isField(d.name[:d.have], "delivered-to") {
		d.Hops++
	}
	d.have = 0
}

// isField reports whether line begins with a field name, given in lower case, and a colon. Blanks before the
// colon are of the obsolete syntax (RFC 5322 4.5).
func isField(line []byte, name string) bool {
	if len(line) <= len(name) || !equalFold(line[:len(name)], name) {
		return false
	}
	rest := bytes.TrimLeft(line[len(name):], " \t")
	return len(rest) > 0 && rest[0] == ':'
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
