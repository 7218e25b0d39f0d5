// Package sasl is both sides of an authentication exchange (RFC 4422): PLAIN (RFC 4616), LOGIN, SCRAM-SHA-1 and
// SCRAM-SHA-256 (RFC 5802, 7677) with and without channel binding, and for clients CRAM-MD5 (RFC 2195).
//
// Challenges and responses go in and out as bytes; base64 and lines are the protocol's around it. Who has which
// password is the caller's to say, by way of Users. Nothing here waits, and no message is longer than MaxMessage.
//
// SCRAM's messages are read and made by github.com/xdg-go/scram. What it leaves to its callers is done here: which kind
// of channel binding a client may choose, that names with -PLUS and flags go together, and bounds on lengths and
// iterations.
package sasl

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"
)

// The mechanisms.
const (
	Plain           = "PLAIN"
	Login           = "LOGIN"
	CRAMMD5         = "CRAM-MD5"
	ScramSHA1       = "SCRAM-SHA-1"
	ScramSHA1Plus   = "SCRAM-SHA-1-PLUS"
	ScramSHA256     = "SCRAM-SHA-256"
	ScramSHA256Plus = "SCRAM-SHA-256-PLUS"
)

const (
	// MaxMessage is the longest challenge or response, in bytes: what fits, as base64, into the 12288 octets of a line
	// that RFC 4954 4 asks for.
	MaxMessage = 9216
	// MaxLogin and MaxPassword bound names and passwords, in bytes.
	MaxLogin    = 255
	MaxPassword = 512
	// maxIterations is what a server may make a client compute: some seconds of work. minIterations is what RFC 7677 4
	// asks for.
	maxIterations = 2_000_000
	minIterations = 4096
)

var (
	// ErrMalformed is a message that is none of the mechanism's.
	ErrMalformed = errors.New("sasl: malformed message")
	// ErrRefused is a name or a password that is not right; which of them is not said.
	ErrRefused = errors.New("sasl: wrong name or password")
	// ErrMechanism is a mechanism that is not known, or not usable here.
	ErrMechanism = errors.New("sasl: no such mechanism")
	// ErrServer is a server that has not shown that it knows the password, or breaks the rules.
	ErrServer = errors.New("sasl: the server has not proved itself")
)

// strength is the order of preference of clients. In an encrypted connection, and there is no other in which we say a
// password, PLAIN gives away no more than CRAM-MD5, for which the server has to keep the password itself.
var strength = [...]string{ScramSHA256Plus, ScramSHA1Plus, ScramSHA256, ScramSHA1, Plain, Login, CRAMMD5}

// Choose returns the best of the mechanisms offered, or "". Those with -PLUS count if bound.
func Choose(offered []string, bound bool) string {
	for _, name := range strength {
		if !bound && plus(name) {
			continue
		}
		for _, o := range offered {
			if equalFold(o, name) {
				return name
			}
		}
	}
	return ""
}

func plus(mechanism string) bool { return strings.HasSuffix(mechanism, "-PLUS") }

// hashOf is the hash of a SCRAM mechanism.
func hashOf(mechanism string) (scram.HashGeneratorFcn, bool) {
	switch mechanism {
	case ScramSHA256, ScramSHA256Plus:
		return scram.SHA256, true
	case ScramSHA1, ScramSHA1Plus:
		return scram.SHA1, true
	}
	return nil, false
}

// Prepare is the form in which passwords are hashed and compared: SASLprep's (RFC 4013), or for what that does not
// allow, and for bytes that are no text, the password itself.
func Prepare(password string) string {
	prepared, err := stringprep.SASLprep.Prepare(password)
	if err != nil || prepared == "" {
		return password
	}
	return prepared
}

// GoodLogin reports whether a name can be somebody's: text without control characters, not too long.
func GoodLogin(name string) bool {
	if name == "" || len(name) > MaxLogin || !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return false
		}
	}
	return true
}

func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if upper(a[i]) != upper(b[i]) {
			return false
		}
	}
	return true
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		c -= 'a' - 'A'
	}
	return c
}
