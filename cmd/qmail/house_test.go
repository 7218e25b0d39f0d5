package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	nobody = 65534            // whom tests run it as when they are run by root
	soon   = 30 * time.Second // how long a condition may take to come true
)

// house is a home with this very program running in it.
type house struct {
	t       *testing.T
	home    string
	address string // of SMTP
	log     string
	root    bool     // in privileged mode
	binary  string   // to be run, if not this one
	vars    []string // of its environment, besides the home
	cmd     *exec.Cmd
	ended   chan struct{}
}

// newHouse makes a home for test.example with alice and bob in it; nothing runs yet.
func newHouse(t *testing.T) *house {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmail-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &house{t: t, home: filepath.Join(dir, "home"), log: filepath.Join(dir, "log"), address: freeAddress(t)}
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(h.home, 0o755), h.give(h.home)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	init := h.command("qmail-init", "-home", h.home, "-listen", "smtp="+h.address, "-user", "alice", "-user", "bob", "test.example")
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	return h
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (h *house) give(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(path, nobody, nobody)
}

func (h *house) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.home, name)
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), h.give(path)); err != nil {
		h.t.Fatal(err)
	}
}

// command is this program under another name, without rights.
func (h *house) command(argv ...string) *exec.Cmd {
	cmd := &exec.Cmd{Path: cmp.Or(h.binary, "/proc/self/exe"), Args: argv, Env: append(h.vars, "QMAILHOME="+h.home), Dir: "/"}
	if os.Geteuid() == 0 && !h.root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// start starts the supervisor and waits until all roles are ready.
func (h *house) start() {
	h.t.Helper()
	log, err := os.OpenFile(h.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	before := strings.Count(h.read(), "qmail-start: ready\n")
	h.launch(log)
	h.until("all roles are ready", func() bool {
		select {
		case <-h.ended:
			h.t.Fatalf("the supervisor ended; log:\n%s", h.tail())
		default:
		}
		return strings.Count(h.read(), "qmail-start: ready\n") > before
	})
}

func (h *house) launch(log *os.File) {
	h.t.Helper()
	cmd, ended := h.command("qmail-start"), make(chan struct{})
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.cmd, h.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
}

// fail starts the supervisor, which is to give up, and returns its exit code.
func (h *house) fail() int {
	h.t.Helper()
	log, err := os.OpenFile(h.log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	h.launch(log)
	select {
	case <-h.ended:
	case <-time.After(soon):
		h.t.Fatalf("it goes on; log:\n%s", h.tail())
	}
	return h.cmd.ProcessState.ExitCode()
}

// stop stops it in order.
func (h *house) stop() {
	h.t.Helper()
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.ended:
	case <-time.After(2 * soon):
		h.t.Fatalf("the supervisor does not stop; log:\n%s", h.tail())
	}
	if code := h.cmd.ProcessState.ExitCode(); code != 0 {
		h.t.Errorf("the supervisor ended with %d; log:\n%s", code, h.tail())
	}
}

func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(soon); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("it never came true that %s; log:\n%s", what, h.tail())
		}
	}
}

func (h *house) logged(text string) {
	h.t.Helper()
	h.until(fmt.Sprintf("%q is on the log", text), func() bool { return strings.Contains(h.read(), text) })
}

func (h *house) read() string {
	b, err := os.ReadFile(h.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	return string(b)
}

func (h *house) tail() string {
	lines := strings.Split(h.read(), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// pid is the process that a role has now.
func (h *house) pid(role string) int {
	h.t.Helper()
	all := regexp.MustCompile(`started qmail-`+role+` pid=(\d+)`).FindAllStringSubmatch(h.read(), -1)
	if len(all) == 0 {
		h.t.Fatalf("%s was never started", role)
	}
	pid, _ := strconv.Atoi(all[len(all)-1][1])
	return pid
}

// mail reads every message of a user's Maildir.
func (h *house) mail(user string) (messages []string) {
	h.t.Helper()
	dir := filepath.Join(h.home, "mail", user, "Maildir", "new")
	entries, err := os.ReadDir(dir)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			h.t.Fatal(err)
		}
		messages = append(messages, string(b))
	}
	return messages
}

// client is an SMTP client that believes nothing.
type client struct {
	net.Conn
	r *bufio.Reader
}

func newClient(conn net.Conn) *client { return &client{conn, bufio.NewReader(conn)} }

func dial(address string) (*client, error) {
	conn, err := net.DialTimeout("tcp", address, soon)
	if err != nil {
		return nil, err
	}
	c := newClient(conn)
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		return nil, err
	}
	if code, text, err := c.reply(); err != nil || code != 220 {
		conn.Close()
		return nil, fmt.Errorf("banner: %d %s %w", code, text, err)
	}
	if code, err := c.say("EHLO client.example\r\n"); err != nil || code != 250 {
		conn.Close()
		return nil, fmt.Errorf("EHLO: %d %w", code, err)
	}
	return c, nil
}

func (c *client) reply() (code int, text string, err error) {
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return 0, "", err
		}
		if len(line) < 5 {
			return 0, "", fmt.Errorf("reply %q", line)
		}
		text += line
		if line[3] != '-' {
			code, err := strconv.Atoi(line[:3])
			return code, text, err
		}
	}
}

func (c *client) say(text string) (code int, err error) {
	if _, err := io.WriteString(c, text); err != nil {
		return 0, err
	}
	code, _, err = c.reply()
	return code, err
}

// send sends one message. code is the reply that decided about it, 0 if none came. doubt says that the client
// cannot know: the connection was lost after the end of the message, or the answer was 451, which is also what
// qmail-smtpd says when qmail-send died before it could tell that it has the message.
func (c *client) send(sender, recipient, message string) (code int, doubt bool, err error) {
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		return 0, false, err
	}
	for _, step := range []struct {
		text string
		want int
	}{{"MAIL FROM:<" + sender + ">\r\n", 250}, {"RCPT TO:<" + recipient + ">\r\n", 250}, {"DATA\r\n", 354}} {
		if code, err = c.say(step.text); err != nil || code != step.want {
			return code, false, err
		}
	}
	code, err = c.say(message + ".\r\n")
	return code, err != nil || code == 451, err
}

// farHost is another machine, which takes everything.
type farHost struct {
	ln net.Listener

	mu       sync.Mutex
	messages []string
}

func newFarHost(t *testing.T) *farHost {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &farHost{ln: ln}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				defer conn.Close()
				f.serve(conn)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); cancel(); wg.Wait() })
	return f
}

func (f *farHost) route() string {
	_, port, _ := net.SplitHostPort(f.ln.Addr().String())
	return "127.0.0.1:" + port
}

func (f *farHost) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	reply := "220 far.example"
	for {
		if _, err := io.WriteString(conn, reply+"\r\n"); err != nil {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		reply = "250 ok"
		switch strings.ToUpper(line[:min(4, len(line))]) {
		case "DATA":
			if _, err := io.WriteString(conn, "354 go ahead\r\n"); err != nil {
				return
			}
			var message strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				message.WriteString(strings.TrimPrefix(line, "."))
			}
			f.mu.Lock()
			f.messages = append(f.messages, strings.ReplaceAll(message.String(), "\r\n", "\n"))
			f.mu.Unlock()
		case "QUIT":
			return
		}
	}
}

func (f *farHost) mail() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.messages...)
}
