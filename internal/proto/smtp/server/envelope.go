package server

import (
	"math"
	"strconv"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/dsn"
)

// mailFrom is MAIL FROM:<reverse-path> and its parameters (RFC 1870, 3461, 6152, 6531).
func (s *Session) mailFrom(dst, arg []byte) ([]byte, Next) {
	s.config = s.settings()
	if s.peer.Kind == Submission && s.peer.Login == "" {
		if s.offersTLS() {
			return append(dst, tlsFirst...), More
		}
		return append(dst, authFirst...), More
	}
	text, ok := cutWord(arg, "from:")
	if !ok {
		return append(dst, "501 5.5.4 syntax: MAIL FROM:<address> (#5.5.4)\r\n"...), More
	}
	path, rest, err := address.CutPath(text)
	if err != nil {
		return append(dst, "501 5.1.7 that is no address in angle brackets (#5.1.7)\r\n"...), More
	}
	p, bad := parameters(rest)
	switch {
	case bad == "" && p.authed && !s.knowsAuth():
		return append(dst, unknownParameter...), More
	case bad != "":
		return append(dst, bad...), More
	case path.UTF8 && !p.utf8:
		return append(dst, "553 5.6.7 that address needs SMTPUTF8 (#5.6.7)\r\n"...), More
	case s.config.Databytes > 0 && p.size > s.config.Databytes:
		return appendError(dst, errSize), More
	}
	sender, err := s.config.Policy.Sender(s.peer, path)
	if err != nil {
		return appendError(dst, err), More
	}
	s.reset()
	s.at = mail
	s.tx.utf8 = p.utf8
	s.tx.envelope.Sender = sender
	s.tx.envelope.Options = p.options()
	s.tx.size = len(p.envelopeID)
	return append(dst, "250 2.1.0 ok\r\n"...), More
}

// rcptTo is RCPT TO:<forward-path> and its parameters (RFC 3461).
func (s *Session) rcptTo(dst, arg []byte) ([]byte, Next) {
	if s.config.MaxRecipients > 0 && len(s.tx.envelope.Recipients) >= s.config.MaxRecipients {
		s.tx.over++
		s.pardoned = s.tx.over <= maxOvershoot
		return append(dst, "452 4.5.3 too many recipients, send me the others in another message (#4.5.3)\r\n"...), More
	}
	text, ok := cutWord(arg, "to:")
	if !ok {
		return append(dst, "501 5.5.4 syntax: RCPT TO:<address> (#5.5.4)\r\n"...), More
	}
	path, rest, err := address.CutPath(text)
	if err != nil || path.Address == "" {
		return append(dst, "501 5.1.3 that is no address in angle brackets (#5.1.3)\r\n"...), More
	}
	options, bad := recipientParameters(rest, s.tx.utf8)
	switch {
	case bad != "":
		return append(dst, bad...), More
	case path.UTF8 && !s.tx.utf8:
		return append(dst, "553 5.6.7 that address needs SMTPUTF8 (#5.6.7)\r\n"...), More
	}
	recipient, err := s.config.Policy.Recipient(s.peer, s.tx.envelope.Sender, path)
	if err != nil {
		return appendError(dst, err), More
	}
	s.tx.asked, s.tx.askedOptions = recipient, options
	s.tx.askedFor = len(text) + recipientSize
	return dst, Verify
}

// What a recipient, and one with options, costs besides its text.
const (
	recipientSize = 48
	optionsSize   = 128
)

// Asked is the recipient that Verify is about.
func (s *Session) Asked() string { return s.tx.asked }

// Verified continues after Verify: err nil means that the queue would take Asked.
func (s *Session) Verified(dst []byte, err error) ([]byte, Next) {
	size := s.tx.askedFor
	s.tx.askedFor = 0
	if err != nil {
		return s.judge(appendError(dst, err), len(dst), More)
	}
	s.at = rcpt
	s.tx.size += size
	if s.tx.askedOptions != nil {
		if s.tx.envelope.RecipientOptions == nil {
			s.tx.envelope.RecipientOptions = map[int][]string{}
		}
		s.tx.envelope.RecipientOptions[len(s.tx.envelope.Recipients)] = s.tx.askedOptions
		s.tx.size += optionsSize
	}
	s.tx.envelope.Recipients = append(s.tx.envelope.Recipients, s.tx.asked)
	return append(dst, "250 2.1.5 ok\r\n"...), More
}

