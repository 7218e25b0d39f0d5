package client

import "qmail/internal/format/address"

// appendPath writes addr as a path of RFC 5321 4.1.2, local part quoted where it must be. It is false for an
// address that would not stay one argument of one command: a control byte anywhere, or in the domain
// anything but what names and address literals are made of.
func appendPath(dst []byte, addr string) ([]byte, bool) {
	for i := 0; i < len(addr); i++ {
		if addr[i] < ' ' || addr[i] == 0x7f {
			return dst, false
		}
	}
	_, domain, _ := address.Split(addr)
	for i := 0; i < len(domain); i++ {
		if !domainByte(domain[i]) {
			return dst, false
		}
	}
	dst = append(dst, '<')
	dst = append(dst, address.QuoteAddress(addr)...)
	return append(dst, '>'), true
}

func domainByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c >= 0x80:
		return true
	}
	return c == '-' || c == '.' || c == '_' || c == '[' || c == ']' || c == ':'
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
