package pop3

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Mailbox is the messages of a session, numbered from 0. They stay the same until it ends.
type Mailbox interface {
	Len() int
	Size(i int) int64
	UID(i int) string
	Read(i int) (io.ReadCloser, error)
	// Update removes messages; those it does not remove count as seen by the client.
	Update(remove func(i int) bool) error
}

// Transaction is the TRANSACTION state, and with QUIT the UPDATE state.
type Transaction struct {
	box     Mailbox
	deleted []bool
	count   int   // of those that are not deleted
	bytes   int64 // of them
	last    int   // the highest number that was deleted
	errors  int
}

// NewTransaction begins the TRANSACTION state.
func NewTransaction(box Mailbox) *Transaction {
	t := &Transaction{box: box}
	t.reset()
	return t
}

func (t *Transaction) reset() {
	t.deleted = make([]bool, t.box.Len())
	t.count, t.bytes, t.last = len(t.deleted), 0, 0
	for i := range t.deleted {
		t.bytes += t.box.Size(i)
	}
}

// refusal is a command that fails.
type refusal string

func (r refusal) Error() string { return string(r) }

// Step takes one line and writes the reply. The error is one of writing, or of reading a message of which a part
// has been written: then there is nothing left to say.
func (t *Transaction) Step(w *bufio.Writer, line string) (end bool, err error) {
	verb, arg := split(line)
	end, err = t.step(w, verb, arg)
	if r, refused := err.(refusal); refused {
		t.errors++
		_, err = fmt.Fprintf(w, "-ERR %s\r\n", string(r))
		end = end || t.errors >= maxErrors
	}
	return end, err
}

func (t *Transaction) step(w *bufio.Writer, verb, arg string) (end bool, err error) {
	switch verb {
	case "STAT":
		_, err = fmt.Fprintf(w, "+OK %d %d\r\n", t.count, t.bytes)
	case "LIST":
		err = t.list(w, arg, func(b []byte, i int) []byte { return strconv.AppendInt(b, t.box.Size(i), 10) })
	case "UIDL":
		err = t.list(w, arg, func(b []byte, i int) []byte { return append(b, t.box.UID(i)...) })
	case "RETR":
		err = t.retrieve(w, arg, -1)
	case "TOP":
		number, lines, _ := strings.Cut(arg, " ")
		n, ok := parseNumber(strings.TrimLeft(lines, " "))
		if _, err := t.number(number); err != nil {
			return false, err
		}
		if !ok {
			return false, refusal(syntax)
		}
		err = t.retrieve(w, number, n)
	case "DELE":
		err = t.remove(w, arg)
	case "RSET":
		t.reset()
		err = fine(w)
	case "LAST":
		_, err = fmt.Fprintf(w, "+OK %d\r\n", t.last)
	case "NOOP":
		err = fine(w)
	case "CAPA":
		err = say(w, ok, capabilities()...)
	case "QUIT":
		if t.box.Update(func(i int) bool { return t.deleted[i] }) != nil {
			return true, refusal("unable to unlink all deleted messages")
		}
		return true, fine(w)
	default:
		err = refusal("unimplemented")
	}
	return false, err
}

func fine(w io.Writer) error { return say(w, ok) }

// parseNumber reads digits, and nothing but digits. What is too large for any mailbox is the largest number.
func parseNumber(s string) (n int64, ok bool) {
	for i := range len(s) {
		if s[i] < '0' || '9' < s[i] {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, s != "" && (err == nil || n > 0)
}

// number is the index of the message that an argument names.
func (t *Transaction) number(arg string) (int, error) {
	n, ok := parseNumber(arg)
	switch {
	case !ok:
		return 0, refusal(syntax)
	case n == 0:
		return 0, refusal("messages are counted from 1")
	case n > int64(len(t.deleted)):
		return 0, refusal("not that many messages")
	case t.deleted[n-1]:
		return 0, refusal("already deleted")
	}
	return int(n - 1), nil
}

// list answers LIST and UIDL.
func (t *Transaction) list(w *bufio.Writer, arg string, value func(b []byte, i int) []byte) error {
	if arg != "" {
		i, err := t.number(arg)
		if err == nil {
			line := append(strconv.AppendInt([]byte(ok), int64(i+1), 10), ' ')
			_, err = w.Write(append(value(line, i), "\r\n"...))
		}
		return err
	}
	w.WriteString(ok + "\r\n")
	var line []byte
	for i, gone := range t.deleted {
		if !gone {
			line = append(strconv.AppendInt(line[:0], int64(i+1), 10), ' ')
			w.Write(append(value(line, i), "\r\n"...))
		}
	}
	_, err := w.WriteString(".\r\n")
	return err
}

func (t *Transaction) remove(w io.Writer, arg string) error {
	i, err := t.number(arg)
	if err != nil {
		return err
	}
	t.deleted[i] = true
	t.count--
	t.bytes -= t.box.Size(i)
	t.last = max(t.last, i+1)
	return fine(w)
}

// retrieve sends a message: all of it, or with lines not negative its header and so many lines of its body.
func (t *Transaction) retrieve(w *bufio.Writer, arg string, lines int64) error {
	i, err := t.number(arg)
	if err != nil {
		return err
	}
	r, err := t.box.Read(i)
	if err != nil {
		return refusal("unable to open that message")
	}
	defer r.Close()
	w.WriteString(ok + "\r\n")
	b := body{w: w, limited: lines >= 0, left: lines, none: lines == 0, start: true, blank: true, header: true}
	return b.send(r)
}

// body sends a message as RFC 1939 3 wants a multi-line response: each line ended by CRLF, whatever ended it
// before, a second dot before those that begin with one, and a line with a dot at the end.
type body struct {
	w       *bufio.Writer
	limited bool
	left    int64 // lines of the body that may still be sent, if limited
	none    bool  // no line of the body was asked for

	start  bool // at the start of a line
	blank  bool // which is empty so far
	header bool
	cr     bool // a CR has just ended a line: a LF now belongs to it
	sent   bool // at least one line
}

const copySize = 32 << 10

func (b *body) send(r io.Reader) error {
	space := make([]byte, copySize)
	for !b.enough() {
		n, err := r.Read(space)
		b.part(space[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err // the client must not take the rest for the end
		}
	}
	if !b.start && !b.enough() {
		b.endLine()
	}
	// The original sends an empty line before the dot, always. It stays where nothing else shows that there is
	// no body: after a header alone, and for an empty message.
	if !b.sent || b.none && !b.header {
		b.w.WriteString("\r\n")
	}
	_, err := b.w.WriteString(".\r\n")
	return err
}

// enough reports whether all lines that were asked for have been sent.
func (b *body) enough() bool { return b.limited && !b.header && b.left == 0 }

func (b *body) part(p []byte) {
	for len(p) > 0 && !b.enough() {
		if b.cr {
			b.cr = false
			if p[0] == '\n' {
				p = p[1:]
				continue
			}
		}
		n := bytes.IndexAny(p, "\r\n")
		text := p
		if n >= 0 {
			text = p[:n]
		}
		if len(text) > 0 {
			if b.start && text[0] == '.' {
				b.w.WriteByte('.')
			}
			b.w.Write(text)
			b.start, b.blank = false, false
		}
		if n < 0 {
			return
		}
		b.endLine()
		b.cr = p[n] == '\r'
		p = p[n+1:]
	}
}

// endLine ends a line. The first empty one ends the header.
func (b *body) endLine() {
	b.w.WriteString("\r\n")
	if b.header {
		b.header = !b.blank
	} else {
		b.left--
	}
	b.start, b.blank, b.sent = true, true, true
}
