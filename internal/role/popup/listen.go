package popup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/proto/inlet"
	"qmail/internal/proto/keyd"
	"qmail/internal/proto/pop3"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
	"qmail/internal/system/secure"
	"qmail/internal/system/serve"
)

const (
	tooMany      = "-ERR too many connections, try again later\r\n"
	totalSession = 200 // concurrencypop3
	perClient    = 20  // pop3perclient
	// loginTime bounds what comes before a login, sessionTime all of a session.
	loginTime   = 5 * time.Minute
	sessionTime = 24 * time.Hour
	// stopGrace is how long sessions may go on when we are told to stop.
	stopGrace = 10 * time.Second
)

// config is what the control files say.
type config struct {
	program []string // and what it is to run
	host    string
	limits  serve.Limits
	tls     secure.Settings
}

var errNoProgram = errors.New("control/pop3checkpassword names no program, so nobody could log in")

func readConfig(home string) (*config, error) {
	dir := control.Open(home)
	line, _, err := dir.Line("pop3checkpassword")
	if err != nil {
		return nil, err
	}
	c := &config{program: strings.Fields(line)}
	if len(c.program) == 0 {
		return nil, errNoProgram
	}
	c.program = append(c.program, "qmail-pop3d", "Maildir")
	if c.host, err = dir.LineOr("me", "localhost"); err != nil {
		return nil, err
	}
	total, err := dir.Int("concurrencypop3", totalSession)
	if err != nil {
		return nil, err
	}
	if c.tls, err = inlet.LoadTLS(dir); err != nil {
		return nil, err
	}
	c.tls.Clients = false // nobody logs in by a certificate
	client, err := dir.Int("pop3perclient", perClient)
	c.limits = serve.Limits{Total: int(min(total, 1<<16)), PerClient: int(min(client, 1<<16))}
	return c, err
}

// listener is the long-lived process.
type listener struct {
	serve.Daemon
	config   atomic.Pointer[config]
	keys     keyd.Agent
	tls      secure.Server
	count    atomic.Uint64
	throttle throttle
	grace    time.Duration // of sessions when we are told to stop
}

func listen(ctx context.Context, e *env.Env, args []string) int {
	if len(args) > 0 {
		fmt.Fprintln(e.Stderr, "qmail-popup: usage: started by qmail start, without arguments")
		return 100
	}
	c, err := readConfig(e.Home)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-popup: fatal: unable to read controls: %v\n", err)
		return 111
	}
	newListener(e, c).Run(ctx)
	return 0
}

func newListener(e *env.Env, c *config) *listener {
	l := &listener{grace: stopGrace}
	l.config.Store(c)
	log := e.Log("qmail-popup")
	l.Daemon = serve.Daemon{
		Env: e, Log: log, Refusals: serve.NewRefusals(log), TooMany: tooMany,
		Limits:  func() serve.Limits { return l.config.Load().limits },
		Session: l.session,
		Connect: func(link *ipc.Conn) {
			if link != nil {
				link.Close() // nobody to talk to
			}
		},
		Partner: l.keys.Partner, Reload: l.reload,
	}
	l.keys.Changed = func(list []keyd.Certificate) { l.tls.Use(keyd.Served(list)) }
	l.tls.Settings = func() secure.Settings { return l.config.Load().tls }
	return l
}

func (l *listener) reload() {
	c, err := readConfig(l.Env.Home)
	if err != nil {
		l.Log.Error("unable to read controls; keeping what was before", "err", err)
		return
	}
	l.config.Store(c)
}

// session asks a client who it is, and waits for the program that takes over to end.
func (l *listener) session(ctx context.Context, service string, conn net.Conn, client netip.Addr) {
	c := l.config.Load()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })() // who has not logged in can come again
	stream := pop3.Conn(conn)
	if serve.Encrypted(service) {
		var err error
		if stream, err = l.handshake(ctx, conn); err != nil {
			l.Refusals.Note(client.String(), service, "TLS: "+err.Error())
			return
		}
	}
	login := &pop3.Login{
		Banner: fmt.Sprintf("<%d.%d.%d@%s>", os.Getpid(), l.Env.Now().Unix(), l.count.Add(1), c.host),
		STLS:   !serve.Encrypted(service) && l.tls.Ready(),
	}
	creds, stream, err := pop3.Authorize(ctx, stream, login, pop3.Rules{Total: loginTime, StartTLS: l.handshake})
	defer hangUp(conn, stream)
	if err != nil || creds == nil {
		return
	}
	if !l.throttle.take(client, time.Now()) {
		l.refuse(stream, client, creds, "too many failed logins, try again later")
		return
	}
	if refusal := l.admit(ctx, c, conn, stream, creds, login.Banner); refusal != "" {
		if refusal != failed { // no guess was wrong
			l.throttle.give(client)
		}
		l.refuse(stream, client, creds, refusal)
		return
	}
	l.throttle.give(client)
}

