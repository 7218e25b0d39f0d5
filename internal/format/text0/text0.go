// Package text0 reads and writes the record format of qmail's queue files: each record is one letter
// that names it, a value, and a NUL, as in "Fsender@example.org\x00Tbox@example.net\x00".
//
// All envelopes, at rest and between our processes, have this form. A value cannot contain a NUL; Append
// panics on one, since letting it through would let a stranger write records of his own. Callers check
// what comes from outside with Clean first.
package text0

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
)

var (
	// ErrCut is a record without its closing NUL.
	ErrCut = errors.New("text0: record cut short")
	// ErrEmpty is a record without a letter.
	ErrEmpty = errors.New("text0: empty record")
)

// Clean reports whether value may be written.
func Clean(value string) bool { return strings.IndexByte(value, 0) < 0 }

// Append adds one record to dst.
func Append(dst []byte, letter byte, value string) []byte {
	if letter == 0 || !Clean(value) {
		panic("text0: NUL in a record")
	}
	dst = append(dst, letter)
	dst = append(dst, value...)
	return append(dst, 0)
}

// AppendInt adds one record with a decimal value.
func AppendInt(dst []byte, letter byte, value int64) []byte {
	dst = append(dst, letter)
	dst = strconv.AppendInt(dst, value, 10)
	return append(dst, 0)
}

// Cut takes the first record off b. Value and rest share b's memory.
func Cut(b []byte) (letter byte, value, rest []byte, err error) {
	i := bytes.IndexByte(b, 0)
	switch {
	case i < 0:
		return 0, nil, b, ErrCut
	case i == 0:
		return 0, nil, b, ErrEmpty
	}
	return b[0], b[1:i], b[i+1:], nil
}

// Int parses a decimal value with one spelling: no sign but a leading '-', no leading zero, no blank.
func Int(value []byte) (int64, error) {
	s := string(value)
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, errors.New("text0: not a number")
	}
	if strconv.FormatInt(n, 10) != s {
		return 0, errors.New("text0: a second spelling of a number")
	}
	return n, nil
}
