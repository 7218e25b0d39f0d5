// Package ledger is `qmail ledger`: it balances the account of all mail (store/ledger) against the queue, and says what
// became of some message, whether it is still in the queue or not.
//
//	qmail ledger verify [-json]
//	qmail ledger find [-from PATTERN] [-to PATTERN] [-id ID] [-since TIME] [-until TIME] [-limit N] [-json]
//
// It reads the files of the queue and changes nothing, whether qmail-send runs or not; so it is for root and for
// qmail-send's user.
package ledger

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"qmail/internal/store/ledger"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/disk"
	"qmail/internal/system/env"
)

const usage = `usage: qmail ledger verify [-json]
       qmail ledger find [-from PATTERN] [-to PATTERN] [-id ID] [-since TIME] [-until TIME] [-limit N] [-json]
A pattern is an address, or has stars in it. A time is 2006-01-02, 2006-01-02T15:04:05, or an age such as 36h.
`

// Exit codes.
const (
	exitEven   = 0
	exitUneven = 1 // verify: something is wrong; find: there is nothing
	exitUsage  = 100
	exitLater  = 111
)

// tool is one call.
type tool struct {
	env  *env.Env
	out  *bufio.Writer
	json bool
}

// Main runs qmail ledger.
func Main(_ context.Context, e *env.Env, args []string) int {
	t := &tool{env: e, out: bufio.NewWriterSize(e.Stdout, 32<<10)}
	code, err := t.run(args)
	if ferr := t.out.Flush(); err == nil && ferr != nil {
		code, err = exitLater, ferr
	}
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-ledger: %v\n", err)
	}
	if code == exitUsage {
		fmt.Fprint(e.Stderr, usage)
	}
	return code
}

func (t *tool) run(args []string) (int, error) {
	if len(args) == 0 {
		return exitUsage, errors.New("verify or find?")
	}
	set := flag.NewFlagSet(args[0], flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.BoolVar(&t.json, "json", false, "")
	var q query
	do := t.verify
	switch args[0] {
	case "verify":
	case "find":
		q.flags(set)
		do = func(d disk.FS) (int, error) { return t.find(d, &q) }
	default:
		return exitUsage, fmt.Errorf("unknown command %q", args[0])
	}
	if err := set.Parse(args[1:]); err != nil {
		return exitUsage, err
	}
	if set.NArg() > 0 {
		return exitUsage, fmt.Errorf("what is %q?", set.Arg(0))
	}
	if err := q.parse(t.env.Now()); err != nil {
		return exitUsage, err
	}
	d, err := disk.OpenDir(filepath.Join(t.env.Home, "queue", "journal"))
	if err != nil {
		return exitLater, err
	}
	defer d.Close()
	return do(d)
}

// verify prints the balance.
func (t *tool) verify(d disk.FS) (int, error) {
	b, err := ledger.Verify(d, func(after queue.Account, each func(*queue.Entry) error) error {
		return journal.Inspect(d, after, each)
	})
	if err != nil {
		return exitLater, err
	}
	code := exitEven
	if !b.Even() {
		code = exitUneven
	}
	if t.json {
		return code, t.encode(jsonBalance(b))
	}
	t.printBalance(b)
	return code, nil
}

func (t *tool) printBalance(b *ledger.Balance) {
	out := t.out
	if b.Entries > 0 {
		fmt.Fprintf(out, "%d messages, from %s to %s, in %d files\n", b.Messages, stamp(b.Since), stamp(b.Until), b.Files)
	}
	fmt.Fprintf(out, "accepted %d = delivered %d + forwarded %d + bounced %d + expired %d + dropped %d + still queued %d\n", b.Accepted,
		b.Closed[queue.Delivered], b.Closed[queue.Forwarded], b.Closed[queue.Bounced], b.Closed[queue.Expired], b.Closed[queue.Dropped], b.Queued)
	if b.Before > 0 {
		fmt.Fprintf(out, "%d more were done with that had come before the account begins\n", b.Before)
	}
	for _, text := range b.Broken {
		fmt.Fprintf(out, "broken: %s\n", text)
	}
	for i := range b.Differences {
		x := &b.Differences[i]
		fmt.Fprintf(out, "msg %d: %s", uint64(x.ID), x.What)
		if !x.Accepted.IsZero() {
			fmt.Fprintf(out, "; from <%s>, accepted %s; to", clean(x.Sender), stamp(x.Accepted))
			for _, r := range x.Recipients {
				fmt.Fprintf(out, " <%s>", clean(r))
			}
		}
		fmt.Fprintln(out)
	}
	if b.Omitted > 0 {
		fmt.Fprintf(out, "and %d more differences\n", b.Omitted)
	}
	fmt.Fprintf(out, "block %d, chain %s\n", b.Serial, b.Chain)
	if b.Even() {
		fmt.Fprintln(out, "it comes out even")
	} else {
		fmt.Fprintln(out, "it does not come out even")
	}
}

// clean makes an address fit for a terminal: a stranger may have chosen it.
func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == '\ufffd' {
			return '?'
		}
		return c
	}, s)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// query is what is looked for.
