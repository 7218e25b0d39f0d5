// Package maildirsmtp is maildirsmtp(1) and maildirqmtp(1): they send what is in a Maildir to one host, with
// maildirserial(1) and serialsmtp(1) or serialqmtp(1).
package maildirsmtp

import (
	"context"
	"errors"
	"fmt"
	"net"

	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// lifetime is how old a message may become before it bounces, in seconds: two weeks.
const lifetime = "1209600"

// Main sends by SMTP.
func Main(_ context.Context, e *env.Env, args []string) int {
	if len(args) != 4 {
		fmt.Fprintln(e.Stderr, "maildirsmtp: usage: maildirsmtp dir prefix host helohost")
		return child.Never
	}
	return become(e, "maildirsmtp", args[0], args[1], "serialsmtp", "-c", net.JoinHostPort(args[2], "25"), "--", args[1], args[3])
}

// Qmtp sends by QMTP.
func Qmtp(_ context.Context, e *env.Env, args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(e.Stderr, "maildirqmtp: usage: maildirqmtp dir prefix host")
		return child.Never
	}
	return become(e, "maildirqmtp", args[0], args[1], "serialqmtp", "-c", net.JoinHostPort(args[2], "209"), "--", args[1])
}

func become(e *env.Env, name, dir, prefix string, client ...string) int {
	argv := append([]string{"maildirserial", "-b", "-t", lifetime, "--", dir, prefix}, client...)
	err := child.Exec(argv, e.Vars)
	fmt.Fprintf(e.Stderr, "%s: fatal: %v\n", name, err)
	if cannot, ok := errors.AsType[*child.RunError](err); ok {
		return cannot.Code()
	}
	return child.Later
}
