package server

import (
	"bytes"
	"encoding/hex"
	"time"

	"qmail/internal/format/date822"
	"qmail/internal/format/header"
	"qmail/internal/format/reply"
)

// Kind is what a listener is for.
type Kind uint8

// The kinds.
const (
	Relay      Kind = iota // mail from anybody: port 25
	Submission             // the mail of our users, who have to log in (RFC 6409)
	LMTP                   // mail from a machine before us, with a reply for each recipient (RFC 2033)
)

// completer sees to it that a message of our users has what a message needs (RFC 6409 8): it looks at the header as it
// passes, and says where the missing fields go, which is at its end. It keeps a few bytes.
type completer struct {
	on        bool
	done      bool // the header is over
	begun     bool
	date, id  bool
	from      int
	name      [12]byte // of the field at hand, in lower case, as far as it is read
	length    int      // of name, or more if it is longer than any that counts
	inBody    bool     // of the field: what is read is not its name
	lineStart bool
}

var errFroms = &reply.Error{Code: 550, Status: "5.6.0", Text: "a message has one From field (#5.6.0)"}

// scan takes the next bytes as they will be stored; at is where in them the missing fields have to go, -1 for not here.
// naked says that there is no header, so that what is put in front has to end with an empty line.
func (c *completer) scan(b []byte, end bool) (at int, naked bool) {
	if !c.on || c.done {
		return -1, false
	}
	if !c.begun && len(b) > 0 {
		c.begun, c.lineStart = true, true
		line, _, _ := bytes.Cut(b, []byte{'\n'})
		if _, field := header.NameEnd(append(line[:len(line):len(line)], '\n')); !field && len(line) > 0 {
			c.done = true
			return 0, true
		}
	}
	for i := 0; i < len(b); i++ {
		ch := b[i]
		if c.lineStart {
			if ch == '\n' {
				c.done = true
				return i, false
			}
			c.lineStart, c.inBody = false, ch == ' ' || ch == '\t'
			c.length = 0
		}
		switch {
		case ch == '\n':
			c.lineStart = true
		case c.inBody:
			j := bytes.IndexByte(b[i:], '\n')
			if j < 0 {
				i = len(b)
				break
			}
			i += j
			c.lineStart = true
		case ch == ':':
			c.field()
			c.inBody = true
		case ch != ' ' && ch != '\t' && c.length < len(c.name):
			if 'A' <= ch && ch <= 'Z' {
				ch += 'a' - 'A'
			}
			c.name[c.length] = ch
			c.length++
		case ch != ' ' && ch != '\t':
			c.length = len(c.name) + 1
		}
	}
	if end {
		c.done = true
		return len(b), false
	}
	return -1, false
}

// field notes the name that has just been read.
func (c *completer) field() {
	if c.length > len(c.name) {
		return
	}
	switch string(c.name[:c.length]) {
	case "date":
		c.date = true
	case "message-id":
		c.id = true
	case "from":
		c.from++
	}
}

// missing are the fields to be added.
func (c *completer) missing(dst []byte, now time.Time, unique [8]byte, host string) []byte {
	if !c.date {
		dst = append(dst, "Date: "...)
		dst = append(date822.Append(dst, now), '\n')
	}
	if !c.id {
		dst = append(dst, "Message-ID: <"...)
		dst = now.UTC().AppendFormat(dst, "20060102150405.")
		dst = hex.AppendEncode(dst, unique[:])
		dst = append(append(append(dst, '@'), host...), ">\n"...)
	}
	return dst
}

// pass gives stored bytes of a message to the queue, with what they lack.
func (c *conversation) pass(m Message, stored []byte, end bool) {
	if c.session.Refusal() != nil {
		return
	}
	s := &c.session.tx.complete
	at, naked := s.scan(stored, end)
	if at < 0 {
		c.put(m, stored)
		return
	}
	if s.from > 1 {
		c.session.Fail(errFroms)
		return
	}
	var unique [8]byte
	c.server.Random(unique[:])
	text := s.missing(nil, c.server.Now(), unique, c.session.config.IDHost)
	if naked {
		text = append(text, '\n')
	}
	if at == len(stored) && at > 0 && stored[at-1] != '\n' { // a header without a line end
		text = append([]byte{'\n'}, text...)
	}
	c.put(m, stored[:at])
	c.put(m, text)
	c.put(m, stored[at:])
}
