package dns

import (
	"errors"
	"strconv"
)

// Error is a question without an answer; it is always worth asking again. Its text is for our log.
type Error struct {
	Name string
	Type Type
	Err  error
}

func (e *Error) Error() string {
	return "dns: " + e.Name + " type " + strconv.Itoa(int(e.Type)) + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

var (
	errType      = errors.New("record type not understood")
	errBusy      = errors.New("resolver closed or too many questions under way")
	errServers   = errors.New("no resolver is configured")
	errMalformed = errors.New("malformed answer")
	errForeign   = errors.New("not an answer to this question")
	errChain     = errors.New("CNAME loop, or a chain too long")
)

// rcodeError is a server that could or would not say.
type rcodeError int

func (e rcodeError) Error() string {
	switch e {
	case 1:
		return "resolver says FORMERR"
	case 2:
		return "resolver says SERVFAIL"
	case 4:
		return "resolver says NOTIMP"
	case 5:
		return "resolver says REFUSED"
	}
	return "resolver says rcode " + strconv.Itoa(int(e))
}
