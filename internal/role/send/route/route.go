// Package route decides where a recipient goes: an envelope address in; channel, rewritten address and
// destination out, by the rules of qmail-send(8) for envnoathost, percenthack, locals and virtualdomains.
//
//	t := route.Table{Locals: locals, Virtual: virtualdomains, Percent: percenthack, NoAtHost: envnoathost}
//	to := t.Rewrite("x@virt.example") // local, "joe-x@virt.example", "joe"
//
// The address keeps its case, lookups fold ASCII only, and the domain is what follows the last @. It also holds
// the two other rules that look into rewritten addresses: the sender of a VERP message for one recipient
// (Expand), and a recipient as its sender knows it (Strip).
package route

import (
	"bytes"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/control"
)

// Table is the routing of one moment. It is read only: a reload makes a new one.
type Table struct {
	Locals   control.Set
	Virtual  control.Map // virtualdomains
	Percent  control.Set // percenthack
	NoAtHost string      // envnoathost
}

// Target is where a recipient goes.
type Target struct {
	Channel     schedule.Channel
	Address     string // rewritten
	Destination string // who shares a destination: the domain, or the local user, in lower case
}

// Rewrite routes one recipient. Work is linear in its length: every round of the percent hack cuts off a
// domain and uses up a percent sign.
func (t *Table) Rewrite(recipient string) Target { return t.rewrite(recipient, nil) }

// rewrite is Rewrite; why, if not nil, hears of every entry that had a part in it.
func (t *Table) rewrite(recipient string, why func(Reason)) Target {
	addr := t.complete(recipient, why)
	_, domain, _ := address.Split(addr)
	if t.Locals.Has(domain) {
		tell(why, Reason{Locals, address.Lower(domain), "", addr})
		return local(addr)
	}
	prefix, key, ok := t.virtual(addr, domain)
	if ok && prefix != "" {
		tell(why, Reason{Virtual, key, prefix, prefix + "-" + addr})
		return local(prefix + "-" + addr)
	}
	if ok { // an entry with an empty value is an exception
		tell(why, Reason{Virtual, key, "", addr})
	}
	return Target{schedule.Remote, addr, address.Lower(domain)}
}

// Setting is a control file that routes.
type Setting string

// The settings.
const (
	NoAt    Setting = "envnoathost"
	Percent Setting = "percenthack"
	Locals  Setting = "locals"
	Virtual Setting = "virtualdomains"
)

// Reason is an entry that had a part in a routing, and what the address was after it.
type Reason struct {
	Setting Setting
	Key     string // of the entry, in lower case
	Value   string // of Virtual and NoAt
	Address string
}

func tell(why func(Reason), r Reason) {
	if why != nil {
		why(r)
	}
}

// Explain is Rewrite with its reasons.
func (t *Table) Explain(recipient string) (to Target, reasons []Reason) {
	to = t.rewrite(recipient, func(r Reason) { reasons = append(reasons, r) })
	return to, reasons
}

// complete gives addr a domain and undoes the percent hack: u%b@a becomes u@b while a is in percenthack.
func (t *Table) complete(addr string, why func(Reason)) string {
	at := strings.LastIndexByte(addr, '@')
	if at < 0 {
		at = len(addr)
		addr += "@" + t.NoAtHost
		tell(why, Reason{NoAt, "", t.NoAtHost, addr})
	}
	percent := strings.LastIndexByte(addr[:at], '%')
	if percent < 0 || !t.Percent.Has(addr[at+1:]) {
		return addr
	}
	b := []byte(addr)
	for percent >= 0 && t.Percent.Has(string(b[at+1:])) {
		key := address.Lower(string(b[at+1:]))
		b[percent] = '@'
		b = b[:at]
		at = bytes.LastIndexByte(b, '@')
		percent = bytes.LastIndexByte(b[:percent], '%')
		tell(why, Reason{Percent, key, "", string(b)})
	}
	return string(b)
}

// virtual finds addr in virtualdomains: the whole address, then the domain, its dot suffixes, the empty key.
func (t *Table) virtual(addr, domain string) (prefix, key string, ok bool) {
	if prefix, ok = t.Virtual.Get(addr); ok {
		return prefix, address.Lower(addr), true
	}
	return t.Virtual.Domain(domain)
}

// local makes the target of a local address. Who owns it only lspawn can say; what stands before the first
// dash names the same user often enough to share turns by.
func local(addr string) Target {
	user, _, _ := address.Split(addr)
	user, _, _ = strings.Cut(user, "-")
	return Target{schedule.Local, addr, address.Lower(user)}
}

// verp ends a sender that wants a sender of its own for each recipient.
const verp = "-@[]"

// cutVERP splits prefix@host-@[] at its last @ before the suffix.
func cutVERP(sender string) (prefix, host string, ok bool) {
	base, ok := strings.CutSuffix(sender, verp)
	if !ok {
		return "", "", false
	}
	return address.Split(base)
}

// IsVERP reports whether Expand depends on the recipient: such a message takes a delivery per recipient.
func IsVERP(sender string) bool {
	_, _, ok := cutVERP(sender)
	return ok
}

// Expand is the sender for a delivery to one rewritten recipient: list-@host-@[] to box@dom becomes
// list-box=dom@host. Any other sender, and any recipient without an @, leaves it as it is.
func Expand(sender, recipient string) string {
	prefix, host, ok := cutVERP(sender)
	if !ok {
		return sender
	}
	box, domain, ok := address.Split(recipient)
	if !ok {
		return sender
	}
	return prefix + box + "=" + domain + "@" + host
}

// Strip takes the prefix of a virtual domain off a rewritten recipient, for the eyes of the sender. As in
// qmail-send only the domain is looked up, so what an entry for a whole address prefixed stays.
func (t *Table) Strip(recipient string) string {
	_, domain, ok := address.Split(recipient)
	if !ok {
		return recipient
	}
	prefix, _, ok := t.Virtual.Domain(domain)
	if !ok || prefix == "" {
		return recipient
	}
	if rest, ok := strings.CutPrefix(recipient, prefix+"-"); ok {
		return rest
	}
	return recipient
}
