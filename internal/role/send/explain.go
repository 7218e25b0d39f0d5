package send

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"qmail/internal/check/relay"
	"qmail/internal/format/address"
	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/jobs"
	"qmail/internal/role/send/route"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/control"
	"qmail/internal/system/serve"
)

// anybody is the sender of mail that is only spoken of.
const anybody = "anybody@elsewhere.invalid"

var errDelivererGone = reply.Temporary("4.3.0", "qmail-rspawn is not there", nil)

// Explain is admin.Backend: what would happen to mail for an address. Each step is asked of what would do it: the
// policy of the network's servers, the routes in force, qmail-lspawn, the user's qmail-local, qmail-rspawn.
func (d *desk) Explain(ctx context.Context, peer admin.Peer, addr string) ([]admin.Step, error) {
	tokens := d.asking[0]
	if peer.Owner {
		tokens = d.asking[1]
	}
	select {
	case tokens <- struct{}{}:
		defer func() { <-tokens }()
	case <-ctx.Done():
		return nil, errBusy
	}
	var config *Config
	var spawner Spawner
	if err := d.ask(ctx, func(c *core) { config, spawner = c.config, c.spawner }); err != nil {
		return nil, err
	}
	steps := []admin.Step{d.fromNetwork(addr)}
	to, reasons := config.Routes.Explain(addr)
	for _, r := range reasons {
		steps = append(steps, d.routing(r))
	}
	steps = append(steps, admin.Step{Topic: "channel", Value: to.Channel.String(), Text: channelText(to, reasons)}, admin.Step{Topic: "recipient", Value: to.Address})
	if to.Channel == schedule.Local {
		return append(steps, d.explainLocal(ctx, peer, spawner, to.Address)...), nil
	}
	return append(steps, d.explainRemote(ctx, to)...), nil
}

func channelText(to route.Target, reasons []route.Reason) string {
	if to.Channel == schedule.Local {
		return ""
	}
	for _, r := range reasons {
		if r.Setting == route.Virtual {
			return ""
		}
	}
	return "neither locals nor virtualdomains has it"
}

// fromNetwork says whether a stranger may send to an address by SMTP.
func (d *desk) fromNetwork(addr string) admin.Step {
	step := admin.Step{Topic: "rcpthosts", Value: "refused"}
	dir := control.Open(d.home)
	own, err := serve.OwnAddresses()
	var policy *relay.Policy
	if err == nil {
		policy, err = relay.Load(dir, own)
	}
	if err != nil {
		step.Value, step.Text = "unknown", "the control files cannot be read: "+err.Error()
		return step
	}
	path, rest, err := address.CutPath("<" + address.QuoteAddress(addr) + ">")
	if err != nil || rest != "" {
		step.Text = "such an address cannot come by SMTP"
		return step
	}
	taken, err := policy.Recipient(false, anybody, path)
	if err != nil {
		step.Text = "from strangers: " + reply.Of(err).Text
		step.File = dir.Path("rcpthosts")
		return step
	}
	step.Value, step.Text = "accepted", "strangers may send to it"
	if taken != addr {
		step.Text += ", as " + taken
	}
	_, domain, _ := address.Split(taken)
	if file, key, err := policy.Listed(domain); err == nil {
		step.File = dir.Path(file)
		step.Line = lineOf(dir, file, func(text string) bool { return address.Lower(text) == key })
		step.Text += ": " + key
	}
	return step
}

// lineOf finds the last entry of a control file that is so, as it is now. A cdb has no lines.
func lineOf(dir control.Dir, file string, is func(text string) bool) int {
	if strings.HasSuffix(file, ".cdb") {
		return 0
	}
	entries, _, err := dir.Entries(file)
	if err != nil {
		return 0
	}
	for _, e := range slices.Backward(entries) {
		if is(e.Text) {
			return e.Number
		}
	}
	return 0
}

// routing is one entry that had a part in routing.
func (d *desk) routing(r route.Reason) admin.Step {
	dir := control.Open(d.home)
	file := string(r.Setting)
	step := admin.Step{Topic: file, Value: r.Address, Text: r.Key}
	is := func(text string) bool { return address.Lower(text) == r.Key }
	switch r.Setting {
	case route.Virtual:
		step.Text = r.Key + ":" + r.Value
		is = func(text string) bool {
			key, value, ok := strings.Cut(text, ":")
			return ok && address.Lower(key) == r.Key && value == r.Value
		}
		if r.Value == "" {
			step.Text += " (an exception)"
		}
	case route.NoAt:
		step.Text = r.Value
		if _, present, err := dir.Line(file); err == nil && !present {
			file = "me"
		}
		is = func(text string) bool { return text == r.Value }
	case route.Locals:
		if _, present, err := dir.Line(file); err == nil && !present {
			file = "me"
		}
	}
	step.File = dir.Path(file)
	if step.Line = lineOf(dir, file, is); step.Line == 0 {
		step.Text += "; the file has changed since it was read"
	}
	return step
}

