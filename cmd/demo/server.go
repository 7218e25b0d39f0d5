package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	domain  = "demo.example"
	virtual = "shop.example" // a virtual domain of bob's
	remote  = "far.example"  // its mail goes to the sink

	nobody   = 65534 // whom it runs as if we are root
	patience = 5 * time.Second
	usual    = 2525 // the port of demo -run, if it is free
)

// server is qmail in a scratch home.
type server struct {
	dir, home, program string
	address            string // of SMTP
	stay               bool
	log                string
	cmd                *exec.Cmd
	ended              chan error
}

// newServer makes a home. Mail for the remote domain will go to the given port of this machine.
func newServer(program string, sinkPort int, stay bool) (*server, error) {
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program = filepath.Join(filepath.Dir(self), "qmail")
	}
	dir, err := os.MkdirTemp("", "qmail-demo-")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, home: filepath.Join(dir, "home"), stay: stay, log: filepath.Join(dir, "log")}
	if err := s.furnish(program, sinkPort); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

func (s *server) furnish(program string, sinkPort int) error {
	bin := filepath.Join(s.home, "bin")
	if err := errors.Join(os.Chmod(s.dir, 0o755), os.MkdirAll(bin, 0o755)); err != nil {
		return err
	}
	// A copy, since whom we become may not be able to reach the original.
	s.program = filepath.Join(bin, "qmail")
	if err := copyFile(s.program, program); err != nil {
		return err
	}
	if err := s.give(s.home, bin); err != nil {
		return err
	}
	var err error
	if s.address, err = freeAddress(s.stay); err != nil {
		return err
	}
	init := s.command(context.Background(), "init", "-home", s.home, "-listen", "smtp="+s.address, "-user", "alice", "-user", "bob", domain)
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("qmail init: %w\n%s", err, out)
	}
	for name, text := range map[string]string{
		"control/rcpthosts":          domain + "\n" + virtual + "\n",
		"control/virtualdomains":     virtual + ":bob-shop\n",
		"control/smtproutes":         fmt.Sprintf("%s:127.0.0.1:%d\n", remote, sinkPort),
		"mail/bob/.qmail-shop-sales": "./Maildir/\n",
		"mail/alice/.qmail-team":     "&bob@" + domain + "\n",
	} {
		path := filepath.Join(s.home, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		if err := s.give(path); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		w.Close()
		return err
	}
	return w.Close()
}

// freeAddress finds a port for SMTP.
func freeAddress(stay bool) (string, error) {
	if stay {
		if ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", usual)); err == nil {
			defer ln.Close()
			return ln.Addr().String(), nil
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func (s *server) uid() int {
	if os.Geteuid() == 0 {
		return nobody
	}
	return os.Geteuid()
}

// give makes files belong to whom qmail runs as.
func (s *server) give(paths ...string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, path := range paths {
		if err := os.Chown(path, nobody, nobody); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program of qmail's without rights.
func (s *server) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Dir, cmd.Env = "/", []string{"QMAILHOME=" + s.home, "PATH=/usr/bin:/bin"}
	// In a group of its own, so that ^C reaches it through us only; and not without us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// start returns when all roles are ready.
func (s *server) start(ctx context.Context) error {
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = s.command(context.WithoutCancel(ctx), "start")
	s.cmd.Stderr = log
	if s.stay {
		w, err := tee(s.log)
		if err != nil {
			return err
		}
		defer w.Close()
		s.cmd.Stderr = w
	}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("qmail start: %w", err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.cmd.Wait() }()
	return s.await(ctx, "qmail is ready", func() bool { return strings.Contains(s.read(), "qmail-start: ready\n") })
}

// tee returns the writing end of a pipe, which is a file as the supervisor needs it, to both our standard error and
// a file.
func tee(path string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	go func() { // ends with the last process that has the pipe
		defer r.Close()
		defer f.Close()
		_, _ = io.Copy(io.MultiWriter(f, os.Stderr), r)
	}()
	return w, nil
}

// await waits until something is true, for as long as the server runs and not for ever.
func (s *server) await(ctx context.Context, what string, ok func() bool) error {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("qmail start ended: %w", notNil(err))
		case <-ctx.Done():
			return errors.New("interrupted")
		case <-deadline.C:
			return fmt.Errorf("after %v it is still not true that %s", patience, what)
		}
	}
	return nil
}

func notNil(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// stop stops the server in order.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("qmail start: %w", err)
	}
	select {
	case err := <-s.ended:
		s.cmd = nil
		if err != nil {
			return fmt.Errorf("qmail start, when told to stop: %w", err)
		}
		return nil
	case <-time.After(40 * time.Second):
		return errors.New("qmail start does not stop")
	}
}

// remove ends what still runs and removes the home.
func (s *server) remove() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill() // its roles die with it
		<-s.ended
	}
	if err := os.RemoveAll(s.dir); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
	}
}

func (s *server) read() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// tail is the end of the log.
func (s *server) tail() string {
	lines := strings.Split(strings.TrimSuffix(s.read(), "\n"), "\n")
	return "The log ends with\n    " + strings.Join(lines[max(0, len(lines)-30):], "\n    ")
}

// roles are the processes that were started.
func (s *server) roles() (list []string) {
	list = append(list, fmt.Sprintf("qmail-start pid=%d", s.cmd.Process.Pid))
	for line := range strings.Lines(s.read()) {
		if role, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "qmail-start: started "); ok {
			list = append(list, role)
		}
	}
	return list
}

// explain says how to use what is left running.
func (s *server) explain(w io.Writer) {
	host, port, _ := net.SplitHostPort(s.address)
	fmt.Fprintf(w, `
It takes mail at %s for alice@%s, bob@%s and sales@%s.
To send one by hand, say in bash

    exec 3<>/dev/tcp/%s/%s
    printf '%%s\r\n' 'EHLO me' 'MAIL FROM:<me@%s>' 'RCPT TO:<alice@%s>' DATA 'Subject: hello' '' 'Hello.' . QUIT >&3
    cat <&3

or use any mail program; then look into

    %s/mail/alice/Maildir/new

The log follows. ^C stops everything and removes the home.

`, s.address, domain, domain, virtual, host, port, remote, domain, s.home)
}
