package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// hisOwn are acts that are the right of whoever runs programs of his own: they reach nobody else.
var hisOwn = []string{
	"read /etc/hostname", "make a file in /tmp", "list the root", "connect to a port of no business of ours",
	"connect to the queue's door", "connect to a socket without a file", "listen on a port", "make a TCP socket",
	"make a UDP socket", "make a Unix socket", "make a netlink socket", "make a multipath TCP socket", "make a raw socket",
	"make a socket of the kernel's ciphers", "make a socket to the hypervisor", "run a program", "become another program",
	"make a process in a namespace of its own", "make code", "run a file of memory", "raise the limit of dumps", "be looked into",
	"make a namespace of users", "use io_uring", "open a kernel's key ring", "use userfaultfd", "watch performance",
	"load BPF", "change another role's limits",
}

// granted are the acts that are a role's work, or that its walls are not there to stop. All others must fail.
var granted = map[string][]string{
	"send":    {"list the queue", "read the queue", "change the queue", "add to the queue's directory", "make a netlink socket"},
	"resolve": {"make a TCP socket", "make a UDP socket"},
	"rspawn":  {"make a TCP socket", "make a netlink socket"},
	"keyd":    {"read a private key"},
	"authd":   {"read the passwords", "make a Unix socket", "connect to the queue's door"},
	"smtpd":   nil, "qmtpd": nil, "qmqpd": nil,
	"popup": hisOwn, "checkpw": hisOwn, "local": hisOwn,
}

// ofOneUser are acts on somebody else who is nobody else where all roles have one user.
var ofOneUser = []string{"read another user's mail", "list another user's home", "make a file in another user's home", "make a file in the home"}

// hostileBinary builds qmail with the tag "hostile".
func hostileBinary(t *testing.T) string {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go in PATH, so that there is nothing to build hostile code with")
	}
	dir, err := os.MkdirTemp("", "qmail-hostile-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "qmail")
	cmd := exec.Command(tool, "build", "-tags", "hostile", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// landlocked reports whether this kernel has all that the tests of walls expect, and says what it has.
func landlocked(t *testing.T) {
	t.Helper()
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || abi < 6 {
		t.Skipf("the walls need Landlock 6, this kernel has %d (%v)", abi, errno)
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("there is no filter for " + runtime.GOARCH)
	}
}

// TestARoleThatIsTakenOver lets every role try what somebody would who has taken it over.
func TestARoleThatIsTakenOver(t *testing.T) {
	landlocked(t)
	h := newHouse(t)
	h.binary, h.vars = hostileBinary(t), []string{"QMAILWALLS=refuse"}
	h.takenOver(ofOneUser)
}

// TestAsRootARoleThatIsTakenOver is the same with users of their own.
func TestAsRootARoleThatIsTakenOver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become others")
	}
	landlocked(t)
	if os.Getenv(inPrivate) == "" {
		binary := hostileBinary(t)
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), inPrivate+"="+binary)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, syscall.EPERM) {
			t.Skip("this root may not have a mount namespace")
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	ownEtc(t)
	h := newPrivilegedHouse(t)
	h.binary, h.vars = os.Getenv(inPrivate), []string{"QMAILWALLS=refuse"}
	h.takenOver(nil)
}

