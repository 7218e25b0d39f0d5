package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const nobody = 65534 // whom it runs as if we are root

// server is qmail in a scratch home.
type server struct {
	dir, home, program string
	smtp, qmtp, qmqp   string
	mounted            bool

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
}

func newServer(p plan, sinkPort int) (*server, error) {
	program := p.program
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program = filepath.Join(filepath.Dir(self), "qmail")
	}
	dir, err := os.MkdirTemp("", "qmail-torture-")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, home: filepath.Join(dir, "home")}
	if err := s.furnish(program, sinkPort, p.full); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

func (s *server) furnish(program string, sinkPort int, full bool) error {
	bin := filepath.Join(s.home, "bin")
	out := s.programs()
	if err := errors.Join(os.Chmod(s.dir, 0o755), os.MkdirAll(bin, 0o755), os.Mkdir(out, 0o755)); err != nil {
		return err
	}
	s.program = filepath.Join(bin, "qmail")
	text, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	if err := errors.Join(os.WriteFile(s.program, text, 0o755), s.give(s.home, bin, out)); err != nil {
		return err
	}
	if s.smtp, s.qmtp, s.qmqp, err = addresses(); err != nil {
		return err
	}
	init := s.command("init", "-home", s.home, "-listen", "smtp="+s.smtp, "-user", "alice", "-user", "bob", "torture.example")
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("qmail init: %w\n%s", err, out)
	}
	for name, text := range map[string]string{
		"control/listen":          "smtp " + s.smtp + "\nqmtp " + s.qmtp + "\nqmqp " + s.qmqp + "\n",
		"control/relayclients":    "127.0.0.0/8\n",
		"control/qmqpclients":     "127.0.0.0/8\n",
		"control/maxperclient":    "1000\n",
		"control/timeoutconnect":  "2\n",
		"control/timeoutremote":   "10\n",
		"control/smtproutes":      fmt.Sprintf("far.example:127.0.0.1:%d\n", sinkPort),
		"mail/bob/.qmail-program": "|f=`mktemp " + out + "/XXXXXXXXXX` && cat >$f\n",
	} {
		path := filepath.Join(s.home, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), s.give(path)); err != nil {
			return err
		}
	}
	if !full {
		return nil
	}
	journal := filepath.Join(s.home, "queue", "journal")
	if err := os.MkdirAll(journal, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("torture", journal, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700,uid=%d,gid=%d", roomForQueue, nobody, nobody)); err != nil {
		return fmt.Errorf("no file system for the queue: %w (try -full=false)", err)
	}
	s.mounted = true
	return nil
}

// roomForQueue is what the queue has on a file system of its own.
const roomForQueue = 512 << 20

// addresses finds three ports.
func addresses() (a, b, c string, err error) {
	var all [3]string
	for i := range all {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", "", err
		}
		defer ln.Close()
		all[i] = ln.Addr().String()
	}
	return all[0], all[1], all[2], nil
}

func (s *server) maildir() string  { return filepath.Join(s.home, "mail", "alice", "Maildir", "new") }
func (s *server) programs() string { return filepath.Join(s.dir, "program") }

// give makes files belong to whom qmail runs as.
func (s *server) give(paths ...string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, os.Chown(path, nobody, nobody))
	}
	return errors.Join(errs...)
}

// command runs a program of qmail's without rights.
func (s *server) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.program, args...)
	cmd.Dir, cmd.Env = "/", []string{"QMAILHOME=" + s.home, "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// start runs qmail start and returns at once; connections are refused until it listens.
func (s *server) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("start")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd, s.ended = cmd, ended
	return nil
}

// roles are the processes of the server by name, those of users included: all that descend from the supervisor.
func (s *server) roles() map[string][]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	parents := map[int]int{}
	names := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		fields := strings.Fields(string(stat[end+1:]))
		if open < 0 || len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		parents[pid], _ = strconv.Atoi(fields[1])
		names[pid] = string(stat[open+1 : end])
	}
	all := map[string][]int{}
	for pid := range parents {
		for p, n := parents[pid], 0; p > 1 && n < 10; p, n = parents[p], n+1 {
			if p == s.cmd.Process.Pid {
				if strings.HasPrefix(names[pid], "qmail-") {
					all[names[pid]] = append(all[names[pid]], pid)
				}
				break
			}
		}
	}
	return all
}

// restart kills everything at once and starts it again.
func (s *server) restart() error {
	s.mu.Lock()
	cmd, ended := s.cmd, s.ended
	s.mu.Unlock()
	pids := s.roles()
	cmd.Process.Kill() // the others go with it
	<-ended
	for _, list := range pids {
		for _, pid := range list {
			for range 500 {
				if syscall.Kill(pid, 0) != nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	return s.start()
}

// alive starts the server again if it has ended.
func (s *server) alive() error {
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	select {
	case <-ended:
		return s.start()
	default:
		return nil
	}
}

// drain has everything tried until nothing is left.
func (s *server) drain(ctx context.Context) error {
	deadline := time.Now().Add(2 * time.Minute)
	last := ""
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if err := s.alive(); err != nil {
			return err
		}
		time.Sleep(time.Second)
		s.mu.Lock()
		s.cmd.Process.Signal(syscall.SIGALRM)
		s.mu.Unlock()
		out, err := s.command("queue", "count", "-all").CombinedOutput()
		if last = string(out); err == nil && strings.HasPrefix(strings.TrimSpace(last), "0 ") {
			return nil
		}
	}
	return fmt.Errorf("the queue is not empty: %s", last)
}

// verify asks the server's own account.
func (s *server) verify() (string, error) {
	out, err := s.command("ledger", "verify").CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("qmail ledger verify: %w", err)
	}
	return string(out), nil
}

// tail is the end of the log.
func (s *server) tail() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "qmail-") && !strings.HasPrefix(l, "alert") })
	return strings.Join(lines[max(len(lines)-15, 0):], "\n")
}

func (s *server) remove() {
	s.mu.Lock()
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(35 * time.Second):
			s.cmd.Process.Kill()
			<-s.ended
		}
	}
	s.mu.Unlock()
	if s.mounted {
		for range 100 {
			if unix.Unmount(filepath.Join(s.home, "queue", "journal"), 0) == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	os.RemoveAll(s.dir)
}
