// Package forward is forward(1): in a .qmail file it sends the message on to the addresses it is given, as
// qmail-local would, from NEWSENDER and with DTLINE before it.
package forward

import (
	"context"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

const exitNever = 100

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	signal.Ignore(syscall.SIGPIPE)
	sender, ok1 := e.Lookup("NEWSENDER")
	dtline, ok2 := e.Lookup("DTLINE")
	if !ok1 || !ok2 {
		name := "NEWSENDER"
		if ok1 {
			name = "DTLINE"
		}
		fmt.Fprintf(e.Stderr, "forward: fatal: %s not set\n", name)
		return exitNever
	}
	a, err := qq.New(e).Put(ctx, &envelope.Envelope{Sender: sender, Recipients: args}, strings.NewReader(dtline), e.Stdin)
	if err != nil {
		text, code := qq.Explain(err)
		fmt.Fprintf(e.Stderr, "forward: fatal: %s\n", text)
		return code
	}
	fmt.Fprintf(e.Stderr, "forward: qp %d\n", a.QP)
	return 0
}
