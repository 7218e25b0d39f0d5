// Package maildirwatch is maildirwatch(1): it shows what is new in a Maildir, on a terminal, every thirty seconds.
// Environment: MAILDIR.
package maildirwatch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"qmail/internal/format/errstr"
	"qmail/internal/format/excerpt"
	"qmail/internal/store/maildrop"
	"qmail/internal/system/env"
)

const (
	exitLater = 111
	pause     = 30 * time.Second
	// clear, bold and plain are what VT100 and all its heirs understand.
	clear     = "\x1b[;H\x1b[;J"
	bold      = "\x1b[1m"
	plain     = "\x1b[0m"
	textLimit = 158
	// looked is how much of a message is looked at, shown how many messages, at most.
	looked = 64 << 10
	shown  = 100
)

// Main runs the role until ctx ends; it returns 111 if there is no Maildir to watch.
func Main(ctx context.Context, e *env.Env, _ []string) int {
	dir, ok := e.Lookup("MAILDIR")
	if !ok {
		fmt.Fprintln(e.Stderr, "maildirwatch: fatal: MAILDIR not set")
		return exitLater
	}
	for {
		screen, err := look(dir, e.Now())
		if err != nil {
			fmt.Fprintf(e.Stderr, "maildirwatch: fatal: unable to scan %s: %s\n", dir, errstr.Text(err))
			return exitLater
		}
		if _, err := e.Stdout.Write(screen); err != nil {
			return exitLater
		}
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(pause):
		}
	}
}

// look is one screen.
func look(dir string, now time.Time) ([]byte, error) {
	drop, err := maildrop.Open(dir)
	if err != nil {
		return nil, err
	}
	defer drop.Close()
	drop.Sweep(now)
	list, err := drop.List(now)
	if err != nil {
		return nil, err
	}
	screen := []byte(clear)
	left := shown
	for i := range list {
		if list[i].Dir != "new" {
			continue
		}
		if left--; left < 0 {
			break
		}
		if message, err := head(drop, &list[i]); err == nil { // else it was read and removed meanwhile
			screen = append(screen, describe(message)...)
		}
	}
	return screen, nil
}

func head(drop *maildrop.Drop, m *maildrop.Message) ([]byte, error) {
	f, err := drop.Read(m)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, looked))
}

func describe(message []byte) []byte {
	var b bytes.Buffer
	sender, recipient := excerpt.Field(message, "Return-Path"), excerpt.Field(message, "Delivered-To")
	fmt.Fprintf(&b, "FROM %s TO <%s>\n", sender, recipient)
	if from := excerpt.Field(message, "From"); from != "" {
		fmt.Fprintf(&b, "%sFrom: %s%s\n", bold, from, plain)
	}
	fmt.Fprintf(&b, "%s\n\n", excerpt.Text(message, textLimit))
	return b.Bytes()
}
