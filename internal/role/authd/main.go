// Package authd is qmail-authd: the process that knows who has which password, so that those who talk to strangers do
// not. It holds users/passwd (store/passwd), runs the server's side of SASL exchanges for qmail-smtpd and for POP3
// (proto/checker, proto/sasl), and bounds guessing (check/guesses). It opens no socket of the network and hears nobody but
// the roles that the supervisor has linked to it.
//
// Names and passwords are looked up in users/passwd, then asked of the program in control/checkpassword, which
// qmail-checkpw runs, then of Dovecot where control/dovecotauth names its socket; the first that says yes counts. SCRAM
// needs users/passwd, and is offered only where it is the one source and has what SCRAM needs for every user: clients
// take the best mechanism that they are offered, and give up if that does not work.
//
// A wrong answer comes after a time that depends on how many there have been, and on nothing else: not on whether there
// is such a user, nor on what his hash costs. No secret is logged, and no name that is not known: people type passwords
// there.
package authd

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"qmail/internal/check/guesses"
	"qmail/internal/proto/checker"
	"qmail/internal/proto/sasl"
	"qmail/internal/store/control"
	"qmail/internal/store/passwd"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
	"qmail/internal/system/serve"
)

const (
	// helper is the role that runs control/checkpassword.
	helper = "checkpw"
	// lookTime is how often users/passwd is looked at.
	lookTime = time.Second
)

// services are the roles that may ask, and for which of their services.
var services = map[string][]string{
	"smtpd": {"smtp", "smtps", "submission", "submissions", "lmtp"},
	"popup": {"pop3", "pop3s"},
}

// Main runs qmail-authd until the supervisor says stop.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 || e.Orders == nil {
		fmt.Fprintln(e.Stderr, "qmail-authd: usage: started by qmail start, without arguments")
		return 100
	}
	r := newRole(e)
	r.load(true)
	defer r.refusals.Start()()
	if err := e.Ready(); err != nil {
		r.log.Warn("unable to report to the supervisor", "err", err)
	}
	k := r.keeper()
	k.Obey(ctx, e.Orders)
	r.helper.Connect(nil)
	k.Wait()
	return 0
}

type role struct {
	env      *env.Env
	log      *slog.Logger
	refusals *serve.Refusals
	server   checker.Server
	helper   checker.Agent
	guesses  guesses.Guesses
	work     chan struct{} // a token for each hash that is being computed
	waiting  atomic.Int64  // for one
	secret   []byte        // of made-up users, where users/passwd has none

	book    atomic.Pointer[passwd.Book]
	dovecot atomic.Pointer[string]   // the path of its socket
	program atomic.Bool              // there is a control/checkpassword
	allowed atomic.Pointer[[]string] // the mechanisms of control/authmechanisms; empty for all
	stamp   passwd.Stamp             // of the book; load's
	bad     string                   // the last trouble with it, which is logged once
}

func newRole(e *env.Env) *role {
	r := &role{env: e, log: e.Log("qmail-authd"), secret: make([]byte, 32)}
	rand.Read(r.secret)
	r.refusals = serve.NewRefusals(r.log)
	r.server.Backend = r
	r.work = make(chan struct{}, max(1, min(4, runtime.NumCPU())))
	empty, _ := passwd.Parse(nil)
	r.book.Store(empty)
	r.dovecot.Store(new(string))
	r.allowed.Store(new([]string))
	return r
}

// load reads users/passwd, if it has changed, and with all the control files too. What cannot be read is as before.
func (r *role) load(all bool) {
	if all {
		r.readControls()
	}
	stamp, err := passwd.Look(r.env.Home)
	if err == nil && stamp == r.stamp && !all {
		return
	}
	book, stamp, err := passwd.Read(r.env.Home)
	if err != nil {
		if err.Error() != r.bad {
			r.bad = err.Error()
			r.log.Error("unable to read users/passwd; keeping what was before", "err", err)
		}
		return
	}
	r.bad, r.stamp = "", stamp
	r.book.Store(book)
	r.server.Announce()
}

func (r *role) readControls() {
	dir := control.Open(r.env.Home)
	socket, _, err := dir.Line("dovecotauth")
	if err == nil {
		r.dovecot.Store(&socket)
		var program string
		program, _, err = dir.Line("checkpassword")
		r.program.Store(program != "")
	}
	if err == nil {
		err = r.readMechanisms(dir)
	}
	if err != nil {
		r.log.Error("unable to read controls; keeping what was before", "err", err)
	}
}

// readMechanisms reads control/authmechanisms: names, one or more to a line.
func (r *role) readMechanisms(dir control.Dir) error {
	entries, _, err := dir.Entries("authmechanisms")
	if err != nil {
		return err
	}
	var list []string
	for _, e := range entries {
		for _, name := range strings.Fields(strings.ToUpper(e.Text)) {
			if !sasl.Supported(name, true) {
				return fmt.Errorf("%s:%d: unknown mechanism %q", dir.Path("authmechanisms"), e.Number, name)
			}
			list = append(list, name)
		}
	}
	r.allowed.Store(&list)
	return nil
}

func (r *role) keeper() *serve.Keeper {
	return &serve.Keeper{
		Log: r.log, Admit: r.admit, Helpers: map[string]func(*ipc.Conn){helper: r.helper.Connect},
		Reload: func() { r.load(true) }, Tick: func() { r.load(false) }, Every: lookTime,
	}
}

// admit is serve.Keeper's.
func (r *role) admit(name string) func(context.Context, *ipc.Conn) {
	if services[name] == nil {
		return nil
	}
	return func(ctx context.Context, link *ipc.Conn) { r.server.Serve(ctx, link, name) }
}
