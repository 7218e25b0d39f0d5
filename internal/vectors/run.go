package vectors

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	unprivileged = 7790 // uid and gid of a case when run by root
	timeout      = 30 * time.Second
)

// oldTime is the modification time of files that a case sets up.
func oldTime() time.Time { return time.Unix(1000000000, 0) }

// Runner runs cases. Each has a home and a directory of its own, so they may run side by side.
type Runner struct {
	Bin string // the programs under their classic names
	// ReadQueue takes what the programs have put into the queue of a home, in the order of arrival.
	ReadQueue func(home string) ([]Queued, error)
	// Patience is how long a network server may take to answer; 0 means long enough.
	Patience time.Duration
	// Loose says that bounces may have another form than the recorded ones.
	Loose bool
}

// ErrSkip is a case that cannot run here: it needs root, or accounts.
var ErrSkip = errors.New("cannot run here")

// result is what a run showed.
type result struct {
	exit           int
	stdout, stderr []byte
	queued, stored []Queued
	saw            [][]*Seen
	recv, reports  [][]byte
	tail           []byte
	bad            string // a session that went wrong on its way
	tree           map[string][]entry
	homeFiles      map[string][]byte
	stdoutSeen     bool
	trace          []*Traced
}

// run is one case being run.
type run struct {
	*Runner
	c         *Case
	tmp, home string
	uid       int // 0: our own
	vars      map[string]string
}

// Run runs a case and returns nil, ErrSkip, or how what it did differs from what was recorded.
func (r *Runner) Run(c *Case) error {
	if err := able(c); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "vector-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	x := &run{Runner: r, c: c, tmp: filepath.Join(tmp, "tmp"), home: filepath.Join(tmp, "home"), vars: map[string]string{}}
	if os.Getuid() == 0 {
		x.uid = defaultUID(c)
	}
	x.vars["TMP"], x.vars["HOME"] = x.tmp, x.home
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	servers, err := x.startServers()
	if err != nil {
		return err
	}
	defer servers.close()
	if err := x.setUp(); err != nil {
		return err
	}
	before := x.snapshot()
	var got result
	switch c.Kind {
	case "exec":
		got, err = x.exec()
	case "session":
		got, err = x.session()
	case "lookup":
		got, err = x.lookup()
	case "send":
		got, err = x.send()
	default:
		err = fmt.Errorf("kind %q: %w", c.Kind, ErrSkip)
	}
	if err != nil {
		return err
	}
	servers.close()
	got.saw = servers.saw()
	if got.queued, err = x.captured(); err != nil {
		return err
	}
	if c.Stored {
		if got.stored, err = r.ReadQueue(x.home); err != nil {
			return err
		}
	}
	got.tree = changes(before, x.snapshot())
	got.homeFiles = map[string][]byte{}
	for _, name := range c.WatchHome {
		if b, err := os.ReadFile(filepath.Join(x.home, name)); err == nil {
			got.homeFiles[name] = b
		}
	}
	return x.compare(&got)
}

func able(c *Case) error {
	root := slices.Contains(c.Needs, "root") || c.UID != "" || privilegedServer(c)
	if root && os.Getuid() != 0 {
		return fmt.Errorf("needs root: %w", ErrSkip)
	}
	accounts := []string{}
	switch {
	case c.Family == "queue": // our qmail-queue looks up nobody but the injector
		if _, err := strconv.Atoi(string(c.UID)); err != nil && c.UID != "" {
			accounts = []string{string(c.UID)}
		}
	case slices.Contains(c.Needs, "qmail-users"):
		accounts = []string{"alias", "qmaild", "qmailq", "qmailr", "qmails", "qmaill", "qmailp"}
	}
	for _, name := range accounts {
		if _, err := user.Lookup(name); err != nil {
			return fmt.Errorf("no user %s: %w", name, ErrSkip)
		}
	}
	return nil
}

func defaultUID(c *Case) int {
	switch {
	case c.UID != "":
		if n, err := strconv.Atoi(string(c.UID)); err == nil {
			return n
		}
		if u, err := user.Lookup(string(c.UID)); err == nil {
			n, _ := strconv.Atoi(u.Uid)
			return n
		}
		return unprivileged
	case c.Family == "users" || c.Family == "newmrh" || c.Family == "queue" || c.Family == "bounce":
		return 0
	}
	return unprivileged
}

