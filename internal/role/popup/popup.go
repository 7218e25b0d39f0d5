// Package popup is qmail-popup(8): it asks a POP3 client for a name and a password, gives them to a program of the
// checkpassword kind on descriptor 3, and leaves the connection to that program, which changes to the user and
// runs qmail-pop3d.
//
// Started by tcpserver, inetd or systemd it serves the connection on descriptors 0 and 1, and the program is named
// by its arguments. Started by the supervisor it is one long-lived process for all who have not logged in yet
// (listen.go); the program is named by control/pop3checkpassword.
package popup

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"qmail/internal/proto/pop3"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
	"qmail/internal/system/serve"
)

// What a client is told when it is not let in.
const (
	failed  = "authorization failed"
	crashed = "aack, child crashed"
	noFork  = "unable to fork"
	later   = "temporary problem, try again later"
)

// Main runs the role. For a session on descriptors 0 and 1 it returns 0 if the user was let in, else 1.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if e.Orders != nil {
		return listen(ctx, e, args)
	}
	return classic(ctx, e, args)
}

func classic(ctx context.Context, e *env.Env, args []string) int {
	conn, err := serve.NewStdio(e)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-popup: fatal: unable to use descriptors 0 and 1: %v\n", err)
		return 1
	}
	defer conn.Close()
	if len(args) < 2 {
		pop3.Refuse(conn, "usage: popup hostname subprogram") // the connection ends in any case
		return 1
	}
	login := &pop3.Login{Banner: fmt.Sprintf("<%d.%d@%s>", os.Getpid(), e.Now().Unix(), args[0])}
	creds, _, err := pop3.Authorize(ctx, conn, login, pop3.Rules{})
	if err != nil || creds == nil {
		return 1
	}
	out, ok := e.Stdout.(*os.File)
	if !ok {
		out = e.Stdin
	}
	stderr, ok := conn.Stderr.(*os.File)
	if !ok { // inetd has made that the connection, too: errors are not for the client
		if stderr, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err == nil {
			defer stderr.Close()
		}
	}
	setBlocking(true, e.Stdin, out)
	refusal := admit(ctx, args[1:], e.Vars, creds, login.Banner, e.Stdin, out, stderr)
	if refusal == "" {
		return 0
	}
	setBlocking(false, e.Stdin, out)
	pop3.Refuse(conn, refusal)
	return 1
}

// setBlocking changes a mode that all who have an open file share: programs expect blocking input and output, our
// deadlines need the other.
func setBlocking(on bool, files ...*os.File) {
	for _, f := range files {
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), !on) })
		}
	}
}

// admit runs a program with the client as its descriptors 0 and 1 and credentials on descriptor 3, and returns
// when the session is over: "", or what to tell the client, which was not let in.
func admit(ctx context.Context, argv, vars []string, c *pop3.Credentials, banner string, in, out, stderr *os.File) string {
	r, w, err := os.Pipe()
	if err != nil {
		return "unable to open pipe"
	}
	defer r.Close()
	defer w.Close()
	// Some 2 KB at most, which a pipe takes without anybody reading.
	if _, err := fmt.Fprintf(w, "%s\x00%s\x00%s\x00", c.User, c.Secret, banner); err != nil {
		return "unable to write pipe"
	}
	p, err := child.Start(argv, vars, in, out, stderr, r)
	if err != nil {
		if cannot, ok := errors.AsType[*child.RunError](err); ok && cannot.Code() == child.Never {
			return failed
		}
		return noFork
	}
	r.Close()
	w.Close()
	code, err := child.Wait(ctx, p)
	switch {
	case err != nil:
		return crashed
	case code == child.Later:
		return later
	case code != 0:
		return failed
	}
	return ""
}
