// Package inject is qmail-inject(8): it reads a message from its input, completes its header, and gives it to
// the queue, or prints it.
package inject

import (
	"context"
	"errors"
	"fmt"

	"qmail/internal/format/getopt"
	"qmail/internal/proto/injection"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

const name = "qmail-inject"

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	o, err := options(args)
	if err != nil {
		fmt.Fprintf(e.Stderr, "%s: %v\n", name, err)
		return 100
	}
	o.Output = e.Stdout
	ctx, cancel := context.WithTimeout(ctx, qq.Lifetime)
	defer cancel()
	if err := injection.Run(ctx, e, e.Stdin, o); err != nil {
		fmt.Fprintf(e.Stderr, "%s: fatal: %v\n", name, err)
		if refusal, ok := errors.AsType[*injection.Error](err); ok {
			return refusal.Code()
		}
		return 111
	}
	return 0
}

// options reads the command line; the last of a kind counts.
func options(args []string) (o injection.Options, err error) {
	parsed, recipients, err := getopt.Parse(args, "aAhHnNf:")
	if err != nil {
		return o, err
	}
	strategy := byte('A')
	for _, p := range parsed {
		switch p.Letter {
		case 'a', 'A', 'h', 'H':
			strategy = p.Letter
		case 'n':
			o.Print = true
		case 'N':
			o.Print = false
		case 'f':
			o.HasSender, o.Sender = true, p.Arg
		}
	}
	if o.Sender == "<>" { // no user has this name, and callers mean the null sender
		o.Sender = ""
	}
	if strategy != 'h' {
		o.Recipients = recipients
	}
	o.FromHeader = strategy == 'h' || strategy == 'H' || strategy == 'A' && len(recipients) == 0
	return o, nil
}
