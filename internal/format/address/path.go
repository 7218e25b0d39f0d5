package address

import (
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Limits of a path, in bytes. RFC 5321 4.5.3.1 lets a local part be cut off at 64, and asks not to where it
// can be helped: VERP and SRS senders are longer than that. Domain and label are what the DNS can hold. A
// mailbox within them is far below envelope.MaxAddress.
const (
	MaxLocal  = 255
	MaxDomain = 255
	maxLabel  = 63
)

// ErrPath is a path that RFC 5321 4.1.2 does not know, or one beyond the limits.
var ErrPath = errors.New("address: not a path")

// Path is what stood between the angle brackets of MAIL FROM:<...> or RCPT TO:<...>.
type Path struct {
	Address string // raw: quoting undone, source route dropped, case kept; empty for <>
	Bare    bool   // a local part without a domain, such as <postmaster>
	UTF8    bool   // has bytes above 127, all of them valid UTF-8 (RFC 6531)
}

// CutPath reads a path at the start of s, after blanks, and returns what follows it: nothing, or a blank and
// ESMTP parameters. Whatever it accepts has one reading: the domain is what follows the last @ of Address,
// since a domain cannot hold one and a local part without a domain must not.
//
// The grammar is that of RFC 5321 4.1.2 and RFC 6531 3.3, and in addition: an underscore in a domain and one
// dot at its end are kept as they are, for such names exist and looking them up does no harm.
func CutPath(s string) (p Path, rest string, err error) {
	for len(s) > 0 && s[0] == ' ' {
		s = s[1:]
	}
	if len(s) < 2 || s[0] != '<' {
		return Path{}, s, ErrPath
	}
	s = s[1:]
	if s[0] == '>' {
		rest, err = afterPath(s)
		return Path{}, rest, err
	}
	if s, err = cutRoute(s); err != nil {
		return Path{}, s, err
	}
	local, mailbox, quoted, err := cutLocal(s)
	if err != nil {
		return Path{}, s, err
	}
	if mailbox == "" || mailbox[0] != '@' { // no domain: a quoted @ would be mistaken for one later on
		p = Path{Address: local, Bare: true}
		if quoted || !ascii(local) {
			return Path{}, mailbox, ErrPath
		}
		rest, err = afterPath(mailbox)
		return p, rest, err
	}
	domain, tail, err := cutDomain(mailbox[1:])
	if err != nil {
		return Path{}, s, err
	}
	if quoted {
		p.Address = local + "@" + domain
	} else {
		p.Address = s[:len(local)+1+len(domain)]
	}
	p.UTF8 = !ascii(p.Address)
	rest, err = afterPath(tail)
	return p, rest, err
}

// afterPath takes the closing bracket; parameters must be set off by a blank.
func afterPath(s string) (string, error) {
	if s == "" || s[0] != '>' || len(s) > 1 && s[1] != ' ' {
		return s, ErrPath
	}
	return s[1:], nil
}

// cutRoute drops a source route, "@one,@two:" (RFC 5321 appendix C): it is read and never followed.
func cutRoute(s string) (string, error) {
	if s == "" || s[0] != '@' {
		return s, nil
	}
	for {
		_, rest, err := cutDomain(s[1:])
		if err != nil || rest == "" {
			return s, ErrPath
		}
		if rest[0] == ':' {
			return rest[1:], nil
		}
		if len(rest) < 2 || rest[0] != ',' || rest[1] != '@' {
			return s, ErrPath
		}
		s = rest[1:]
	}
}

// cutLocal takes a dot-string or a quoted string; local has its quoting undone.
func cutLocal(s string) (local, rest string, quoted bool, err error) {
	if s != "" && s[0] == '"' {
		local, rest, err = cutQuoted(s[1:])
		return local, rest, true, err
	}
	n := 0
	for n < len(s) && (isAtext(s[n]) || s[n] == '.') {
		n++
	}
	local = s[:n]
	if n == 0 || n > MaxLocal || !utf8.ValidString(local) ||
		local[0] == '.' || local[n-1] == '.' || strings.Contains(local, "..") {
		return "", s, false, ErrPath
	}
	return local, s[n:], false, nil
}

func cutQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '"' {
			local = b.String()
			if len(local) > MaxLocal || !utf8.ValidString(local) {
				return "", s, ErrPath
			}
			return local, s[i+1:], nil
		}
		if c == '\\' {
			i++
			if i == len(s) || s[i] >= 0x80 {
				return "", s, ErrPath
			}
			c = s[i]
		}
		if c < ' ' || c == 0x7f {
			return "", s, ErrPath
		}
		b.WriteByte(c)
	}
	return "", s, ErrPath
}

// cutDomain takes a domain name or an address literal.
func cutDomain(s string) (domain, rest string, err error) {
	if s != "" && s[0] == '[' {
		n := strings.IndexByte(s, ']')
		if n < 0 {
			return "", s, ErrPath
		}
		if _, ok := Literal(s[:n+1]); !ok {
			return "", s, ErrPath
		}
		return s[:n+1], s[n+1:], nil
	}
	n := 0
	for n < len(s) && (isLDH(s[n]) || s[n] == '.') {
		n++
	}
	if !goodName(s[:n]) {
		return "", s, ErrPath
	}
	return s[:n], s[n:], nil
}

// goodName checks the labels of a domain name. A label in UTF-8 may be longer than in its DNS form.
func goodName(name string) bool {
	if name == "" || len(name) > MaxDomain || !utf8.ValidString(name) {
		return false
	}
	name = strings.TrimSuffix(name, ".")
	for {
		label, rest, more := strings.Cut(name, ".")
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || len(label) > maxLabel && ascii(label) {
			return false
		}
		if !more {
			return true
		}
		name = rest
	}
}

// Literal reads an address literal, "[192.0.2.1]" or "[IPv6:2001:db8::1]" (RFC 5321 4.1.3). IPv4 mapped into
// IPv6 is unmapped.
func Literal(domain string) (netip.Addr, bool) {
	if len(domain) < 2 || domain[0] != '[' || domain[len(domain)-1] != ']' {
		return netip.Addr{}, false
	}
	text := domain[1 : len(domain)-1]
	v6 := len(text) > 5 && EqualFold(text[:5], "IPv6:")
	if v6 {
		text = text[5:]
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Is6() != v6 || ip.Zone() != "" {
		return netip.Addr{}, false
	}
	return ip.Unmap(), true
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isAtext(c byte) bool {
	return isAlnum(c) || c >= 0x80 || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

func isLDH(c byte) bool { return isAlnum(c) || c == '-' || c == '_' || c >= 0x80 }

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
