package client

import (
	"bytes"
	"encoding/binary"
	"io"
)

// Body is a message as it is stored: lines that end in LF. Head is its beginning; Rest, if not nil, gives
// what follows Head.
type Body struct {
	Head []byte
	Rest io.Reader
	Size int64 // of all; a guess where Rest is not nil
}

// Memory is a body that is wholly in memory.
func Memory(b []byte) Body { return Body{Head: b, Size: int64(len(b))} }

// encoder turns stored lines into lines on the wire, block by block. A stored line ends in LF, CRLF or CR: a
// CR must not go out alone, and it may have been meant as a line's end. After every line end that is
// written a dot is doubled, so that only finish can end the data.
type encoder struct {
	inside bool // a line has begun
	skipLF bool // the CR before has ended the line already
}

// append encodes src. dst grows by at most twice the length of src.
func (e *encoder) append(dst, src []byte) []byte {
	if e.skipLF && len(src) > 0 {
		e.skipLF = false
		if src[0] == '\n' {
			src = src[1:]
		}
	}
	for cr := bytes.IndexByte(src, '\r'); cr >= 0; cr = bytes.IndexByte(src, '\r') {
		dst = e.lines(dst, src[:cr])
		dst = append(dst, '\r', '\n') // also of an empty line
		e.inside = false
		if src = src[cr+1:]; len(src) == 0 {
			e.skipLF = true
			return dst
		}
		if src[0] == '\n' {
			src = src[1:]
		}
	}
	return e.lines(dst, src)
}

// lines encodes bytes that have no CR.
func (e *encoder) lines(dst, src []byte) []byte {
	for len(src) > 0 {
		if !e.inside && src[0] == '.' {
			dst = append(dst, '.')
		}
		i := bytes.IndexByte(src, '\n')
		if i < 0 {
			e.inside = true
			return append(dst, src...)
		}
		dst = append(dst, src[:i]...)
		dst = append(dst, '\r', '\n')
		e.inside = false
		src = src[i+1:]
	}
	return dst
}

// finish completes a partial last line and ends the data.
func (e *encoder) finish(dst []byte) []byte {
	if e.inside {
		dst = append(dst, '\r', '\n')
	}
	return append(dst, '.', '\r', '\n')
}

// hasHighByte reports whether b has a byte over 127.
func hasHighByte(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b)&0x8080808080808080 != 0 {
			return true
		}
		b = b[8:]
	}
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// headerOf is the part of b before the first empty line.
func headerOf(b []byte) []byte {
	if len(b) > 0 && b[0] == '\n' {
		return nil
	}
	if i := bytes.Index(b, []byte("\n\n")); i >= 0 {
		b = b[:i]
	}
	if i := bytes.Index(b, []byte("\n\r\n")); i >= 0 {
		b = b[:i]
	}
	return b
}

// wireSize is what SIZE announces: the message with CRLF line ends (RFC 1870 5), exact unless it has CRs.
func (b *Body) wireSize() int64 {
	if b.Rest != nil {
		return b.Size
	}
	return int64(len(b.Head) + bytes.Count(b.Head, []byte{'\n'}))
}
