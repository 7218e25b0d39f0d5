// Package maildir2mbox is maildir2mbox(1): it moves all mail of a Maildir to the end of an mbox file, for mail
// readers that know only those. Environment: MAILDIR, MAIL (the mbox file), MAILTMP (a file beside it).
//
// The mbox file is replaced as a whole, synced, before anything is removed from the Maildir.
package maildir2mbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/format/errstr"
	"qmail/internal/format/mbox"
	"qmail/internal/store/maildrop"
	"qmail/internal/system/env"
)

const (
	exitLater = 111
	// lockTime is how long a lock on the mbox file is waited for, lockPause how long between two looks at it.
	lockTime  = 10 * time.Minute
	lockPause = 100 * time.Millisecond
	// unknown is the sender of a message that does not begin with Return-Path.
	unknown = "XXX"
)

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, _ []string) int {
	var vars [3]string
	for i, name := range []string{"MAILDIR", "MAIL", "MAILTMP"} {
		value, ok := e.Lookup(name)
		if !ok {
			fmt.Fprintf(e.Stderr, "maildir2mbox: fatal: %s not set\n", name)
			return exitLater
		}
		vars[i] = value
	}
	m := &mover{maildir: vars[0], mail: vars[1], temp: vars[2]}
	unix.Umask(0o077)
	if err := m.move(ctx, e.Now()); err != nil {
		fmt.Fprintf(e.Stderr, "maildir2mbox: fatal: %v\n", err)
		return exitLater
	}
	for _, warning := range m.warnings {
		fmt.Fprintf(e.Stderr, "maildir2mbox: warning: %s\n", warning)
	}
	return 0
}

type mover struct {
	maildir, mail, temp string
	warnings            []string
}

func because(what string, err error) error { return fmt.Errorf("%s: %s", what, errstr.Text(err)) }

func (m *mover) move(ctx context.Context, now time.Time) error {
	drop, err := maildrop.Open(m.maildir)
	if err != nil {
		return because("unable to chdir to "+m.maildir, err)
	}
	defer drop.Close()
	drop.Sweep(now)
	list, err := drop.List(now)
	if err != nil {
		return because("unable to scan "+m.maildir, err)
	}
	if len(list) == 0 {
		return nil
	}
	old, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer old.Close()
	if err := m.write(old, drop, list); err != nil {
		_ = os.Remove(m.temp) // it may not be there
		return err
	}
	if err := m.publish(); err != nil {
		return err
	}
	for i := range list {
		if err := drop.Remove(&list[i]); err != nil {
			m.warnings = append(m.warnings, because("unable to remove "+list[i].Name, err).Error())
		}
	}
	return nil
}

// lock opens the mbox file, or makes it, and locks it against those who deliver into it.
func (m *mover) lock(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	for {
		f, err := os.OpenFile(m.mail, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, because("unable to open "+m.mail, err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && m.current(f) {
			return f, nil
		}
		f.Close() // it has been replaced meanwhile, or somebody else has the lock
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, because("unable to lock "+m.mail, err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("unable to lock %s: it has been locked for %v", m.mail, lockTime)
		}
	}
}

// current reports whether a file is still the one of its name.
func (m *mover) current(f *os.File) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(m.mail)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// write makes the new mbox file: the old one, then the messages.
func (m *mover) write(old *os.File, drop *maildrop.Drop, list []maildrop.Message) error {
	f, err := os.OpenFile(m.temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return because("unable to create "+m.temp, err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 64<<10)
	if _, err := io.Copy(struct{ io.Writer }{w}, old); err != nil {
		return because("unable to copy "+m.mail, err)
	}
	for i := range list {
		if err := appendTo(w, drop, &list[i]); err != nil {
			return err
		}
	}
	if err := errors.Join(w.Flush(), f.Sync(), f.Close()); err != nil {
		return because("unable to write "+m.temp, err)
	}
	return nil
}

func appendTo(w *bufio.Writer, drop *maildrop.Drop, message *maildrop.Message) error {
	f, err := drop.Read(message)
	if err != nil {
		return because("unable to open "+message.Name, err)
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 64<<10)
	if _, err := w.Write(fromLine(in, message.Time)); err != nil {
		return because("unable to write mbox", err)
	}
	if err := mbox.WriteBody(w, in); err != nil {
		return because("unable to copy "+message.Name, err)
	}
	return nil
}

// fromLine is made of the Return-Path that qmail-local writes first of all; nothing is taken out of in.
func fromLine(in *bufio.Reader, when time.Time) []byte {
	start, _ := in.Peek(in.Size()) // an error will be there again for WriteBody
	line, _, _ := bytes.Cut(start, []byte("\n"))
	sender, ok := bytes.CutPrefix(line, []byte("Return-Path: <"))
	if !ok {
		return mbox.FromLine(unknown, when)
	}
	return mbox.FromLine(string(bytes.TrimSuffix(sender, []byte(">"))), when)
}

// publish puts the new mbox file in the place of the old one, durably.
func (m *mover) publish() error {
	if err := os.Rename(m.temp, m.mail); err != nil {
		return because("unable to move "+m.temp+" to "+m.mail, err)
	}
	d, err := os.Open(filepath.Dir(m.mail))
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return because("unable to sync the directory of "+m.mail, err)
	}
	return nil
}
