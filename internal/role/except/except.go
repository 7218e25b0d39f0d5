// Package except is except(1): it turns a program's answer around. In a .qmail file, mail bounces if the program
// takes it, and goes on to the next line if it does not.
package except

import (
	"context"
	"fmt"
	"os"

	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// Main runs the role: 100 for a program that exits 0, 111 for one that exits 111 or crashes, else 0.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(e.Stderr, "except: usage: except program [ arg ... ]")
		return child.Never
	}
	code, err := child.Run(ctx, args, e.Vars, e.Stdin, os.Stdout, os.Stderr)
	switch {
	case err != nil:
		fmt.Fprintf(e.Stderr, "except: fatal: %v\n", err)
		return child.Later
	case code == 0:
		return child.Never
	case code == child.Later:
		fmt.Fprintln(e.Stderr, "except: fatal: temporary child error")
		return child.Later
	}
	return 0
}