type query struct {
	ledger.Query
	since, until, id string
}

func (q *query) flags(set *flag.FlagSet) {
	set.StringVar(&q.Sender, "from", "", "")
	set.StringVar(&q.Recipient, "to", "", "")
	set.StringVar(&q.id, "id", "", "")
	set.StringVar(&q.since, "since", "", "")
	set.StringVar(&q.until, "until", "", "")
	set.IntVar(&q.Limit, "limit", 0, "")
}

func (q *query) parse(now time.Time) (err error) {
	if q.id != "" {
		if q.ID, err = queue.ParseID(strings.TrimPrefix(q.id, "#")); err != nil {
			return fmt.Errorf("%q is not the number of a message", q.id)
		}
	}
	if q.Since, err = parseTime(q.since, now); err != nil {
		return err
	}
	q.Until, err = parseTime(q.until, now)
	return err
}

func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(s); err == nil {
		return now.Add(-age), nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02T15:04:05", time.RFC3339} {
		if at, err := time.Parse(layout, s); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time", s)
}

// find prints what became of messages.
func (t *tool) find(d disk.FS, q *query) (int, error) {
	found, err := ledger.Find(d, q.Query)
	if err != nil {
		return exitLater, err
	}
	for _, f := range found {
		if t.json {
			if err := t.encode(jsonFound(f)); err != nil {
				return exitLater, err
			}
			continue
		}
		fmt.Fprintf(t.out, "msg %d: from <%s>, accepted %s, %d bytes, by uid %d\n", uint64(f.ID), clean(f.Sender), stamp(f.Accepted), f.Size, f.UID)
		for _, r := range f.Recipients {
			fmt.Fprintf(t.out, "\t<%s> %s\n", clean(r.Address), fate(&r))
		}
	}
	if len(found) == 0 {
		return exitUneven, nil
	}
	return exitEven, nil
}

func fate(r *ledger.Fate) string {
	if r.Outcome == 0 && r.Time.IsZero() {
		return "not done yet"
	}
	text := r.Outcome.String() + " " + stamp(r.Time)
	if r.Outcome == 0 {
		text = "done before the account began"
	}
	if r.As != 0 {
		text += ", see msg " + strconv.FormatUint(uint64(r.As), 10)
	}
	return text
}

func (t *tool) encode(v any) error { return json.NewEncoder(t.out).Encode(v) }

func jsonBalance(b *ledger.Balance) any {
	type difference struct {
		ID         uint64   `json:"id"`
		What       string   `json:"what"`
		Sender     string   `json:"sender"`
		Recipients []string `json:"recipients,omitempty"`
		Accepted   string   `json:"accepted,omitempty"`
	}
	differences := []difference{}
	for _, x := range b.Differences {
		d := difference{ID: uint64(x.ID), What: x.What, Sender: x.Sender, Recipients: x.Recipients}
		if !x.Accepted.IsZero() {
			d.Accepted = stamp(x.Accepted)
		}
		differences = append(differences, d)
	}
	broken := b.Broken
	if broken == nil {
		broken = []string{}
	}
	return struct {
		Even        bool         `json:"even"`
		Messages    int64        `json:"messages"`
		Accepted    int64        `json:"accepted"`
		Delivered   int64        `json:"delivered"`
		Forwarded   int64        `json:"forwarded"`
		Bounced     int64        `json:"bounced"`
		Expired     int64        `json:"expired"`
		Dropped     int64        `json:"dropped"`
		Queued      int64        `json:"queued"`
		Before      int64        `json:"before"`
		Omitted     int64        `json:"omitted"`
		Broken      []string     `json:"broken"`
		Differences []difference `json:"differences"`
		Block       uint64       `json:"block"`
		Chain       string       `json:"chain"`
	}{
		b.Even(), b.Messages, b.Accepted, b.Closed[queue.Delivered], b.Closed[queue.Forwarded], b.Closed[queue.Bounced], b.Closed[queue.Expired],
		b.Closed[queue.Dropped], b.Queued, b.Before, b.Omitted, broken, differences, b.Serial, b.Chain,
	}
}

func jsonFound(f *ledger.Found) any {
	type recipient struct {
		Address string `json:"address"`
		Outcome string `json:"outcome,omitempty"`
		Time    string `json:"time,omitempty"`
		As      uint64 `json:"as,omitempty"`
	}
	var all []recipient
	for _, r := range f.Recipients {
		one := recipient{Address: r.Address, As: uint64(r.As)}
		if !r.Time.IsZero() {
			one.Time = stamp(r.Time)
		}
		if r.Outcome != 0 {
			one.Outcome = r.Outcome.String()
		}
		all = append(all, one)
	}
	return struct {
		ID         uint64      `json:"id"`
		Sender     string      `json:"sender"`
		Accepted   string      `json:"accepted"`
		Size       int64       `json:"size"`
		UID        int         `json:"uid"`
		Recipients []recipient `json:"recipients"`
	}{uint64(f.ID), f.Sender, stamp(f.Accepted), f.Size, f.UID, all}
}
