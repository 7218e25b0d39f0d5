// Package mailsubj is mailsubj(1): it sends its input under a subject to some addresses.
package mailsubj

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"qmail/internal/proto/injection"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	subject := ""
	if len(args) > 0 {
		subject, args = args[0], args[1:]
	}
	header := "Subject: " + line(subject) + "\nTo: " + line(strings.Join(args, " ")) + "\n\n"
	ctx, cancel := context.WithTimeout(ctx, qq.Lifetime)
	defer cancel()
	err := injection.Run(ctx, e, io.MultiReader(strings.NewReader(header), e.Stdin), injection.Options{FromHeader: true})
	if err == nil {
		return 0
	}
	fmt.Fprintf(e.Stderr, "qmail-inject: fatal: %v\n", err)
	if refusal, ok := errors.AsType[*injection.Error](err); ok {
		return refusal.Code()
	}
	return 111
}

// line makes one line of s: a subject cannot bring in fields of its own.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == 0 {
			return ' '
		}
		return r
	}, s)
}
