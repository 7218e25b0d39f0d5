// Package elq is elq(1), pinq(1) and qail(1): they move new mail from a Maildir to an mbox file with maildir2mbox(1),
// and run a mail reader that knows only those.
package elq

import (
	"context"
	"errors"
	"fmt"
	"os"

	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// Elq runs elm.
func Elq(ctx context.Context, e *env.Env, args []string) int { return read(ctx, e, "elq", "elm", args) }

// Pinq runs pine.
func Pinq(ctx context.Context, e *env.Env, args []string) int {
	return read(ctx, e, "pinq", "pine", args)
}

// Qail runs Mail.
func Qail(ctx context.Context, e *env.Env, args []string) int {
	return read(ctx, e, "qail", "Mail", args)
}

func read(ctx context.Context, e *env.Env, name, reader string, args []string) int {
	code, err := child.Run(ctx, []string{"maildir2mbox"}, e.Vars, e.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintf(e.Stderr, "%s: fatal: maildir2mbox: %v\n", name, err)
		return child.Later
	}
	if code != 0 {
		return code
	}
	err = child.Exec(append([]string{reader}, args...), e.Vars)
	fmt.Fprintf(e.Stderr, "%s: fatal: %v\n", name, err)
	if cannot, ok := errors.AsType[*child.RunError](err); ok {
		return cannot.Code()
	}
	return child.Later
}
