// Package injection makes a message of what a user or a program writes, and gives it to the queue: the work of
// qmail-inject(8), for all programs that begin with it.
//
// In goes text, a header that may be incomplete and a body; recipients and a sender, given or taken from the
// header; and the user's environment. Out goes a message with Date, Message-ID and From, with complete
// addresses (format/header), without Bcc, Return-Path and Content-Length; or the same text on a writer.
//
// The header is held in memory, up to 32 MiB; the body passes through.
package injection

import (
	"bufio"
	"context"
	"errors"
	"io"

	"qmail/internal/format/address"
	"qmail/internal/format/envelope"
	"qmail/internal/format/header"
	"qmail/internal/format/reply"
	"qmail/internal/proto/qq"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
)

// maxHeader bounds a header, in bytes: room for half a million recipients.
const maxHeader = 32 << 20

// Options say what is known besides the text.
type Options struct {
	Recipients []string // each one address, literally
	FromHeader bool     // recipients are taken from the header too
	HasSender  bool     // Sender is the envelope sender; else it comes from the header or the environment
	Sender     string
	// Print writes the message to Output instead of queueing it, below a Return-Path.
	Print  bool
	Output io.Writer
	Dir    string // where a relative QMAILMFTFILE is looked up; empty: the current directory
	// ESMTP options of the message and of every recipient (RFC 3461); a program in place of qmail-queue
	// does not get them.
	MessageOptions, RecipientOptions []string
}

// Error is why a message was not queued. Text is for whoever runs the program.
type Error struct {
	Permanent bool
	Text      string
	Err       error
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error { return e.Err }

// Code is the exit code of qmail's programs for it.
func (e *Error) Code() int {
	if e.Permanent {
		return 100
	}
	return 111
}

func permanent(text string) *Error { return &Error{Permanent: true, Text: text} }

func temporary(text string, err error) *Error { return &Error{Text: text, Err: err} }

var errReading = errors.New("injection: unable to read the message")

// Run injects one message; the error is an *Error. Nothing is queued before the header is complete.
func Run(ctx context.Context, e *env.Env, in io.Reader, o Options) error {
	s, err := readSettings(e, control.Open(e.Home), o.Dir)
	if err != nil {
		return err
	}
	m := &message{settings: s, options: o}
	if err := m.arguments(); err != nil {
		return err
	}
	r := newReader(in)
	if err := m.readHeader(r); err != nil {
		return err
	}
	env, err := m.envelope()
	if err != nil {
		return err
	}
	if o.Print {
		return m.print(r, env)
	}
	return m.queue(ctx, qq.New(e), r, env)
}

// print writes the result instead of queueing it.
func (m *message) print(r *reader, env *envelope.Envelope) error {
	w := bufio.NewWriter(m.options.Output)
	w.WriteString("Return-Path: <" + address.QuoteAddress(env.Sender) + ">\n")
	w.Write(m.added())
	w.Write(m.kept)
	if err := r.body(w); err != nil {
		return temporary("read error", err)
	}
	if err := w.Flush(); err != nil {
		return temporary("write error", err)
	}
	return nil
}

func (m *message) queue(ctx context.Context, queue *qq.Queue, r *reader, env *envelope.Envelope) error {
	q, err := queue.Open(ctx, env)
	if err != nil {
		return temporary(reply.Of(err).Text, err)
	}
	defer q.Abort()
	w := bufio.NewWriterSize(q, 64<<10)
	w.Write(m.added())
	w.Write(m.kept)
	if err := r.body(w); errors.Is(err, errReading) {
		return temporary("read error", err)
	}
	w.Flush() // if it failed, Commit knows why
	if _, err := q.Commit(env); err != nil {
		refusal := reply.Of(err)
		return &Error{Permanent: refusal.Letter() == 'D', Text: refusal.Text + " (#" + refusal.Status + ")", Err: err}
	}
	return nil
}

// envelope decides who sends and who gets the message.
func (m *message) envelope() (*envelope.Envelope, error) {
	e := &envelope.Envelope{Options: m.options.MessageOptions, Recipients: m.recipients}
	if m.options.FromHeader {
		if m.resent() {
			e.Recipients = append(e.Recipients, m.resentTo...)
		} else {
			e.Recipients = append(e.Recipients, m.to...)
		}
	}
	switch {
	case m.options.HasSender:
		sender, err := m.one(m.options.Sender)
		if err != nil {
			return nil, err
		}
		e.Sender = sender
	case m.hasSender:
		e.Sender = m.sender
	default:
		e.Sender = m.settings.sender()
	}
	if len(m.options.RecipientOptions) > 0 {
		e.RecipientOptions = make(map[int][]string, len(e.Recipients))
		for i := range e.Recipients {
			e.RecipientOptions[i] = m.options.RecipientOptions
		}
	}
	if err := e.Check(); err != nil {
		refusal := qq.Outcome(qq.CodeTooLong)
		return nil, &Error{Permanent: true, Text: refusal.Text + " (#" + refusal.Status + ")", Err: err}
	}
	return e, nil
}

func (m *message) arguments() error {
	for _, a := range m.options.Recipients {
		to, err := m.one(a)
		if err != nil {
			return err
		}
		m.recipients = append(m.recipients, to)
	}
	return nil
}

// one completes an address that is given by itself: it is split at its last @ and not parsed as a list.
func (m *message) one(text string) (string, error) {
	tokens, ok := header.Tokenize(address.QuoteAddress(text))
	if !ok {
		return "", permanent("unable to parse address: " + text)
	}
	return header.Address(m.settings.completion.Complete(tokens)), nil
}
