// Package explain is `qmail explain`: what a running qmail-send would do with mail for an address, and what has become of
// a message (proto/admin). Nothing happens by asking.
//
//	qmail explain [-json] ADDRESS      each decision, with the file and line that made it
//	qmail explain [-json] ID           the life of a message of the queue, by its number
//	qmail explain [-json] '<x@y>'      and by its Message-ID
package explain

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/system/env"
)

const usage = "usage: qmail explain [-json] ADDRESS | ID | '<MESSAGE-ID>'\n"

// Exit codes: of an explanation, those of a delivery.
const (
	exitDone  = 0
	exitNever = 100
	exitLater = 111
)

// Main runs qmail explain. It returns 0, for an address that would bounce 100, for one that would be put off 111; so too
// where nothing can be told.
func Main(_ context.Context, e *env.Env, args []string) int {
	p := &printer{out: bufio.NewWriter(e.Stdout), zone: e.Now().Location()}
	if len(args) > 0 && (args[0] == "-json" || args[0] == "--json") {
		p.json, args = true, args[1:]
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) != 1 || args[0] == "" || len(args[0]) > admin.MaxText || strings.IndexByte(args[0], 0) >= 0 {
		fmt.Fprint(e.Stderr, usage)
		return exitNever
	}
	c, err := admin.Dial(e.Home)
	code := exitDone
	if err == nil {
		defer c.Close()
		code, err = p.explain(c, args[0])
		err = errors.Join(err, p.out.Flush())
	}
	if err == nil {
		return code
	}
	text, code := err.Error(), exitLater
	if refusal, ok := errors.AsType[*reply.Error](err); ok {
		text = refusal.Text
		if refusal.Letter() == 'D' {
			code = exitNever
		}
	}
	fmt.Fprintf(e.Stderr, "qmail-explain: %s\n", text)
	return code
}

// explain finds out what is asked for: digits are a message, and so is what stands in angle brackets.
func (p *printer) explain(c *admin.Client, what string) (code int, err error) {
	if id, err := strconv.ParseUint(strings.TrimPrefix(what, "#"), 10, 64); err == nil && id > 0 {
		return exitDone, p.life(c, id)
	}
	if strings.HasPrefix(what, "<") && strings.HasSuffix(what, ">") {
		return exitDone, p.lives(c, what)
	}
	steps, err := c.Explain(what)
	if err != nil {
		return exitLater, err
	}
	return p.steps(what, steps)
}

// maxFound bounds the messages that are looked at with one Message-ID.
const maxFound = 1000

// lives tells of all messages in the queue with a Message-ID.
func (p *printer) lives(c *admin.Client, id string) error {
	var found []uint64
	_, err := c.List(&admin.Filter{MessageID: id}, func(m *admin.Message) error {
		if len(found) < maxFound {
			found = append(found, m.ID)
		}
		return nil
	}, nil)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return reply.Permanent("5.1.1", "no message in the queue has that Message-ID", nil)
	}
	for _, one := range found {
		if err := p.life(c, one); err != nil {
			return err
		}
	}
	return nil
}

// printer writes answers.
type printer struct {
	out  *bufio.Writer
	json bool
	zone *time.Location
}

func (p *printer) life(c *admin.Client, id uint64) error {
	if !p.json {
		fmt.Fprintf(p.out, "message %d\n", id)
	}
	err := c.Life(id, func(e *admin.Event) error {
		if p.json {
			return p.event(id, e)
		}
		_, err := io.WriteString(p.out, p.line(e))
		return err
	})
	if err != nil || p.json {
		return err
	}
	return p.present(c, id)
}

// present tells where a message is now, if it is still in the queue.
func (p *printer) present(c *admin.Client, id uint64) error {
	err := c.Show(id, func(m *admin.Message) error {
		_, err := fmt.Fprintf(p.out, "  now: %d waiting, %d ready, %d running, %d held, %d failed, %d done\n", m.Waiting, m.Ready, m.Running, m.Held, m.Failed, m.Done())
		return err
	}, func(*admin.Recipient) error { return nil })
	if refusal, ok := errors.AsType[*reply.Error](err); ok && refusal.Letter() == 'D' {
		_, err = fmt.Fprintln(p.out, "  it is no longer in the queue")
	}
	return err
}

