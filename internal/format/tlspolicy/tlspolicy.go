// Package tlspolicy is what a line of control/tlspolicy asks of the connections to a destination.
//
// A policy is a word, and what belongs to it behind blanks:
//
//	none                      no TLS, even where it is offered
//	may                       TLS where it is offered; without it, or where the handshake fails, plain text
//	encrypt                   TLS, with whomever
//	verify [name ...]         TLS with a valid certificate that has one of the names; ".b.example" stands for any name below
//	                          b.example, and without names the destination's own name and those below it count
//	fingerprint sha256:hex ...  TLS with a certificate, or a public key, whose SHA-256 is one of these
package tlspolicy

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Level is how much a destination is asked for; a greater one asks for more.
type Level byte

const (
	None Level = iota
	May
	Encrypt
	Verify
	Fingerprint
)

var words = [...]string{None: "none", May: "may", Encrypt: "encrypt", Verify: "verify", Fingerprint: "fingerprint"}

func (l Level) String() string { return words[l] }

// Policy is a line's right side.
type Policy struct {
	Level  Level
	Names  []string   // of Verify: "host", or ".domain" for all names below it
	Prints [][32]byte // of Fingerprint
}

// Required reports whether a connection without TLS will not do.
func (p Policy) Required() bool { return p.Level >= Encrypt }

var (
	errWord   = errors.New("not one of none, may, encrypt, verify, fingerprint")
	errMore   = errors.New("this policy takes nothing more")
	errPrint  = errors.New("not sha256: and 64 hexadecimal digits")
	errPrints = errors.New("no fingerprint is named")
)

// Parse reads a policy.
func Parse(s string) (Policy, error) {
	fields := strings.Fields(s)
	if len(fields) == 0 {
		return Policy{}, errWord
	}
	p := Policy{}
	for ; int(p.Level) < len(words) && words[p.Level] != fields[0]; p.Level++ {
	}
	rest := fields[1:]
	switch {
	case int(p.Level) == len(words):
		return Policy{}, errWord
	case p.Level < Verify && len(rest) > 0:
		return Policy{}, errMore
	case p.Level == Verify:
		return p.names(rest)
	case p.Level == Fingerprint:
		return p.prints(rest)
	}
	return p, nil
}

func (p Policy) names(list []string) (Policy, error) {
	for _, name := range list {
		if !hostName(strings.TrimPrefix(name, ".")) {
			return Policy{}, fmt.Errorf("%q is no host name", name)
		}
		p.Names = append(p.Names, name)
	}
	return p, nil
}

func (p Policy) prints(list []string) (Policy, error) {
	if len(list) == 0 {
		return Policy{}, errPrints
	}
	for _, s := range list {
		digits, ok := strings.CutPrefix(s, "sha256:")
		b, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
		if !ok || err != nil || len(b) != 32 {
			return Policy{}, errPrint
		}
		p.Prints = append(p.Prints, [32]byte(b))
	}
	return p, nil
}

// hostName reports whether s is made of what host names are made of.
func hostName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && s[i] != '-' && s[i] != '.' {
			return false
		}
	}
	return s != "" && s[0] != '.' && s[len(s)-1] != '.'
}
