// Package maildirserial is maildirserial(1): it has a client program send the messages of a Maildir that are for
// addresses with a prefix, and removes what was sent. Control files, for bounces: me, bouncefrom, bouncehost,
// doublebouncehost, doublebounceto.
package maildirserial

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"qmail/internal/format/bounce"
	"qmail/internal/format/envelope"
	"qmail/internal/format/errstr"
	"qmail/internal/format/getopt"
	"qmail/internal/proto/qq"
	"qmail/internal/proto/serial"
	"qmail/internal/store/control"
	"qmail/internal/store/maildrop"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

const (
	exitUsage = 100
	exitLater = 111
	// stuck is after how many runs of the client without progress we give up.
	stuck   = 3
	tooOld  = "This message is too old. Giving up."
	runTime = 24 * time.Hour // of the client
)

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	s, ok := parse(e, args)
	if !ok {
		fmt.Fprintln(e.Stderr, "maildirserial: usage: maildirserial [ -bB ] [ -t secs ] dir prefix client [ arg ... ]")
		return exitUsage
	}
	if err := s.run(ctx); err != nil {
		fmt.Fprintf(e.Stderr, "maildirserial: fatal: %v\n", err)
		return exitLater
	}
	return 0
}

// server is a Maildir being sent.
type server struct {
	env         *env.Env
	bounce      bool
	lifetime    time.Duration // 0: endless
	dir, prefix string
	client      []string
	queue       *qq.Queue
	drop        *maildrop.Drop
}

func parse(e *env.Env, args []string) (*server, bool) {
	options, rest, err := getopt.Parse(args, "bBt:")
	if err != nil || len(rest) < 3 {
		return nil, false
	}
	s := &server{env: e, dir: rest[0], prefix: rest[1], client: rest[2:], queue: qq.New(e)}
	for _, o := range options {
		switch o.Letter {
		case 'b', 'B':
			s.bounce = o.Letter == 'b'
		case 't':
			n, err := strconv.ParseUint(o.Arg, 10, 31)
			if err != nil {
				return nil, false
			}
			s.lifetime = time.Duration(n) * time.Second
		}
	}
	return s, true
}

func because(what string, err error) error { return fmt.Errorf("%s: %s", what, errstr.Text(err)) }

// run has the client send until nothing is left.
func (s *server) run(ctx context.Context) (err error) {
	if s.drop, err = maildrop.Open(s.dir); err != nil {
		return because("unable to open "+s.dir, err)
	}
	defer s.drop.Close()
	for idle := 0; idle < stuck; {
		s.drop.Sweep(s.env.Now())
		todo, err := s.list()
		if err != nil {
			return because("unable to scan "+s.dir, err)
		}
		if len(todo) == 0 {
			return nil
		}
		done, err := s.round(ctx, todo)
		if err != nil {
			return err
		}
		if idle++; done > 0 {
			idle = 0
		}
	}
	return errors.New("making no progress, giving up")
}

// list is the messages for the prefix by the names that the client gets.
func (s *server) list() ([]*maildrop.Message, error) {
	all, err := s.drop.List(s.env.Now())
	if err != nil {
		return nil, err
	}
	var ours []*maildrop.Message
	for i := range all {
		f, err := s.drop.Read(&all[i])
		if err != nil {
			continue // somebody else has removed it
		}
		_, err = serial.Head(bufio.NewReader(f), s.prefix)
		f.Close()
		if err == nil {
			ours = append(ours, &all[i])
		}
	}
	return ours, nil
}

func (s *server) path(m *maildrop.Message) string { return s.dir + "/" + m.Dir + "/" + m.Name }

// round runs the client once; done is how many messages have gone, one way or the other.
func (s *server) round(ctx context.Context, todo []*maildrop.Message) (done int, err error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	names, err := s.names(todo)
	if err != nil {
		return 0, err
	}
	defer names.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, because("unable to create pipe", err)
	}
	defer r.Close()
	p, err := child.Start(s.client, s.env.Vars, names, w, os.Stderr)
	w.Close()
	if err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { p.Kill() })()
	done, failed := s.results(ctx, bufio.NewReader(r), todo)
	if failed != nil {
		p.Kill()
	}
	if _, err := child.Wait(ctx, p); err != nil && failed == nil && done == 0 {
		failed = fmt.Errorf("%s: %w", s.client[0], err)
	}
	return done, failed
}

// names is a file without a name that holds what the client is to read: it can be as long as it must.
func (s *server) names(todo []*maildrop.Message) (*os.File, error) {
	f, err := os.CreateTemp("", "maildirserial")
	if err != nil {
		return nil, because("unable to create a temporary file", err)
	}
	err = os.Remove(f.Name())
	w := bufio.NewWriter(f)
	for _, m := range todo {
		w.WriteString(s.path(m) + "\x00")
	}
	if err = errors.Join(err, w.Flush()); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, because("unable to write a temporary file", err)
	}
	return f, nil
}

