// Package rspawn is qmail-rspawn and, in the same process, all qmail-remotes: it takes remote jobs from
// qmail-send and reports each recipient in the words that qmail-rspawn would have made of qmail-remote's.
//
// It opens no file of the queue and listens to nobody: jobs and bodies come over the link from qmail-send,
// messages go out by proto/sender, by SMTP or QMTP, over connections that the next job may use again.
//
// Questions to the DNS go over a link to qmail-resolve.
//
// Control files: helohost, lmtproutes, me, qmtproutes, smtplogins, smtproutes, timeoutconnect, timeoutremote, tlspolicy. All
// are read again on a reload, where an error names file and line and keeps what was before. The certificates of the
// authorities that the system believes are read once, at the start.
//
// Started by something else than our qmail-start it is the classic program: orders come on descriptor 0, reports go to
// descriptor 1 (format/spawn), and for each recipient it runs a qmail-remote, with a file below queue/mess as its
// descriptor 0.
package rspawn

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/dsn"
	"qmail/internal/format/spawn"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/resolve"
	"qmail/internal/proto/sender"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/control"
	"qmail/internal/system/dns"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// stopPatience is how long messages under way may take to end when we are told to stop. qmail-send, who
// waits longer for what it still wants to know, has stopped by then.
const stopPatience = 3 * time.Second

// Main serves the qmail-send that the supervisor links us to. It returns 0, or 111 if it could not start.
func Main(ctx context.Context, e *env.Env, args []string) int {
	log := e.Log("qmail-rspawn")
	if len(args) != 0 {
		log.Error("to be started by qmail start, without arguments")
		return 100
	}
	if e.Orders == nil {
		return classic(ctx, e, log)
	}
	dir := control.Open(e.Home)
	config, err := sender.Load(dir, sender.Strict)
	if err != nil {
		log.Error("cannot start: unable to read controls", "err", err)
		return 111
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		log.Warn("no certificate authority is known, so that no server can be verified", "err", err)
		roots = x509.NewCertPool()
	}
	names := &resolve.Link{Now: e.Now}
	defer names.Connect(nil)
	resolver := dns.Over(names, e.Now)
	defer resolver.Close()
	s := &spawner{sender: sender.New(sender.Here(resolver, e.Now, log)), names: names, forget: resolver.Forget, roots: roots, dir: dir, log: log, home: e.Home, replaced: e.Get("QMAILREMOTE")}
	s.vars = []string{"QMAILHOME=" + e.Home}
	if path, set := e.Lookup("PATH"); set {
		s.vars = append(s.vars, "PATH="+path)
	}
	if err := s.findModule(); err != nil {
		log.Error("cannot start: unable to read controls", "err", err)
		return 111
	}
	s.apply(config)
	if err := e.Ready(); err != nil {
		log.Error("supervisor lost", "err", err)
		s.sender.Close()
		return 111
	}
	s.obey(ctx, e.Orders)
	return 0
}

// spawner is qmail-rspawn with its surroundings as values.
type spawner struct {
	sender *sender.Sender
	names  *resolve.Link
	forget func() // what is remembered of the DNS
	roots  *x509.CertPool
	dir    control.Dir
	log    *slog.Logger
	links  sync.WaitGroup

	home     string
	vars     []string               // of a program in the place of qmail-remote
	replaced string                 // QMAILREMOTE
	program  atomic.Pointer[string] // what to run instead; empty for nothing
}

func (s *spawner) apply(config *sender.Config) {
	if config.Hello == "" {
		s.log.Error("neither control/helohost nor control/me exists; all remote mail waits")
	}
	config.Safety.Roots = s.roots
	s.sender.Configure(config)
}

func (s *spawner) reload() {
	config, err := sender.Load(s.dir, sender.Strict)
	if err == nil {
		err = s.findModule()
	}
	if err != nil {
		s.log.Error("keeping the configuration as it is: unable to read controls", "err", err)
		return
	}
	s.apply(config)
}

// findModule finds out whether a program is to be run in the place of qmail-remote.
func (s *spawner) findModule() error {
	program, err := module(s.dir, s.replaced)
	if err == nil {
		s.program.Store(&program)
	}
	return err
}

// module says what QMAILREMOTE, whose value is given, or control/qmailremote names. A file that cannot be read is an error
// even where it does not count.
func module(dir control.Dir, variable string) (program string, err error) {
	program, _, err = dir.Line("qmailremote")
	if variable != "" {
		program = variable
	}
	return program, err
}

// obey serves links until an order says stop, or ctx ends; then it waits for the jobs under way, for a while.
func (s *spawner) obey(ctx context.Context, orders <-chan env.Order) {
	serving, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer s.links.Wait()
	defer s.sender.Close()
	defer cut()
	for {
		var o env.Order
		select {
		case <-ctx.Done():
			o.Kind = env.Stop
		case got, ok := <-orders:
			if o = got; !ok {
				o.Kind = env.Stop
			}
		}
		switch {
		case o.Kind == env.Link && o.Name == "send":
			s.links.Go(func() { s.serve(serving, o.Link) })
		case o.Kind == env.Link && o.Name == "resolve":
			s.names.Connect(o.Link)
		case o.Kind == env.Link:
			o.Link.Close()
		case o.Kind == env.Listen:
			o.Listener.Close() // not ours to serve
		case o.Kind == env.Reload:
			s.reload()
			s.forget()
		case o.Kind == env.Stop:
			s.wind()
			return
		}
	}
}

