// Package header reads and writes message headers (RFC 5322 2.2): it cuts a header into fields without
// changing a byte, cuts structured fields into the tokens of RFC 822 3.3, and reads, completes and writes
// address lists the way qmail-inject does.
//
// Nothing here decodes: encoded words and MIME parameters are text. Everything takes time and memory in
// proportion to its input, and nothing recurses.
package header

import (
	"bytes"
	"iter"

	"qmail/internal/format/address"
)

// Field is one field as it stands in the message, its line ends and continuation lines included.
type Field []byte

// Name is the field's name, without blanks before the colon.
func (f Field) Name() string {
	n, _ := NameEnd(f)
	return string(bytes.TrimRight(f[:n], " \t"))
}

// Is compares the field's name, ASCII letters folded.
func (f Field) Is(name string) bool { return address.EqualFold(f.Name(), name) }

// Body is what follows the colon: the final line end is part of it.
func (f Field) Body() []byte {
	n, ok := NameEnd(f)
	if !ok {
		return nil
	}
	return f[n+1:]
}

// NameEnd finds the colon that ends the field name at the start of line. A name is one or more of the bytes
// 33 to 126 without a colon; blanks may stand between it and the colon. ok is false if line begins no field.
func NameEnd(line []byte) (colon int, ok bool) {
	n := 0
	for n < len(line) && line[n] > 32 && line[n] < 127 && line[n] != ':' {
		n++
	}
	colon = n
	for colon < len(line) && (line[colon] == ' ' || line[colon] == '\t') {
		colon++
	}
	if n == 0 || colon == len(line) || line[colon] != ':' {
		return 0, false
	}
	return colon, true
}

// Cut takes the first field off b. ok is false where no field begins: at the empty line that ends the
// header, at a line that is none, or at the end of b.
func Cut(b []byte) (f Field, rest []byte, ok bool) {
	if _, ok := NameEnd(b); !ok {
		return nil, b, false
	}
	end := 0
	for {
		n := bytes.IndexByte(b[end:], '\n')
		if n < 0 {
			return b, nil, true
		}
		end += n + 1
		if end == len(b) || b[end] != ' ' && b[end] != '\t' {
			return b[:end], b[end:], true
		}
	}
}

// Fields are the fields of the header that message begins with. They share its memory.
func Fields(message []byte) iter.Seq[Field] {
	return func(yield func(Field) bool) {
		for {
			f, rest, ok := Cut(message)
			if !ok || !yield(f) {
				return
			}
			message = rest
		}
	}
}

// Split cuts a message where its header ends: body begins with the empty line, or with the first line that is
// no field.
func Split(message []byte) (header, body []byte) {
	body = message
	for {
		_, rest, ok := Cut(body)
		if !ok {
			return message[:len(message)-len(body)], body
		}
		body = rest
	}
}
