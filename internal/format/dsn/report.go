package dsn

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"qmail/internal/format/address"
	"qmail/internal/format/date822"
)

// Outcome is what became of one recipient.
type Outcome struct {
	Recipient string // the address, as its sender may know it
	Original  string // the value of ORCPT, or empty
	Action    Action
	Report    string    // what the delivery said, without its letter
	Tried     time.Time // the last attempt; zero if that is not known
	Until     time.Time // of Delayed: when the last attempt will be
}

// Report is a message that tells a sender what became of his. Texts need not be clean.
type Report struct {
	Fields []byte // Date, From, To, Subject: whole lines
	ID     string // left side of the Message-ID
	Host   string // its right side
	MTA    string // who reports

	Text []byte // the first part
	// Preamble stands in front of the parts, where only programs read it that know nothing of MIME. It ends in a
	// line end, or is empty.
	Preamble []byte

	EnvelopeID string // what ENVID meant, or empty
	Arrival    time.Time
	Outcomes   []Outcome

	// UTF8 says that who reads this takes UTF-8 in header fields (SMTPUTF8).
	UTF8 bool
	// Whole says that the message follows, and not its header alone; EightBit that there are bytes over 127 in it.
	Whole, EightBit bool
	Boundary        string // from NewBoundary
}

// NewBoundary makes a boundary of random text, in letters and digits, that occurs in none of the texts.
func NewBoundary(random string, texts ...[]byte) string {
	for n := 0; ; n++ {
		b := "=_" + random + "_" + strconv.Itoa(n)
		found := false
		for _, text := range texts {
			found = found || bytes.Contains(text, []byte(b))
		}
		if !found {
			return b
		}
	}
}

// Append writes the report up to where the message, or its header, is to stand.
func (r *Report) Append(dst []byte) []byte {
	dst = append(dst, r.Fields...)
	dst = append(dst, "Message-ID: <"...)
	dst = appendClean(dst, r.ID, false)
	dst = append(dst, '@')
	dst = appendClean(dst, r.Host, false)
	dst = append(dst, ">\nAuto-Submitted: auto-replied\nMIME-Version: 1.0\nContent-Type: multipart/report; report-type="...)
	dst = append(dst, "delivery-status;\n\tboundary=\""...)
	dst = append(dst, r.Boundary...)
	dst = append(dst, "\"\n"...)
	if r.eightBit() {
		dst = append(dst, "Content-Transfer-Encoding: 8bit\n"...)
	}
	dst = append(dst, '\n')
	dst = append(dst, r.Preamble...)
	dst = r.delimit(dst, "")
	dst = append(dst, "Content-Description: notification\nContent-Type: text/plain; charset="...)
	switch {
	case ascii(r.Text):
		dst = append(dst, "us-ascii\n\n"...)
	case utf8.Valid(r.Text):
		dst = append(dst, "utf-8\nContent-Transfer-Encoding: 8bit\n\n"...)
	default:
		dst = append(dst, "unknown-8bit\nContent-Transfer-Encoding: 8bit\n\n"...) // RFC 1428
	}
	dst = append(dst, r.Text...)
	dst = r.delimit(dst, "")
	dst = append(dst, "Content-Description: delivery report\nContent-Type: message/"...)
	if r.UTF8 {
		dst = append(dst, "global-delivery-status\nContent-Transfer-Encoding: 8bit\n\n"...) // RFC 6533 4
	} else {
		dst = append(dst, "delivery-status\n\n"...)
	}
	dst = r.appendStatus(dst)
	dst = r.delimit(dst, "")
	dst = append(dst, "Content-Description: "...)
	dst = append(dst, r.originalType()...)
	if r.EightBit {
		dst = append(dst, "Content-Transfer-Encoding: 8bit\n"...)
	}
	return append(dst, '\n')
}

// AppendEnd writes what follows the message or its header.
func (r *Report) AppendEnd(dst []byte) []byte { return r.delimit(dst, "--") }

// delimit ends one part. The line end before the dashes is the delimiter's (RFC 2046 5.1.1).
func (r *Report) delimit(dst []byte, end string) []byte {
	dst = append(dst, "\n--"...)
	dst = append(dst, r.Boundary...)
	dst = append(dst, end...)
	return append(dst, '\n')
}

