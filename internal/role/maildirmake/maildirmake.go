// Package maildirmake is maildirmake(1): it makes an empty Maildir.
package maildirmake

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"qmail/internal/format/errstr"
	"qmail/internal/system/env"
)

const (
	exitUsage = 100
	exitLater = 111
)

// Main runs the role and returns its exit code.
func Main(_ context.Context, e *env.Env, args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(e.Stderr, "maildirmake: usage: maildirmake name")
		return exitUsage
	}
	syscall.Umask(0o077)
	for _, part := range []string{"", "tmp", "new", "cur"} {
		path := filepath.Join(args[0], part)
		if part == "" {
			path = args[0]
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			fmt.Fprintf(e.Stderr, "maildirmake: fatal: unable to mkdir %s: %s\n", path, errstr.Text(err))
			return exitLater
		}
	}
	return 0
}
