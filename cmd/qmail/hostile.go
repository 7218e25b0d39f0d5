//go:build hostile

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"qmail/internal/system/env"
)

// hostile lets a role run hostile code in its own process, as if whoever talks to it had taken it over: on SIGUSR2 it tries
// all acts, and on SIGUSR1 it makes a system call that no role needs. Only a build with the tag "hostile" does so, for
// TestARoleThatIsTakenOver.
//
// What to aim at stands in the file hostile of the home, a "name value" per line; what came of it is written to the
// file hostile.out. Both are opened now, before there are walls.
func hostile(name string, e *env.Env) {
	aims, err := os.Open(filepath.Join(e.Home, "hostile"))
	if err != nil {
		return
	}
	out, err := os.OpenFile(filepath.Join(e.Home, "hostile.out"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		aims.Close()
		return
	}
	orders := make(chan os.Signal, 2)
	signal.Notify(orders, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for order := range orders {
			if order == unix.SIGUSR1 {
				_ = unix.Chroot("/")
				fmt.Fprintf(out, "%s %d lives\n", name, os.Getpid())
				continue
			}
			t := readAims(aims)
			for _, a := range acts {
				fmt.Fprintf(out, "%s %d act %q %s\n", name, os.Getpid(), a.name, outcome(a.try(t)))
			}
			fmt.Fprintf(out, "%s %d done\n", name, os.Getpid())
		}
	}()
}

// target is what acts aim at.
type target map[string]string

func readAims(f *os.File) target {
	t := target{}
	lines := bufio.NewScanner(io.NewSectionReader(f, 0, 1<<20))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		t[name] = value
	}
	return t
}

// others are the processes of the other roles.
func (t target) others() (list []int) {
	for _, s := range strings.Fields(t["pids"]) {
		if pid, err := strconv.Atoi(s); err == nil && pid > 1 && pid != os.Getpid() {
			list = append(list, pid)
		}
	}
	return list
}

// outcome is one word: that it was done, that it was denied, or why it could not be tried.
func outcome(err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "denied"
	}
	return "untried: " + err.Error()
}

var errNobody = errors.New("there is nobody else")

// anyOf tries an act on every other process; one that works is enough.
func anyOf(t target, try func(pid int) error) error {
	last := error(errNobody)
	for _, pid := range t.others() {
		err := try(pid)
		if err == nil {
			return nil
		}
		if last == errNobody || outcome(err) != "denied" {
			last = err
		}
	}
	return last
}

func opened(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// made makes a file, and if that works takes it away.
func made(dir string) error {
	path := filepath.Join(dir, "hostile."+strconv.Itoa(os.Getpid()))
	err := opened(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err == nil {
		_ = os.Remove(path)
	}
	return err
}

func raw(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func madeSocket(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func connected(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: n}
	copy(to.Addr[:], net.ParseIP(host).To4())
	return unix.Connect(fd, to)
}

// listened opens a server's socket.
func listened(family int, kind int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(fd, to); err != nil {
		return err
	}
	return unix.Listen(fd, 1)
}

func knocked(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

func procFile(name string, flags int) func(target) error {
	return func(t target) error {
		return anyOf(t, func(pid int) error { return opened(fmt.Sprintf("/proc/%d/%s", pid, name), flags) })
	}
}

// stolen takes a descriptor of another process: its log.
func stolen(pid int) error {
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(p)
	fd, err := unix.PidfdGetfd(p, 2, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func signalled(pid int) error {
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.EPERM) {
		return err
	}
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(p)
	return unix.PidfdSendSignal(p, 0, nil, 0)
}

func peeked(pid int) error {
	var b [8]byte
	local := unix.Iovec{Base: &b[0], Len: 8}
	remote := unix.RemoteIovec{Base: 0x400000, Len: 8}
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	return err
}

// forged makes memory that can be written and executed.
func forged(target) error {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err == nil {
		_ = unix.Munmap(b)
	}
	return err
}

func raised(what int) func(target) error {
	return func(target) error {
		var l unix.Rlimit
		if err := unix.Getrlimit(what, &l); err != nil {
			return err
		}
		l.Cur, l.Max = unix.RLIM_INFINITY, unix.RLIM_INFINITY
		return unix.Setrlimit(what, &l)
	}
}

func file(name string, flags int) func(target) error {
	return func(t target) error { return opened(t[name], flags) }
}

func calls(number uintptr, args ...uintptr) func(target) error {
	return func(target) error { return raw(number, args...) }
}

func socket(family, kind, protocol int) func(target) error {
	return func(target) error { return madeSocket(family, kind, protocol) }
}

// zeros is for system calls that want a structure, and words for those that want a path.
var (
	zeros = make([]byte, 256)
	words = []byte("/\x00/nonexistent\x00")
)

func nothing() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(zeros))) }

func root() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(words))) }

func nowhere() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(words[2:]))) }