const (
	unknownParameter = "555 5.5.4 unknown parameter (#5.5.4)\r\n"
	badParameter     = "501 5.5.4 bad parameter (#5.5.4)\r\n"
)

// esmtp is what the parameters of MAIL say.
type esmtp struct {
	size          int64
	sized, bodied bool // the parameter was there
	body8, utf8   bool
	ret           string // RET=FULL or RET=HDRS
	envelopeID    string // ENVID=...
	authed        bool   // AUTH=...
}

// parameters reads " KEY=VALUE KEY ..." (RFC 5321 4.1.2); bad is the refusal.
func parameters(s string) (p esmtp, bad string) {
	for s != "" {
		var word string
		word, s, _ = strings.Cut(s, " ")
		if word == "" {
			continue
		}
		key, value, valued := strings.Cut(word, "=")
		switch {
		case address.EqualFold(key, "SIZE"):
			n, ok := size(value)
			if p.sized || !ok {
				return p, badParameter
			}
			p.size, p.sized = n, true
		case address.EqualFold(key, "BODY"):
			p.body8 = address.EqualFold(value, "8BITMIME")
			if p.bodied || !p.body8 && !address.EqualFold(value, "7BIT") {
				return p, badParameter
			}
			p.bodied = true
		case address.EqualFold(key, "SMTPUTF8"):
			if p.utf8 || valued {
				return p, badParameter
			}
			p.utf8 = true
		case address.EqualFold(key, "RET"):
			headers, ok := dsn.ParseReturn(value)
			if p.ret != "" || !ok {
				return p, badParameter
			}
			p.ret = "RET=FULL"
			if headers {
				p.ret = "RET=HDRS"
			}
		case address.EqualFold(key, "ENVID"):
			if _, ok := dsn.ParseEnvelopeID(value); p.envelopeID != "" || !ok {
				return p, badParameter
			}
			p.envelopeID = "ENVID=" + value
		case address.EqualFold(key, "AUTH"):
			// Who has submitted it elsewhere, by the word of who passes it on (RFC 4954 5). We believe nobody's, which
			// is as if it said "<>".
			if _, ok := dsn.ParseXtext(value); p.authed || !ok || value == "" {
				return p, badParameter
			}
			p.authed = true
		default:
			return p, unknownParameter
		}
	}
	return p, ""
}

// recipientParameters reads the parameters of RCPT and returns what the queue has to remember; bad is the refusal.
func recipientParameters(s string, utf8 bool) (options []string, bad string) {
	var notified, original bool
	for s != "" {
		var word string
		word, s, _ = strings.Cut(s, " ")
		if word == "" {
			continue
		}
		key, value, _ := strings.Cut(word, "=")
		switch {
		case address.EqualFold(key, "NOTIFY"):
			n, ok := dsn.ParseNotify(value)
			if notified || !ok {
				return nil, badParameter
			}
			notified = true
			options = append(options, "NOTIFY="+n.String())
		case address.EqualFold(key, "ORCPT"):
			_, _, ok := dsn.ParseOriginal(value)
			if original || !ok || !utf8 && !ascii(value) {
				return nil, badParameter
			}
			original = true
			options = append(options, "ORCPT="+value)
		default:
			return nil, unknownParameter
		}
	}
	return options, ""
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// size reads SIZE's value, 1 to 20 digits (RFC 1870 3); one too large for us is merely very large.
func size(s string) (int64, bool) {
	if s == "" || len(s) > 20 {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return math.MaxInt64, true
	}
	return n, true
}

// options is what the queue has to remember of p.
func (p esmtp) options() (list []string) {
	if p.body8 {
		list = append(list, "BODY=8BITMIME")
	}
	if p.utf8 {
		list = append(list, "SMTPUTF8")
	}
	if p.ret != "" {
		list = append(list, p.ret)
	}
	if p.envelopeID != "" {
		list = append(list, p.envelopeID)
	}
	return list
}
