package local

import (
	"qmail/internal/format/address"
	"qmail/internal/format/dsn"
	"qmail/internal/format/envelope"
)

// addressed makes the envelope of what is forwarded. What describes the message goes along with it; what the sender
// wants to hear of it (RFC 3461 5.2.7) goes along, too, if the sender stays the same.
//
// One address in the place of ours takes all wishes over. Otherwise we are asked about success, and those that are
// forwarded to, about the rest only. With another sender we are a mailing list: nothing of the wishes leaves us.
func (w *work) addressed() *envelope.Envelope {
	e := &envelope.Envelope{Sender: w.newSender, Recipients: w.to}
	for _, o := range w.options {
		if address.EqualFold(o, "SMTPUTF8") || address.EqualFold(o, "BODY=8BITMIME") {
			e.Options = append(e.Options, o)
		}
	}
	if w.newSender != w.sender {
		return e
	}
	m := dsn.OfMessage(w.options)
	switch {
	case m.Headers:
		e.Options = append(e.Options, "RET=HDRS")
	case m.Full:
		e.Options = append(e.Options, "RET=FULL")
	}
	if m.XID != "" {
		e.Options = append(e.Options, "ENVID="+m.XID)
	}
	r := dsn.OfRecipient(w.recipientOptions)
	w.passedOn = len(w.to) == 1 && w.files+w.programs == 0
	notify := r.Notify
	if !w.passedOn && notify != 0 {
		if notify &^= dsn.Success; notify == 0 {
			notify = dsn.Never
		}
	}
	var options []string
	if notify != 0 {
		options = append(options, "NOTIFY="+notify.String())
	}
	if r.Original != "" {
		options = append(options, "ORCPT="+r.Original)
	}
	if options != nil {
		e.RecipientOptions = make(map[int][]string, len(w.to))
		for i := range w.to {
			e.RecipientOptions[i] = options
		}
	}
	return e
}
