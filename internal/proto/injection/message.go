package injection

import (
	"slices"
	"strconv"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/date822"
	"qmail/internal/format/header"
)

// message is a message whose header is being read.
type message struct {
	settings *settings
	options  Options

	kept       []byte   // the fields that stay, in their order
	recipients []string // of the arguments
	to         []string // of the header
	resentTo   []string
	followup   []string // all of To and Cc
	followable bool     // and one of them asks for Mail-Followup-To
	sender     string   // of Return-Path
	hasSender  bool

	normal, resentSeen seen
	hasFollowup        bool
}

// seen are the fields of one of the two sets, plain and Resent-.
type seen struct{ date, messageID, from, to, other bool }

// resent says which set of fields counts.
func (m *message) resent() bool { return m.resentSeen != seen{} }

// treatment is what happens to a field.
type treatment struct {
	addresses bool // it holds an address list, which is completed
	tolerant  bool // and stays as it is if that cannot be read
	drop      bool
	into      func(m *message, address string)
}

// field takes one field of the header, which ends with a newline.
func (m *message) field(f header.Field) error {
	name := address.Lower(f.Name())
	if m.settings.dropFrom && name == "from" || m.settings.dropMessageID && name == "message-id" ||
		m.settings.ignoreReturnPath && name == "return-path" {
		return nil
	}
	m.note(name)
	t := treat(name)
	if t.addresses {
		rewritten, err := m.rewrite(f, t)
		if err != nil {
			return err
		}
		f = rewritten
	}
	if !t.drop {
		m.kept = append(m.kept, f...)
	}
	return nil
}

// note remembers that a field is there.
func (m *message) note(name string) {
	set := &m.normal
	if rest, ok := strings.CutPrefix(name, "resent-"); ok {
		name, set = rest, &m.resentSeen
	}
	switch name {
	case "date":
		set.date = true
	case "message-id":
		set.messageID = true
	case "from":
		set.from = true
	case "to", "cc":
		set.to = true
	case "sender", "reply-to", "bcc":
		set.other = true
	case "mail-followup-to":
		m.hasFollowup = m.hasFollowup || set == &m.normal
	}
}

func treat(name string) treatment {
	switch name {
	case "to", "cc":
		return treatment{addresses: true, tolerant: true, into: (*message).addTo}
	case "bcc":
		return treatment{addresses: true, tolerant: true, drop: true, into: (*message).addHidden}
	case "apparently-to":
		return treatment{addresses: true, tolerant: true, into: (*message).addHidden}
	case "resent-to", "resent-cc":
		return treatment{addresses: true, tolerant: true, into: (*message).addResent}
	case "resent-bcc":
		return treatment{addresses: true, tolerant: true, drop: true, into: (*message).addResent}
	case "return-path":
		return treatment{addresses: true, drop: true, into: (*message).setSender}
	case "sender", "from", "reply-to", "return-receipt-to", "errors-to", "resent-sender", "resent-from", "resent-reply-to":
		return treatment{addresses: true, into: func(*message, string) {}}
	case "content-length":
		return treatment{drop: true}
	}
	return treatment{}
}

func (m *message) addTo(address string) {
	m.to = append(m.to, address)
	if m.settings.followup != nil {
		m.followup = append(m.followup, address)
		m.followable = m.followable || m.settings.followup.Has(address)
	}
}

func (m *message) addHidden(address string) { m.to = append(m.to, address) }
func (m *message) addResent(address string) { m.resentTo = append(m.resentTo, address) }

// setSender takes the envelope sender from Return-Path; the first address seen counts.
func (m *message) setSender(address string) {
	if m.hasSender {
		return
	}
	m.sender, m.hasSender = address, true
	if m.settings.perRecipient && address != "" {
		m.sender += "-@[]"
	}
}

// rewrite completes the addresses of a field and hands them on.
func (m *message) rewrite(f header.Field, t treatment) (header.Field, error) {
	unreadable := permanent("unable to parse this line:\n" + strings.TrimSuffix(string(f), "\n"))
	tokens, ok := header.Tokenize(string(f.Body()))
	err := header.ErrList
	nul := false
	if ok {
		tokens, err = header.List(tokens, func(tokens []header.Token) []header.Token {
			tokens = m.settings.completion.Complete(tokens)
			text := header.Address(tokens)
			if strings.IndexByte(text, 0) >= 0 {
				nul = true
				return tokens
			}
			t.into(m, text)
			return tokens
		})
	}
	switch {
	case nul || err != nil && !t.tolerant:
		return nil, unreadable
	case err != nil:
		return f, nil
	}
	return header.Append(nil, f.Name(), tokens), nil
}

// added are the fields that the message lacks.
func (m *message) added() []byte {
	var b []byte
	prefix, has := "", m.normal
	if m.resent() {
		prefix, has = "Resent-", m.resentSeen
	}
	if !has.date {
		b = append(b, prefix+"Date: "...)
		b = append(date822.Append(b, m.settings.now), '\n')
	}
	if !has.messageID {
		b = append(b, prefix+"Message-ID: <"...)
		b = m.settings.now.UTC().AppendFormat(b, "20060102150405")
		b = append(b, "."+strconv.Itoa(m.settings.pid)+".qmail@"+m.settings.idHost+">\n"...)
	}
	if !has.from {
		b = m.settings.from(b, prefix)
	}
	if !has.to {
		b = append(b, prefix+"Cc: recipient list not shown: ;\n"...)
	}
	if prefix == "" && m.followable && !m.hasFollowup {
		b = m.addFollowup(b)
	}
	return b
}

func (m *message) addFollowup(b []byte) []byte {
	b = append(b, "Mail-Followup-To: "...)
	for i, a := range slices.Backward(m.followup) {
		b = append(b, address.QuoteAddress(a)...)
		if i > 0 {
			b = append(b, ",\n  "...)
		}
	}
	return append(b, '\n')
}
