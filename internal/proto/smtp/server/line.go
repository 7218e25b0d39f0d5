package server

import (
	"bytes"
	"strconv"

	"qmail/internal/format/reply"
)

// maxLine is the longest command line, its CRLF counted. RFC 5321 4.5.3.1.4 asks for 512; parameters and
// UTF-8 paths add to that.
const maxLine = 2000

// cutLine finds the first command line in b: line without its CRLF, and n, what to take off b. n is 0 if the
// line is not complete; most is how long it may be. bad is a line that ends in LF alone, has a CR, LF or NUL inside, or is too long:
// whatever follows it may be something else than it seems.
func cutLine(b []byte, most int) (line []byte, n int, bad bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return nil, 0, len(b) >= most
	}
	if i == 0 || i >= most || b[i-1] != '\r' {
		return nil, i + 1, true
	}
	line = b[:i-1]
	if bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0 {
		return nil, i + 1, true
	}
	return line, i + 1, false
}

// cutVerb splits a command from its argument, blanks before and after which do not count.
func cutVerb(line []byte) (verb, arg []byte) {
	verb, arg, _ = bytes.Cut(line, []byte{' '})
	return verb, bytes.Trim(arg, " ")
}

// upper adds verb to dst in upper case, or nothing if it is longer than any command.
func upper(dst, verb []byte) []byte {
	if len(verb) > cap(dst) {
		return dst
	}
	for _, c := range verb {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// cutWord takes a word, given in lower case, off the front of arg.
func cutWord(arg []byte, word string) (string, bool) {
	if len(arg) < len(word) || !equalFold(arg[:len(word)], word) {
		return "", false
	}
	return string(arg[len(word):]), true
}

// printable reports whether b is ASCII without control bytes.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// maxText bounds the text of a reply: a line of 512 bytes with its code and CRLF (RFC 5321 4.5.3.1.5).
const maxText = 480

// appendError adds the refusal in err as a reply: one line, whatever its text holds.
func appendError(dst []byte, err error) []byte {
	e := reply.Of(err)
	code, status := e.Code, e.Status
	if code < 400 || code > 599 {
		code, status = 451, "4.3.0"
	}
	if len(status) < 5 || status[0] != byte('0'+code/100) {
		status = [...]string{"4.0.0", "5.0.0"}[code/100-4]
	}
	dst = strconv.AppendInt(dst, int64(code), 10)
	dst = append(append(append(dst, ' '), status...), ' ')
	text := e.Text
	if len(text) > maxText {
		text = text[:maxText]
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		dst = append(dst, c)
	}
	return append(dst, "\r\n"...)
}
