// Package senders says who, of those who have logged in, may send mail as whom: control/senderlogins, and where it says
// nothing the rule that a login's mail comes from that login and its extensions. It also reckons how much each sends
// (Meter).
//
// A line is a sender and the logins that may use it, with a colon between them and commas or blanks between the logins:
//
//	office@test.example:alice@test.example, bob@test.example
//	@shop.example:carol@test.example
//	@:relay@test.example
//
// The line of an address is all there is about it. For others the line of their domain counts, then "@", which is for
// all; and besides, whoever is logged in as that very address, or as one that it is an extension of (alice-list is one of
// alice), may use it. A login without a domain stands for an address in each of our own domains. "*" is every login.
package senders

import (
	"fmt"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/store/control"
)

// Policy is what control/senderlogins and control/locals say. It is never changed.
type Policy struct {
	lines map[string][]string // by address, @domain or @
	own   control.Set         // domains that logins without one stand for
}

// Load reads the files.
func Load(dir control.Dir) (*Policy, error) {
	p := &Policy{lines: map[string][]string{}}
	entries, _, err := dir.Entries("senderlogins")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		sender, logins, ok := strings.Cut(e.Text, ":")
		sender = address.Lower(strings.TrimSpace(sender))
		list := strings.FieldsFunc(address.Lower(logins), func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
		if !ok || !strings.Contains(sender, "@") || strings.ContainsAny(sender, " \t<>") {
			return nil, fmt.Errorf("%s:%d: not of the form ADDRESS:LOGIN,LOGIN", dir.Path("senderlogins"), e.Number)
		}
		p.lines[sender] = append(p.lines[sender], list...)
	}
	locals, present, err := dir.List("locals")
	if err != nil {
		return nil, err
	}
	if !present {
		me, err := dir.LineOr("me", "")
		if err != nil {
			return nil, err
		}
		locals = []string{me}
	}
	p.own = control.NewSet(locals)
	return p, nil
}

// May reports whether a login may send as somebody. A sender that is nobody is everybody's: receipts come from there.
func (p *Policy) May(login, sender string) bool {
	if sender == "" {
		return true
	}
	login, sender = address.Lower(login), address.Lower(sender)
	local, domain, ok := address.Split(sender)
	if login == "" || !ok || domain == "" {
		return false
	}
	if list, listed := p.lines[sender]; listed {
		return contains(list, login)
	}
	if contains(p.lines["@"+domain], login) || contains(p.lines["@"], login) {
		return true
	}
	user, host, full := address.Split(login)
	if !full {
		user = login
	}
	if full && host != domain || !full && !p.own.Has(domain) {
		return false
	}
	return local == user || strings.HasPrefix(local, user+"-")
}

func contains(list []string, login string) bool {
	for _, l := range list {
		if l == login || l == "*" {
			return true
		}
	}
	return false
}
