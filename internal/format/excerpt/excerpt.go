// Package excerpt is what can be seen of a message at a glance, in bytes that do nothing to a terminal.
package excerpt

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"

	"qmail/internal/format/header"
)

// Printable replaces what a terminal could take for an order: control characters, and bytes that are no UTF-8.
func Printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n <= 1 || !unicode.IsPrint(r) {
			b.WriteByte('?')
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// Field is the body of the first field of that name, on one line; "" if there is none.
func Field(message []byte, name string) string {
	for f := range header.Fields(message) {
		if f.Is(name) {
			return squeeze(f.Body())
		}
	}
	return ""
}

// Text is the subject and the beginning of the body, of limit bytes at most.
func Text(message []byte, limit int) string {
	_, body := header.Split(message)
	text := strings.TrimSpace(Field(message, "Subject") + " " + squeeze(body[:min(len(body), 4*limit)]))
	if len(text) > limit {
		for text = text[:limit]; len(text) > 0; text = text[:len(text)-1] { // not in the middle of a character
			if r, n := utf8.DecodeLastRuneInString(text); r != utf8.RuneError || n != 1 {
				break
			}
		}
	}
	return text
}

// squeeze makes one line of text, with single blanks.
func squeeze(b []byte) string {
	return Printable(string(bytes.Join(bytes.FieldsFunc(b, func(r rune) bool {
		return r == ' ' || r == '\t' || r == '\r' || r == '\n'
	}), []byte(" "))))
}
