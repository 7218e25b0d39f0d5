//go:build amd64 || arm64

package wall

import "golang.org/x/sys/unix"

// allowed is the list of calls in groups, Runtime and Talk included. It is made for one process: it may signal itself.
func allowed(groups []Calls, pid int) []call {
	self := []when{{{arg: 0, mask: ^uint32(0), is: uint32(pid)}}}
	list := []call{
		{unix.SYS_TGKILL, self}, {unix.SYS_KILL, self},
		// Memory. Nobody makes new code.
		{unix.SYS_MMAP, noCode}, {unix.SYS_MPROTECT, noCode},
		{unix.SYS_PRCTL, []when{{{arg: 0, mask: ^uint32(0), is: unix.PR_SET_VMA}}}},
		// Threads, and nothing but threads: in the same memory, with the same files and signals, and no new namespace.
		{unix.SYS_CLONE, []when{{{arg: 0, mask: threadFlags | namespaces, is: threadFlags}}}},
		// One's own limits can be looked at.
		{unix.SYS_PRLIMIT64, []when{{{arg: 0, mask: ^uint32(0), is: 0}, {arg: 2, zero: true}}}},
		{unix.SYS_FCNTL, fcntl(unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_SETFD, unix.F_DUPFD_CLOEXEC)},
	}
	list = append(list, always(runtimeCalls, talkCalls)...)
	for _, g := range groups {
		switch g {
		case ReadFiles:
			list = append(list, always(readCalls)...)
			list = append(list, call{unix.SYS_OPENAT, []when{{{arg: 2, mask: writing, is: 0}}}})
		case ChangeFiles:
			list = append(list, always(readCalls, changeCalls)...)
		case Spill:
			list = append(list, always([]uintptr{unix.SYS_MEMFD_CREATE})...)
		case Pairs:
			list = append(list, call{unix.SYS_SOCKETPAIR, []when{{family(unix.AF_UNIX)}}})
		case Knock:
			list = append(list, call{unix.SYS_SOCKET, []when{{family(unix.AF_UNIX), {arg: 1, mask: 0xff, is: unix.SOCK_STREAM}}}})
			list = append(list, always([]uintptr{unix.SYS_CONNECT})...)
		case Interfaces:
			list = append(list, call{unix.SYS_SOCKET, []when{{family(unix.AF_NETLINK), {arg: 2, mask: ^uint32(0), is: unix.NETLINK_ROUTE}}}})
			list = append(list, always([]uintptr{unix.SYS_BIND})...)
		case TCP:
			list = append(list, call{unix.SYS_SOCKET, sockets(unix.SOCK_STREAM, unix.IPPROTO_TCP)})
			list = append(list, always(connectCalls)...)
		case UDP:
			list = append(list, call{unix.SYS_SOCKET, sockets(unix.SOCK_DGRAM, unix.IPPROTO_UDP)})
			list = append(list, always(connectCalls)...)
		}
	}
	return merge(list)
}

const (
	threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	namespaces  = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET
	// writing are the flags of openat that are not for reading alone.
	writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC | unix.O_APPEND | unix.O_TMPFILE&^unix.O_DIRECTORY
)

var (
	noCode = []when{{{arg: 2, mask: unix.PROT_EXEC, is: 0}}}

	runtimeCalls = []uintptr{
		unix.SYS_FUTEX, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_BRK,
		unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_RESTART_SYSCALL,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE, unix.SYS_UNAME,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
	}
	talkCalls = []uintptr{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV,
		unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_SENDFILE, unix.SYS_SPLICE,
		unix.SYS_ACCEPT4, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SHUTDOWN,
		unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
	}
	readCalls = []uintptr{
		unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_GETDENTS64, unix.SYS_READLINKAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2,
		unix.SYS_FSTATFS, unix.SYS_STATFS,
	}
	changeCalls = []uintptr{
		unix.SYS_OPENAT, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FLOCK,
		unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT,
		unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_UTIMENSAT, unix.SYS_COPY_FILE_RANGE, unix.SYS_SYNC_FILE_RANGE, unix.SYS_FADVISE64,
	}
	connectCalls = []uintptr{unix.SYS_CONNECT, unix.SYS_BIND}
)

func fcntl(commands ...uint32) (list []when) {
	for _, c := range commands {
		list = append(list, when{{arg: 1, mask: ^uint32(0), is: c}})
	}
	return list
}

func family(f uint32) test { return test{arg: 0, mask: ^uint32(0), is: f} }

// sockets are those of the internet, of one kind. Multipath TCP is not among them: Landlock does not know it.
func sockets(kind, protocol uint32) (list []when) {
	for _, f := range []uint32{unix.AF_INET, unix.AF_INET6} {
		for _, p := range []uint32{0, protocol} {
			list = append(list, when{family(f), {arg: 1, mask: 0xff, is: kind}, {arg: 2, mask: ^uint32(0), is: p}})
		}
	}
	return list
}

func always(lists ...[]uintptr) (calls []call) {
	for _, numbers := range lists {
		for _, n := range numbers {
			calls = append(calls, call{number: n})
		}
	}
	return calls
}

// merge leaves each call once: what is allowed always, or in any of the cases.
func merge(list []call) (merged []call) {
	at := map[uintptr]int{}
	for _, c := range list {
		i, seen := at[c.number]
		switch {
		case !seen:
			at[c.number] = len(merged)
			merged = append(merged, c)
		case len(c.cases) == 0:
			merged[i].cases = nil
		case len(merged[i].cases) > 0:
			merged[i].cases = append(merged[i].cases[:len(merged[i].cases):len(merged[i].cases)], c.cases...)
		}
	}
	return merged
}
