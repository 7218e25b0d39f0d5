package dsn

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"qmail/internal/format/address"
)

const hex = "0123456789ABCDEF"

// ParseXtext undoes xtext (RFC 3461 4), strictly: hex digits are upper case, and what is not allowed as it is must
// be encoded.
func ParseXtext(s string) (string, bool) {
	if xchars(s) == len(s) {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			if xchars(s[i:i+1]) == 0 {
				return "", false
			}
			b.WriteByte(s[i])
			continue
		}
		if len(s)-i < 3 {
			return "", false
		}
		high, low := strings.IndexByte(hex, s[i+1]), strings.IndexByte(hex, s[i+2])
		if high < 0 || low < 0 {
			return "", false
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), true
}

// xchars is how many bytes at the start of s stand for themselves.
func xchars(s string) int {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < '!' || c > '~' || c == '+' || c == '=' {
			return i
		}
	}
	return len(s)
}

// AppendXtext writes s in xtext.
func AppendXtext(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if xchars(s[i:i+1]) == 1 {
			dst = append(dst, s[i])
		} else {
			dst = append(dst, '+', hex[s[i]>>4], hex[s[i]&15])
		}
	}
	return dst
}

// parseUnitext undoes utf-8-addr-xtext and utf-8-addr-unitext (RFC 6533 3): "\x{HEX}" stands for what cannot
// stand for itself, and for nothing else that is ASCII.
func parseUnitext(s string) (string, bool) {
	if !utf8.ValidString(s) {
		return "", false
	}
	var b strings.Builder
	for len(s) > 0 {
		if s[0] >= 0x80 {
			r, n := utf8.DecodeRuneInString(s)
			b.WriteRune(r)
			s = s[n:]
			continue
		}
		if s[0] != '\\' {
			if xchars(s[:1]) == 0 {
				return "", false
			}
			b.WriteByte(s[0])
			s = s[1:]
			continue
		}
		digits, rest, ok := strings.Cut(s, "}")
		digits, prefixed := strings.CutPrefix(digits, `\x{`)
		r, ok2 := hexPoint(digits)
		if !ok || !prefixed || !ok2 {
			return "", false
		}
		b.WriteRune(r)
		s = rest
	}
	return b.String(), true
}

// hexPoint reads HEXPOINT: two to six upper-case digits, no more than needed, of a character that has to be written
// so.
func hexPoint(s string) (rune, bool) {
	if len(s) < 2 || len(s) > 6 || len(s) > 2 && s[0] == '0' || strings.Trim(s, hex) != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 32)
	r := rune(n)
	if err != nil || !utf8.ValidRune(r) || r < 0x80 && r != '\\' && xchars(string(r)) == 1 {
		return 0, false
	}
	return r, true
}

// appendUnitext writes valid UTF-8 in utf-8-addr-unitext, or without raw in utf-8-addr-xtext, which is ASCII.
func appendUnitext(dst []byte, s string, raw bool) []byte {
	for _, r := range s {
		switch {
		case r < 0x80 && r != '\\' && xchars(string(r)) == 1:
			dst = append(dst, byte(r))
		case r >= 0x80 && raw && !breaks(r):
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, `\x{`...)
			if r < 0x10 {
				dst = append(dst, '0')
			}
			dst = append(dst, strings.ToUpper(strconv.FormatInt(int64(r), 16))...)
			dst = append(dst, '}')
		}
	}
	return dst
}

func equalFold(a, b string) bool { return address.EqualFold(a, b) }

// printable reports that s has no control bytes, and is UTF-8 where it is not ASCII.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}

func ascii[T string | []byte](s T) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
