package dns

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxName and maxLabel are the limits of RFC 1035 2.3.4, without the root's dot.
const (
	maxName  = 253
	maxLabel = 63
)

// ASCII returns name as it is asked for: lower case, without a final dot, an internationalized label as its
// A-label (RFC 5890). It is false for what cannot name a host: anything but letters, digits, hyphens,
// underscores and dots, an empty or an over-long label.
func ASCII(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	if hasHighByte(name) {
		if len(name) > 4*maxName || !utf8.ValidString(name) {
			return "", false
		}
		var err error
		if name, err = profile().ToASCII(name); err != nil {
			return "", false
		}
	}
	return hostName(name)
}

// profile is the IDNA 2008 lookup with lengths verified; underscores and other ASCII are judged by hostName.
func profile() *idna.Profile {
	return idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.VerifyDNSLength(true), idna.StrictDomainName(false))
}

func hasHighByte(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return true
		}
	}
	return false
}

// hostName checks and folds a name of ASCII bytes. Nothing is allocated for one that is lower case already.
func hostName(name string) (string, bool) {
	if name == "" || len(name) > maxName {
		return "", false
	}
	label, upper := 0, false
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = -1
		case 'A' <= c && c <= 'Z':
			upper = true
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return "", false
		}
		if label++; label > maxLabel {
			return "", false
		}
	}
	if label == 0 {
		return "", false
	}
	if upper {
		name = lower(name)
	}
	return name, true
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
