// Package reply is the outcome of a step of mail: done (K), later (Z) or never (D).
//
// Error is the one error type on the mail path. What a stranger may read (Text) is kept apart from what
// only our log reads (Err). An error that nobody classified is temporary: a bug of ours may delay mail,
// it must not lose or bounce it.
package reply

import (
	"errors"
	"strconv"
)

// Error is a refusal. Text is for strangers, Err for our log only.
type Error struct {
	Code   int    // RFC 5321 4.2: 4yz try again, 5yz give up
	Status string // RFC 3463, such as "4.3.0"
	Text   string // one line; no paths, no configuration
	Err    error
}

// ErrInDoubt is the cause of a refusal that may be none: the message was given away, and whoever has it did not
// answer. To say 4yz then would promise that it will not be delivered; a server closes without a word instead, so
// that its client knows as little as it does.
var ErrInDoubt = errors.New("the outcome is not known")

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Status + " " + e.Text + ": " + e.Err.Error()
	}
	return e.Status + " " + e.Text
}

func (e *Error) Unwrap() error { return e.Err }

// SMTP is the reply line for a client, without CRLF, as RFC 2034 wants it: "451 4.3.0 text".
func (e *Error) SMTP() string {
	return strconv.Itoa(e.Code) + " " + e.Status + " " + e.Text
}

// Report is the refusal as qmail's programs write it: "Ztext (#4.3.0)".
func (e *Error) Report() string {
	return string(e.Letter()) + e.Text + " (#" + e.Status + ")"
}

// Letter is the class: 'Z' for temporary, 'D' for permanent.
func (e *Error) Letter() byte {
	if e.Code >= 500 {
		return 'D'
	}
	return 'Z'
}

// Of finds the refusal in err. An error nobody classified is temporary; Of(nil) is nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: 451, Status: "4.3.0", Text: "temporary local problem", Err: err}
}

// Letter is 'K' for nil, else the class of the refusal in err.
func Letter(err error) byte {
	if err == nil {
		return 'K'
	}
	return Of(err).Letter()
}

// Temporary and Permanent make refusals; err may be nil.
func Temporary(status, text string, err error) *Error {
	return &Error{Code: 451, Status: status, Text: text, Err: err}
}

// Permanent makes a 554 refusal; see Temporary.
func Permanent(status, text string, err error) *Error {
	return &Error{Code: 554, Status: status, Text: text, Err: err}
}

// Parse turns a report of qmail's form, "Ztext (#4.3.0)" or "Dtext (#5.1.1)", back into an error. A text
// that begins with K is nil; one that begins with anything but K, Z and D is temporary, since unknown
// means later. Without a status in the text the status is 4.0.0 or 5.0.0.
func Parse(report string) error {
	if report == "" {
		return &Error{Code: 451, Status: "4.3.0", Text: "report mangled"}
	}
	letter, text := report[0], trimNewline(report[1:])
	switch letter {
	case 'K':
		return nil
	case 'D':
		status, rest := splitStatus(text, "5.0.0")
		return &Error{Code: 554, Status: status, Text: rest}
	default:
		status, rest := splitStatus(text, "4.0.0")
		return &Error{Code: 451, Status: status, Text: rest}
	}
}

func trimNewline(s string) string {
	for len(s) > 0 && s[len(s)-1] == '\n' {
		s = s[:len(s)-1]
	}
	return s
}

// splitStatus cuts a trailing "(#x.y.z)" off text.
func splitStatus(text, otherwise string) (status, rest string) {
	if len(text) < 4 || text[len(text)-1] != ')' {
		return otherwise, text
	}
	for i := len(text) - 2; i > 0; i-- {
		c := text[i]
		if c == '#' && text[i-1] == '(' && i+1 < len(text)-1 {
			rest = text[:i-1]
			for len(rest) > 0 && rest[len(rest)-1] == ' ' {
				rest = rest[:len(rest)-1]
			}
			return text[i+1 : len(text)-1], rest
		}
		if c != '.' && (c < '0' || c > '9') {
			break
		}
	}
	return otherwise, text
}
