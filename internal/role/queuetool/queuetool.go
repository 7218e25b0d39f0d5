// Package queuetool is `qmail queue`: it lists the messages of a running qmail-send, shows them, and gives orders about
// them (proto/admin). Root and the owners of the queue may do all of it; other users see their own messages.
//
//	qmail queue list [filter] [-json] [-recipients]
//	qmail queue count [filter] [-json]
//	qmail queue show|cat ID ...
//	qmail queue retry|hold|release|delete ID ... | filter
//	qmail queue bounce [-reason TEXT] ID ... | filter
//	qmail queue export >FILE
//	qmail queue import <FILE
//
// But for the last two (backup.go) it reads no file of the queue. Output is written as it comes, however long the queue is.
package queuetool

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/system/env"
)

const usage = `usage: qmail queue list [filter] [-json] [-recipients]
       qmail queue count [filter] [-json]
       qmail queue show [-json] ID ...
       qmail queue cat ID
       qmail queue retry|hold|release|delete ID ... | filter
       qmail queue bounce [-reason TEXT] ID ... | filter
       qmail queue export >FILE
       qmail queue import <FILE
A filter is some of -sender PATTERN -recipient PATTERN -domain DOMAIN
-state waiting|ready|running|held|failed|done -older AGE -younger AGE
-message-id <ID>, or -all.
`

// Exit codes.
const (
	exitDone  = 0
	exitNever = 100
	exitLater = 111
)

// tool is one call of the program.
type tool struct {
	env    *env.Env
	out    *bufio.Writer
	client *admin.Client

	filter   admin.Filter
	filtered bool // something was said about which messages
	json     bool
	reason   string
	code     int
}

// Main runs qmail queue.
func Main(_ context.Context, e *env.Env, args []string) int {
	if len(args) == 1 && (args[0] == "export" || args[0] == "import") {
		return backup(e, args[0])
	}
	t := &tool{env: e, out: bufio.NewWriterSize(e.Stdout, 32<<10)}
	command, ids, err := t.parse(args)
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(e.Stderr, "qmail-queuetool: %v\n", err)
		}
		fmt.Fprint(e.Stderr, usage)
		return exitNever
	}
	if t.client, err = admin.Dial(e.Home); err != nil {
		fmt.Fprintf(e.Stderr, "qmail-queuetool: %v\n", err)
		return exitLater
	}
	defer t.client.Close()
	t.run(command, ids)
	if err := t.out.Flush(); err != nil {
		t.fail(fmt.Errorf("unable to write: %w", err))
	}
	return t.code
}