// wind waits until the links have ended, or for stopPatience.
func (s *spawner) wind() {
	done := make(chan struct{})
	go func() { s.links.Wait(); close(done) }()
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// serve carries out the jobs of one link. An older link of the same qmail-send ends by itself.
func (s *spawner) serve(ctx context.Context, link *ipc.Conn) {
	err := jobs.ServeAsked(ctx, link, s.deliver, s.answer)
	if !jobs.Ended(err) && ctx.Err() == nil {
		s.log.Error("link to qmail-send lost", "err", err)
	}
}

// headSize is how much of a message in a file is read before the server is told of it.
const headSize = 64 << 10

// Reports of qmail-rspawn that qmail-remote has no part in.
const (
	unreadable = "ZUnable to read message. (#4.3.0)\n"
	notHere    = "Zqmail-rspawn only delivers. (#4.3.0)\n"
)

// deliver carries out one job.
func (s *spawner) deliver(ctx context.Context, j *jobs.Job, body *jobs.Body, report jobs.Report) []jobs.Result {
	results := make([]jobs.Result, len(j.Recipients))
	for i := range results {
		results[i].Recipient = i
	}
	if j.Verify {
		return all(results, notHere)
	}
	if program := *s.program.Load(); program != "" {
		return s.runModule(ctx, program, j, body, report)
	}
	m := client.Message{Sender: j.Sender, Wishes: dsn.OfMessage(j.Options), RecipientWishes: wishes(j)}
	for _, o := range j.Options {
		m.EightBit = m.EightBit || address.EqualFold(o, "BODY=8BITMIME")
		m.UTF8 = m.UTF8 || address.EqualFold(o, "SMTPUTF8")
	}
	var err error
	if m.Body, err = load(body); err != nil {
		s.log.Error("unable to read a message", "err", err)
		return all(results, unreadable)
	}
	m.Recipients = withHost(j.Recipients)
	if len(m.Recipients) == 0 {
		return all(results, spawn.NoHost)
	}
	outcome := s.sender.Send(ctx, j.Host, &m)
	sent := 0
	for i, r := range j.Recipients {
		if strings.IndexByte(r, '@') < 0 {
			results[i].Text = spawn.NoHost
			continue
		}
		results[i].Text, results[i].PassedOn = outcome.Of(sent), outcome.Reports
		sent++
	}
	return results
}

// wishes are what the sender wants to hear of the recipients, by their place among those that have a host.
func wishes(j *jobs.Job) map[int]dsn.Recipient {
	if j.RecipientOptions == nil {
		return nil
	}
	m := make(map[int]dsn.Recipient, len(j.RecipientOptions))
	sent := 0
	for i, r := range j.Recipients {
		if strings.IndexByte(r, '@') < 0 {
			continue
		}
		if options := j.RecipientOptions[i]; options != nil {
			m[sent] = dsn.OfRecipient(options)
		}
		sent++
	}
	return m
}

func all(results []jobs.Result, text string) []jobs.Result {
	for i := range results {
		results[i].Recipient, results[i].Text = i, text
	}
	return results
}

// withHost leaves out recipients without an @, of which there are hardly ever any.
func withHost(recipients []string) []string {
	hostless := func(r string) bool { return strings.IndexByte(r, '@') < 0 }
	if !slices.ContainsFunc(recipients, hostless) {
		return recipients
	}
	return slices.DeleteFunc(slices.Clone(recipients), hostless)
}

// load makes a job's body one to be sent.
func load(body *jobs.Body) (client.Body, error) {
	if b := body.Bytes(); b != nil || body.Size() == 0 {
		return client.Memory(b), nil
	}
	r := body.Reader()
	head := make([]byte, min(body.Size(), headSize))
	if _, err := io.ReadFull(r, head); err != nil {
		return client.Body{}, err
	}
	if int64(len(head)) == body.Size() {
		return client.Memory(head), nil
	}
	return client.Body{Head: head, Rest: &whole{r, body.Size() - int64(len(head))}, Size: body.Size()}, nil
}

var errCut = errors.New("the message is shorter than was said")

// whole reads exactly left more bytes: an end before is an error, so that a message is not cut short.
type whole struct {
	r    io.Reader
	left int64
}

func (w *whole) Read(p []byte) (int, error) {
	if w.left == 0 {
		return 0, io.EOF
	}
	n, err := w.r.Read(p[:min(int64(len(p)), w.left)])
	w.left -= int64(n)
	if err == io.EOF && w.left > 0 {
		err = errCut
	}
	return n, err
}
