// Package smtpd is qmail-smtpd as one long-lived process: sockets and the link to qmail-send come from the
// supervisor, sessions are those of proto/smtp/server, what is welcome is decided by check/relay and by
// qmail-send's answer to each recipient.
//
// Control files: badmailfrom, concurrencyincoming, databytes, localiphost, maxmemory, maxperclient,
// maxrecipients, me, morercpthosts.cdb, percenthack, rcpthosts, relayclients, smtpgreeting, timeoutsmtpd. All
// are read at the start, where an error ends the program, and again on a reload, where it keeps what was
// before. Environment: DATABYTES, RELAYCLIENT.
//
// Memory is bounded: by concurrencyincoming times what a session holds (some 8 KB, and while a message comes in
// 32 KiB more; see proto/smtp/server), and by maxmemory for all that sessions have been sent, messages and long
// lists of recipients. Of messages, up to 256 KiB each are kept until complete; larger ones go to qmail-send as
// they come, which puts them into a file.
package smtpd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/env"
	"qmail/internal/system/serve"
)

const (
	tooMany = "421 4.7.0 too many connections, try again later (#4.7.0)\r\n"
	// queueLink is how the supervisor names the link to qmail-send.
	queueLink = "send"
)

// Main runs qmail-smtpd until the supervisor says stop. It returns 0, or 111 if it could not start.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 || e.Orders == nil {
		fmt.Fprintln(e.Stderr, "qmail-smtpd: usage: started by qmail start, without arguments")
		return 100
	}
	own, err := ownAddresses()
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-smtpd: fatal: unable to figure out my IP addresses: %v\n", err)
		return 111
	}
	config, err := ReadConfig(e, own)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-smtpd: fatal: unable to read controls: %v\n", err)
		return 111
	}
	newDaemon(e, config, own).run(ctx)
	return 0
}

// ownAddresses are those of this machine's interfaces, as of now.
func ownAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var own []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, ip.Unmap())
			}
		}
	}
	return own, nil
}

// daemon is the role with its surroundings.
type daemon struct {
	env      *env.Env
	own      []netip.Addr
	log      *slog.Logger
	config   atomic.Pointer[Config]
	door     door
	refusals *refusals
	server   server.Server
	group    serve.Group
}

func newDaemon(e *env.Env, config *Config, own []netip.Addr) *daemon {
	d := &daemon{env: e, own: own, log: e.Log("qmail-smtpd")}
	d.config.Store(config)
	d.door.memory = func() int64 { return d.config.Load().Memory }
	d.refusals = newRefusals(d.log)
	d.server = server.Server{
		Settings: func() *server.Config { return &d.config.Load().Session },
		Queue:    &d.door,
		Now:      e.Now,
		Hold:     d.door.hold,
		Refused:  func(p *server.Peer, command, reply string) { d.refusals.note(p.IP, command, reply) },
	}
	d.group = serve.Group{
		Limits: func() serve.Limits { return d.config.Load().Limits },
		Handle: d.session, Refuse: d.refuse, Log: d.log,
	}
	return d
}

// run serves until an order says stop, or ctx ends.
func (d *daemon) run(ctx context.Context) {
	var writer sync.WaitGroup
	writer.Go(d.refusals.write)
	serving, stop := context.WithCancel(ctx)
	defer stop()
	if err := d.env.Ready(); err != nil {
		d.log.Warn("unable to report to the supervisor", "err", err)
	}
	d.obey(serving)
	stop()
	if cut := d.group.Drain(stopPatience); cut > 0 {
		d.log.Warn("sessions in the middle of a message were cut off", "sessions", cut)
	}
	d.door.replace(nil)
	d.refusals.close()
	writer.Wait()
}

// obey carries out orders until one says stop.
func (d *daemon) obey(ctx context.Context) {
	for {
		select {
		case o, ok := <-d.env.Orders:
			if !ok || o.Kind == env.Stop {
				return
			}
			d.order(ctx, o)
		case <-ctx.Done():
			return
		}
	}
}

func (d *daemon) order(ctx context.Context, o env.Order) {
	switch {
	case o.Kind == env.Listen:
		d.group.Listen(ctx, o.Listener)
	case o.Kind == env.Link && o.Name == queueLink:
		d.door.connect(o.Link)
	case o.Kind == env.Link:
		o.Link.Close()
	case o.Kind == env.Reload:
		d.reload()
	}
}

// reload takes over changed control files, for sessions and transactions to come.
func (d *daemon) reload() {
	config, err := ReadConfig(d.env, d.own)
	if err != nil {
		d.log.Error("unable to read controls; keeping what was before", "err", err)
		return
	}
	d.config.Store(config)
}

// session holds one. A bug that it meets costs this session, not the others: nothing of it was accepted.
func (d *daemon) session(ctx context.Context, conn net.Conn, client netip.Addr) {
	defer func() {
		if bug := recover(); bug != nil {
			d.log.Error("bug: a session panicked", "panic", fmt.Sprint(bug), "stack", string(debug.Stack()))
		}
	}()
	d.server.Serve(ctx, conn, d.config.Load().peer(client)) // why it ended is of interest to the client only
}

// refuse tells a client that there are enough.
func (d *daemon) refuse(conn net.Conn, client netip.Addr) {
	conn.Write([]byte(tooMany)) // best effort: the connection is closed in any case
	d.refusals.note(client.String(), "", tooMany)
}
