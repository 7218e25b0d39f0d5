// Package smtpd is qmail-smtpd: sessions are those of proto/smtp/server, what is welcome is decided by check/relay
// and by qmail-send's answer to each recipient. Started by the supervisor it is one long-lived process, whose
// sockets and link to qmail-send come from there; started by hand, by tcpserver, inetd or systemd, it serves the
// connection on descriptors 0 and 1 (classic.go).
//
// It serves port 25, submission of mail by our users, who have to log in (qmail-authd knows who they are), and LMTP.
//
// Control files: authinsecure, authsmtp, badhelo, badmailfrom and badrcptto, the same with norelay at their ends, chunking,
// concurrencyincoming, databytes, defaultdomain, defaulthost, idhost, localiphost, locals, maxlogperclient, maxmemory, maxperclient, maxpernetwork,
// maxrecipients, me, morercpthosts.cdb, percenthack, plusdomain, proxyclients, rcpthosts, relayclients, senderlogins,
// showlogin, smtpgreeting, submitlimit, timeoutsmtpd, xclient, xforward. All are read at the start, where an error ends the program, and again on
// a reload, where it keeps what was before. Environment: DATABYTES, NOBADHELO, QMAILQUEUE, RELAYCLIENT and the
// variables of tcp-environ(5).
//
// Memory is bounded: by concurrencyincoming times what a session holds (some 8 KB, and while a message comes in
// 32 KiB more; see proto/smtp/server), and by maxmemory for all that sessions have been sent, messages and long
// lists of recipients. Of messages, up to 256 KiB each are kept until complete; larger ones go to qmail-send as
// they come, which puts them into a file.
package smtpd

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"qmail/internal/check/senders"
	"qmail/internal/format/received"
	"qmail/internal/proto/checker"
	"qmail/internal/proto/inlet"
	"qmail/internal/proto/keyd"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/env"
	"qmail/internal/system/secure"
	"qmail/internal/system/serve"
)

const tooMany = "421 4.7.0 too many connections, try again later (#4.7.0)\r\n"

// Main runs qmail-smtpd. It returns 0 when the supervisor said stop or the client QUIT, 1 if a session on
// descriptors 0 and 1 ended otherwise, 111 if it could not start.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 {
		fmt.Fprintln(e.Stderr, "qmail-smtpd: usage: qmail-smtpd (it takes no arguments)")
		return 100
	}
	if e.Orders == nil {
		return classic(ctx, e)
	}
	own, err := serve.OwnAddresses()
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-smtpd: fatal: unable to figure out my IP addresses: %v\n", err)
		return 111
	}
	config, err := ReadConfig(e, own)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-smtpd: fatal: unable to read controls: %v\n", err)
		return 111
	}
	newRole(e, config, own).Run(ctx)
	return 0
}

// role is the long-lived process with its surroundings.
type role struct {
	serve.Daemon
	own    []netip.Addr
	config atomic.Pointer[Config]
	link   inlet.Link
	keys   keyd.Agent
	tls    secure.Server
	auth   checker.Agent
	meter  senders.Meter
	server server.Server
}

func newRole(e *env.Env, config *Config, own []netip.Addr) *role {
	r := &role{own: own}
	r.take(config)
	r.link.Memory = func() int64 { return r.config.Load().Memory }
	log := e.Log("qmail-smtpd")
	r.Daemon = serve.Daemon{
		Env: e, Log: log, Refusals: serve.NewRefusals(log), TooMany: tooMany,
		Limits:  func() serve.Limits { return r.config.Load().Limits },
		Session: r.session, Connect: r.link.Connect, Partner: r.partner, Reload: r.reload,
		Proxy: func(client netip.Addr) bool { return r.config.Load().proxies.Has(client) },
	}
	r.keys.Changed = func(list []keyd.Certificate) { r.tls.Use(keyd.Served(list)) }
	r.tls.Settings = func() secure.Settings { return r.config.Load().TLS }
	r.server = server.Server{
		Settings: func() *server.Config { return &r.config.Load().Session },
		StartTLS: startTLS(&r.tls),
		Secured:  r.secured,
		Queue:    door{&r.link},
		Now:      e.Now,
		Hold:     r.link.Hold,
		Refused:  r.refused,
		Admit:    r.admit,
		Accepted: r.accepted,
		Auth:     authority{&r.auth},
		Random:   func(b []byte) { rand.Read(b) },
	}
	return r
}

// reload takes over changed control files, for sessions and transactions to come.
func (r *role) reload() {
	config, err := ReadConfig(r.Env, r.own)
	if err != nil {
		r.Log.Error("unable to read controls; keeping what was before", "err", err)
		return
	}
	r.take(config)
}

// take makes a configuration the one that counts.
func (r *role) take(config *Config) {
	config.Session.StartTLS = r.tls.Ready
	config.Session.Mechanisms = func(p *server.Peer) ([]string, bool) { return config.mechanisms(&r.auth, p) }
	r.config.Store(config)
}

// secured is told of a client that runs in TLS by now.
func (r *role) secured(p *server.Peer) {
	r.config.Load().secured(p, r.Env.Now())
	r.Refusals.Say(tlsLine(p))
}

// refused tells the log of a refusal, and for whom a trusted machine spoke.
func (r *role) refused(p *server.Peer, command, reply string) {
	ip := p.IP
	if p.Origin != "" {
		ip += " for " + p.Origin
	}
	r.Refusals.Note(ip, command, reply)
}

// session holds one.
func (r *role) session(ctx context.Context, service string, conn net.Conn, client netip.Addr) {
	config := r.config.Load()
	from := received.From{Local: config.Me}
	if client.IsValid() {
		from.IP = client.String()
	}
	peer := config.peer(from, client, kindOf(service))
	stream := server.Stream(conn)
	if serve.Encrypted(service) {
		c, state, err := r.tls.Handshake(ctx, conn, true)
		if err != nil {
			r.Refusals.Note(peer.IP, service, "TLS: "+err.Error())
			return
		}
		stream, peer.TLS = c, state
		r.secured(peer)
	}
	r.server.Serve(ctx, stream, peer) // why it ended is of interest to the client only
}