// acts are what somebody would try who has taken over a role. An act is harmless where it works.
var acts = []struct {
	name string
	try  func(target) error
}{
	{"list the queue", func(t target) error { return opened(t["journal"], unix.O_RDONLY|unix.O_DIRECTORY) }},
	{"read the queue", func(t target) error { return opened(t["segment"], unix.O_RDONLY) }},
	{"change the queue", func(t target) error { return opened(t["segment"], unix.O_WRONLY) }},
	{"add to the queue's directory", func(t target) error { return made(t["journal"]) }},
	{"take the supervisor's lock", func(t target) error { return opened(t["home"]+"/queue/start.lock", unix.O_RDWR) }},
	{"read a private key", file("key", unix.O_RDONLY)},
	{"change a private key", file("key", unix.O_WRONLY)},
	{"read the passwords", file("passwords", unix.O_RDONLY)},
	{"change the accounts", file("cdb", unix.O_WRONLY)},
	{"change a setting", func(t target) error { return opened(t["home"]+"/control/me", unix.O_WRONLY) }},
	{"make a setting", func(t target) error { return made(t["home"] + "/control") }},
	{"make a file in the home", func(t target) error { return made(t["home"]) }},
	{"replace the queue", func(t target) error { return unix.Rename(t["home"]+"/queue", t["home"]+"/queue.old") }},
	{"read another user's mail", file("mail", unix.O_RDONLY)},
	{"list another user's home", file("other", unix.O_RDONLY|unix.O_DIRECTORY)},
	{"make a file in another user's home", func(t target) error { return made(t["other"]) }},
	{"change /etc/passwd", func(target) error { return opened("/etc/passwd", unix.O_WRONLY) }},
	{"read /etc/shadow", func(target) error { return opened("/etc/shadow", unix.O_RDONLY) }},
	{"read /etc/hostname", func(target) error { return opened("/etc/hostname", unix.O_RDONLY) }},
	{"make a file in /tmp", func(target) error { return made("/tmp") }},
	{"list the root", func(target) error { return opened("/", unix.O_RDONLY|unix.O_DIRECTORY) }},

	{"connect to a port of no business of ours", func(t target) error { return connected(t["address"]) }},
	{"connect to the queue's door", func(t target) error { return knocked(t["home"] + "/queue/enqueue") }},
	{"connect to a socket without a file", func(t target) error { return knocked("@" + t["abstract"]) }},
	{"listen on a port", func(target) error { return listened(unix.AF_INET, unix.SOCK_STREAM) }},
	{"make a TCP socket", socket(unix.AF_INET, unix.SOCK_STREAM, 0)},
	{"make a UDP socket", socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)},
	{"make a Unix socket", socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)},
	{"make a netlink socket", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)},
	{"make a multipath TCP socket", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)},
	{"make a raw socket", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
	{"make a packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW, 0)},
	{"make a socket of the kernel's ciphers", socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)},
	{"make a socket to the hypervisor", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},

	{"signal another role", func(t target) error { return anyOf(t, signalled) }},
	{"trace another role", func(t target) error {
		return anyOf(t, func(pid int) error { return raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0) })
	}},
	{"read another role's memory", procFile("mem", unix.O_RDONLY)},
	{"write another role's memory", procFile("mem", unix.O_WRONLY)},
	{"read another role's environment", procFile("environ", unix.O_RDONLY)},
	{"see another role's memory map", procFile("maps", unix.O_RDONLY)},
	{"reach into another role", func(t target) error { return anyOf(t, peeked) }},
	{"open another role's descriptor", procFile("fd/1", unix.O_WRONLY)},
	{"take another role's descriptor", func(t target) error { return anyOf(t, stolen) }},
	{"change another role's limits", func(t target) error {
		return anyOf(t, func(pid int) error {
			var l unix.Rlimit
			return unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l)
		})
	}},

	{"run a program", func(target) error { return exec.Command("/bin/true").Run() }},
	{"become another program", calls(unix.SYS_EXECVE, nowhere(), 0, 0)},
	{"make a process in a namespace of its own", calls(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWPID|unix.CLONE_PARENT_SETTID|unix.CLONE_SIGHAND)},
	{"make code", forged},
	{"run a file of memory", func(target) error { _, err := unix.MemfdCreate("x", 0); return err }},
	{"become root", calls(unix.SYS_SETUID, 0)},
	{"become another user", func(target) error { return unix.Setresuid(7790, 7790, 7790) }},
	{"take groups", calls(unix.SYS_SETGROUPS, 0, 0)},
	{"gain capabilities", func(target) error {
		h := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		d := &[2]unix.CapUserData{{Effective: 1, Permitted: 1}}
		return unix.Capset(h, &d[0])
	}},
	{"raise the limit of descriptors", raised(unix.RLIMIT_NOFILE)},
	{"raise the limit of dumps", raised(unix.RLIMIT_CORE)},
	{"be looked into", func(target) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }},

	{"mount", func(target) error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") }},
	{"make a namespace of users", calls(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)},
	{"make a namespace of mounts", calls(unix.SYS_UNSHARE, unix.CLONE_NEWNS)},
	{"change the root", calls(unix.SYS_CHROOT, root())},
	{"use io_uring", calls(unix.SYS_IO_URING_SETUP, 1, nothing())},
	{"load BPF", calls(unix.SYS_BPF, 0, nothing(), 72)},
	{"open a kernel's key ring", calls(unix.SYS_KEYCTL, 0, ^uintptr(2), 1)}, // KEYCTL_GET_KEYRING_ID, the session's
	{"use userfaultfd", calls(unix.SYS_USERFAULTFD, unix.O_CLOEXEC)},
	{"watch performance", calls(unix.SYS_PERF_EVENT_OPEN, nothing(), 0, ^uintptr(0), ^uintptr(0))},
	{"set the clock", func(target) error {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	}},
	{"make a device", func(t target) error { return unix.Mknod("/tmp/hostile.null", unix.S_IFCHR|0o600, 0x103) }},
	{"open a file by its number", calls(unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(99), nothing(), 0)},
	{"load a module", calls(unix.SYS_INIT_MODULE, nothing(), 0, nothing())},
	{"read the kernel's log", calls(unix.SYS_SYSLOG, 2, nothing(), 1)},
}
