package smtpd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"qmail/internal/proto/inlet"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/env"
	"qmail/internal/system/secure"
	"qmail/internal/system/serve"
)

// classic serves the connection that tcpserver, inetd or systemd gave us. Who the client is, what it may do and
// who takes the message is said by the environment: TCPREMOTEIP, TCPREMOTEHOST, TCPREMOTEINFO, TCPLOCALHOST,
// TCPLOCALIP, RELAYCLIENT, DATABYTES, QMAILQUEUE.
func classic(ctx context.Context, e *env.Env) int {
	conn, err := serve.NewStdio(e)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-smtpd: fatal: unable to use the connection: %v\n", err)
		return 111
	}
	defer conn.Close()
	queue := inlet.NewOnce(ctx, e)
	defer queue.Close()
	return single(ctx, e, conn, door{queue}, (&env.Env{Stderr: conn.Stderr}).Log("qmail-smtpd"), conn.Remote, conn.Local)
}

// single serves one connection between remote and local; those are not valid where the kernel knows none.
func single(ctx context.Context, e *env.Env, conn server.Stream, queue server.Queue, log *slog.Logger, remote, local netip.AddrPort) int {
	fatal := func(text string, err error) int {
		log.Error(text, "err", err)
		conn.SetWriteDeadline(time.Now().Add(commandTime))
		io.WriteString(conn, "421 4.3.0 "+text+" (#4.3.0)\r\n") // best effort: we end in any case
		return 1
	}
	own, err := serve.OwnAddresses()
	if err != nil {
		return fatal("unable to figure out my IP addresses", err)
	}
	config, err := ReadConfig(e, own)
	if err != nil {
		return fatal("unable to read controls", err)
	}
	tls := secure.Server{Settings: func() secure.Settings { return config.TLS }}
	tls.Use(ownKeys(e.Home))
	config.Session.StartTLS = tls.Ready
	refusals := serve.NewRefusals(log)
	defer refusals.Start()()
	v := server.Server{
		Settings: func() *server.Config { return &config.Session }, Queue: queue, Now: e.Now,
		StartTLS: startTLS(&tls),
		Secured:  func(p *server.Peer) { config.secured(p, e.Now()); refusals.Say(tlsLine(p)) },
		Refused:  func(p *server.Peer, command, reply string) { refusals.Note(p.IP, command, reply) },
	}
	from, client := inlet.Peer(e, remote, local)
	if err := v.Serve(ctx, conn, config.peer(from, client, server.Relay)); err != nil {
		return 1
	}
	return 0
}
