// Package wall locks a process in: from then on it can do what its work needs, and whoever takes it over can do no
// more than that.
//
// What goes in is a Rights, once, before the first byte from outside; what comes out is a list of what this kernel
// lacks. The walls are no_new_privs, Landlock (files, TCP ports, signals and abstract sockets), a seccomp filter that
// kills, resource limits, no capabilities, and a process that nobody else may look into. None of them can be taken
// down again, and all threads are behind them. See landlock(7), seccomp(2), capabilities(7).
package wall

import (
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights are what a process may do. The zero value may compute, and use the descriptors it has.
type Rights struct {
	// Read are files and directories that it may read, with all that is below them. What is not there is left out.
	Read []string
	// Write are directories in which it may read, make, change, rename and remove files. Directories may be made there,
	// sockets and devices may not.
	Write []string
	// Knock are sockets in the file system that it may connect to, if its calls let it; kernels before version 9 of
	// Landlock do not ask.
	Knock []string
	// Calls are the groups of system calls that it needs besides Runtime and Talk.
	Calls []Calls
	// Start are groups that it needs besides until it says, with Narrow, that it has begun.
	Start []Calls
	// Connect are the TCP ports that it may connect to, if its calls let it have a socket at all.
	Connect []uint16
	// Memory bounds what it may have mapped to write to, in bytes. Zero is no bound. Half of it is what the garbage
	// collector is told to keep to.
	Memory int64

	// Programs says that it runs programs that are not ours, with rights that are not ours to take: they may be setuid.
	// Then there are no no_new_privs and no filter, since both would be theirs too, and none of what needs them.
	Programs bool
	// Keep are the capabilities of a process that is root. One that is not has none.
	Keep []uint
	// Except, for a process with Programs whose user does not keep it from them, are files and directories that it shall
	// not open although it may open all others; those of ReadOnly it may read. It costs the programs what setuid would give
	// them.
	Except, ReadOnly []string
}

// Mode says what becomes of a forbidden system call.
type Mode string

const (
	// Kill ends the process. It is what everybody uses.
	Kill Mode = ""
	// Log lets it happen; the kernel's log has it.
	Log Mode = "log"
	// Trap ends the process with the Go runtime's report, which says where the call is.
	Trap Mode = "trap"
	// Refuse fails it with EPERM, so that a test can try one after the other.
	Refuse Mode = "refuse"
	// Off builds no walls at all.
	Off Mode = "off"
)

// Enter builds the walls around this process. lacks names what this kernel does not have; an error means that
// something else went wrong, and that the process must not go on.
func Enter(r Rights, mode Mode) (lacks []string, err error) {
	switch mode {
	case Off:
		return []string{"all walls (turned off)"}, nil
	case Kill, Log, Trap, Refuse:
	default:
		return nil, fmt.Errorf("there is no mode of walls %q", mode)
	}
	if withC {
		return []string{"all walls (built with cgo)"}, nil
	}
	_, _ = time.Unix(0, 0).Zone() // the time zone's file is read now: later there may be no right to
	if err := r.limits(); err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	if err := dropCapabilities(r.Keep); err != nil {
		return nil, err
	}
	if r.Programs && len(r.Except)+len(r.ReadOnly) == 0 {
		return nil, nil
	}
	if err := everywhere(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return nil, fmt.Errorf("no_new_privs: %w", err)
	}
	lacks, err = r.landlock()
	if err != nil || r.Programs {
		return lacks, err
	}
	missing, err := filter(append(r.Start[:len(r.Start):len(r.Start)], r.Calls...), len(r.Start) > 0, mode)
	return append(lacks, missing...), err
}

// Narrow ends the beginning: what only Start allowed is forbidden from now on.
func Narrow(r Rights, mode Mode) error {
	if withC || mode == Off || r.Programs || len(r.Start) == 0 {
		return nil
	}
	_, err := filter(r.Calls, false, mode) // a kernel without filters has been named by Enter
	return err
}

// everywhere makes a system call in all threads.
func everywhere(call, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(call, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// limits sets the resource limits. Programs of others get no dumps of their memory either, but may ask for them.
func (r Rights) limits() error {
	core := unix.Rlimit{}
	if r.Programs {
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		core.Cur = 0
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	if r.Memory <= 0 || r.Programs {
		return nil
	}
	debug.SetMemoryLimit(r.Memory / 2)
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: uint64(r.Memory), Max: uint64(r.Memory)}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	return nil
}

// dropCapabilities leaves only those to keep, in all threads. Ambient ones go with the permitted ones. What a
// program of another user's may gain by executing a setuid file stays as it was.
func dropCapabilities(keep []uint) error {
	var bits uint64
	for _, c := range keep {
		bits |= 1 << c
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(header, &have[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	bits &= uint64(have[0].Permitted) | uint64(have[1].Permitted)<<32
	data := &[2]unix.CapUserData{
		{Effective: uint32(bits), Permitted: uint32(bits)},
		{Effective: uint32(bits >> 32), Permitted: uint32(bits >> 32)},
	}
	if err := everywhere(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
