// Package envelope is a message's envelope as values and as bytes: qmail's todo records, with more letters.
//
//	u<uid>\0 p<qp>\0 t<birth>\0 F<sender>\0 m<option>\0... (T<recipient>\0 r<option>\0...)...
//
// u, p and t are what the queue knows of the message: who injected it, the number callers print as "qp",
// and when it was accepted, in nanoseconds since 1970. They stand before F or not at all. m is an ESMTP
// option of the message (RFC 5321 4.1.2, such as "BODY=8BITMIME" or "SMTPUTF8"), r one of the recipient
// before it (RFC 3461, such as "NOTIFY=NEVER"). Addresses are raw: no quoting, no angle brackets. An
// unknown letter is an error that names it, never skipped: a newer writer may have meant something by it.
package envelope

import (
	"errors"
	"fmt"
	"time"

	"qmail/internal/format/text0"
)

// MaxAddress is the longest address qmail-queue takes, in bytes (exit 11 beyond).
const MaxAddress = 1002

// Envelope is who sent a message and who shall get it.
type Envelope struct {
	UID        int       // of the injecting user
	QP         int64     // what callers print as "qp": the injector's pid, or the message's id
	Birth      time.Time // when the queue accepted it; zero until then
	Sender     string
	Options    []string // of the message
	Recipients []string
	// RecipientOptions holds the options of those recipients that have any, by index into Recipients.
	RecipientOptions map[int][]string
}

var (
	// ErrAddress is an address over MaxAddress, or with a NUL in it.
	ErrAddress = errors.New("envelope: unusable address")
	errOrder   = errors.New("envelope: records out of order")
	errSender  = errors.New("envelope: no sender")
)

// Check reports the first address or option that cannot be written.
func (e *Envelope) Check() error {
	if len(e.Sender) > MaxAddress || !text0.Clean(e.Sender) {
		return ErrAddress
	}
	for _, r := range e.Recipients {
		if len(r) > MaxAddress || !text0.Clean(r) {
			return ErrAddress
		}
	}
	for _, o := range e.Options {
		if len(o) > MaxAddress || !text0.Clean(o) {
			return fmt.Errorf("envelope: unusable option")
		}
	}
	for i, options := range e.RecipientOptions {
		if i < 0 || i >= len(e.Recipients) {
			return fmt.Errorf("envelope: options of recipient %d of %d", i, len(e.Recipients))
		}
		for _, o := range options {
			if len(o) > MaxAddress || !text0.Clean(o) {
				return fmt.Errorf("envelope: unusable option")
			}
		}
	}
	return nil
}

// Append writes e, which must pass Check. With trusted it writes the u, p and t records too.
func (e *Envelope) Append(dst []byte, trusted bool) []byte {
	if trusted {
		dst = text0.AppendInt(dst, 'u', int64(e.UID))
		dst = text0.AppendInt(dst, 'p', e.QP)
		if !e.Birth.IsZero() { // the zero time has no number
			dst = text0.AppendInt(dst, 't', e.Birth.UnixNano())
		}
	}
	dst = text0.Append(dst, 'F', e.Sender)
	for _, o := range e.Options {
		dst = text0.Append(dst, 'm', o)
	}
	for i, r := range e.Recipients {
		dst = text0.Append(dst, 'T', r)
		if e.RecipientOptions != nil {
			for _, o := range e.RecipientOptions[i] {
				dst = text0.Append(dst, 'r', o)
			}
		}
	}
	return dst
}

// Parse reads what Append wrote; all of b must belong to it. u, p and t are errors unless trusted. The
// envelope shares no memory with b. maxRecipients limits the count; 0 means no limit but b's size.
func Parse(b []byte, trusted bool, maxRecipients int) (*Envelope, error) {
	all := string(b) // one copy; every address is a part of it
	e := &Envelope{}
	var sender bool
	for len(b) > 0 {
		letter, value, rest, err := text0.Cut(b)
		if err != nil {
			return nil, err
		}
		if len(value) > MaxAddress {
			return nil, ErrAddress
		}
		at := len(all) - len(b) + 1
		b = rest
		text := all[at : at+len(value)]
		switch {
		case trusted && !sender && (letter == 'u' || letter == 'p' || letter == 't'):
			n, err := text0.Int(value)
			if err != nil {
				return nil, err
			}
			switch letter {
			case 'u':
				e.UID = int(n)
			case 'p':
				e.QP = n
			case 't':
				e.Birth = time.Unix(0, n)
			}
		case letter == 'F' && !sender:
			sender, e.Sender = true, text
		case letter == 'm' && sender && len(e.Recipients) == 0:
			e.Options = append(e.Options, text)
		case letter == 'T' && sender:
			if maxRecipients > 0 && len(e.Recipients) >= maxRecipients {
				return nil, fmt.Errorf("envelope: over %d recipients", maxRecipients)
			}
			e.Recipients = append(e.Recipients, text)
		case letter == 'r' && len(e.Recipients) > 0:
			if e.RecipientOptions == nil {
				e.RecipientOptions = map[int][]string{}
			}
			i := len(e.Recipients) - 1
			e.RecipientOptions[i] = append(e.RecipientOptions[i], text)
		case letter == 'F' || letter == 'T' || letter == 'u' || letter == 'p' || letter == 't' || letter == 'm' || letter == 'r':
			return nil, errOrder
		default:
			return nil, fmt.Errorf("envelope: unknown record %q", letter)
		}
	}
	if !sender {
		return nil, errSender
	}
	return e, nil
}