// expand replaces the variables of a case.
func (x *run) expand(b []byte) []byte {
	for name, value := range x.vars {
		b = bytes.ReplaceAll(b, []byte("{{"+name+"}}"), []byte(value))
	}
	for _, kind := range []string{"UID", "GID", "DIR"} {
		for {
			i := bytes.Index(b, []byte("{{"+kind+":"))
			if i < 0 {
				break
			}
			n := bytes.Index(b[i:], []byte("}}"))
			value := "unknown"
			if u, err := user.Lookup(string(b[i+6 : i+n])); err == nil {
				value = map[string]string{"UID": u.Uid, "GID": u.Gid, "DIR": u.HomeDir}[kind]
			}
			b = slices.Concat(b[:i], []byte(value), b[i+n+2:])
		}
	}
	return b
}

func (x *run) text(s string) string { return string(x.expand([]byte(s))) }

// setUp makes the home and the files of the case.
func (x *run) setUp() error {
	for _, dir := range []string{x.tmp, x.home, filepath.Join(x.home, "control"), filepath.Join(x.home, "users"), filepath.Join(x.home, "queue", "drop"), x.capture()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(x.home, "queue", "drop"), 0o1733), os.Chmod(x.capture(), 0o777)); err != nil {
		return err
	}
	for dir, files := range map[string]map[string]ControlFile{"control": x.c.Control, "users": x.c.Users} {
		for name, f := range files {
			path := filepath.Join(x.home, dir, name)
			if f.Dir {
				if err := os.Mkdir(path, 0o755); err != nil {
					return err
				}
				continue
			}
			if err := x.write(path, x.expand(f.Data), mode(f.Mode, 0o644), 0, oldTime()); err != nil {
				return err
			}
		}
	}
	if err := x.setUpFiles(); err != nil {
		return err
	}
	if err := os.WriteFile(x.program(), []byte(x.script()), 0o755); err != nil {
		return err
	}
	for _, words := range x.c.Setup {
		cmd := exec.Command(filepath.Join(x.Bin, words[0]), strings.Fields(x.text(strings.Join(words[1:], " ")))...)
		cmd.Env = x.environ()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("set-up %q: %v: %s", words, err, out)
		}
	}
	return nil
}

func mode(s string, otherwise os.FileMode) os.FileMode {
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		return os.FileMode(n&0o777) | sticky(n)
	}
	return otherwise
}

func sticky(n uint64) os.FileMode {
	if n&0o1000 != 0 {
		return os.ModeSticky
	}
	return 0
}

func (x *run) setUpFiles() error {
	for _, f := range x.c.Files {
		path, owner := filepath.Join(x.tmp, f.Path), x.uid
		if f.Owner != nil {
			owner = *f.Owner
		}
		var err error
		switch {
		case f.Dir:
			if err = x.mkdir(path, x.uid); err == nil {
				err = x.own(path, owner)
			}
		case f.Link != "":
			err = os.Symlink(x.text(f.Link), path)
		default:
			when := oldTime()
			if f.MTime != 0 {
				when = time.Unix(f.MTime, 0)
			}
			err = x.write(path, x.expand(f.Data), mode(f.Mode, 0o644), owner, when)
		}
		if err != nil {
			return err
		}
	}
	for _, f := range x.c.Files {
		if f.Dir {
			if err := os.Chmod(filepath.Join(x.tmp, f.Path), mode(f.Mode, 0o755)); err != nil {
				return err
			}
		}
	}
	return x.own(x.tmp, x.uid)
}

func (x *run) own(path string, uid int) error {
	if os.Getuid() != 0 {
		return nil
	}
	return os.Lchown(path, uid, uid)
}

// mkdir makes a directory and those on the way to it, which belong to the owner too.
func (x *run) mkdir(path string, owner int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := x.mkdir(filepath.Dir(path), owner); err != nil {
		return err
	}
	return errors.Join(os.Mkdir(path, 0o755), x.own(path, owner))
}

func (x *run) write(path string, data []byte, mode os.FileMode, owner int, when time.Time) error {
	if err := x.mkdir(filepath.Dir(path), owner); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path, data, 0o600), x.own(path, owner), os.Chmod(path, mode), os.Chtimes(path, when, when))
}

func (x *run) capture() string { return filepath.Join(filepath.Dir(x.tmp), "captured") }
func (x *run) program() string { return filepath.Join(filepath.Dir(x.tmp), "queue-program") }

