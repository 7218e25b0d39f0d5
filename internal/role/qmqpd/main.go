// Package qmqpd is qmail-qmqpd: sessions are those of proto/qmqp, which takes mail for anybody, so that it is for
// the networks of control/qmqpclients only. Started by the supervisor it is one long-lived process, whose sockets
// and link to qmail-send come from there, and nobody is served where that file does not say so. Started by hand,
// by tcpserver, inetd or systemd, it serves the connection on descriptors 0 and 1; who may connect is then said by
// the rules of tcpserver, and by qmqpclients if it exists.
//
// Control files: concurrencyincoming, maxlogperclient, maxmemory, maxperclient, maxpernetwork, me, qmqpclients. All are read at the start, where an
// error ends the program, and again on a reload, where it keeps what was before. Environment: QMAILQUEUE and the
// variables of tcp-environ(5).
package qmqpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"qmail/internal/check/relay"
	"qmail/internal/format/received"
	"qmail/internal/proto/inlet"
	"qmail/internal/proto/keyd"
	"qmail/internal/proto/qmqp"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
	"qmail/internal/system/secure"
	"qmail/internal/system/serve"
)

// Config is what the control files say. It is replaced whole, never changed.
type Config struct {
	inlet.Bounds
	TLS     secure.Settings
	Me      string // our name in Received
	Clients relay.Networks
	Listed  bool // there is a list of clients
}

// patience: the total is qmail-qmqpd's alarm. It had no other.
func patience() serve.Patience {
	return serve.Patience{Wait: 5 * time.Minute, Total: time.Hour, Grace: 5 * time.Minute, Rate: 256}
}

// ReadConfig reads everything; an error names the file, and the line where there is one.
func ReadConfig(e *env.Env) (*Config, error) {
	dir := control.Open(e.Home)
	c := &Config{}
	var err error
	if c.Me, err = dir.LineOr("me", ""); err != nil {
		return nil, err
	}
	if c.Clients, c.Listed, err = relay.LoadNetworks(dir, "qmqpclients"); err != nil {
		return nil, err
	}
	if c.TLS, err = inlet.LoadTLS(dir); err != nil {
		return nil, err
	}
	c.TLS.Clients = false // who may come is said by their networks
	c.Bounds, err = inlet.LoadBounds(dir)
	return c, err
}

// Main runs qmail-qmqpd. It returns 0 when the supervisor said stop or the client has gone away, 100 if the client
// broke the protocol or is none of ours, 111 for any other trouble.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 {
		fmt.Fprintln(e.Stderr, "qmail-qmqpd: usage: qmail-qmqpd (it takes no arguments)")
		return 100
	}
	if e.Orders == nil {
		return classic(ctx, e)
	}
	config, err := ReadConfig(e)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-qmqpd: fatal: unable to read controls: %v\n", err)
		return 111
	}
	newRole(e, config).Run(ctx)
	return 0
}

// role is the long-lived process with its surroundings.
type role struct {
	serve.Daemon
	config atomic.Pointer[Config]
	link   inlet.Link
	keys   keyd.Agent
	tls    secure.Server
	server qmqp.Server
}

func newRole(e *env.Env, config *Config) *role {
	r := &role{}
	r.config.Store(config)
	r.link.Memory = func() int64 { return r.config.Load().Memory }
	log := e.Log("qmail-qmqpd")
	r.Daemon = serve.Daemon{
		Env: e, Log: log, Refusals: serve.NewRefusals(log),
		Limits:  func() serve.Limits { return r.config.Load().Limits },
		Welcome: func(client netip.Addr) bool { return r.config.Load().Clients.Has(client) },
		Session: r.session, Connect: r.link.Connect, Partner: r.keys.Partner, Reload: r.reload,
	}
	r.keys.Changed = func(list []keyd.Certificate) { r.tls.Use(keyd.Served(list)) }
	r.tls.Settings = func() secure.Settings { return r.config.Load().TLS }
	r.server = newServer(&r.link, e, r.Refusals)
	r.server.Hold = r.link.Hold
	return r
}

func newServer(q inlet.Queue, e *env.Env, refusals *serve.Refusals) qmqp.Server {
	return qmqp.Server{
		Patience: patience,
		Open:     func() (qmqp.Message, error) { return q.Open(nil) },
		Now:      e.Now,
		Refused:  func(from *received.From, what, answer string) { refusals.Note(from.IP, what, answer) },
	}
}

// reload takes over changed control files, for sessions to come.
func (r *role) reload() {
	config, err := ReadConfig(r.Env)
	if err != nil {
		r.Log.Error("unable to read controls; keeping what was before", "err", err)
		return
	}
	r.config.Store(config)
}

// session holds one.
func (r *role) session(ctx context.Context, service string, conn net.Conn, client netip.Addr) {
	from := &received.From{IP: client.String(), Local: r.config.Load().Me}
	stream := qmqp.Stream(conn)
	if serve.Encrypted(service) {
		c, state, err := r.tls.Handshake(ctx, conn, false)
		if err != nil {
			r.Refusals.Note(from.IP, service, "TLS: "+err.Error())
			return
		}
		stream, from.TLS = c, state.Clause()
	}
	r.server.Serve(ctx, stream, from) // the client knows how it ended
}

// classic serves the connection that tcpserver, inetd or systemd gave us.
func classic(ctx context.Context, e *env.Env) int {
	conn, err := serve.NewStdio(e)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-qmqpd: fatal: unable to use the connection: %v\n", err)
		return 111
	}
	defer conn.Close()
	queue := inlet.NewOnce(ctx, e)
	defer queue.Close()
	return single(ctx, e, conn, queue, (&env.Env{Stderr: conn.Stderr}).Log("qmail-qmqpd"), conn.Remote, conn.Local)
}

// single serves one connection between remote and local; those are not valid where the kernel knows none.
func single(ctx context.Context, e *env.Env, conn qmqp.Stream, queue inlet.Queue, log *slog.Logger, remote, local netip.AddrPort) int {
	config, err := ReadConfig(e)
	if err != nil {
		log.Error("unable to read controls", "err", err)
		return 111
	}
	refusals := serve.NewRefusals(log)
	defer refusals.Start()()
	from, address := inlet.Peer(e, remote, local)
	if config.Listed && !config.Clients.Has(address) {
		refusals.Note(from.IP, "", "not a client of ours")
		return 100
	}
	v := newServer(queue, e, refusals)
	err = v.Serve(ctx, conn, &from)
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return 0
	case qmqp.Broken(err):
		return 100
	}
	return 111
}
