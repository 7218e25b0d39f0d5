// Package newaliases is newaliases(1), which makes the table of fastforward(1) of /etc/aliases, and newinclude(1),
// which does the same for an included list. Addresses are completed with the control files defaulthost,
// defaultdomain and plusdomain.
package newaliases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"qmail/internal/format/aliases"
	"qmail/internal/format/cdb"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
	"qmail/internal/system/replace"
)

const (
	standard  = "/etc/aliases"
	exitUsage = 100
	exitLater = 111
	maxFile   = 256 << 20
)

// Main makes the table of /etc/aliases, where there is one already, or of the file that it is given.
func Main(_ context.Context, e *env.Env, args []string) int {
	file := standard
	switch len(args) {
	case 0:
		if _, err := os.Stat(standard + ".cdb"); errors.Is(err, fs.ErrNotExist) {
			// Nobody has said that /etc/aliases counts here; the words are those of qmail's sendmail.
			fmt.Fprintf(e.Stderr, "sendmail: fatal: please use fastforward/newaliases instead (newaliases %s makes %s.cdb)\n", standard, standard)
			return exitUsage
		}
	case 1:
		file = args[0]
	default:
		fmt.Fprintln(e.Stderr, "newaliases: usage: newaliases [ file ]")
		return exitUsage
	}
	if err := compile(e.Home, file); err != nil {
		fmt.Fprintf(e.Stderr, "newaliases: fatal: %v\n", err)
		return exitLater
	}
	return 0
}

// Newinclude makes list.bin of list.
func Newinclude(_ context.Context, e *env.Env, args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(e.Stderr, "newinclude: usage: newinclude list")
		return exitUsage
	}
	if err := include(e.Home, args[0]); err != nil {
		fmt.Fprintf(e.Stderr, "newinclude: fatal: %v\n", err)
		return exitLater
	}
	return 0
}

func compile(home, file string) error {
	complete, err := control.Open(home).Completion()
	if err != nil {
		return fmt.Errorf("unable to read controls: %w", err)
	}
	text, err := read(file)
	if err != nil {
		return err
	}
	entries, err := aliases.Parse(text, complete)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return replace.File(file+".cdb", file+".tmp", 0o644, func(f *os.File) error {
		w := cdb.NewWriter(f)
		for _, r := range aliases.Records(entries) {
			if err := w.Add([]byte(r.Key), []byte(r.Value)); err != nil {
				return err
			}
		}
		return w.Close()
	})
}

func include(home, file string) error {
	complete, err := control.Open(home).Completion()
	if err != nil {
		return fmt.Errorf("unable to read controls: %w", err)
	}
	text, err := read(file)
	if err != nil {
		return err
	}
	commands, err := aliases.ParseInclude(text, complete)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return replace.File(file+".bin", file+".tmp", 0o644, func(f *os.File) error {
		_, err := f.Write(aliases.Join(commands))
		return err
	})
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return b, err
}
