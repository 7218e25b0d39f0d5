package wall

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call that is allowed: always, or if one of the cases holds.
type call struct {
	number uintptr
	cases  []when
}

// when is a case: all of its tests hold.
type when []test

// test is about an argument: masked, it has the value. Only its lower half counts, as for the kernel where the
// argument is an int or flags; zero asks that all of a pointer is.
type test struct {
	arg  int
	mask uint32
	is   uint32
	zero bool
}

// filter puts a seccomp filter before all threads. The strictest of those that a process has counts; narrower says that
// there will be another.
func filter(groups []Calls, narrower bool, mode Mode) (lacks []string, err error) {
	arch, known := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !known {
		return []string{"seccomp (no list of calls for " + runtime.GOARCH + ")"}, nil
	}
	calls := allowed(groups, unix.Getpid())
	if narrower {
		calls = append(calls, call{number: unix.SYS_SECCOMP})
	}
	program, err := assemble(arch, calls, action(mode))
	if err != nil {
		return nil, err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL:
		return []string{"seccomp (" + errno.Error() + ")"}, nil
	case errno != 0:
		return nil, fmt.Errorf("seccomp: %w", errno)
	case thread != 0:
		return nil, fmt.Errorf("seccomp: thread %d is left out", thread)
	}
	return nil, nil
}

func action(mode Mode) uint32 {
	switch mode {
	case Log:
		return unix.SECCOMP_RET_LOG
	case Trap:
		return unix.SECCOMP_RET_TRAP
	case Refuse:
		return unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	}
	return unix.SECCOMP_RET_KILL_PROCESS
}

// Where struct seccomp_data has what, on a machine of little endian.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

func load(at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
}

func answer(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

// unless jumps over n instructions if the accumulator is not k.
func unless(k uint32, n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: uint8(n)}
}

// maxProgram is BPF_MAXINSNS.
const maxProgram = 4096

// assemble writes the filter: one block for each call, which ends in an answer. The kernel remembers for which calls
// no argument matters, and does not run it for them again.
func assemble(arch uint32, calls []call, otherwise uint32) ([]unix.SockFilter, error) {
	p := []unix.SockFilter{load(dataArch), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: arch, Jt: 1}, answer(otherwise), load(dataNumber)}
	for _, c := range calls {
		block := []unix.SockFilter{answer(unix.SECCOMP_RET_ALLOW)}
		if len(c.cases) > 0 {
			block = nil
			for _, w := range c.cases {
				block = append(block, w.assemble()...)
			}
			block = append(block, answer(otherwise))
		}
		if len(block) > 255 {
			return nil, fmt.Errorf("seccomp: too many cases of call %d", c.number)
		}
		p = append(append(p, unless(uint32(c.number), len(block))), block...)
	}
	if p = append(p, answer(otherwise)); len(p) > maxProgram {
		return nil, errors.New("seccomp: too many calls")
	}
	return p, nil
}

// assemble writes a case: it allows, or goes on behind itself.
func (w when) assemble() (p []unix.SockFilter) {
	p = []unix.SockFilter{answer(unix.SECCOMP_RET_ALLOW)}
	for _, t := range slices.Backward(w) { // from its end, since each test has to know how far that is
		at := uint32(dataArgs + 8*t.arg)
		if t.zero {
			p = append([]unix.SockFilter{load(at + 4), unless(0, len(p)+2), load(at), unless(0, len(p))}, p...)
			continue
		}
		p = append([]unix.SockFilter{load(at), {Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: t.mask}, unless(t.is, len(p))}, p...)
	}
	return p
}
