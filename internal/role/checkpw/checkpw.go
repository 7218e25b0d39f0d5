// Package checkpw is qmail-checkpw: it runs the program that control/checkpassword names, with a name and a password on
// descriptor 3 as checkpassword's interface has it (https://cr.yp.to/checkpwd/interface.html), and tells qmail-authd
// whether that let the user in. What the program would run in his name is true(1): nothing is done, only asked.
//
// Programs of this kind want to be root, to read the system's passwords and to become the user. So this role keeps
// root's rights, and its input is one bounded record of a name and a password; it reads no byte of a stranger's
// otherwise, and nobody but qmail-authd has a link to it. It runs only while there is a control/checkpassword.
package checkpw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"qmail/internal/proto/checker"
	"qmail/internal/store/control"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
	"qmail/internal/system/serve"
)

const (
	// asker is the one role that may ask.
	asker = "authd"
	// maxPrograms bounds those that run at once, and patience how long one may take.
	maxPrograms = 16
	patience    = 30 * time.Second
	// maxRecord bounds what is written to descriptor 3: the interface allows no more.
	maxRecord = 512
	// subprogram is what the program runs as the user once it has let him in.
	subprogram = "/bin/true"
)

// Main runs qmail-checkpw until the supervisor says stop.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 || e.Orders == nil {
		fmt.Fprintln(e.Stderr, "qmail-checkpw: usage: started by qmail start, without arguments")
		return 100
	}
	r := &role{env: e, log: e.Log("qmail-checkpw"), slots: make(chan struct{}, maxPrograms)}
	r.server.Backend = r
	r.read()
	if err := e.Ready(); err != nil {
		r.log.Warn("unable to report to the supervisor", "err", err)
	}
	k := serve.Keeper{Log: r.log, Admit: r.admit, Reload: r.read}
	k.Obey(ctx, e.Orders)
	k.Wait()
	return 0
}

type role struct {
	env    *env.Env
	log    *slog.Logger
	server checker.Server
	slots  chan struct{}

	mu   sync.Mutex
	argv []string // the program; nil if there is none
}

// read takes the program from control/checkpassword. With trouble it is what it was before.
func (r *role) read() {
	line, _, err := control.Open(r.env.Home).Line("checkpassword")
	if err != nil {
		r.log.Error("unable to read controls; keeping what was before", "err", err)
		return
	}
	argv := strings.Fields(line)
	if len(argv) == 0 {
		r.log.Error("control/checkpassword names no program")
	} else {
		argv = append(argv, subprogram)
	}
	r.mu.Lock()
	r.argv = argv
	r.mu.Unlock()
	r.server.Announce()
}

func (r *role) program() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.argv
}

// admit is serve.Keeper's.
func (r *role) admit(name string) func(context.Context, *ipc.Conn) {
	if name != asker {
		return nil
	}
	return func(ctx context.Context, link *ipc.Conn) { r.server.Serve(ctx, link, asker) }
}

// Mechanisms is checker.Backend.
func (r *role) Mechanisms(string) []string {
	if len(r.program()) == 0 {
		return nil
	}
	return []string{"PLAIN"}
}

// Begin is checker.Backend.
func (r *role) Begin(_ string, who checker.Who, mechanism string) checker.Conversation {
	return &question{r, who, mechanism}
}

// question is one name and password.
type question struct {
	role      *role
	who       checker.Who
	mechanism string
}

// Next is checker.Conversation.
func (q *question) Next(ctx context.Context, response []byte) checker.Answer {
	fields := strings.Split(string(response), "\x00")
	argv := q.role.program()
	if q.mechanism != "PLAIN" || len(fields) != 3 || fields[1] == "" || fields[2] == "" || len(argv) == 0 {
		return checker.Answer{Verdict: checker.Malformed}
	}
	record := fields[1] + "\x00" + fields[2] + "\x00\x00"
	if len(record) > maxRecord {
		return checker.Answer{Verdict: checker.No}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case q.role.slots <- struct{}{}:
		defer func() { <-q.role.slots }()
	case <-ctx.Done():
		return checker.Answer{Verdict: checker.Later, Text: "too many logins at once, try again later (#4.7.0)"}
	}
	code, err := run(ctx, argv, q.vars(), record)
	switch {
	case err == nil && code == 0:
		return checker.Answer{Verdict: checker.Yes, Login: fields[1]}
	case err == nil && code == 1:
		return checker.Answer{Verdict: checker.No}
	}
	if err == nil {
		err = fmt.Errorf("exit code %d", code)
	}
	q.role.log.Warn("the program of control/checkpassword cannot say", "program", argv[0], "err", err)
	return checker.Answer{Verdict: checker.Later, Text: "unable to check passwords now, try again later (#4.7.0)"}
}

// ports are what programs take for the service that is asked for.
var ports = map[string]string{"smtp": "25", "smtps": "465", "submissions": "465", "submission": "587", "pop3": "110", "pop3s": "995"}

// vars is the program's environment: the fresh one of a connection.
func (q *question) vars() []string {
	vars := []string{"PROTO=TCP", "QMAILHOME=" + q.role.env.Home}
	if ip, err := netip.ParseAddr(q.who.IP); err == nil {
		vars = append(vars, "TCPREMOTEIP="+ip.String())
	}
	if port, ok := ports[q.who.Service]; ok {
		vars = append(vars, "TCPLOCALPORT="+port)
	}
	if path := q.role.env.Get("PATH"); path != "" {
		vars = append(vars, "PATH="+path)
	}
	return vars
}

// run gives the record to a program. A pipe takes it without anybody reading.
func run(ctx context.Context, argv, vars []string, record string) (code int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	in, out, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if _, err = io.WriteString(out, record); err != nil {
		out.Close()
		return 0, err
	}
	out.Close()
	p, err := child.Start(argv, vars, null, null, null, in)
	if err != nil {
		return 0, err
	}
	if code, err = child.Wait(ctx, p); ctx.Err() != nil {
		return 0, errors.Join(ctx.Err(), err)
	}
	return code, err
}
