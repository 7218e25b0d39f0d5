package qmqp

import (
	"errors"

	"qmail/internal/format/netstring"
)

const (
	// maxRequest is the longest request, in bytes: what qmail-qmqpd's reader of lengths let through.
	maxRequest = 2_000_000_009
	// maxAddress is the longest address that is kept.
	maxAddress = 999
)

// ErrSyntax is what is no QMQP.
var ErrSyntax = errors.New("qmqp: the client breaks the protocol")

// Broken reports whether err says that what came was no QMQP, rather than too much of it.
func Broken(err error) bool { return errors.Is(err, ErrSyntax) || errors.Is(err, netstring.ErrSyntax) }

// kind says what an event is about.
type kind byte

const (
	nothing   kind = iota // all of the input is used up
	body                  // bytes of the message
	sender                // an address
	recipient             // an address
	end                   // the request is complete
)

// event is what the parser has understood. Its bytes are valid until the parser is called again.
type event struct {
	kind  kind
	bytes []byte
	long  bool // the address is too long, and not in bytes
}

// part is what the parser is in.
type part byte

const (
	inLength part = iota
	inMessage
	inSender
	inRecipients
	inEnd
)

// parser reads a request: a netstring of netstrings, the message, the sender and each recipient. It holds one
// address, whatever comes.
type parser struct {
	part    part
	length  netstring.Length // of the request
	left    int64            // of the request
	stream  netstring.Stream // of the message or an address
	address []byte
}

// next takes bytes from the front of b and returns what they mean and how many they were. It wants to be called
// until the event is nothing or end. After an error it must not be called.
func (p *parser) next(b []byte) (e event, n int, err error) {
	if p.part == inLength {
		n, err = p.length.Read(b, maxRequest)
		if err != nil || !p.length.Done() {
			return event{}, n, err
		}
		p.left, p.part = p.length.Value(), inMessage
	}
	e, more, err := p.inside(b[n:])
	return e, n + more, err
}

func (p *parser) inside(b []byte) (event, int, error) {
	if p.left == 0 && p.part == inRecipients {
		p.part = inEnd
	}
	if p.part == inEnd {
		return p.finish(b)
	}
	window := b[:min(int64(len(b)), p.left)]
	piece, n, done, err := p.stream.Next(window, p.left)
	p.left -= int64(n)
	if err != nil { // too long is no excuse in here
		return event{}, n, ErrSyntax
	}
	size, _ := p.stream.Length()
	if done {
		p.stream = netstring.Stream{}
	} else if p.left == 0 {
		return event{}, n, ErrSyntax
	}
	if p.part == inMessage {
		return p.message(b, piece, n, done)
	}
	if size <= maxAddress {
		p.address = append(p.address, piece...)
	}
	if !done {
		return event{}, n, nil
	}
	e := event{kind: recipient, bytes: p.address, long: size > maxAddress}
	if p.part == inSender {
		e.kind, p.part = sender, inRecipients
	}
	p.address = p.address[:0]
	return e, n, nil
}

func (p *parser) message(b, piece []byte, n int, done bool) (event, int, error) {
	if done {
		p.part = inSender
		if p.left == 0 {
			return event{}, n, ErrSyntax
		}
	}
	if len(piece) > 0 || !done {
		e := event{bytes: piece}
		if len(piece) > 0 {
			e.kind = body
		}
		return e, n, nil
	}
	e, more, err := p.inside(b[n:]) // only the comma was left
	return e, n + more, err
}

func (p *parser) finish(b []byte) (event, int, error) {
	if len(b) == 0 {
		return event{}, 0, nil
	}
	if b[0] != ',' {
		return event{}, 0, ErrSyntax
	}
	return event{kind: end}, 1, nil
}
