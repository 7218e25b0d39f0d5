package sender

import (
	"context"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/smtproute"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/control"
)

// Explanation is where a message for a domain would go, and what is known of the addresses.
type Explanation struct {
	Plan
	Skipped []bool        // by target: left alone at the moment
	Verdict client.Report // what would be said without a connection; a letter of 0 means that one would be tried
}

// Explain finds out where mail for a domain would go, as Send does, and goes no further than the DNS.
func (s *Sender) Explain(ctx context.Context, domain string) Explanation {
	c := s.config.Load()
	if c == nil || c.Hello == "" {
		return Explanation{Verdict: client.Report{Letter: 'Z', Text: NoControls}}
	}
	e := Explanation{Plan: s.plan(ctx, c, domain)}
	if e.Refusal != nil {
		e.Verdict = *e.Refusal
		return e
	}
	e.Skipped = make([]bool, len(e.Targets))
	all := true
	for i, t := range e.Targets {
		e.Skipped[i] = s.slow.Skip(t.Addr.Addr(), s.world.Now())
		all = all && e.Skipped[i]
	}
	if all {
		e.Verdict = client.Report{Letter: 'Z', Text: noConnect}
		if e.QMTP {
			e.Verdict.Text = noQMTP
		}
	}
	return e
}

// RouteLine finds the entry for a domain in smtproutes, qmtproutes or lmtproutes as they are now. The line is 0 if there is none, or
// if it says something else than relay: then the file has changed since it was read.
func RouteLine(dir control.Dir, setting, domain string, relay smtproute.Relay) (line int, text string) {
	entries, _, err := dir.Entries(setting)
	if err != nil {
		return 0, ""
	}
	lines := make([]string, len(entries))
	for i, e := range entries {
		lines[i] = e.Text
	}
	_, key, ok := control.NewMap(lines).Domain(domain)
	if !ok {
		return 0, ""
	}
	for i := len(entries) - 1; i >= 0; i-- { // the last of equal keys counts
		k, value, ok := strings.Cut(entries[i].Text, ":")
		if !ok || address.Lower(k) != key {
			continue
		}
		port := map[string]uint16{"smtproutes": smtproute.SMTP, "qmtproutes": smtproute.QMTP, "lmtproutes": smtproute.LMTP}[setting]
		if now, err := smtproute.ParseRelay(value, port); err != nil && relay == nowhere() || err == nil && now == relay {
			return entries[i].Number, entries[i].Text
		}
		return 0, ""
	}
	return 0, ""
}
