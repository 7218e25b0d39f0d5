package qmtp

import (
	"qmail/internal/format/envelope"
	"qmail/internal/format/netstring"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
	"qmail/internal/system/serve"
)

// Peer is who is at the other end.
type Peer struct {
	received.From
	Relay *string // RELAYCLIENT: may send anywhere, and what to add to each recipient; nil if not set
}

// Policy says who may send what to whom, and gives recipients the form in which they are stored. Refusals are
// *reply.Error whose texts have their status; any other error is temporary.
type Policy interface {
	Recipient(p *Peer, sender, recipient string) (string, error)
}

// Config is what control files say; it is never changed, only replaced.
type Config struct {
	Databytes     int64 // most stored bytes of a message; 0 means any number
	MaxRecipients int   // of a message
	Policy        Policy
	Patience      serve.Patience
}

// Refusals; shared, never changed.
var (
	errSender    = &reply.Error{Code: 553, Status: "5.1.7", Text: "unacceptable sender (#5.1.7)"}
	errRecipient = &reply.Error{Code: 553, Status: "5.1.3", Text: "sorry, I can't handle that recipient (#5.1.3)"}
	errSize      = &reply.Error{Code: 552, Status: "5.3.4", Text: "sorry, that message size exceeds my databytes limit (#5.3.4)"}
	errHops      = &reply.Error{Code: 554, Status: "5.4.6", Text: "too many hops, this message is looping (#5.4.6)"}
	errStrangers = &reply.Error{Code: 451, Status: "4.7.1", Text: "too many recipients that are not here (#4.7.1)"}
	errMany      = &reply.Error{Code: 452, Status: "4.5.3", Text: "too many recipients, send me the others in another message (#4.5.3)"}
	errMemory    = &reply.Error{Code: 451, Status: "4.3.0", Text: "too many recipients for all clients together, try again later (#4.3.0)"}
	errSlow      = &reply.Error{Code: 451, Status: "4.3.0", Text: "looking recipients up takes too long (#4.3.0)"}
)

// delivery is one package as far as it has come, without any I/O: what is known of the message, and of each
// recipient what it will be told.
type delivery struct {
	config   *Config
	peer     *Peer
	size     int64 // stored bytes so far
	hops     received.Hops
	failure  error // why the message cannot be queued
	envelope envelope.Envelope
	answers  answers
	held     int // about how many bytes the lists hold
}

// answers are what the recipients of a package will be told, a byte for each.
type answers struct {
	verdicts []byte   // indexes into texts; 0 is for those that share the message's fate
	texts    []string // texts[0] comes last
}

const (
	recipientSize = 48  // what a recipient costs besides its text
	maxTexts      = 200 // different refusals in one package
)

func newDelivery(c *Config, p *Peer) *delivery {
	return &delivery{config: c, peer: p, answers: answers{texts: make([]string, 1, 4)}}
}

// start is told the size of a message before its first bytes; what is larger when it is decoded, or not to be
// decoded, need not be looked at.
func (d *delivery) start(size int64, encoded bool) {
	if !encoded && d.config.Databytes > 0 && size > d.config.Databytes {
		d.fail(errSize)
	}
}

// add counts bytes of the message; false means that they are of no use.
func (d *delivery) add(b []byte) bool {
	d.size += int64(len(b))
	d.hops.Add(b)
	switch {
	case d.config.Databytes > 0 && d.size > d.config.Databytes:
		d.fail(errSize)
	case d.hops.Seen >= received.MaxHops:
		d.fail(errHops)
	}
	return d.failure == nil
}

func (d *delivery) fail(err error) {
	if d.failure == nil {
		d.failure = err
	}
}

// sender takes the sender.
func (d *delivery) sender(e event) {
	if e.long || !clean(e.bytes) {
		d.fail(errSender)
		return
	}
	d.envelope.Sender = string(e.bytes)
}

// recipient takes a recipient. If ask is not empty the queue shall be asked about it, and the answer be
// given to welcome.
func (d *delivery) recipient(e event) (ask string) {
	d.held++
	switch {
	case d.config.MaxRecipients > 0 && len(d.envelope.Recipients) >= d.config.MaxRecipients:
		d.refuse(errMany)
		return ""
	case e.long || !clean(e.bytes) || d.peer.Relay != nil && len(e.bytes)+len(*d.peer.Relay) > maxAddress:
		d.refuse(errRecipient)
		return ""
	}
	addr, err := d.config.Policy.Recipient(d.peer, d.envelope.Sender, string(e.bytes))
	switch {
	case err != nil:
		d.refuse(err)
		return ""
	case d.failure != nil: // it shares the message's fate, whoever it is
		d.answers.verdicts = append(d.answers.verdicts, 0)
		return ""
	}
	d.held += len(addr) + recipientSize
	return addr
}

// welcome takes what is said of the recipient asked for.
func (d *delivery) welcome(addr string, err error) {
	if err != nil {
		d.held -= len(addr) + recipientSize
		d.refuse(err)
		return
	}
	d.envelope.Recipients = append(d.envelope.Recipients, addr)
	d.answers.verdicts = append(d.answers.verdicts, 0)
}

func (d *delivery) refuse(err error) {
	a := &d.answers
	text := reply.Line(err)
	for i := len(a.texts) - 1; i > 0; i-- {
		if a.texts[i] == text {
			a.verdicts = append(a.verdicts, byte(i))
			return
		}
	}
	if len(a.texts) > maxTexts {
		text = "Z" + errMemory.Text // the last one is for all others
		if a.texts[maxTexts] != text {
			a.texts[maxTexts] = text
		}
		a.verdicts = append(a.verdicts, maxTexts)
		return
	}
	a.verdicts = append(a.verdicts, byte(len(a.texts)))
	a.texts = append(a.texts, text)
}

// clean reports whether an address can be stored and shown: no control bytes.
func clean(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// appendTo writes the answers from recipient i on until dst is about as long as most, and returns where it stopped.
func (a *answers) appendTo(dst []byte, i, most int) ([]byte, int) {
	for i < len(a.verdicts) && len(dst) < most {
		dst = netstring.Append(dst, a.texts[a.verdicts[i]])
		i++
	}
	return dst, i
}
