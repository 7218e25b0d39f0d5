package qmtp

import (
	"bytes"
	"errors"

	"qmail/internal/format/netstring"
)

const (
	// maxMessage is the longest message, in bytes, and maxList the longest list of recipients: what
	// qmail-qmtpd's reader of lengths let through, and what our queue takes.
	maxMessage = 2_000_000_009
	maxList    = 64 << 20
	// maxAddress is the longest address that is kept.
	maxAddress = 999
)

// ErrSyntax is what is no QMTP.
var ErrSyntax = errors.New("qmtp: the client breaks the protocol")

// Broken reports whether err says that what came was no QMTP, rather than too much of it.
func Broken(err error) bool { return errors.Is(err, ErrSyntax) || errors.Is(err, netstring.ErrSyntax) }

// kind says what an event is about.
type kind byte

const (
	nothing   kind = iota // all of the input is used up
	body                  // bytes of a message; at least one such event for each, perhaps without bytes
	sender                // an address
	recipient             // an address
	packageEnd
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
	inMessage part = iota
	inSender
	inListLength
	inList
	inListEnd
)

// parser reads packages: a netstring with the message, one with the sender, one with a netstring for each
// recipient. It holds one address, whatever comes.
type parser struct {
	part    part
	stream  netstring.Stream // of the message, the sender or a recipient
	length  netstring.Length // of the list
	left    int64            // of the list
	mode    byte             // the message's first byte; 0 until it is known
	cr      bool             // the last byte so far was a CR, whose meaning the next byte tells
	address []byte
}

var carriageReturn = []byte{'\r'}

// next takes bytes from the front of b, in which messages are decoded in place, and returns what they mean and how
// many they were. It wants to be called until the event is nothing. After an error it must not be called.
func (p *parser) next(b []byte) (event, int, error) {
	switch p.part {
	case inMessage:
		return p.message(b)
	case inSender:
		return p.sender(b)
	case inListLength:
		n, err := p.length.Read(b, maxList)
		if err == nil && p.length.Done() {
			p.left, p.length, p.part = p.length.Value(), netstring.Length{}, inList
			e, more, err := p.list(b[n:])
			return e, n + more, err
		}
		return event{}, n, err
	case inList:
		return p.list(b)
	}
	return p.listEnd(b)
}

// size is the length of the message at hand without its first byte; with CRLF line ends it is less when decoded.
func (p *parser) size() int64 {
	n, _ := p.stream.Length()
	return n - 1
}

func (p *parser) message(b []byte) (event, int, error) {
	if len(b) == 0 {
		return event{}, 0, nil
	}
	if p.cr {
		p.cr = false
		if b[0] != '\n' {
			return event{kind: body, bytes: carriageReturn}, 0, nil
		}
	}
	piece, n, done, err := p.stream.Next(b, maxMessage)
	if err != nil {
		return event{}, n, err
	}
	if size, known := p.stream.Length(); known && size == 0 {
		return event{}, n, ErrSyntax
	}
	e := event{bytes: piece}
	if p.mode == 0 && len(piece) > 0 {
		if p.mode, e.bytes = piece[0], piece[1:]; p.mode != '\n' && p.mode != '\r' {
			return event{}, n, ErrSyntax
		}
	}
	if len(piece) > 0 {
		e.kind = body
		if p.mode == '\r' {
			e.bytes = p.decode(e.bytes)
		}
	}
	if done {
		p.stream, p.mode, p.part = netstring.Stream{}, 0, inSender
	}
	if e.kind == nothing && done { // only the comma was left
		e, more, err := p.sender(b[n:])
		return e, n + more, err
	}
	return e, n, nil
}

// decode makes CRLF a LF and leaves any other CR and LF as it is.
func (p *parser) decode(b []byte) []byte {
	w := bytes.IndexByte(b, '\r')
	if w < 0 {
		return b
	}
	for r := w; r < len(b); {
		switch { // b[r] is a CR
		case r+1 < len(b) && b[r+1] == '\n':
			r++
		case r+1 == len(b) && p.stream.Left() > 0:
			p.cr = true
			return b[:w]
		default:
			b[w] = '\r'
			w, r = w+1, r+1
		}
		i := bytes.IndexByte(b[r:], '\r')
		if i < 0 {
			i = len(b) - r
		}
		w += copy(b[w:], b[r:r+i])
		r += i
	}
	return b[:w]
}

func (p *parser) sender(b []byte) (event, int, error) {
	e, n, err := p.addr(b, sender, maxMessage)
	if e.kind != nothing {
		p.part = inListLength
	}
	return e, n, err
}

// addr reads an address.
func (p *parser) addr(b []byte, k kind, limit int64) (event, int, error) {
	piece, n, done, err := p.stream.Next(b, limit)
	if err != nil {
		return event{}, n, err
	}
	size, _ := p.stream.Length()
	if long := size > maxAddress; !long {
		p.address = append(p.address, piece...)
	}
	if !done {
		return event{}, n, nil
	}
	e := event{kind: k, bytes: p.address, long: size > maxAddress}
	p.stream, p.address = netstring.Stream{}, p.address[:0]
	return e, n, nil
}

// list reads a recipient; it must fit into what is left of the list.
func (p *parser) list(b []byte) (event, int, error) {
	if p.left == 0 {
		p.part = inListEnd
		return p.listEnd(b)
	}
	e, n, err := p.addr(b[:min(int64(len(b)), p.left)], recipient, p.left)
	p.left -= int64(n)
	if err != nil || p.left == 0 && e.kind == nothing { // too long is no excuse in here
		return event{}, n, ErrSyntax
	}
	return e, n, nil
}

func (p *parser) listEnd(b []byte) (event, int, error) {
	if len(b) == 0 {
		return event{}, 0, nil
	}
	if b[0] != ',' {
		return event{}, 0, ErrSyntax
	}
	p.part = inMessage
	return event{kind: packageEnd}, 1, nil
}
