// Package bounce writes what qmail-send tells a sender about failed recipients: a message in QSBMF, the
// qmail-send Bounce Message Format. The sender and the failures go in; the head of the message comes out,
// to be followed by the original message, complete and unmodified.
//
//	sender, recipient, ok := bounce.Envelope(original, "postmaster@example.org")
//	text = bounce.AppendFailure(text, "box@example.net", "Sorry, no mailbox here by that name. (#5.1.1)\n")
//	head := bounce.Append(nil, bounce.Notice{..., Sender: original, To: recipient, Failures: text})
//
// Bytes are those of qmail-send with one exception: a line end in an address, which could start a header field of
// its own choice, is written as "_".
package bounce

import (
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/date822"
)

const (
	// DoubleSender is the sender of double bounces; what it sent is never bounced.
	DoubleSender = "#@[]"
	// Expired is added to the report of a recipient that was given up because of its age.
	Expired = "I'm not going to try again; this message has been in the queue too long.\n"
	// verp ends a sender that is expanded per recipient. Bounces go to the sender without it.
	verp = "-@[]"
)

// Envelope is the envelope of the bounce of a message from sender: a single bounce goes to the sender from
// nobody, the bounce of a bounce goes to doubleTo, and what such a one caused is dropped: ok is false.
func Envelope(sender, doubleTo string) (from, to string, ok bool) {
	switch sender = strings.TrimSuffix(sender, verp); sender {
	case DoubleSender:
		return "", "", false
	case "":
		return DoubleSender, doubleTo, true
	default:
		return "", sender, true
	}
}

// AppendFailure adds the paragraph of one recipient: its address as its sender knows it, and the report. A
// blank line in the report would end the paragraph, so its line end becomes "/"; not so at the report's end,
// where qmail-send leaves it.
func AppendFailure(dst []byte, recipient, report string) []byte {
	dst = append(dst, '<')
	for i := 0; i < len(recipient); i++ {
		c := recipient[i]
		if c == '\n' {
			c = '_'
		}
		dst = append(dst, c)
	}
	dst = append(dst, ">:\n"...)
	last := byte('\n')
	for i := 0; i < len(report); i++ {
		c := report[i]
		if c == '\n' && last == '\n' && i < len(report)-1 {
			c = '/'
		}
		last = report[i]
		dst = append(dst, c)
	}
	if last != '\n' {
		dst = append(dst, '\n')
	}
	return append(dst, '\n')
}

// Notice is what the head of a bounce is made of.
type Notice struct {
	Date     time.Time
	From     string // local part of the From field (bouncefrom)
	Host     string // its domain, and who is speaking (bouncehost)
	Sender   string // of the original message; empty means that this is a double bounce
	To       string // whom the bounce is for
	Failures []byte // by AppendFailure
}

// Append writes the header of a bounce, its text, and the line above the original message.
func Append(dst []byte, n Notice) []byte {
	sender := strings.TrimSuffix(n.Sender, verp)
	dst = append(dst, "Date: "...)
	dst = date822.Append(dst, n.Date)
	dst = append(dst, "\nFrom: "...)
	dst = append(dst, address.Quote(oneLine(n.From))...)
	dst = append(dst, '@')
	dst = append(dst, oneLine(n.Host)...)
	dst = append(dst, "\nTo: "...)
	dst = append(dst, address.QuoteAddress(oneLine(n.To))...)
	dst = append(dst, "\nSubject: failure notice\n\nHi. This is the qmail-send program at "...)
	dst = append(dst, oneLine(n.Host)...)
	if sender == "" {
		dst = append(dst, ".\nI tried to deliver a bounce message to this address, but the bounce bounced!\n\n"...)
	} else {
		dst = append(dst, ".\nI'm afraid I wasn't able to deliver your message to the following addresses.\n"+
			"This is a permanent error; I've given up. Sorry it didn't work out.\n\n"...)
	}
	dst = append(dst, n.Failures...)
	if sender == "" {
		dst = append(dst, "--- Below this line is the original bounce.\n\n"...)
	} else {
		dst = append(dst, "--- Below this line is a copy of the message.\n\n"...)
	}
	dst = append(dst, "Return-Path: <"...)
	dst = append(dst, address.QuoteAddress(oneLine(sender))...)
	return append(dst, ">\n"...)
}

// oneLine keeps an address from ending the line it stands in.
func oneLine(s string) string {
	if !strings.ContainsAny(s, "\r\n") {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r", "_"), "\n", "_")
}