// explainLocal asks qmail-lspawn whose mail it is, and that user's qmail-local what it would do.
func (d *desk) explainLocal(ctx context.Context, peer admin.Peer, spawner Spawner, addr string) []admin.Step {
	if spawner == nil {
		return []admin.Step{admin.Verdict(reportOf(errNoSpawner))}
	}
	local := localPart(addr)
	a, source, err := spawner.Explain(ctx, local)
	if err != nil {
		return []admin.Step{admin.Verdict(reportOf(err))}
	}
	steps := []admin.Step{
		{Topic: "account", Value: a.User, Text: source.Text, File: source.File, Line: source.Line},
		{Topic: "uid", Value: strconv.Itoa(a.UID), Text: fmt.Sprintf("group %d", a.GID)},
		{Topic: "home", Value: a.Home},
		{Topic: "extension", Value: a.Dash + a.Ext, Text: fmt.Sprintf("dash %q, extension %q", a.Dash, a.Ext)},
	}
	told := d.question(ctx, &jobs.Job{Dash: a.Dash, Ext: a.Ext, Sender: anybody, Recipients: []string{addr}}, func(c *core) *worker {
		return d.local(c, local, a)
	})
	told = slices.DeleteFunc(told, func(s admin.Step) bool { return !ofLocal(s.Topic) })
	if !peer.Owner && peer.UID != a.UID { // what others do with their mail is nobody's business
		told = slices.DeleteFunc(told, func(s admin.Step) bool { return s.Topic != "verdict" })
	}
	return append(steps, told...)
}

// ofLocal reports whether a topic is for qmail-local to speak of. It runs as a user, so its word counts for no other.
func ofLocal(topic string) bool {
	switch topic {
	case "qmail", "sought", "owner", "program", "mbox", "maildir", "forward", "more", "nothing", "replacement", "verdict":
		return true
	}
	return false
}

// explainRemote asks qmail-rspawn.
func (d *desk) explainRemote(ctx context.Context, to route.Target) []admin.Step {
	return d.question(ctx, &jobs.Job{Host: to.Destination, Sender: anybody, Recipients: []string{to.Address}}, func(c *core) *worker { return c.remote })
}

// question asks a worker about a job. There is always a verdict.
func (d *desk) question(ctx context.Context, j *jobs.Job, of func(*core) *worker) []admin.Step {
	b, err := d.answer(ctx, &jobs.Question{Explain: j}, of)
	var steps []admin.Step
	if err == nil {
		steps, err = admin.ParseSteps(b)
	}
	if err == nil && (len(steps) == 0 || steps[len(steps)-1].Topic != "verdict") {
		err = errors.New("no verdict")
	}
	if err != nil {
		d.log.Warn("no explanation", "recipient", j.Recipients[0], "err", err)
		return []admin.Step{admin.Verdict(reportOf(err))}
	}
	return steps
}

// answer asks a worker and waits.
func (d *desk) answer(ctx context.Context, q *jobs.Question, of func(*core) *worker) ([]byte, error) {
	type result struct {
		answer []byte
		err    error
	}
	got := make(chan result, 1)
	if err := d.ask(ctx, func(c *core) {
		w := of(c)
		if w == nil {
			got <- result{nil, errDelivererGone}
			return
		}
		w.running++
		w.ask(q, func(answer []byte, err error) {
			got <- result{answer, err}
			c.post(func() {
				if w.running--; w.running == 0 {
					w.idle = c.now()
				}
			})
		})
	}); err != nil {
		return nil, err
	}
	select {
	case r := <-got:
		return r.answer, r.err
	case <-ctx.Done():
		return nil, errBusy
	}
}

// Slow is admin.Backend.
func (d *desk) Slow(ctx context.Context, peer admin.Peer, forget bool) ([]admin.Slow, error) {
	if !peer.Owner {
		return nil, errOwners
	}
	b, err := d.answer(ctx, &jobs.Question{Slow: !forget, Forget: forget}, func(c *core) *worker { return c.remote })
	if err == nil && len(b) > 0 {
		var list []admin.Slow
		if list, err = admin.ParseSlow(b[1:]); err == nil {
			if forget {
				d.log.Info(fmt.Sprintf("addresses that timed out forgotten by uid %d", peer.UID))
			}
			return list, nil
		}
	}
	d.log.Warn("no answer about addresses that timed out", "err", err)
	return nil, errDelivererGone
}
