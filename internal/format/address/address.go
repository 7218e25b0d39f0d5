// Package address knows the parts of an envelope address: raw bytes, the domain after the last @.
//
// Quoting for the wire and for header fields follows qmail's quote.c. Only ASCII letters fold; no byte
// above 127 is ever touched.
package address

import "strings"

// Split cuts addr at its last @. Without an @ domain is empty and ok is false.
func Split(addr string) (local, domain string, ok bool) {
	i := strings.LastIndexByte(addr, '@')
	if i < 0 {
		return addr, "", false
	}
	return addr[:i], addr[i+1:], true
}

// Lower folds ASCII letters.
func Lower(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// EqualFold compares with ASCII folding only.
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if fold(a[i]) != fold(b[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// plain holds the bytes that need no quoting in a local part.
const plain = "!#$%&'*+-./0123456789=?ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz{|}~"

// Quote returns local as it must stand in a path (RFC 5321 4.1.2) or a header field: unchanged where it is
// a dot-string, else a quoted string with a backslash before CR, LF, quote and backslash.
func Quote(local string) string {
	if !needsQuoting(local) {
		return local
	}
	var b strings.Builder
	b.Grow(len(local) + 2)
	b.WriteByte('"')
	for i := 0; i < len(local); i++ {
		switch local[i] {
		case '\r', '\n', '"', '\\':
			b.WriteByte('\\')
		}
		b.WriteByte(local[i])
	}
	b.WriteByte('"')
	return b.String()
}

func needsQuoting(local string) bool {
	if local == "" || local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
		return true
	}
	for i := 0; i < len(local); i++ {
		if strings.IndexByte(plain, local[i]) < 0 {
			return true
		}
	}
	return false
}

// QuoteAddress quotes the local part of addr and keeps its domain as it is. An empty address stays empty;
// one without an @ is quoted whole.
func QuoteAddress(addr string) string {
	if addr == "" {
		return ""
	}
	local, domain, ok := Split(addr)
	if !ok {
		return Quote(addr)
	}
	return Quote(local) + "@" + domain
}