// script is a program in the place of qmail-queue. Like it, it counts a message only when its envelope is
// complete.
func (x *run) script() string {
	q := x.c.Queue
	var b strings.Builder
	b.WriteString("#!/bin/sh\numask 022\n")
	if q.Read == nil || *q.Read {
		fmt.Fprintf(&b, `n=1; until mkdir %[1]s/$n 2>/dev/null; do n=$((n+1)); done; d=%[1]s/$n
cat >$d/message; cat 0<&1 >$d/envelope
[ "$(tail -c 2 $d/envelope | od -An -tx1 | tr -d ' \n')" = 0000 ] || { rm -r $d; exit 54; }
`, x.capture())
	}
	if q.FD6 != "" {
		fmt.Fprintf(&b, "printf %%s '%s' >&6\n", strings.ReplaceAll(q.FD6, "'", `'\''`))
	}
	if q.Signal != "" || q.Exit != 0 {
		b.WriteString("[ -z \"$d\" ] || rm -r $d\n")
	}
	if q.Signal != "" {
		fmt.Fprintf(&b, "kill -%s $$\n", q.Signal)
	}
	fmt.Fprintf(&b, "exit %d\n", q.Exit)
	return b.String()
}

// captured reads what the script took.
func (x *run) captured() ([]Queued, error) {
	var list []Queued
	for n := 1; ; n++ {
		dir := filepath.Join(x.capture(), strconv.Itoa(n))
		if _, err := os.Stat(dir); err != nil {
			return list, nil
		}
		message, err1 := os.ReadFile(filepath.Join(dir, "message"))
		envelope, err2 := os.ReadFile(filepath.Join(dir, "envelope"))
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		q := Queued{Message: message}
		for i, record := range bytes.Split(envelope, []byte{0}) {
			switch {
			case i == 0 && len(record) > 0:
				q.Sender = record[1:]
			case len(record) > 0 && record[0] == 'T':
				q.Recipients = append(q.Recipients, record[1:])
			}
		}
		list = append(list, q)
	}
}

func (x *run) environ() []string {
	vars := map[string]string{
		"PATH": x.Bin + ":/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC0", "QMAILHOME": x.home,
	}
	if !x.c.RealQueue {
		vars["QMAILQUEUE"] = x.program()
	}
	for name, value := range x.c.Env {
		if value == nil {
			delete(vars, name)
		} else {
			vars[name] = x.text(*value)
		}
	}
	var list []string
	for name, value := range vars {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// command is the program of the case.
func (x *run) command(ctx context.Context) *exec.Cmd {
	var args []string
	for _, a := range x.c.Args {
		args = append(args, x.text(a))
	}
	cmd := exec.CommandContext(ctx, filepath.Join(x.Bin, x.c.Prog), args...)
	cmd.Env, cmd.Dir = x.environ(), filepath.Join(x.tmp, x.c.Cwd)
	if x.c.Argv0 != "" {
		cmd.Args[0] = x.c.Argv0
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if x.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(x.uid), Gid: uint32(x.uid)}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

func (x *run) exec() (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := x.command(ctx)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	stdin := filepath.Join(filepath.Dir(x.tmp), "stdin")
	if err := os.WriteFile(stdin, x.expand(x.c.Stdin), 0o644); err != nil {
		return result{}, err
	}
	in, err := os.Open(stdin)
	if err != nil {
		return result{}, err
	}
	defer in.Close()
	cmd.Stdin = in
	if x.c.FD1 != nil {
		path := filepath.Join(filepath.Dir(x.tmp), "fd1")
		if err := os.WriteFile(path, x.expand(*x.c.FD1), 0o644); err != nil {
			return result{}, err
		}
		f, err := os.Open(path)
		if err != nil {
			return result{}, err
		}
		defer f.Close()
		cmd.Stdout = f
	}
	err = cmd.Run()
	if ctx.Err() != nil {
		return result{}, errors.New("timed out")
	}
	if cmd.ProcessState == nil {
		return result{}, err
	}
	return result{exit: exitCode(cmd.ProcessState), stdout: stdout.Bytes(), stderr: stderr.Bytes(), stdoutSeen: x.c.FD1 == nil}, nil
}

// exitCode is negative after a signal.
func exitCode(s *os.ProcessState) int {
	if status, ok := s.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return -int(status.Signal())
	}
	return s.ExitCode()
}
