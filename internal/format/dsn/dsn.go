// Package dsn knows what senders may wish to hear of their mail, and writes what they are told.
//
// The wishes are the parameters of RFC 3461: RET and ENVID of a message, NOTIFY and ORCPT of a recipient. They
// travel as options of an envelope ("NOTIFY=SUCCESS,DELAY") and are parsed wherever they are used, since anybody
// on this machine may have written them: an option that breaks the grammar says nothing.
//
//	m := dsn.OfMessage(e.Options)            // m.Headers, m.ID
//	r := dsn.OfRecipient(e.RecipientOptions[i])
//	if r.Notify.Wants(dsn.Failure) { ... }
//
// What is told is a Report: a multipart/report (RFC 6522) of three parts, a text, a message/delivery-status
// (RFC 3464; RFC 6533 for addresses in UTF-8), and the message or its header, which the caller puts between
// Append and AppendEnd. No byte of a stranger's can start a field of the report or a part: fields are cleaned, and
// the boundary occurs in nothing that NewBoundary has been shown.
package dsn

import "strings"

// Limits of parameter values (RFC 3461 4.2 and 4.4), in bytes.
const (
	maxEnvelopeID = 100
	maxOriginal   = 500
)

// Notify is when the sender wants to hear of a recipient (RFC 3461 4.1). Zero means that nothing was said.
type Notify uint8

// What there is to hear of. Never stands alone.
const (
	Success Notify = 1 << iota
	Failure
	Delay
	Never
)

// Wants reports whether the sender is to be told of one of these. Who said nothing hears of trouble.
func (n Notify) Wants(what Notify) bool {
	if n == 0 {
		n = Failure | Delay
	}
	return n&what != 0
}

var notifyNames = [...]string{"SUCCESS", "FAILURE", "DELAY", "NEVER"}

// String is the value of the parameter.
func (n Notify) String() string {
	var list []string
	for i, name := range notifyNames {
		if n&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return strings.Join(list, ",")
}

// ParseNotify reads the value of NOTIFY: NEVER, or a list of SUCCESS, FAILURE and DELAY.
func ParseNotify(value string) (Notify, bool) {
	var n Notify
	for word := range strings.SplitSeq(value, ",") {
		bit := notifyBit(word)
		if bit == 0 || n&bit != 0 {
			return 0, false
		}
		n |= bit
	}
	return n, n == Never || n&Never == 0
}

func notifyBit(word string) Notify {
	for i, name := range notifyNames {
		if equalFold(word, name) {
			return 1 << i
		}
	}
	return 0
}

// ParseReturn reads the value of RET: FULL or HDRS.
func ParseReturn(value string) (headers, ok bool) {
	headers = equalFold(value, "HDRS")
	return headers, headers || equalFold(value, "FULL")
}

// ParseEnvelopeID reads the value of ENVID: printable ASCII in xtext.
func ParseEnvelopeID(value string) (id string, ok bool) {
	if value == "" || len(value) > maxEnvelopeID {
		return "", false
	}
	id, ok = ParseXtext(value)
	return id, ok && printable(id) && ascii(id)
}

// ParseOriginal reads the value of ORCPT: an address type and an address of that type, in xtext or, for the type
// utf-8, in the forms of RFC 6533 3. The address is what was meant, without control bytes, in ASCII or UTF-8.
func ParseOriginal(value string) (kind, addr string, ok bool) {
	kind, addr, ok = strings.Cut(value, ";")
	if !ok || len(value) > maxOriginal || !typeName(kind) || addr == "" {
		return "", "", false
	}
	if equalFold(kind, utf8Type) {
		addr, ok = parseUnitext(addr)
	} else {
		addr, ok = ParseXtext(addr)
	}
	if !ok || addr == "" || !printable(addr) {
		return "", "", false
	}
	return kind, addr, true
}

// utf8Type is the address type of addresses that are not all ASCII.
const utf8Type = "utf-8"

// typeName accepts the names of address types, which IANA registers: letters, digits and dashes.
func typeName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') && s[i] != '-' {
			return false
		}
	}
	return s != ""
}

// OfMessage is what the options of a message say. An option of neither name is none of ours.
type Message struct {
	Headers bool   // RET=HDRS
	Full    bool   // RET=FULL
	ID      string // of the envelope, as its sender knows it; may be empty
	XID     string // the same as it was sent, in xtext
}

// OfMessage reads the options of a message.
func OfMessage(options []string) (m Message) {
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case equalFold(key, "RET"):
			if headers, ok := ParseReturn(value); ok {
				m.Headers, m.Full = headers, !headers
			}
		case equalFold(key, "ENVID"):
			if id, ok := ParseEnvelopeID(value); ok {
				m.ID, m.XID = id, value
			}
		}
	}
	return m
}

// Recipient is what the options of a recipient say.
type Recipient struct {
	Notify   Notify
	Original string // the value of ORCPT; may be empty
}

// OfRecipient reads the options of a recipient.
func OfRecipient(options []string) (r Recipient) {
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case equalFold(key, "NOTIFY"):
			if n, ok := ParseNotify(value); ok {
				r.Notify = n
			}
		case equalFold(key, "ORCPT"):
			if _, _, ok := ParseOriginal(value); ok {
				r.Original = value
			}
		}
	}
	return r
}

// ASCIIOriginal is a value of ORCPT for a server that does not take UTF-8.
func ASCIIOriginal(value string) string {
	kind, addr, ok := ParseOriginal(value)
	if !ok || ascii(value) {
		return value
	}
	return kind + ";" + string(appendUnitext(nil, addr, false))
}
