package adversarial

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// ways are how a server runs.
const (
	longLived = "long-lived"
	classic   = "classic"
)

// server plays a case against a server, in both ways.
func (r *Runner) server(c *Case) error {
	s, own, err := r.siteFor(c)
	if err != nil && !errors.Is(err, errRefused) {
		return err
	}
	if own {
		defer s.close()
	}
	running := err == nil
	var p problems
	outcomes := map[string]string{}
	for _, way := range []string{longLived, classic} {
		if !running && way == classic && c.Protocol != "smtp" {
			continue
		}
		o, err := r.playServer(c, s, way, running)
		if err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
		for _, wrong := range c.judge(o) {
			p.add("%s: %w", way, wrong)
		}
		outcomes[way] = o.summary()
	}
	if one, other := outcomes[longLived], outcomes[classic]; running && one != other {
		p.add("the two ways differ: %s; %s", one, other)
	}
	return p.err()
}

// siteFor is the running site for a case: the one that all share, or one of its own.
func (r *Runner) siteFor(c *Case) (s *site, own bool, err error) {
	services := []string{"smtp", "qmtp", "qmqp"}
	control := map[string]string{}
	for name, value := range c.Setup.Env {
		if name != "RELAYCLIENT" || value != "" {
			return nil, false, fmt.Errorf("a long-lived server has no %s=%s", name, value)
		}
		control["relayclients"] = "127.0.0.0/8\n"
	}
	if len(control) == 0 && c.Setup.RemoveControl == nil && c.Setup.ChmodControl == nil && c.Setup.WriteControl == nil {
		s, err = r.shared("common", func() (*site, error) {
			s, err := r.newSite(services...)
			if err == nil {
				err = s.start()
			}
			return s, err
		})
		return s, false, err
	}
	if s, err = r.newSite(services...); err != nil {
		return nil, false, err
	}
	if err = errors.Join(s.control(control), s.prepare(c)); err == nil {
		err = s.start()
	}
	return s, true, err
}

// playServer plays a case in one way.
func (r *Runner) playServer(c *Case, s *site, way string, running bool) (*outcome, error) {
	ip := r.client(c.Setup.QMQPAllowed)
	if c.alone() {
		s.alone.Lock()
		defer s.alone.Unlock()
	} else {
		s.alone.RLock()
		defer s.alone.RUnlock()
	}
	to, watch := s.address[c.Protocol], func() (int64, string, []byte) { return 0, "", nil }
	var before int64
	if way == classic {
		one, err := r.serve(s, c)
		if err != nil {
			return nil, err
		}
		defer one.close()
		to, watch = one.address, one.result
	} else if pid := s.role(roleOf(c.Protocol)); c.measured() && running && pid > 0 {
		before = resetPeak(pid)
		watch = func() (int64, string, []byte) { return peak(pid) - before, "", nil }
	}
	play := c.smtp
	if c.Protocol != "smtp" {
		play = c.netstrings
	}
	conversation, err := play(ip, to)
	if err != nil {
		return nil, err
	}
	o := &outcome{session: *conversation, ip: ip, way: way}
	o.grown, o.trouble, o.log = watch()
	if way == longLived {
		if o.log, err = os.ReadFile(s.log); err != nil {
			return nil, err
		}
		o.trouble = s.trouble()
	}
	if !running {
		return o, nil
	}
	if o.queued, err = s.settled(ip, c); err != nil {
		return nil, err
	}
	return o, r.deliver(c, s, o)
}

func roleOf(protocol string) string { return protocol + "d" }

// alone reports whether nothing else may happen meanwhile.
func (c *Case) alone() bool { return c.measured() }

// measured reports whether memory counts.
func (c *Case) measured() bool {
	return slices.ContainsFunc(c.Expect.MustNot, func(w string) bool { return strings.HasPrefix(w, "rss>") })
}

// settled takes what has come into the queue. A client that hung up without waiting for the last answer is given
// some time: what it left may still be under way.
func (s *site) settled(ip string, c *Case) ([]message, error) {
	list, err := s.taken(ip)
	if n := len(c.Chunks); err != nil || len(list) > 0 || n == 0 || c.Chunks[n-1].Await != "reset" {
		return list, err
	}
	time.Sleep(time.Second)
	return s.taken(ip)
}

// one is a program that is run for the next connection, as tcpserver runs it.
type one struct {
	ln      net.Listener
	address string
	done    chan struct{}

	mu   sync.Mutex
	cmd  *exec.Cmd
	log  bytes.Buffer
	most int64 // memory
	err  error
}

