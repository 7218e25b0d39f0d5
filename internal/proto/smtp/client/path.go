package client

import "qmail/internal/format/address"

// carriable reports whether addr would stay one argument of one command: no control byte anywhere, and in the
// domain only what names and address literals are made of.
func carriable(addr string) bool {
	for i := 0; i < len(addr); i++ {
		if addr[i] < ' ' || addr[i] == 0x7f {
			return false
		}
	}
	_, domain, _ := address.Split(addr)
	for i := 0; i < len(domain); i++ {
		if !domainByte(domain[i]) {
			return false
		}
	}
	return true
}

// appendPath writes a carriable addr as a path of RFC 5321 4.1.2, the local part quoted where it must be.
func appendPath(dst []byte, addr string) []byte {
	dst = append(dst, '<')
	if local, domain, ok := address.Split(addr); ok {
		dst = append(append(append(dst, address.Quote(local)...), '@'), domain...)
	} else if addr != "" {
		dst = append(dst, address.Quote(addr)...)
	}
	return append(dst, '>')
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
