package send

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/proto/admin"
	"qmail/internal/role/send/route"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/queue"
)

// listed is how many messages the core is asked for at a time.
const listed = 128

// List is admin.Backend. The core is asked for a page of the schedule at a time; what a list needs beyond that it reads
// from the store, so deliveries go on meanwhile.
func (d *desk) List(ctx context.Context, peer admin.Peer, f *admin.Filter, out *admin.Out) (admin.Totals, error) {
	l := &list{desk: d, peer: peer, filter: f, now: d.now(), out: out}
	var page []schedule.Known
	var routes *route.Table
	if err := d.ask(ctx, func(c *core) { page, routes = c.unscheduled(), c.config.Routes }); err != nil {
		return l.totals, err
	}
	for from := uint32(0); ; {
		for i := range page {
			if err := l.one(ctx, &page[i], routes); err != nil {
				return l.totals, err
			}
		}
		page = page[:0]
		if err := d.ask(ctx, func(c *core) {
			page, from = c.sched.Page(page, from, listed)
			routes = c.config.Routes
		}); err != nil {
			return l.totals, err
		}
		if from == 0 {
			for i := range page {
				if err := l.one(ctx, &page[i], routes); err != nil {
					return l.totals, err
				}
			}
			return l.totals, nil
		}
	}
}

// unscheduled are the messages of which nobody is to be tried: they wait for their bounce to be written, or are damaged.
func (c *core) unscheduled() (list []schedule.Known) {
	for id := range c.failures {
		if !c.sched.Has(uint64(id)) {
			list = append(list, schedule.Known{ID: uint64(id)})
		}
	}
	for id := range c.damaged {
		list = append(list, schedule.Known{ID: uint64(id)})
	}
	return list
}

// list is a list in the making.
type list struct {
	*desk
	peer   admin.Peer
	filter *admin.Filter
	now    time.Time
	out    *admin.Out
	totals admin.Totals
}

// one tells of a message if it passes the filter.
func (l *list) one(ctx context.Context, known *schedule.Known, routes *route.Table) error {
	if len(known.Plans) > 0 && !l.aged(known.Birth) { // what cannot pass need not be read
		return nil
	}
	e, err := l.store.Entry(ctx, queue.ID(known.ID))
	if errors.Is(err, queue.ErrNotFound) {
		return nil // gone meanwhile
	}
	if err != nil {
		l.log.Warn("unable to read a message", "msg", known.ID, "err", err)
		return nil
	}
	if !visible(l.peer, e) {
		return nil
	}
	v := newView(e, known.Plans, routes)
	if !l.passes(v) {
		return nil
	}
	if l.filter.MessageID != "" && !l.bears(ctx, e.ID) { // last, since it takes the most time
		return nil
	}
	l.count(v)
	if l.filter.CountOnly {
		return nil
	}
	if err := l.out.Message(&v.message); err != nil || !l.filter.Recipients {
		return err
	}
	return v.tell(l.out, nil)
}

func (l *list) count(v *view) {
	m := &v.message
	l.totals.Messages++
	l.totals.Recipients += int64(m.Recipients - m.Done())
	l.totals.Bytes += m.Size
	l.totals.Failed += int64(m.Failed)
	if m.OnHold {
		l.totals.OnHold++
	}
	if !m.Birth.IsZero() && (l.totals.Oldest.IsZero() || m.Birth.Before(l.totals.Oldest)) {
		l.totals.Oldest = m.Birth
	}
}

// aged reports whether a message born then has the age that is asked for.
func (l *list) aged(birth time.Time) bool {
	age := l.now.Sub(birth)
	return (l.filter.OlderThan == 0 || age >= l.filter.OlderThan) && (l.filter.YoungerThan == 0 || age < l.filter.YoungerThan+time.Second)
}

func (l *list) passes(v *view) bool {
	f := l.filter
	if !v.message.Damaged {
		age := l.now.Sub(v.message.Birth)
		if f.OlderThan != 0 && age < f.OlderThan || f.YoungerThan != 0 && age > f.YoungerThan {
			return false
		}
	} else if f.OlderThan != 0 || f.YoungerThan != 0 {
		return false
	}
	if f.Sender != "" && !matchesSender(f.Sender, v.message.Sender) {
		return false
	}
	return f.Recipient == "" && f.Domain == "" && f.State == 0 || v.any(f)
}

// maxHeader is how much of a message is looked through for its Message-ID, in bytes.
const maxHeader = 64 << 10

// bears reports whether a message has the Message-ID that is asked for.
func (l *list) bears(ctx context.Context, id queue.ID) bool {
	body, err := l.store.Body(ctx, id)
	if err != nil {
		return false
	}
	defer body.Close()
	b := make([]byte, min(body.Size(), maxHeader))
	if n, _ := body.ReadAt(b, 0); n < len(b) {
		return false
	}
	return messageID(b) == l.filter.MessageID
}

// messageID is what stands in the first Message-ID field of a header.
func messageID(b []byte) string {
	for len(b) > 0 && b[0] != '\n' {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') { // folded
			more, after, _ := bytes.Cut(rest, []byte("\n"))
			line, rest = append(line[:len(line):len(line)], more...), after
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && address.EqualFold(strings.TrimRight(string(name), " \t"), "message-id") {
			return strings.Trim(string(value), " \t\r")
		}
		b = rest
	}
	return ""
}

// matchesSender: "<>" is the empty sender, which no other pattern but "*" means.
func matchesSender(pattern, sender string) bool {
	if pattern == "<>" {
		return sender == ""
	}
	return matches(pattern, sender)
}

