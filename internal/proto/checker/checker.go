// Package checker is the conversation between the servers that strangers talk to and qmail-authd, which knows who has
// which password. A server passes on the messages of a SASL exchange (RFC 4422) as they come, and hears at its end
// whom it has to do with. It never sees a hash, nor what SCRAM keeps in the place of a password.
//
// Frames from a server, each with the number of its exchange as stream:
//
//	'S'  begin: netstrings of the service, the client's address, "s" for a connection by TLS or nothing, the mechanism,
//	     the initial response with "=" in front or nothing, then type and data of each channel binding
//	'R'  a response
//	'X'  give up
//
// and the answers of qmail-authd:
//
//	'C'  a challenge: go on
//	'K'  the login: it is who it says
//	'D'  it is not; 'E' it does not speak the mechanism; 'Z' nobody can say now, with a text that the client may read
//
// Whenever they change, and at the beginning, qmail-authd sends 'M' on stream 0: netstrings of the mechanisms that can
// be used. Each exchange has one message under way at a time, and a bounded life.
package checker

import (
	"errors"
	"slices"
	"time"

	"qmail/internal/format/netstring"
)

// The kinds of frames from a server.
const (
	kindBegin      = 'S'
	kindResponse   = 'R'
	kindAbort      = 'X'
	kindMechanisms = 'M' // and from qmail-authd, besides Verdicts
)

// Verdict is what qmail-authd says.
type Verdict byte

// The verdicts.
const (
	More      Verdict = 'C' // the exchange goes on
	Yes       Verdict = 'K'
	No        Verdict = 'D'
	Malformed Verdict = 'E'
	Later     Verdict = 'Z'
)

// Answer is one answer.
type Answer struct {
	Verdict   Verdict
	Challenge []byte // of More
	Login     string // of Yes
	Text      string // of Later: for the client to read
}

// Who is the client of an exchange, and how it is connected.
type Who struct {
	Service  string // such as "submission"
	IP       string
	Secure   bool // by TLS
	Bindings []Binding
}

// Binding is a channel binding of the connection (RFC 5056).
type Binding struct {
	Type string
	Data []byte
}

const (
	// maxMessage bounds challenges and responses, in bytes: those of proto/sasl are no longer.
	maxMessage    = 9216
	maxLogin      = 255
	maxWord       = 64 // of the names in a frame
	maxBinding    = 256
	maxBindings   = 4
	maxMechanisms = 32
	// maxExchanges bounds those that one server has open.
	maxExchanges = 4096
	// exchangeTime bounds the life of one.
	exchangeTime = 10 * time.Minute
)

var errFrame = errors.New("checker: malformed frame")

// unreachable is what a client is told when there is nobody to ask.
var unreachable = Answer{Verdict: Later, Text: "unable to check passwords now, try again later (#4.7.0)"}

// begin is the payload of the first frame.
type begin struct {
	who        Who
	mechanism  string
	initial    []byte
	hasInitial bool
}

func (b *begin) append(dst []byte) []byte {
	secure := ""
	if b.who.Secure {
		secure = "s"
	}
	initial := b.initial
	if b.hasInitial {
		initial = append([]byte("="), initial...)
	} else {
		initial = nil
	}
	for _, field := range []string{b.who.Service, b.who.IP, secure, b.mechanism} {
		dst = netstring.Append(dst, field)
	}
	dst = netstring.Append(dst, initial)
	for _, binding := range b.who.Bindings {
		dst = netstring.Append(netstring.Append(dst, binding.Type), binding.Data)
	}
	return dst
}

func parseBegin(p []byte) (b begin, err error) {
	var words [4][]byte
	for i := range words {
		if words[i], p, err = netstring.Cut(p, maxWord); err != nil {
			return b, errFrame
		}
	}
	initial, p, err := netstring.Cut(p, maxMessage+1)
	if err != nil || len(initial) > 0 && initial[0] != '=' || len(words[2]) > 1 || len(words[2]) == 1 && words[2][0] != 's' {
		return b, errFrame
	}
	b = begin{who: Who{Service: string(words[0]), IP: string(words[1]), Secure: len(words[2]) > 0}, mechanism: string(words[3])}
	if b.hasInitial = len(initial) > 0; b.hasInitial {
		b.initial = slices.Clone(initial[1:])
	}
	for len(p) > 0 {
		var kind, data []byte
		if kind, p, err = netstring.Cut(p, maxWord); err == nil {
			data, p, err = netstring.Cut(p, maxBinding)
		}
		if err != nil || len(b.who.Bindings) == maxBindings {
			return begin{}, errFrame
		}
		b.who.Bindings = append(b.who.Bindings, Binding{string(kind), slices.Clone(data)})
	}
	return b, nil
}

func appendMechanisms(dst []byte, list []string) []byte {
	for _, m := range list {
		dst = netstring.Append(dst, m)
	}
	return dst
}

func parseMechanisms(p []byte) (list []string, err error) {
	for len(p) > 0 {
		var m []byte
		if m, p, err = netstring.Cut(p, maxWord); err != nil || len(list) == maxMechanisms || !isWord(m) {
			return nil, errFrame
		}
		list = append(list, string(m))
	}
	return list, nil
}

// isWord reports whether a mechanism's name is one (RFC 4422 3.1): it will stand in replies.
func isWord(b []byte) bool {
	for _, c := range b {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 20
}

// parseAnswer checks what qmail-authd says.
func parseAnswer(kind byte, p []byte) (Answer, error) {
	switch v := Verdict(kind); {
	case v == More && len(p) <= maxMessage:
		return Answer{Verdict: v, Challenge: slices.Clone(p)}, nil
	case v == Yes && len(p) > 0 && len(p) <= maxLogin:
		return Answer{Verdict: v, Login: string(p)}, nil
	case v == No || v == Malformed:
		return Answer{Verdict: v}, nil
	case v == Later && len(p) <= maxLogin:
		return Answer{Verdict: v, Text: string(p)}, nil
	}
	return Answer{}, errFrame
}

// payload is what parseAnswer reads.
func (a *Answer) payload() []byte {
	switch a.Verdict {
	case More:
		return a.Challenge
	case Yes:
		return []byte(a.Login)
	case Later:
		return []byte(a.Text[:min(len(a.Text), maxLogin)])
	}
	return nil
}
