// Package sendmail is the program that the rest of the world calls to send mail, with the options it calls it
// with: a front of qmail-inject. It is also mailq, newaliases and datemail.
package sendmail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"qmail/internal/format/date822"
	"qmail/internal/proto/injection"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

const name = "sendmail"

// Main runs the role and returns its exit code.
func Main(ctx context.Context, e *env.Env, args []string) int {
	return run(ctx, e, e.Stdin, args)
}

// Datemail is sendmail with a Date field of the local time before the message.
func Datemail(ctx context.Context, e *env.Env, args []string) int {
	date := append(date822.AppendLocal([]byte("Date: "), date822.In(e.Now(), e.Get("TZ"))), '\n')
	return run(ctx, e, &preceded{date, e.Stdin}, args)
}

// preceded is text before a reader.
type preceded struct {
	text []byte
	r    io.Reader
}

func (p *preceded) Read(b []byte) (int, error) {
	if len(p.text) > 0 {
		n := copy(b, p.text)
		p.text = p.text[n:]
		return n, nil
	}
	return p.r.Read(b)
}

// Mailq is sendmail -bp.
func Mailq(_ context.Context, e *env.Env, _ []string) int { return become(e, "qmail-qread", e.Vars) }

// Newaliases tells where aliases are made.
func Newaliases(_ context.Context, e *env.Env, _ []string) int {
	fmt.Fprintf(e.Stderr, "%s: fatal: please use fastforward/newaliases instead\n", name)
	return 100
}

func run(ctx context.Context, e *env.Env, in io.Reader, args []string) int {
	o, err := parse(args)
	if err != nil {
		if !errors.Is(err, errUsage) {
			fmt.Fprintf(e.Stderr, "%s: %v\n", name, err)
		}
		fmt.Fprintf(e.Stderr, "%s: usage: sendmail [ -t ] [ -fsender ] [ -Fname ] [ -bp ] [ -bs ] [ arg ... ]\n", name)
		return 100
	}
	ctx, cancel := context.WithTimeout(ctx, qq.Lifetime)
	defer cancel()
	switch o.mode {
	case 's':
		return become(e, "qmail-smtpd", smtpdVars(e))
	case 'p':
		return become(e, "qmail-qread", e.Vars)
	case 'i':
		return Newaliases(ctx, e, nil)
	case 'v':
		return verify(ctx, e, o.recipients)
	case 'q':
		return 0 // the queue runs by itself
	}
	return inject(ctx, e, in, o)
}

func inject(ctx context.Context, e *env.Env, in io.Reader, o options) int {
	user := *e
	user.Vars = o.vars(e)
	err := injection.Run(ctx, &user, in, injection.Options{
		Recipients: o.recipients, FromHeader: o.fromHeader,
		HasSender: o.hasSender, Sender: o.sender,
		Dir:            e.Home,
		MessageOptions: o.message, RecipientOptions: o.recipient,
	})
	if err == nil {
		return 0
	}
	fmt.Fprintf(e.Stderr, "qmail-inject: fatal: %v\n", err)
	if refusal, ok := errors.AsType[*injection.Error](err); ok {
		return refusal.Code()
	}
	return 111
}

// become runs another of our programs in place of this one.
func become(e *env.Env, program string, vars []string) int {
	err := syscall.Exec("/proc/self/exe", []string{program}, vars)
	fmt.Fprintf(e.Stderr, "%s: fatal: unable to run %s: %v\n", name, program, err)
	return 111
}

// smtpdVars is the environment in which qmail-smtpd takes its caller for a client that may relay.
func smtpdVars(e *env.Env) []string {
	if _, set := e.Lookup("PROTO"); set {
		return e.Vars
	}
	return without(append([]string{
		"RELAYCLIENT=", "DATABYTES=0", "PROTO=TCP", "TCPLOCALIP=127.0.0.1", "TCPLOCALHOST=localhost",
		"TCPREMOTEIP=127.0.0.1", "TCPREMOTEHOST=localhost", "TCPREMOTEINFO=sendmail-bs",
	}, e.Vars...))
}
