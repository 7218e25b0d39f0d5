package main

import (
	"context"
	"fmt"
	"strings"

	"qmail/cmd/bench/internal/load"
	"qmail/cmd/bench/internal/report"
)

// mode is a kind of work. To add one is to add a line to modes.
type mode struct {
	report.Mode
	run func(context.Context, *step) error

	accept   bool   // measured until the last 250
	hold     bool   // accepted mail stays in the queue
	relay    bool   // the recipient is at the sink
	list     bool   // recipients at many domains
	held     bool   // many sessions at once
	single   bool   // a new connection for every message
	pipeline bool   // by our own generator
	verp     bool   // a sender of its own for each recipient
	protocol string // not SMTP, and so only for our own server
	extra    bool   // only when asked for
	boxes    int    // so many mailboxes instead of one
	users    bool   // each of them a user's own
	program  bool   // a program takes the mail
	calls    string // the program that hands it over, one message each time
}

// modes is every kind of work, in the order of the report.
func modes() []mode {
	const messages = "messages"
	return []mode{
		{Mode: report.Mode{Key: "a", Title: "until 250, while they are delivered to a Maildir", Unit: messages}, run: flow, accept: true},
		{Mode: report.Mode{Key: "A", Title: "as a, with commands pipelined", Unit: messages}, run: flow, accept: true, pipeline: true},
		{Mode: report.Mode{Key: "h", Title: "until 250, all held in the queue", Unit: messages}, run: flow, accept: true, hold: true},
		{Mode: report.Mode{Key: "n", Title: "as h, with a new connection for each message", Unit: messages}, run: flow, accept: true, hold: true, single: true, extra: true},
		{Mode: report.Mode{Key: "p", Title: "as h, with commands pipelined", Unit: messages}, run: flow, accept: true, hold: true, pipeline: true},
		{Mode: report.Mode{Key: "t", Title: "as h, by QMTP", Unit: messages}, run: flow, accept: true, hold: true, protocol: load.QMTP},
		{Mode: report.Mode{Key: "T", Title: "as p, by QMTP", Unit: messages}, run: flow, accept: true, hold: true, pipeline: true, protocol: load.QMTP},
		{Mode: report.Mode{Key: "q", Title: "as n, by QMQP", Unit: messages}, run: flow, accept: true, hold: true, single: true, protocol: load.QMQP},
		{Mode: report.Mode{Key: "i", Title: "calls of the program sendmail, all held in the queue; load is the program itself", Unit: "calls"}, run: inject, hold: true, calls: "sendmail"},
		{Mode: report.Mode{Key: "j", Title: "as i, of qmail-queue", Unit: "calls"}, run: inject, hold: true, calls: "qmail-queue"},
		{Mode: report.Mode{Key: "b", Title: "until all are in one Maildir", Unit: messages}, run: flow},
		{Mode: report.Mode{Key: "B", Title: "as b, with commands pipelined", Unit: messages}, run: flow, pipeline: true},
		{Mode: report.Mode{Key: "u", Title: "until all are in the Maildirs of 100 users", Unit: messages}, run: flow, boxes: 100, users: true},
		{Mode: report.Mode{Key: "m", Title: "until all are in 1,000 Maildirs of one user, a virtual domain", Unit: messages}, run: flow, boxes: 1000},
		{Mode: report.Mode{Key: "x", Title: "until a program has been run for each", Unit: messages}, run: flow, program: true},
		{Mode: report.Mode{Key: "c", Title: "until all have left to the sink", Unit: messages}, run: flow, relay: true},
		{Mode: report.Mode{Key: "C", Title: "as c, with commands pipelined", Unit: messages}, run: flow, relay: true, pipeline: true},
		{Mode: report.Mode{Key: "d", Title: "a message to many recipients, until all have left", Unit: "recipients"}, run: posts, list: true},
		{Mode: report.Mode{Key: "v", Title: "as d, with VERP", Unit: "recipients"}, run: posts, list: true, verp: true, extra: true},
		{Mode: report.Mode{Key: "e", Title: "idle sessions", Unit: "sessions"}, run: hold, held: true},
	}
}

// usualModes are those of a run that says nothing else.
func usualModes() string {
	var keys []string
	for _, m := range modes() {
		if !m.extra {
			keys = append(keys, m.Key)
		}
	}
	return strings.Join(keys, ",")
}

func describeModes() string {
	var b strings.Builder
	for _, m := range modes() {
		fmt.Fprintf(&b, "%s  %s, %s\n", m.Key, m.Title, m.Unit)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// pickModes finds modes by their letters, in the order of the report.
func pickModes(keys string) ([]mode, error) {
	want := map[string]bool{}
	for k := range strings.SplitSeq(keys, ",") {
		want[strings.TrimSpace(k)] = true
	}
	var picked []mode
	for _, m := range modes() {
		if want[m.Key] {
			picked = append(picked, m)
			delete(want, m.Key)
		}
	}
	for k := range want {
		return nil, fmt.Errorf("-modes: there is no mode %q", k)
	}
	return picked, nil
}
