// Package peer starts the servers that are compared, each in a scratch directory of its own, and stops them.
//
// A server runs under `bench nest`, which is the parent of whatever the server leaves behind, so that its cost can be
// counted whole and nothing of it outlives the run.
package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"qmail/cmd/bench/internal/meter"
)

// LocalUser has the Maildir, in LocalDomain; all other domains are far away.
const (
	LocalUser   = "bench"
	LocalDomain = "local.example"
	Recipient   = LocalUser + "@" + LocalDomain
)

// Mailowner is the uid and gid that owns the Maildir, and under which our server runs when we are root: nobody.
const Mailowner = 65534

// BoxAddresses are those of n mailboxes.
func BoxAddresses(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = box(i) + "@" + LocalDomain
	}
	return list
}

func box(i int) string { return fmt.Sprintf("box%d", i) }

// firstUser is the uid of the first box, where each has its own.
const firstUser = 20000

// Setup says how a server is to be started.
type Setup struct {
	// Dir is an empty directory for all its files.
	Dir string

	// Hold keeps accepted mail in the queue, undelivered.
	Hold bool

	// Relay takes the mail for all other domains.
	Relay netip.AddrPort

	// Routes takes the mail for single domains instead.
	Routes map[string]netip.AddrPort

	// Sessions is how many clients may be connected at once.
	Sessions int

	// Protocol is qmtp or qmqp if the server shall be talked to that way and not by SMTP.
	Protocol string

	// Boxes is how many mailboxes there are, box0 and so on, besides LocalUser's.
	Boxes int

	// Users gives each box a user of its own; else all belong to one, as those of a virtual domain.
	Users bool

	// Program gives LocalUser's mail to a program, which appends a byte to Running.Count.
	Program bool

	// Self is this program, which is also the nest.
	Self string

	etc string // an empty directory to be laid over /etc, for this server alone
}

// Peer is a kind of server.
type Peer interface {
	Name() string

	// Missing says what this machine lacks to run it; nil when nothing.
	Missing() error

	// Version describes it for the report.
	Version(ctx context.Context) string

	// Start starts it and returns when it greets.
	Start(ctx context.Context, s Setup) (*Running, error)
}

// Running is a started server.
type Running struct {
	Addr     netip.AddrPort
	Maildirs []string
	Count    string // a file, of Setup.Program
	Home     string // of ours
	// Program is a call of one of the server's programs on this machine; Postfix has sendmail.
	Program func(name string, args ...string) *exec.Cmd
	Tree    meter.Tree

	cmd    *exec.Cmd
	stdin  io.Closer
	exited chan struct{}
	err    error // of the exit; read after exited is closed
	logs   []string
}

// patience is how long a server may take to greet and to stop.
const patience = 30 * time.Second

// nest starts argv under `bench nest` with its output in dir/output.
func nest(ctx context.Context, s Setup, uid int, env, argv []string) (*Running, error) {
	output := filepath.Join(s.Dir, "output")
	f, err := os.OpenFile(output, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	args := []string{"nest", fmt.Sprint("-uid=", uid)}
	if s.etc != "" {
		args = append(args, "-etc="+s.etc)
	}
	cmd := exec.Command(s.Self, append(append(args, "--"), argv...)...)
	if s.etc != "" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, f, f
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &Running{cmd: cmd, stdin: stdin, exited: make(chan struct{}), Tree: meter.Tree(cmd.Process.Pid), logs: []string{output}}
	go func() {
		r.err = cmd.Wait()
		close(r.exited)
	}()
	return r, nil
}

// greets waits until the server says 220 at its address.
func (r *Running) greets(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("no greeting in time"))
	defer cancel()
	for {
		err := greeting(ctx, r.Addr)
		if err == nil {
			return nil
		}
		select {
		case <-r.exited:
			return r.Explain(fmt.Errorf("the server has ended: %v", r.err))
		case <-ctx.Done():
			return r.Explain(fmt.Errorf("%w: %w", context.Cause(ctx), err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func greeting(ctx context.Context, addr netip.AddrPort) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 512)
	n, err := io.ReadAtLeast(c, b, 4)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(b[:n], []byte("220")) {
		return fmt.Errorf("the greeting is %q", b[:n])
	}
	_, err = c.Write([]byte("QUIT\r\n"))
	return err
}

// Stop ends the server and all it has started.
func (r *Running) Stop() error {
	r.stdin.Close() // the nest takes the end of its input as the order to stop, and gives up after a while
	select {
	case <-r.exited:
		return nil
	case <-time.After(2 * patience):
		r.cmd.Process.Kill()
		return r.Explain(errors.New("the server does not stop"))
	}
}

// Exited is closed when the server has ended.
func (r *Running) Exited() <-chan struct{} { return r.exited }

// Explain adds the last lines of the server's logs to an error.
func (r *Running) Explain(err error) error {
	if err == nil {
		return nil
	}
	var b strings.Builder
	for _, name := range r.logs {
		if t := tail(name, 2000); t != "" {
			fmt.Fprintf(&b, "\n--- the end of %s\n%s", name, t)
		}
	}
	return fmt.Errorf("%w%s", err, b.String())
}

// tail is the end of a file, from the beginning of a line; empty when it cannot be read.
func tail(name string, n int64) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(n, info.Size()))
	if _, err := f.ReadAt(b, info.Size()-int64(len(b))); err != nil {
		return ""
	}
	if int64(len(b)) < info.Size() {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return string(b)
}

// freePort finds a port of 127.0.0.1 that nobody listens on.
func freePort() (netip.AddrPort, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer l.Close()
	return netip.ParseAddrPort(l.Addr().String())
}

// maildir makes an empty Maildir that belongs to a uid, and the directory that it is in.
func maildir(path string, uid int) error {
	for _, d := range []string{filepath.Dir(path), path, path + "/tmp", path + "/new", path + "/cur"} {
		if err := errors.Join(os.MkdirAll(d, 0o700), own(d, uid)); err != nil {
			return err
		}
	}
	return nil
}

// own gives a file to a uid, if we may.
func own(path string, uid int) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(path, uid, uid)
}

// mailboxes makes the Maildirs of a setup in a directory, one below another, and lists them.
func mailboxes(dir string, s Setup) (list []string, err error) {
	err = os.MkdirAll(dir, 0o755)
	for i := range s.Boxes {
		path := filepath.Join(dir, box(i), "Maildir")
		list = append(list, path)
		err = errors.Join(err, maildir(path, s.uid(i)))
	}
	return list, err
}

// uid is whose a box is.
func (s Setup) uid(i int) int {
	if s.Users {
		return firstUser + i
	}
	return Mailowner
}

// counter makes the file to which the program of a setup appends, and gives the program.
func counter(dir string) (file, command string, err error) {
	file = filepath.Join(dir, "count")
	err = errors.Join(os.WriteFile(file, nil, 0o666), own(file, Mailowner))
	return file, "printf . >>" + file, err
}

// write makes several files.
func write(dir string, files map[string]string) error {
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// quickly runs a short command as uid and gives its output, in the error if it fails.
func quickly(ctx context.Context, dir string, uid int, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	if uid != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return string(bytes.TrimSpace(out)), nil
}
