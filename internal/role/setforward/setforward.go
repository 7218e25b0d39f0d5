// Package setforward is setforward(1), setmaillist(1), printforward(1) and printmaillist(1): they make and show
// the tables and lists of fastforward(1).
package setforward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"qmail/internal/format/aliases"
	"qmail/internal/format/cdb"
	"qmail/internal/system/env"
	"qmail/internal/system/replace"
)

const (
	exitUsage = 100
	exitLater = 111
	maxInput  = 256 << 20
)

// tool runs one of the four, which has so many arguments.
func tool(e *env.Env, name, usage string, args []string, want int, do func() error) int {
	if len(args) != want {
		fmt.Fprintf(e.Stderr, "%s: usage: %s%s\n", name, name, usage)
		return exitUsage
	}
	if err := do(); err != nil {
		fmt.Fprintf(e.Stderr, "%s: fatal: %v\n", name, err)
		return exitLater
	}
	return 0
}

func input(e *env.Env) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(e.Stdin, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("unable to read input: %w", err)
	}
	if len(b) > maxInput {
		return nil, fmt.Errorf("more than %d bytes of input", maxInput)
	}
	return b, nil
}

// Main makes a table of its input.
func Main(_ context.Context, e *env.Env, args []string) int {
	return tool(e, "setforward", " data.cdb data.tmp", args, 2, func() error {
		text, err := input(e)
		if err != nil {
			return err
		}
		records, err := aliases.ParseForward(text)
		if err != nil {
			return err
		}
		return replace.File(args[0], args[1], 0o644, func(f *os.File) error {
			w := cdb.NewWriter(f)
			for _, r := range records {
				if err := w.Add([]byte(r.Key), []byte(r.Value)); err != nil {
					return err
				}
			}
			return w.Close()
		})
	})
}

// Setmaillist makes a list of its input.
func Setmaillist(_ context.Context, e *env.Env, args []string) int {
	return tool(e, "setmaillist", " data.bin data.tmp", args, 2, func() error {
		text, err := input(e)
		if err != nil {
			return err
		}
		commands, err := aliases.ParseMaillist(text)
		if err != nil {
			return err
		}
		return replace.File(args[0], args[1], 0o644, func(f *os.File) error {
			_, err := f.Write(aliases.Join(commands))
			return err
		})
	})
}

// Printforward shows the table that is its input.
func Printforward(_ context.Context, e *env.Env, args []string) int {
	return tool(e, "printforward", " < data.cdb", args, 0, func() error {
		b, err := input(e)
		if err != nil {
			return err
		}
		db, err := cdb.New(b)
		if err != nil {
			return err
		}
		w := bufio.NewWriter(e.Stdout)
		var line []byte
		err = db.Each(func(key, data []byte) error {
			var err error
			if line, err = aliases.AppendForward(line[:0], aliases.Record{Key: string(key), Value: string(data)}); err == nil {
				_, err = w.Write(line)
			}
			return err
		})
		return errors.Join(err, w.Flush())
	})
}

// Printmaillist shows the list that is its input.
func Printmaillist(_ context.Context, e *env.Env, args []string) int {
	return tool(e, "printmaillist", " < data.bin", args, 0, func() error {
		b, err := input(e)
		if err != nil {
			return err
		}
		commands, err := aliases.Split(b)
		if err != nil {
			return err
		}
		w := bufio.NewWriter(e.Stdout)
		for _, c := range commands {
			fmt.Fprintln(w, c)
		}
		return w.Flush()
	})
}