func (r *Report) originalType() string {
	switch {
	case r.Whole && r.UTF8:
		return "undelivered message\nContent-Type: message/global\n"
	case r.Whole:
		return "undelivered message\nContent-Type: message/rfc822\n"
	case r.UTF8:
		return "header of the message\nContent-Type: message/global-headers\n"
	}
	return "header of the message\nContent-Type: text/rfc822-headers\n"
}

// appendStatus writes the second part (RFC 3464 2): fields of the message, then a block for each recipient.
func (r *Report) appendStatus(dst []byte) []byte {
	dst = r.appendField(dst, "Reporting-MTA", "dns; ", r.MTA)
	if r.EnvelopeID != "" {
		dst = r.appendField(dst, "Original-Envelope-Id", "", r.EnvelopeID)
	}
	dst = appendDate(dst, "Arrival-Date", r.Arrival)
	for i := range r.Outcomes {
		dst = append(dst, '\n')
		dst = r.appendOutcome(dst, &r.Outcomes[i])
	}
	return dst
}

func (r *Report) appendOutcome(dst []byte, o *Outcome) []byte {
	if o.Original != "" {
		dst = r.appendOriginal(dst, o.Original)
	}
	e := explain(o.Action, o.Report)
	dst = r.appendAddress(dst, "Final-Recipient", "rfc822", o.Recipient)
	dst = r.appendField(dst, "Action", "", string(o.Action))
	dst = r.appendField(dst, "Status", "", e.status)
	if e.remote != "" {
		dst = r.appendField(dst, "Remote-MTA", "dns; ", "["+e.remote+"]")
	}
	if e.diagnostic != "" {
		dst = r.appendField(dst, "Diagnostic-Code", "", e.diagnostic)
	}
	dst = appendDate(dst, "Last-Attempt-Date", o.Tried)
	if o.Action == Delayed {
		dst = appendDate(dst, "Will-Retry-Until", o.Until)
	}
	return dst
}

// appendOriginal writes what ORCPT said.
func (r *Report) appendOriginal(dst []byte, value string) []byte {
	kind, addr, ok := ParseOriginal(value)
	if !ok {
		return dst
	}
	if equalFold(kind, utf8Type) || !ascii(addr) {
		return r.appendAddress(dst, "Original-Recipient", utf8Type, addr)
	}
	return r.appendField(dst, "Original-Recipient", kind+"; ", addr)
}

// appendAddress writes a field with an address, in the form that its bytes need.
func (r *Report) appendAddress(dst []byte, name, kind, addr string) []byte {
	if ascii(addr) && kind != utf8Type {
		return r.appendField(dst, name, kind+"; ", address.QuoteAddress(addr))
	}
	if !printable(addr) {
		return r.appendField(dst, name, kind+"; ", addr) // cleaned
	}
	dst = append(dst, name...)
	dst = append(dst, ": utf-8; "...)
	dst = appendUnitext(dst, addr, r.UTF8)
	return append(dst, '\n')
}

// appendField writes one field on one line.
func (r *Report) appendField(dst []byte, name, prefix, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, prefix...)
	dst = appendClean(dst, cut(strings.Trim(value, " \t\r\n"), maxDiagnostic), r.UTF8)
	return append(dst, '\n')
}

// cut shortens s, not in the middle of a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// appendClean writes text that stays on its line: a line end becomes a blank, other control bytes and what is not
// ASCII (with raw: not UTF-8) become a question mark.
func appendClean(dst []byte, s string, raw bool) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case s[0] == '\n' || s[0] == '\t':
			dst = append(dst, ' ')
		case s[0] == '\r':
		case s[0] < ' ' || s[0] == 0x7f || r == utf8.RuneError || r >= 0x80 && !raw || breaks(r):
			dst = append(dst, '?')
		default:
			dst = append(dst, s[:n]...)
		}
		s = s[n:]
	}
	return dst
}

// breaks reports whether some readers take r for a line end or a control, although it is none in mail.
func breaks(r rune) bool { return 0x80 <= r && r < 0xa0 || r == 0x2028 || r == 0x2029 }

func appendDate(dst []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = date822.Append(dst, t)
	return append(dst, '\n')
}

// Options are the options of the envelope in which the report has to travel.
func (r *Report) Options() (options []string) {
	if r.eightBit() {
		options = append(options, "BODY=8BITMIME")
	}
	if r.UTF8 {
		options = append(options, "SMTPUTF8")
	}
	return options
}

// eightBit reports whether any part has, or is said to have, bytes over 127.
func (r *Report) eightBit() bool { return r.UTF8 || r.EightBit || !ascii(r.Text) || !ascii(r.Preamble) }
