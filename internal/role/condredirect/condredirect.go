// Package condredirect is condredirect(1): in a .qmail file it sends the message on to another address, and
// nowhere else, if a program says yes to it.
package condredirect

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"qmail/internal/format/envelope"
	"qmail/internal/format/errstr"
	"qmail/internal/proto/qq"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// exitStop ends a .qmail file with success.
const exitStop = 99

// Main runs the role: 99 if the message was sent on, 0 if the program said no, 111 if it exits 111 or crashes.
func Main(ctx context.Context, e *env.Env, args []string) int {
	fatal := func(code int, text string) int {
		fmt.Fprintf(e.Stderr, "condredirect: fatal: %s\n", text)
		return code
	}
	if len(args) < 2 {
		fmt.Fprintln(e.Stderr, "condredirect: usage: condredirect newaddress program [ arg ... ]")
		return child.Never
	}
	code, err := child.Run(ctx, args[1:], e.Vars, e.Stdin, os.Stdout, os.Stderr)
	switch {
	case err != nil:
		return fatal(child.Later, err.Error())
	case code == child.Later:
		return fatal(child.Later, "temporary child error")
	case code != 0:
		return 0
	}
	if _, err := e.Stdin.Seek(0, io.SeekStart); err != nil {
		return fatal(child.Later, "unable to rewind: "+errstr.Text(err))
	}
	signal.Ignore(syscall.SIGPIPE)
	sender, ok := e.Lookup("SENDER")
	if !ok {
		return fatal(child.Never, "SENDER not set")
	}
	dtline, ok := e.Lookup("DTLINE")
	if !ok {
		return fatal(child.Never, "DTLINE not set")
	}
	envelope := &envelope.Envelope{Sender: sender, Recipients: args[:1]}
	a, err := qq.New(e).Put(ctx, envelope, strings.NewReader(dtline), e.Stdin)
	if err != nil {
		text, code := qq.Explain(err)
		return fatal(code, text)
	}
	fmt.Fprintf(e.Stderr, "condredirect: qp %d\n", a.QP)
	return exitStop
}
