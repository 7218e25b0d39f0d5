// Package preline is preline(1): it runs a program with the lines before the message that the program expects, and
// that qmail-local leaves out: UFLINE, RPLINE and DTLINE.
package preline

import (
	"context"
	"errors"
	"fmt"
	"os"

	"qmail/internal/format/errstr"
	"qmail/internal/format/getopt"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// lines are the lines by the option that leaves them out; the capital puts one back.
var lines = []struct {
	letter byte
	name   string
}{{'f', "UFLINE"}, {'r', "RPLINE"}, {'d', "DTLINE"}}

// Main runs the role and returns the program's exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	head, argv, ok := prepare(e, args)
	if !ok {
		fmt.Fprintln(e.Stderr, "preline: usage: preline cmd [ arg ... ]")
		return child.Never
	}
	fatal := func(code int, text string) int {
		fmt.Fprintf(e.Stderr, "preline: fatal: %s\n", text)
		return code
	}
	code, err := child.RunFed(ctx, argv, e.Vars, head, e.Stdin, os.Stdout, os.Stderr)
	if cannot, ok := errors.AsType[*child.RunError](err); ok {
		return fatal(cannot.Code(), "unable to run "+argv[0]+": "+errstr.Text(cannot.Err))
	}
	if err != nil {
		return fatal(child.Later, err.Error())
	}
	return code
}

// prepare reads options and variables.
func prepare(e *env.Env, args []string) (head string, argv []string, ok bool) {
	options, argv, err := getopt.Parse(args, "frdFRD")
	if err != nil || len(argv) == 0 {
		return "", nil, false
	}
	for _, l := range lines {
		value, set := e.Lookup(l.name)
		if !set {
			return "", nil, false
		}
		wanted := true
		for _, o := range options {
			if o.Letter == l.letter || o.Letter == l.letter-'a'+'A' {
				wanted = o.Letter != l.letter
			}
		}
		if wanted {
			head += value
		}
	}
	return head, argv, true
}
