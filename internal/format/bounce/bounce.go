// Package bounce writes what qmail-send tells a sender about failed recipients: a message in QSBMF, the
// qmail-send Bounce Message Format. The sender and the failures go in; the head of the message comes out,
// to be followed by the original message, complete and unmodified.
//
//	sender, recipient, ok := bounce.Envelope(original, "postmaster@example.org")
//	text = bounce.AppendFailure(text, "box@example.net", "Sorry, no mailbox here by that name. (#5.1.1)\n")
//	head := bounce.Append(nil, bounce.Notice{..., Sender: original, To: recipient, Failures: text})
//
// Bytes are those of qmail-send with one exception: a line end in an address, which could start a header field of
// its own choice, is written as "_". The pieces of a bounce can be had one by one, to stand in a multipart/report
// (format/dsn), and so can the texts of two notices that qmail-send does not know, of delays and of deliveries.
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
	switch sender = strings.TrimSuffix(sender, verp); {
	case sender == DoubleSender, sender == "" && strings.HasPrefix(doubleTo, "@"):
		return "", "", false // an empty doublebounceto says that nobody wants them
	case sender == "":
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

// Kind is what a notice tells.
type Kind byte

// The kinds. The zero value is what qmail-send has always sent, a bounce or a double bounce.
const (
	Failed Kind = iota
	Delayed
	Delivered
)

// Notice is what the head of a bounce, or of another notice, is made of.
type Notice struct {
	Kind     Kind
	Date     time.Time
	From     string    // local part of the From field (bouncefrom)
	Host     string    // its domain, and who is speaking (bouncehost)
	Sender   string    // of the original message; empty means that this is a double bounce
	To       string    // whom the bounce is for
	Failures []byte    // by AppendFailure
	Until    time.Time // of Delayed: when we shall give up
}

func (n *Notice) sender() string { return strings.TrimSuffix(n.Sender, verp) }

// Append writes the header of a bounce in QSBMF, its text, and the beginning of the original message.
func Append(dst []byte, n Notice) []byte {
	dst = AppendFields(dst, n)
	dst = append(dst, '\n')
	dst = AppendText(dst, n)
	return AppendReturnPath(dst, n)
}

// AppendFields writes the fields of a notice's header, which may be followed by others.
func AppendFields(dst []byte, n Notice) []byte {
	dst = append(dst, "Date: "...)
	dst = date822.Append(dst, n.Date)
	dst = append(dst, "\nFrom: "...)
	dst = append(dst, address.Quote(oneLine(n.From))...)
	dst = append(dst, '@')
	dst = append(dst, oneLine(n.Host)...)
	dst = append(dst, "\nTo: "...)
	dst = append(dst, address.QuoteAddress(oneLine(n.To))...)
	dst = append(dst, "\nSubject: "...)
	return append(dst, [...]string{Failed: "failure notice\n", Delayed: "delay notice\n", Delivered: "delivery notice\n"}[n.Kind]...)
}

// AppendText writes what a notice says, with the line above the original message. Only that of a bounce is QSBMF:
// programs that look for failed recipients must not find any in good news.
func AppendText(dst []byte, n Notice) []byte {
	greeting := "Hi. This is the qmail-send program at "
	if n.Kind != Failed {
		greeting = "This is the qmail-send program at "
	}
	dst = append(dst, greeting...)
	dst = append(dst, oneLine(n.Host)...)
	copied := "--- Below this line is a copy of the message.\n\n"
	switch {
	case n.Kind == Delayed:
		dst = append(dst, ".\nI haven't been able to deliver your message to the following addresses yet.\n"+
			"You need not send it again: I'll keep trying until "...)
		dst = date822.Append(dst, n.Until)
		dst = append(dst, ".\n\n"...)
		copied = "--- Below this line is the header of the message.\n\n"
	case n.Kind == Delivered:
		dst = append(dst, ".\nYou asked to be told: I've delivered your message to the following addresses,\n"+
			"or handed it on where I can't follow it.\n\n"...)
		copied = "--- Below this line is the header of the message.\n\n"
	case n.sender() == "":
		dst = append(dst, ".\nI tried to deliver a bounce message to this address, but the bounce bounced!\n\n"...)
		copied = "--- Below this line is the original bounce.\n\n"
	default:
		dst = append(dst, ".\nI'm afraid I wasn't able to deliver your message to the following addresses.\n"+
			"This is a permanent error; I've given up. Sorry it didn't work out.\n\n"...)
	}
	dst = append(dst, n.Failures...)
	return append(dst, copied...)
}

// AppendReturnPath writes the line that stands at the head of the original message.
func AppendReturnPath(dst []byte, n Notice) []byte {
	dst = append(dst, "Return-Path: <"...)
	dst = append(dst, address.QuoteAddress(oneLine(n.sender()))...)
	return append(dst, ">\n"...)
}

// Stripped ends a bounce whose original message was too long to be sent back whole.
const Stripped = "\n\n--- End of message stripped.\n"

// oneLine keeps an address from ending the line it stands in.
func oneLine(s string) string {
	if !strings.ContainsAny(s, "\r\n") {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r", "_"), "\n", "_")
}
