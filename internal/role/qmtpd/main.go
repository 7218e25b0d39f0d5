// Package qmtpd is qmail-qmtpd: sessions are those of proto/qmtp, who may send where is decided by check/relay, and
// who has a mailbox by qmail-send's answer to each recipient. Started by the supervisor it is one long-lived
// process, whose sockets and link to qmail-send come from there; started by hand, by tcpserver, inetd or
// systemd, it serves the connection on descriptors 0 and 1.
//
// Control files: concurrencyincoming, databytes, envnoathost, maxlogperclient, maxmemory, maxperclient, maxpernetwork, maxrecipients, me,
// morercpthosts.cdb, percenthack, rcpthosts, relayclients. All are read at the start, where an error ends the program,
// and again on a reload, where it keeps what was before. Environment: DATABYTES, QMAILQUEUE, RELAYCLIENT and the
// variables of tcp-environ(5).
//
// Memory is bounded: by concurrencyincoming times what a session holds (some 14 KB, and while a message comes in 32
// KiB more), and by maxmemory for what sessions have been sent.
package qmtpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"

	"qmail/internal/format/received"
	"qmail/internal/proto/inlet"
	"qmail/internal/proto/keyd"
	"qmail/internal/proto/qmtp"
	"qmail/internal/system/env"
	"qmail/internal/system/secure"
	"qmail/internal/system/serve"
)

// Main runs qmail-qmtpd. It returns 0 when the supervisor said stop or the client has gone away, 100 if the client
// broke the protocol, 111 for any other trouble.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 {
		fmt.Fprintln(e.Stderr, "qmail-qmtpd: usage: qmail-qmtpd (it takes no arguments)")
		return 100
	}
	if e.Orders == nil {
		return classic(ctx, e)
	}
	config, err := ReadConfig(e)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-qmtpd: fatal: unable to read controls: %v\n", err)
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
	server qmtp.Server
}

func newRole(e *env.Env, config *Config) *role {
	r := &role{}
	r.config.Store(config)
	r.link.Memory = func() int64 { return r.config.Load().Memory }
	log := e.Log("qmail-qmtpd")
	r.Daemon = serve.Daemon{
		Env: e, Log: log, Refusals: serve.NewRefusals(log),
		Limits:  func() serve.Limits { return r.config.Load().Limits },
		Session: r.session, Connect: r.link.Connect, Partner: r.keys.Partner, Reload: r.reload,
	}
	r.keys.Changed = func(list []keyd.Certificate) { r.tls.Use(keyd.Served(list)) }
	r.tls.Settings = func() secure.Settings { return r.config.Load().TLS }
	r.server = newServer(&r.link, func() *qmtp.Config { return &r.config.Load().Session }, e, r.Refusals)
	r.server.Hold = r.link.Hold
	return r
}

func newServer(q inlet.Queue, settings func() *qmtp.Config, e *env.Env, refusals *serve.Refusals) qmtp.Server {
	return qmtp.Server{
		Settings: settings,
		Open:     func() (qmtp.Message, error) { return q.Open(nil) },
		Verify:   q.Verify,
		Now:      e.Now,
		Refused:  func(p *qmtp.Peer, what, answer string) { refusals.Note(p.IP, what, answer) },
	}
}

// reload takes over changed control files, for sessions and packages to come.
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
	config := r.config.Load()
	from := received.From{Local: config.Me}
	if client.IsValid() {
		from.IP = client.String()
	}
	stream := qmtp.Stream(conn)
	var state *secure.State
	if serve.Encrypted(service) {
		c, s, err := r.tls.Handshake(ctx, conn, false)
		if err != nil {
			r.Refusals.Note(from.IP, service, "TLS: "+err.Error())
			return
		}
		stream, state, from.TLS = c, s, s.Clause()
	}
	peer := config.peer(from, client)
	if peer.Relay == nil && config.clients.Has(state, r.Env.Now()) {
		peer.Relay = new(string)
	}
	r.server.Serve(ctx, stream, peer) // why it ended is of interest to the client only
}

// classic serves the connection that tcpserver, inetd or systemd gave us.
func classic(ctx context.Context, e *env.Env) int {
	conn, err := serve.NewStdio(e)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-qmtpd: fatal: unable to use the connection: %v\n", err)
		return 111
	}
	defer conn.Close()
	queue := inlet.NewOnce(ctx, e)
	defer queue.Close()
	return single(ctx, e, conn, queue, (&env.Env{Stderr: conn.Stderr}).Log("qmail-qmtpd"), conn.Remote, conn.Local)
}

// single serves one connection between remote and local; those are not valid where the kernel knows none.
func single(ctx context.Context, e *env.Env, conn qmtp.Stream, queue inlet.Queue, log *slog.Logger, remote, local netip.AddrPort) int {
	config, err := ReadConfig(e)
	if err != nil {
		log.Error("unable to read controls", "err", err)
		return 111
	}
	refusals := serve.NewRefusals(log)
	defer refusals.Start()()
	v := newServer(queue, func() *qmtp.Config { return &config.Session }, e, refusals)
	err = v.Serve(ctx, conn, config.peer(inlet.Peer(e, remote, local)))
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrClosedPipe): // it may go whenever it wants
		return 0
	case qmtp.Broken(err):
		return 100
	}
	return 111
}