// matches compares without case; "*" in a pattern stands for anything. It takes time in proportion to both lengths
// multiplied at worst, which are bounded.
func matches(pattern, s string) bool {
	pattern, s = address.Lower(pattern), address.Lower(s)
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchesDomain: ".example" stands for the domains below example.
func matchesDomain(pattern, addr string) bool {
	_, domain, _ := address.Split(addr)
	if strings.HasPrefix(pattern, ".") {
		return strings.HasSuffix(address.Lower(domain), address.Lower(pattern))
	}
	return address.EqualFold(domain, pattern)
}

// view is a message as it is shown.
type view struct {
	message admin.Message
	entry   *queue.Entry
	routes  *route.Table
	states  []admin.State
	next    map[uint32]time.Time // of those that wait; nil if all that do wait for message.Next
	failed  map[uint32]string
}

// newView puts together what the queue and the schedule know of a message.
func newView(e *queue.Entry, plans []schedule.Plan, routes *route.Table) *view {
	v := &view{entry: e, routes: routes, message: admin.Message{
		ID: uint64(e.ID), Size: e.Size, Recipients: e.Recipients, OnHold: e.Held, Damaged: e.Envelope == nil,
	}}
	if e.Envelope != nil {
		v.message.Birth, v.message.Sender, v.message.UID, v.message.QP = e.Envelope.Birth, e.Envelope.Sender, e.Envelope.UID, e.Envelope.QP
	}
	v.states = make([]admin.State, e.Recipients)
	for i := range v.states {
		v.states[i] = admin.Done
	}
	otherwise := admin.Waiting
	if len(plans) > 0 { // whoever is open without a plan has just been delivered to, and is being closed
		otherwise = admin.Running
	}
	for _, open := range e.Open {
		v.states[open.Recipient] = otherwise
	}
	v.plan(plans)
	for _, f := range e.Failed {
		if v.failed == nil {
			v.failed = map[uint32]string{}
		}
		v.states[f.Recipient], v.failed[f.Recipient] = admin.Failed, f.Text
	}
	v.sum()
	return v
}

func (v *view) plan(plans []schedule.Plan) {
	for _, p := range plans {
		for _, r := range p.Recipients {
			if int(r) >= len(v.states) || v.states[r] == admin.Done {
				continue
			}
			v.states[r] = [...]admin.State{
				schedule.Waiting: admin.Waiting, schedule.Ready: admin.Ready, schedule.Running: admin.Running, schedule.Held: admin.Held,
			}[p.State]
			if p.State == schedule.Waiting {
				if v.next == nil {
					v.next = map[uint32]time.Time{}
				}
				v.next[r] = p.Next
				if v.message.Next.IsZero() || p.Next.Before(v.message.Next) {
					v.message.Next = p.Next
				}
			}
		}
	}
}

func (v *view) sum() {
	m := &v.message
	for _, s := range v.states {
		switch s {
		case admin.Waiting:
			m.Waiting++
		case admin.Ready:
			m.Ready++
		case admin.Running:
			m.Running++
		case admin.Held:
			m.Held++
		case admin.Failed:
			m.Failed++
		}
	}
}

// recipient is one of the message's.
func (v *view) recipient(i int) admin.Recipient {
	r := admin.Recipient{Index: i, Address: v.entry.Envelope.Recipients[i], State: v.states[i]}
	to := v.routes.Rewrite(r.Address)
	r.To, r.Channel = to.Address, admin.Remote
	if to.Channel == schedule.Local {
		r.Channel = admin.Local
	}
	r.Next, r.Text = v.next[uint32(i)], strings.TrimRight(v.failed[uint32(i)], "\n")
	return r
}

// any reports whether one recipient is what a filter asks for.
func (v *view) any(f *admin.Filter) bool {
	if v.entry.Envelope == nil {
		return false
	}
	for i, s := range v.states {
		if f.State != 0 && f.State != s {
			continue
		}
		if f.Recipient == "" && f.Domain == "" {
			return true
		}
		r := v.recipient(i)
		if (f.Recipient == "" || matches(f.Recipient, r.Address) || matches(f.Recipient, r.To)) &&
			(f.Domain == "" || matchesDomain(f.Domain, r.Address) || matchesDomain(f.Domain, r.To)) {
			return true
		}
	}
	return false
}

// tell sends all recipients; texts are why those that wait do so.
func (v *view) tell(out *admin.Out, texts map[uint32]string) error {
	if v.entry.Envelope == nil {
		return nil
	}
	for i := range v.states {
		r := v.recipient(i)
		if text := texts[uint32(i)]; r.State != admin.Failed && r.State != admin.Done {
			r.Text = strings.TrimRight(text, "\n")
		}
		if err := out.Recipient(&r); err != nil {
			return err
		}
	}
	return nil
}

// Show is admin.Backend.
func (d *desk) Show(ctx context.Context, peer admin.Peer, id uint64, out *admin.Out) error {
	e, err := d.entry(ctx, peer, id)
	if err != nil {
		return err
	}
	var plans []schedule.Plan
	var routes *route.Table
	if err := d.ask(ctx, func(c *core) { plans, routes = c.sched.Plans(id), c.config.Routes }); err != nil {
		return err
	}
	texts, err := d.reasons(ctx, peer, e)
	if err != nil {
		return err
	}
	v := newView(e, plans, routes)
	if err := out.Message(&v.message); err != nil {
		return err
	}
	return v.tell(out, texts)
}