func (p *printer) line(e *admin.Event) string {
	when := "                         "
	if !e.Time.IsZero() {
		when = e.Time.In(p.zone).Format("2006-01-02 15:04:05 -0700")
	}
	text := "  " + when + "  " + e.What
	switch {
	case e.Addresses != "":
		text += " " + clean(e.Addresses)
	case e.Recipients != "":
		text += " recipients " + e.Recipients
	case e.What == "deferred" || e.What == "failed" || e.What == "delivered":
		text += " all recipients"
	}
	if !e.Next.IsZero() {
		text += ", next " + e.Next.In(p.zone).Format("2006-01-02 15:04:05 -0700")
	}
	if e.As != 0 {
		text += fmt.Sprintf(", by message %d", e.As)
	}
	if e.Text != "" {
		text += ": " + clean(strings.ReplaceAll(e.Text, "\n", " / "))
	}
	return text + "\n"
}

func (p *printer) event(id uint64, e *admin.Event) error {
	return p.write(struct {
		Message    uint64     `json:"message"`
		Time       *time.Time `json:"time,omitempty"`
		What       string     `json:"what"`
		Recipients string     `json:"recipients,omitempty"`
		Address    string     `json:"address,omitempty"`
		Next       *time.Time `json:"next,omitempty"`
		As         uint64     `json:"as,omitempty"`
		Text       string     `json:"text,omitempty"`
	}{id, utc(e.Time), e.What, e.Recipients, e.Addresses, utc(e.Next), e.As, e.Text})
}

func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func (p *printer) write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = p.out.Write(append(b, '\n'))
	return err
}

// step is a step in JSON.
type step struct {
	Topic string `json:"topic"`
	Value string `json:"value,omitempty"`
	Text  string `json:"text,omitempty"`
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
}

// steps prints an explanation; the code is that of its verdict.
func (p *printer) steps(address string, steps []admin.Step) (code int, err error) {
	code = exitLater
	list := make([]step, len(steps))
	for i, s := range steps {
		list[i] = step{s.Topic, s.Value, s.Text, s.File, s.Line}
		if s.Topic == "verdict" {
			code = map[string]int{"K": exitDone, "D": exitNever, "Z": exitLater}[s.Value]
		}
	}
	if p.json {
		return code, p.write(struct {
			Address string `json:"address"`
			Steps   []step `json:"steps"`
		}{address, list})
	}
	fmt.Fprintf(p.out, "%s\n", clean(address))
	for _, s := range steps {
		fmt.Fprintln(p.out, text(s))
	}
	return code, nil
}

// text is a step for people.
func text(s admin.Step) string {
	topic, value := s.Topic, s.Value
	if s.Topic == "verdict" {
		value = map[string]string{"K": "it would be taken", "Z": "it would be put off", "D": "it would bounce"}[s.Value]
		if s.Value == "K" && s.Text != "" { // it is not for us to say that it would be
			value, s.Text = s.Text, ""
		}
	}
	line := fmt.Sprintf("  %-14s %s", topic, clean(value))
	if s.Text != "" {
		if value != "" {
			line += "  "
		}
		line += "(" + clean(strings.ReplaceAll(s.Text, "\n", " / ")) + ")"
	}
	if s.File != "" && s.File != s.Value {
		line += "  [" + clean(s.File)
		if s.Line > 0 {
			line += ":" + strconv.Itoa(s.Line)
		}
		line += "]"
	} else if s.Line > 0 {
		line += "  [line " + strconv.Itoa(s.Line) + "]"
	}
	return line
}

// clean makes text safe for a terminal.
func clean(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 32 || c > 126 {
			b[i] = '?'
		}
	}
	return string(b)
}
