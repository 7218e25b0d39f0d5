// Package bouncesaying is bouncesaying(1): in a .qmail file it bounces mail with words of the user's choice, all
// of it or what a program says yes to.
package bouncesaying

import (
	"context"
	"fmt"
	"os"

	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// Main runs the role: 100 with the words if there is no program or it exits 0, 111 if it exits 111 or crashes,
// else 0.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(e.Stderr, "bouncesaying: usage: bouncesaying error [ program [ arg ... ] ]")
		return child.Never
	}
	words, argv := args[0], args[1:]
	code, err := 0, error(nil)
	if len(argv) > 0 {
		code, err = child.Run(ctx, argv, e.Vars, e.Stdin, os.Stdout, os.Stderr)
	}
	switch {
	case err != nil:
		fmt.Fprintf(e.Stderr, "bouncesaying: fatal: %v\n", err)
		return child.Later
	case code == 0:
		fmt.Fprintln(e.Stderr, words)
		return child.Never
	case code == child.Later:
		fmt.Fprintln(e.Stderr, "bouncesaying: fatal: temporary child error")
		return child.Later
	}
	return 0
}
