// Package setlock is setlock(8): it runs a program that holds a lock on a file for as long as it lives.
package setlock

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"qmail/internal/format/errstr"
	"qmail/internal/format/getopt"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// Main becomes the program. With -n it does not wait for a lock that somebody has; with -x it says nothing if there
// is no lock to be had, and returns 0. -N and -X undo them.
func Main(_ context.Context, e *env.Env, args []string) int {
	options, argv, err := getopt.Parse(args, "nNxX")
	if err != nil || len(argv) < 2 {
		fmt.Fprintln(e.Stderr, "setlock: usage: setlock [ -nNxX ] file program [ arg ... ]")
		return child.Never
	}
	var wait, quiet = true, false
	for _, o := range options {
		switch o.Letter {
		case 'n', 'N':
			wait = o.Letter == 'N'
		case 'x', 'X':
			quiet = o.Letter == 'x'
		}
	}
	if err := lock(argv[0], wait); err != nil {
		if quiet {
			return 0
		}
		fmt.Fprintf(e.Stderr, "setlock: fatal: %v\n", err)
		return child.Later
	}
	err = child.Exec(argv[1:], e.Vars)
	fmt.Fprintf(e.Stderr, "setlock: fatal: %v\n", err)
	if cannot, ok := errors.AsType[*child.RunError](err); ok {
		return cannot.Code()
	}
	return child.Later
}

// lock opens and locks a file, with a descriptor that the program inherits.
func lock(path string, wait bool) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_APPEND|unix.O_CREAT, 0o600)
	if err != nil {
		return fmt.Errorf("unable to open %s: %s", path, errstr.Text(err))
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err := unix.Flock(fd, how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("unable to lock %s: %s", path, errstr.Text(os.NewSyscallError("flock", err)))
		}
	}
}