func (l *listener) refuse(conn pop3.Conn, client netip.Addr, creds *pop3.Credentials, text string) {
	pop3.Refuse(conn, text)
	l.Refusals.Note(client.String(), "login "+creds.User, text)
}

// admit is the function of that name for a connection that this process has, too.
func (l *listener) admit(ctx context.Context, c *config, conn net.Conn, stream pop3.Conn, creds *pop3.Credentials, banner string) string {
	if stream != pop3.Conn(conn) {
		return l.admitTunnel(ctx, c, conn, stream, creds, banner)
	}
	file, err := fileOf(conn)
	if err != nil {
		return later
	}
	defer file.Close()
	stderr, _ := l.Env.Stderr.(*os.File)
	// The program has the connection as well: to end a session is to end it for both.
	timer := time.AfterFunc(sessionTime, func() { shutdown(file) })
	defer timer.Stop()
	defer context.AfterFunc(ctx, func() { timer.Reset(l.grace) })()
	setBlocking(true, file)
	refusal := admit(context.WithoutCancel(ctx), c.program, l.vars(conn), creds, banner, file, file, stderr)
	setBlocking(false, file)
	return refusal
}

// admitTunnel is admit for a connection that only we can read.
func (l *listener) admitTunnel(ctx context.Context, c *config, conn net.Conn, stream pop3.Conn, creds *pop3.Credentials, banner string) string {
	t, err := newTunnel(stream)
	if err != nil {
		return later
	}
	defer t.close()
	stderr, _ := l.Env.Stderr.(*os.File)
	timer := time.AfterFunc(sessionTime, t.cut)
	defer timer.Stop()
	defer context.AfterFunc(ctx, func() { timer.Reset(l.grace) })()
	return admit(context.WithoutCancel(ctx), c.program, l.vars(conn), creds, banner, t.file, t.file, stderr)
}

func fileOf(conn net.Conn) (*os.File, error) {
	f, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, os.ErrInvalid
	}
	return f.File()
}

func shutdown(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

// vars is the environment of the program: what tcpserver says of a connection, a path, and the home.
func (l *listener) vars(conn net.Conn) []string {
	vars := []string{"PROTO=TCP", "QMAILHOME=" + l.Env.Home}
	if path := l.Env.Get("PATH"); path != "" {
		vars = append(vars, "PATH="+path)
	}
	for name, addr := range map[string]net.Addr{"TCPREMOTE": conn.RemoteAddr(), "TCPLOCAL": conn.LocalAddr()} {
		if tcp, ok := addr.(*net.TCPAddr); ok {
			ap := tcp.AddrPort()
			vars = append(vars, name+"IP="+ap.Addr().Unmap().WithZone("").String(), name+"PORT="+strconv.Itoa(int(ap.Port())))
		}
	}
	return vars
}

const (
	maxGuesses = 20               // wrong passwords in a row
	refill     = 30 * time.Second // for one more
	maxClients = 4096             // that are remembered
)

// throttle bounds wrong guesses by network. The zero value is ready.
type throttle struct {
	mu      sync.Mutex
	clients map[netip.Addr]*guesses
}

type guesses struct {
	left int
	last time.Time // when left was reckoned
}

// take reports whether a client may guess once more.
func (t *throttle) take(client netip.Addr, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := serve.Network(client)
	g := t.clients[key]
	if g == nil {
		g = t.add(key, now)
	}
	if more := int(now.Sub(g.last) / refill); more > 0 {
		g.left = min(g.left+more, maxGuesses)
		g.last = g.last.Add(time.Duration(more) * refill)
	}
	if g.left == 0 {
		return false
	}
	g.left--
	return true
}

// add remembers a client; who has not guessed wrong lately is forgotten, and if need be anybody.
func (t *throttle) add(key netip.Addr, now time.Time) *guesses {
	if t.clients == nil {
		t.clients = map[netip.Addr]*guesses{}
	}
	if len(t.clients) >= maxClients {
		for k, g := range t.clients {
			if now.Sub(g.last) >= time.Duration(maxGuesses-g.left)*refill {
				delete(t.clients, k)
			}
		}
	}
	for k := range t.clients {
		if len(t.clients) < maxClients {
			break
		}
		delete(t.clients, k)
	}
	g := &guesses{left: maxGuesses, last: now}
	t.clients[key] = g
	return g
}

// give takes a guess back that was none.
func (t *throttle) give(client netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := t.clients[serve.Network(client)]; g != nil {
		g.left = min(g.left+1, maxGuesses)
	}
}