// results does what the client's words mean.
func (s *server) results(ctx context.Context, r *bufio.Reader, todo []*maildrop.Message) (done int, err error) {
	open := map[string]*maildrop.Message{}
	for _, m := range todo {
		open[s.path(m)] = m
	}
	for {
		result, err := serial.Next(r)
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) { // what it has not said it may say next time
			return done, nil
		}
		if err != nil {
			return done, fmt.Errorf("unable to read results: %w", err)
		}
		m := open[result.Name]
		if m == nil {
			continue
		}
		delete(open, result.Name)
		gone, err := s.judge(ctx, m, result)
		if err != nil {
			return done, err
		}
		if gone {
			done++
		}
	}
}

// judge carries out one result, and says whether the message is gone.
func (s *server) judge(ctx context.Context, m *maildrop.Message, r serial.Result) (gone bool, err error) {
	if r.Letter == 'Z' && s.lifetime > 0 && s.env.Now().Sub(m.Time) > s.lifetime {
		r.Letter, r.Text = 'D', r.Text+"\n"+tooOld
	}
	if r.Letter == 'D' && s.bounce {
		if err := s.sendBounce(ctx, m, r.Text); err != nil {
			return false, err
		}
	}
	if r.Letter == 'Z' || r.Letter == 'D' && !s.bounce {
		fmt.Fprintf(s.env.Stderr, "maildirserial: %s: %s\n", m.Name, r.Text)
		return false, nil
	}
	if err := s.drop.Remove(m); err != nil {
		return false, because("unable to remove "+m.Name, err)
	}
	return true, nil
}

// sendBounce tells the sender of a message that it did not arrive, by the rules of qmail-send.
func (s *server) sendBounce(ctx context.Context, m *maildrop.Message, text string) error {
	f, err := s.drop.Read(m)
	if err != nil {
		return because("unable to open "+m.Name, err)
	}
	defer f.Close()
	in := bufio.NewReader(f)
	e, err := serial.Head(in, s.prefix)
	if err != nil {
		return fmt.Errorf("unable to read %s: %w", m.Name, err)
	}
	c, err := readBounces(control.Open(s.env.Home))
	if err != nil {
		return fmt.Errorf("unable to read controls: %w", err)
	}
	from, to, ok := bounce.Envelope(e.Sender, c.doubleTo)
	if !ok {
		return nil
	}
	head := notice(c, s.env.Now(), e, to, text)
	_, err = s.queue.Put(ctx, &envelope.Envelope{Sender: from, Recipients: []string{to}}, bytes.NewReader(head), in)
	if err != nil {
		text, _ := qq.Explain(err)
		return fmt.Errorf("unable to queue a bounce: %s", text)
	}
	return nil
}

// bounces are the control files for bounces.
type bounces struct{ from, host, doubleTo string }

func readBounces(dir control.Dir) (c bounces, err error) {
	if c.from, err = dir.LineOr("bouncefrom", "MAILER-DAEMON"); err != nil {
		return c, err
	}
	if c.host, err = dir.LineOrMe("bouncehost", "bouncehost"); err != nil {
		return c, err
	}
	to, err := dir.LineOr("doublebounceto", "postmaster")
	if err != nil {
		return c, err
	}
	host, err := dir.LineOrMe("doublebouncehost", "doublebouncehost")
	c.doubleTo = to + "@" + host
	return c, err
}

// notice is a bounce up to the original message.
func notice(c bounces, now time.Time, e serial.Envelope, to, text string) []byte {
	n := bounce.Notice{Date: now, From: c.from, Host: c.host, Sender: e.Sender, To: to}
	b := bounce.AppendFields(nil, n)
	b = append(b, "\nHi. This is the maildirbounce program at "...)
	b = append(b, c.host...)
	if e.Sender == "" {
		b = append(b, ".\nI tried to deliver a bounce message to this address, but the bounce bounced!\n\n"...)
	} else {
		b = append(b, ".\nI'm afraid I wasn't able to deliver your message to the following address.\n"+
			"This is a permanent error; I've given up. Sorry it didn't work out.\n\n"...)
	}
	b = bounce.AppendFailure(b, e.Recipient, text+"\n")
	if e.Sender == "" {
		b = append(b, "--- Below this line is the original bounce.\n\n"...)
	} else {
		b = append(b, "--- Below this line is a copy of the message.\n\n"...)
	}
	return bounce.AppendReturnPath(b, n)
}