// parse reads the command line.
func (t *tool) parse(args []string) (command string, ids []uint64, err error) {
	if len(args) == 0 {
		return "", nil, errors.New("what about the queue?")
	}
	command = args[0]
	set := flag.NewFlagSet(command, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	order := admin.Verbs()[command] != 0
	switch {
	case command == "list" || command == "count" || order:
		t.filterFlags(set)
	case command == "show" || command == "cat":
	default:
		return "", nil, fmt.Errorf("unknown command %q", command)
	}
	switch command {
	case "list":
		set.BoolVar(&t.filter.Recipients, "recipients", false, "")
		set.BoolVar(&t.json, "json", false, "")
	case "count", "show":
		set.BoolVar(&t.json, "json", false, "")
	case "bounce":
		set.StringVar(&t.reason, "reason", "", "")
	}
	if err := set.Parse(args[1:]); err != nil {
		return "", nil, err
	}
	for _, word := range set.Args() {
		id, err := strconv.ParseUint(strings.TrimPrefix(word, "#"), 10, 64)
		if err != nil || id == 0 {
			return "", nil, fmt.Errorf("%q is not the number of a message", word)
		}
		ids = append(ids, id)
	}
	return command, ids, t.check(command, order, len(ids))
}

// check refuses what has two meanings or none.
func (t *tool) check(command string, order bool, ids int) error {
	switch {
	case command == "cat" && ids != 1:
		return errors.New("cat takes one message")
	case command == "show" && ids == 0:
		return errors.New("show takes messages")
	case (command == "list" || command == "count") && ids > 0:
		return fmt.Errorf("%s takes a filter; see show", command)
	case order && ids > 0 && t.filtered:
		return errors.New("either messages or a filter")
	case order && ids == 0 && !t.filtered:
		return errors.New("which messages? -all is all of them")
	}
	return nil
}

func (t *tool) filterFlags(set *flag.FlagSet) {
	text := func(name string, p *string) {
		set.Func(name, "", func(v string) error {
			if v == "" || len(v) > admin.MaxText || strings.IndexByte(v, 0) >= 0 {
				return errors.New("unusable pattern")
			}
			*p, t.filtered = v, true
			return nil
		})
	}
	text("sender", &t.filter.Sender)
	text("recipient", &t.filter.Recipient)
	text("domain", &t.filter.Domain)
	text("message-id", &t.filter.MessageID)
	set.Func("state", "", func(v string) error {
		s, ok := admin.ParseState(v)
		if !ok {
			return errors.New("no such state")
		}
		t.filter.State, t.filtered = s, true
		return nil
	})
	age := func(name string, p *time.Duration) {
		set.Func(name, "", func(v string) (err error) {
			*p, err = parseAge(v)
			t.filtered = true
			return err
		})
	}
	age("older", &t.filter.OlderThan)
	age("younger", &t.filter.YoungerThan)
	set.BoolFunc("all", "", func(string) error { t.filtered = true; return nil })
}

// parseAge reads "90", "90s", "15m", "2h", "3d" or "1w".
func parseAge(s string) (time.Duration, error) {
	unit := time.Second
	if n := len(s); n > 0 {
		if u, ok := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}[s[n-1]]; ok {
			unit, s = u, s[:n-1]
		}
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || n > uint64((1<<33)*time.Second/unit) {
		return 0, errors.New("not an age such as 90s, 15m, 2h, 3d or 1w")
	}
	return time.Duration(n) * unit, nil
}

func (t *tool) run(command string, ids []uint64) {
	switch command {
	case "list":
		p := t.printer()
		_, err := t.client.List(&t.filter, p.message, p.recipient)
		t.fail(errors.Join(err, p.end()))
	case "count":
		t.filter.CountOnly = true
		totals, err := t.client.List(&t.filter, nil, nil)
		if t.fail(err); err == nil {
			t.fail(t.totals(totals))
		}
	case "show":
		p := t.printer()
		p.details = true
		for _, id := range ids {
			err := t.client.Show(id, p.message, p.recipient)
			t.about(id, errors.Join(err, p.end()))
		}
	case "cat":
		t.about(ids[0], t.client.Copy(ids[0], t.out))
	default:
		t.orders(admin.Verbs()[command], command, ids)
	}
}

// fail says what went wrong, if anything did, and keeps the worst exit code.
func (t *tool) fail(err error) {
	if err == nil {
		return
	}
	text, code := err.Error(), exitLater
	if refusal, ok := errors.AsType[*reply.Error](err); ok {
		text = refusal.Text
		if refusal.Letter() == 'D' {
			code = exitNever
		}
	}
	fmt.Fprintf(t.env.Stderr, "qmail-queuetool: %s\n", text)
	if t.code != exitLater {
		t.code = code
	}
}

func (t *tool) about(id uint64, err error) {
	if refusal, ok := errors.AsType[*reply.Error](err); ok {
		said := *refusal
		said.Text = fmt.Sprintf("message %d: %s", id, refusal.Text)
		err = &said
	}
	t.fail(err)
}

// orders gives an order about each of the messages, or about all that pass the filter. Those are listed over a
// connection of their own, so that no list of them has to be kept.
func (t *tool) orders(verb admin.Verb, name string, ids []uint64) {
	count := 0
	one := func(id uint64, gone bool) error {
		effect, err := t.client.Order(&admin.Order{Verb: verb, ID: id, Reason: t.reason})
		refusal, refused := errors.AsType[*reply.Error](err)
		if refused && gone && refusal.Letter() == 'D' && refusal.Status == "5.1.1" {
			return nil // it went between list and order
		}
		if err != nil {
			t.about(id, err)
			if !refused || refusal.Status == "5.7.1" {
				return err // so will all others
			}
			return nil
		}
		count++
		text := fmt.Sprintf("message %d: %s, %d recipients", id, past(name), effect.Recipients)
		if effect.Running > 0 && (verb == admin.Bounce || verb == admin.Delete) {
			text += fmt.Sprintf(", of which %d are being delivered to just now, for the last time", effect.Running)
		}
		_, err = fmt.Fprintln(t.out, text)
		return err
	}
	for _, id := range ids {
		if one(id, false) != nil {
			return
		}
	}
	if len(ids) > 0 {
		return
	}
	lister, err := admin.Dial(t.env.Home)
	if err != nil {
		t.fail(err)
		return
	}
	defer lister.Close()
	stopped := errors.New("stopped")
	_, err = lister.List(&t.filter, func(m *admin.Message) error {
		if one(m.ID, true) != nil {
			return stopped
		}
		return nil
	}, nil)
	if err != stopped {
		t.fail(err)
	}
	fmt.Fprintf(t.out, "%d messages %s\n", count, past(name))
}

func past(verb string) string {
	if strings.HasSuffix(verb, "y") {
		return strings.TrimSuffix(verb, "y") + "ied"
	}
	if verb == "hold" {
		return "held"
	}
	return strings.TrimSuffix(verb, "e") + "ed"
}
