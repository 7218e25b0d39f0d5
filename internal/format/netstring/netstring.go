// Package netstring reads and writes netstrings, "5:hello,", the framing of QMTP and QMQP.
//
// Each value has one spelling: a leading zero, a byte that is no digit, a missing comma or a length over the
// caller's limit is an error, never a guess. Nothing is allocated, and nothing waited for, before the length has
// been checked. Cut is for netstrings that are at hand, Length for those that come in pieces.
package netstring

import (
	"errors"
	"io"
	"strconv"
)

var (
	// ErrSyntax is what is no netstring.
	ErrSyntax = errors.New("netstring: malformed")
	// ErrTooLong is a length over the limit.
	ErrTooLong = errors.New("netstring: too long")
)

// Append writes val as a netstring.
func Append[T ~string | ~[]byte](dst []byte, val T) []byte {
	dst = AppendLength(dst, int64(len(val)))
	return append(append(dst, val...), ',')
}

// AppendLength writes what stands before n bytes and their comma.
func AppendLength(dst []byte, n int64) []byte {
	return append(strconv.AppendInt(dst, n, 10), ':')
}

// Size is how many bytes a netstring of n bytes takes.
func Size(n int64) int64 {
	size := n + 3
	for n >= 10 {
		n /= 10
		size++
	}
	return size
}

// Cut takes a netstring of at most limit bytes off the front of b; val and rest share its memory. The error is
// io.ErrUnexpectedEOF if more bytes could still make it one.
func Cut(b []byte, limit int64) (val, rest []byte, err error) {
	var l Length
	n, err := l.Read(b, limit)
	switch {
	case err != nil:
		return nil, nil, err
	case !l.Done():
		return nil, nil, io.ErrUnexpectedEOF
	}
	rest = b[n:]
	if int64(len(rest)) <= l.Value() {
		return nil, nil, io.ErrUnexpectedEOF
	}
	if rest[l.Value()] != ',' {
		return nil, nil, ErrSyntax
	}
	return rest[:l.Value()], rest[l.Value()+1:], nil
}

// Length reads a length and its colon from input that comes in pieces. Its zero value is ready to use.
type Length struct {
	value  int64
	digits bool
	done   bool
}

// Read takes what it needs from the front of b and returns how many bytes that were. After an error it must not
// be used again.
func (l *Length) Read(b []byte, limit int64) (n int, err error) {
	for !l.done && n < len(b) {
		c := b[n]
		n++
		switch {
		case c == ':' && l.digits:
			l.done = true
		case c < '0' || c > '9', l.digits && l.value == 0:
			return n, ErrSyntax
		default:
			d := int64(c - '0')
			if d > limit || l.value > (limit-d)/10 {
				return n, ErrTooLong
			}
			l.value, l.digits = 10*l.value+d, true
		}
	}
	return n, nil
}

// Done reports whether the colon has been read.
func (l *Length) Done() bool { return l.done }

// Value is the length so far.
func (l *Length) Value() int64 { return l.value }