// TestAForbiddenCallKills makes one in each role that has a filter.
func TestAForbiddenCallKills(t *testing.T) {
	landlocked(t)
	h := newHouse(t)
	h.binary = hostileBinary(t)
	h.aims()
	h.start()
	for _, role := range h.roles() {
		if role == "lspawn" || slices.Equal(granted[role], hisOwn) {
			continue
		}
		if err := syscall.Kill(h.pid(role), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		h.logged("qmail-" + role + " died: signal: bad system call")
	}
	if out := h.said(); strings.Contains(out, "lives") {
		t.Error(out)
	}
}

// roles are those that have been started, each once.
func (h *house) roles() (list []string) {
	for _, m := range regexp.MustCompile(`started qmail-(\w+) pid=`).FindAllStringSubmatch(h.read(), -1) {
		if !slices.Contains(list, m[1]) {
			list = append(list, m[1])
		}
	}
	return list
}

func (h *house) said() string {
	b, err := os.ReadFile(filepath.Join(h.home, "hostile.out"))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

// put writes a file of somebody's. In privileged mode he is a user of the system.
func (h *house) put(path, owner, text string, mode fs.FileMode) {
	h.t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range []string{filepath.Dir(path), path} {
		if p == h.home {
			continue
		}
		if !h.root {
			err = errors.Join(err, h.give(p))
		} else if u, failed := user.Lookup(owner); failed == nil {
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			err = errors.Join(err, os.Chown(p, uid, gid))
		} else {
			err = errors.Join(err, failed)
		}
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// aims makes what hostile code can aim at, and the file for what it says.
func (h *house) aims() (text string) {
	h.t.Helper()
	other := filepath.Join(h.home, "mail", "bob")
	if h.root {
		other = filepath.Join(filepath.Dir(h.home), "erin")
		if out, err := exec.Command("/usr/sbin/useradd", "--no-create-home", "--home-dir", other, "erin").CombinedOutput(); err != nil {
			h.t.Fatalf("useradd: %v\n%s", err, out)
		}
	}
	h.put(filepath.Join(other, "private"), "erin", "mail\n", 0o600)
	h.put(filepath.Join(h.home, "keys", "secret.txt"), "qmailk", "key\n", 0o600)
	h.put(filepath.Join(h.home, "hostile"), "root", "", 0o644)
	h.put(filepath.Join(h.home, "hostile.out"), "root", "", 0o666)
	if err := os.Chmod(h.home, 0o755); err != nil {
		h.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ln.Close() })
	abstract := fmt.Sprintf("qmail-test-%d-%p", os.Getpid(), h)
	un, err := net.Listen("unix", "@"+abstract)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { un.Close() })
	return fmt.Sprintf("home %s\njournal %s\nother %s\nmail %s\nkey %s\npasswords %s\ncdb %s\naddress %s\nabstract %s\n",
		h.home, h.home+"/queue/journal", other, other+"/private", h.home+"/keys/secret.txt", h.home+"/users/passwd",
		h.home+"/users/cdb", ln.Addr(), abstract)
}

// takenOver runs everything with every server, has a message delivered, and then lets each role try all acts.
func (h *house) takenOver(more []string) {
	t := h.t
	t.Helper()
	listen, err := os.ReadFile(filepath.Join(h.home, "control/listen"))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"qmtp", "qmqp", "pop3"} {
		listen = fmt.Appendf(listen, "%s %s\n", kind, freeAddress(t))
	}
	h.write("control/listen", string(listen))
	h.write("control/pop3checkpassword", "/bin/false\n")
	text := h.aims()
	passwords := filepath.Join(h.home, "users/passwd")
	if err := errors.Join(os.WriteFile(passwords, []byte("# nobody\n"), 0o600), h.give(passwords)); err != nil {
		t.Fatal(err)
	}
	if h.root {
		cdb := filepath.Join(h.home, "users/cdb.other") // the accounts are those of /etc/passwd
		text = strings.Replace(text, h.home+"/users/cdb\n", cdb+"\n", 1)
		if err := errors.Join(os.Chown(passwords, 0, 0), os.WriteFile(cdb, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	who, home := "alice", filepath.Join(h.home, "mail/alice")
	if h.root {
		who, home = "dave", filepath.Join(filepath.Dir(h.home), "dave")
	}
	c, err := dial(h.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if code, _, err := c.send("someone@far.example", who+"@test.example", body("one")); code != 250 {
		t.Fatal(code, err)
	}
	h.until("mail is there", func() bool {
		found, _ := filepath.Glob(filepath.Join(home, "Maildir/new/*"))
		return len(found) == 1
	})
	segments, _ := filepath.Glob(filepath.Join(h.home, "queue/journal/*"))
	segments = slices.DeleteFunc(segments, func(path string) bool {
		info, err := os.Stat(path)
		return err != nil || !info.Mode().IsRegular()
	})
	if len(segments) == 0 {
		t.Fatal("the queue is empty")
	}
	pids := map[string]int{"local": h.worker(who)}
	for _, role := range h.roles() {
		pids[role] = h.pid(role)
	}
	text += "segment " + segments[0] + "\npids " + strconv.Itoa(h.cmd.Process.Pid)
	for _, pid := range pids {
		text += " " + strconv.Itoa(pid)
	}
	if err := os.WriteFile(filepath.Join(h.home, "hostile"), []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	delete(pids, "lspawn") // it is root, or in its place
	for role, pid := range pids {
		h.judge(role, pid, more)
	}
	for role := range granted {
		if _, ran := pids[role]; !ran && role != "authd" && role != "checkpw" {
			t.Errorf("qmail-%s did not run", role)
		}
	}
}

// worker is the qmail-local of a user.
func (h *house) worker(name string) int {
	h.t.Helper()
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		args := strings.Split(string(b), "\x00")
		if len(args) > 3 && args[0] == "qmail-local" && args[2] == name && strings.HasPrefix(args[3], filepath.Dir(h.home)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			return pid
		}
	}
	h.t.Fatalf("%s has no qmail-local", name)
	return 0
}

// judge lets one role try, and says what it should not have been able to do.
func (h *house) judge(role string, pid int, more []string) {
	t := h.t
	t.Helper()
	mine, known := granted[role]
	if !known {
		t.Errorf("nobody says what qmail-%s may do", role)
		return
	}
	if slices.Equal(mine, hisOwn) {
		mine = append(slices.Clone(mine), more...)
	}
	if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
		t.Fatalf("qmail-%s: %v", role, err)
	}
	prefix := fmt.Sprintf("qmail-%s %d ", role, pid)
	h.until("qmail-"+role+" has tried all", func() bool { return strings.Contains(h.said(), prefix+"done\n") })
	tried := 0
	for line := range strings.Lines(h.said()) {
		rest, ok := strings.CutPrefix(line, prefix+"act ")
		if !ok {
			continue
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			t.Fatal(err)
		}
		act, _ := strconv.Unquote(quoted)
		result := strings.TrimSpace(rest[len(quoted):])
		tried++
		switch {
		case result == "denied" || slices.Contains(mine, act):
		case result == "done":
			t.Errorf("qmail-%s can %s", role, act)
		case strings.HasSuffix(result, syscall.ENOSYS.Error()):
			t.Logf("qmail-%s: to %s cannot be tried: this kernel has no such call", role, act)
		default:
			t.Errorf("qmail-%s: to %s could not be tried: %s", role, act, result)
		}
	}
	if tried < 60 {
		t.Errorf("qmail-%s tried only %d acts", role, tried)
	}
}
