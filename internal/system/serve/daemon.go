package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// Daemon is the life of a network server under the supervisor, which hands it its sockets and its link to
// qmail-send.
type Daemon struct {
	Env      *env.Env
	Log      *slog.Logger
	Refusals *Refusals
	Limits   func() Limits
	// Session holds one session; the connection is closed after it. ctx ends when sessions should. service is the
	// name of its listener in control/listen.
	Session func(ctx context.Context, service string, conn net.Conn, client netip.Addr)
	// Welcome says before anything else whether a client may connect at all; nil lets all.
	Welcome func(client netip.Addr) bool
	// Proxy names those whose connections begin with a PROXY header, which says whose they are; nil: nobody's do.
	Proxy   func(client netip.Addr) bool
	TooMany string // what a client beyond the limits is told
	// Connect takes over a link to qmail-send; nil is the end of the last one.
	Connect func(link *ipc.Conn)
	// Partner takes over a link to another role; nil closes them.
	Partner func(name string, link *ipc.Conn)
	Reload  func()

	group Group
}

const (
	// queueLink is how the supervisor names the link to qmail-send.
	queueLink = "send"
	// stopPatience is how long sessions in the middle of a message may go on when we are told to stop.
	stopPatience = 15 * time.Second
)

// Run serves until an order says stop, or ctx ends.
func (d *Daemon) Run(ctx context.Context) {
	d.group = Group{Limits: d.Limits, Handle: d.handle, Refuse: d.refuse, Log: d.Log, Proxy: d.Proxy}
	d.Refusals.perClient = func() int { return d.Limits().Lines }
	defer d.Refusals.Start()()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	if err := d.Env.Ready(); err != nil {
		d.Log.Warn("unable to report to the supervisor", "err", err)
	}
	d.obey(serving)
	stop()
	if cut := d.group.Drain(stopPatience); cut > 0 {
		d.Log.Warn("sessions in the middle of a message were cut off", "sessions", cut)
	}
	d.Connect(nil)
	if d.Partner != nil {
		d.Partner("", nil)
	}
}

// obey carries out orders until one says stop.
func (d *Daemon) obey(ctx context.Context) {
	for {
		select {
		case o, ok := <-d.Env.Orders:
			if !ok || o.Kind == env.Stop {
				return
			}
			d.order(ctx, o)
		case <-ctx.Done():
			return
		}
	}
}

func (d *Daemon) order(ctx context.Context, o env.Order) {
	switch {
	case o.Kind == env.Listen:
		d.group.Listen(ctx, o.Name, o.Listener)
	case o.Kind == env.Link && o.Name == queueLink:
		d.Connect(o.Link)
	case o.Kind == env.Link && d.Partner != nil:
		d.Partner(o.Name, o.Link)
	case o.Kind == env.Link:
		o.Link.Close()
	case o.Kind == env.Reload:
		d.Reload()
	}
}

// handle holds a session. A bug that it meets costs this session, not the others: nothing of it was accepted.
func (d *Daemon) handle(ctx context.Context, service string, conn net.Conn, client netip.Addr) {
	defer func() {
		if bug := recover(); bug != nil {
			d.Log.Error("bug: a session panicked", "panic", fmt.Sprint(bug), "stack", string(debug.Stack()))
		}
	}()
	if d.Proxy != nil && d.Proxy(client) {
		real, leave, err := d.origin(conn)
		switch {
		case errors.Is(err, errTooMany):
			d.refuse(service, conn, real)
			return
		case err != nil:
			d.Refusals.Note(client.String(), "", "PROXY header: "+err.Error())
			return
		}
		defer leave()
		client = real
	}
	if d.Welcome != nil && !d.Welcome(client) {
		d.Refusals.Note(client.String(), "", "not a client of ours")
		return
	}
	d.Session(ctx, service, conn, client)
}

// refuse tells a client that there are enough.
func (d *Daemon) refuse(service string, conn net.Conn, client netip.Addr) {
	answer := "too many connections"
	if d.TooMany != "" && !Encrypted(service) {
		answer = d.TooMany
		conn.Write([]byte(answer)) // best effort: the connection is closed in any case
	}
	d.Refusals.Note(client.String(), "", answer)
}

// Encrypted reports whether sessions of a service of control/listen begin with a TLS handshake: those of RFC 8314,
// and the two of our own protocols.
func Encrypted(service string) bool {
	switch service {
	case "submissions", "pop3s", "qmtps", "qmqps":
		return true
	}
	return false
}
