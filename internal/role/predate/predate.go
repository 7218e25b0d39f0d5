// Package predate is predate(1): it runs a program with a Date field, in the local time, before its own input.
package predate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"qmail/internal/format/date822"
	"qmail/internal/system/env"
)

// Main runs the role and returns the exit code of the program.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(e.Stderr, "predate: usage: predate child")
		return 100
	}
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(e.Stderr, "predate: fatal: unable to create pipe: %v\n", err)
		return 111
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = e.Vars, r, e.Stdout, e.Stderr
	err = cmd.Start()
	r.Close()
	if err != nil {
		w.Close()
		fmt.Fprintf(e.Stderr, "predate: fatal: unable to run %s: %v\n", args[0], err)
		return 111
	}
	go feed(w, e) // ends with this process at the latest: the child need not read all of it
	if err := cmd.Wait(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
			return exit.ExitCode()
		}
		fmt.Fprintln(e.Stderr, "predate: fatal: child crashed")
		return 111
	}
	return 0
}

func feed(w *os.File, e *env.Env) {
	defer w.Close()
	date := append(date822.AppendLocal([]byte("Date: "), date822.In(e.Now(), e.Get("TZ"))), '\n')
	if _, err := w.Write(date); err == nil {
		io.Copy(w, e.Stdin) // the child's exit code says what became of it
	}
}