// serve listens, and gives the first connection to a server of the classic kind.
func (r *Runner) serve(s *site, c *Case) (*one, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	x := &one{ln: ln, address: ln.Addr().String(), done: make(chan struct{})}
	x.cmd = r.command(s, "qmail-"+roleOf(c.Protocol))
	x.cmd.Stderr = &x.log
	x.cmd.WaitDelay = time.Second
	for name, value := range c.Setup.Env {
		x.cmd.Env = append(x.cmd.Env, name+"="+value)
	}
	go x.run()
	return x, nil
}

func (x *one) run() {
	defer close(x.done)
	conn, err := x.ln.Accept()
	if err != nil {
		return // nobody came
	}
	file, err := conn.(*net.TCPConn).File()
	remote, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	conn.Close()
	if err != nil {
		x.err = err
		return
	}
	x.cmd.Stdin, x.cmd.Stdout = file, file
	x.cmd.Env = append(x.cmd.Env, "PROTO=TCP", "TCPREMOTEIP="+remote, "TCPLOCALHOST=mx.test.example", "TCPLOCALIP=127.0.0.1")
	err = x.cmd.Start()
	file.Close()
	if err != nil {
		x.err = err
		return
	}
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(glance):
				x.mu.Lock()
				x.most = max(x.most, peak(x.cmd.Process.Pid))
				x.mu.Unlock()
			}
		}
	}()
	_ = x.cmd.Wait()
	close(ended)
}

// result waits for the program, and says how it was.
func (x *one) result() (grown int64, trouble string, log []byte) {
	x.ln.Close()
	select {
	case <-x.done:
	case <-time.After(soon):
		if x.cmd.Process != nil {
			_ = x.cmd.Process.Kill()
		}
		<-x.done
		return x.most, "it goes on after its client has gone", x.log.Bytes()
	}
	trouble = brokeDown(x.log.Bytes())
	if x.err != nil {
		trouble = x.err.Error()
	}
	return x.most, trouble, x.log.Bytes()
}

func (x *one) close() {
	x.ln.Close()
	select {
	case <-x.done:
	case <-time.After(glance):
		if x.cmd.Process != nil {
			_ = x.cmd.Process.Kill()
		}
		<-x.done
	}
}

// deliver delivers what was queued to alice, as qmail-lspawn would, if the case is about that.
func (r *Runner) deliver(c *Case, s *site, o *outcome) error {
	if c.Setup.DotQmailAlice == nil && c.Setup.DotQmailDefault == nil && !c.forbids("loops") {
		return nil
	}
	home := filepath.Join(s.dir, "alice-"+o.ip)
	canary := filepath.Join(home, "canary")
	if err := errors.Join(os.Mkdir(home, 0o700), r.own(home)); err != nil {
		return err
	}
	o.home, o.canary = home, canary
	for name, text := range map[string]*string{".qmail": c.Setup.DotQmailAlice, ".qmail-default": c.Setup.DotQmailDefault} {
		if text == nil {
			continue
		}
		path := filepath.Join(home, name)
		if err := errors.Join(os.WriteFile(path, []byte(*text), 0o600), r.own(path)); err != nil {
			return err
		}
	}
	for _, m := range o.queued {
		for _, rcpt := range m.rcpts {
			local, domain, _ := cutLast(rcpt, "@")
			ext, isHers := strings.CutPrefix(strings.ToLower(local), "alice-")
			dash := "-"
			if local == "alice" {
				ext, dash, isHers = "", "", true
			}
			if !isHers {
				continue
			}
			d, err := r.local(s, home, []string{"alice", home, local, dash, ext, domain, m.sender, "./Mailbox"}, m.text)
			if err != nil {
				return err
			}
			o.deliveries = append(o.deliveries, *d)
		}
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (c *Case) forbids(word string) bool {
	return slices.ContainsFunc(c.Expect.MustNot, func(w string) bool {
		return w == word || strings.HasPrefix(w, word+":") || strings.HasPrefix(w, word+">")
	})
}

// delivery is what qmail-local did.
type delivery struct {
	exit   int
	said   string
	took   time.Duration
	memory int64
}

// local runs qmail-local once.
func (r *Runner) local(s *site, home string, args []string, text []byte, vars ...string) (*delivery, error) {
	f, err := os.CreateTemp(s.dir, "message-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return nil, err
	}
	cmd := r.command(s, "qmail-local", append([]string{"--"}, args...)...)
	cmd.Env = append(cmd.Env, vars...)
	cmd.Stdin = f
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	began := time.Now()
	d := &delivery{}
	d.memory, err = watched(cmd, 5*time.Minute)
	d.took, d.said = time.Since(began), out.String()
	if cmd.ProcessState == nil {
		return nil, err
	}
	d.exit = cmd.ProcessState.ExitCode()
	return d, nil
}
