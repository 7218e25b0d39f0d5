package serve

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/env"
)

// Stdio is the connection of a program that serves one: descriptors 0 and 1, as tcpserver, inetd and systemd give
// them, or descriptor 3 where systemd's LISTEN_FDS says so (sd_listen_fds(3)) and descriptor 0 is no socket.
//
// Deadlines hold for sockets and pipes. Other files, terminals among them, are read without any.
type Stdio struct {
	// Remote and Local are the ends of the connection; not valid where the kernel knows no addresses.
	Remote, Local netip.AddrPort
	// Stderr is the program's, unless inetd made that the connection, too.
	Stderr io.Writer

	in, out stream
	restore []int // descriptors that were made non-blocking
}

// stream is one direction, or both.
type stream interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

var errNoOutput = errors.New("there is nothing to write replies to")

// systemdFD is where systemd's descriptors begin.
const systemdFD = 3

// NewStdio takes the connection of a program's world. Close comes when it is served.
func NewStdio(e *env.Env) (*Stdio, error) {
	c := &Stdio{Stderr: e.Stderr}
	in, out := e.Stdin, e.Stdout
	if given := listenFD(e); given != nil && !isSocket(in) {
		in, out = given, given
	}
	output, ok := out.(*os.File)
	if !ok {
		return nil, errNoOutput
	}
	var err error
	if c.in, err = c.open(in); err != nil {
		return nil, err
	}
	if c.out = c.in; !sameFile(in, output) {
		if c.out, err = c.open(output); err != nil {
			c.Close()
			return nil, err
		}
	}
	if conn, ok := c.in.(net.Conn); ok {
		c.Remote, c.Local = addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr())
	}
	if f, ok := e.Stderr.(*os.File); ok && sameFile(f, in) {
		c.Stderr = io.Discard
	}
	return c, nil
}

// listenFD is the connection that systemd passed, or nil.
func listenFD(e *env.Env) *os.File {
	if e.Get("LISTEN_FDS") != "1" || e.Get("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	unix.CloseOnExec(systemdFD)
	return os.NewFile(systemdFD, "connection")
}

// stat looks at a file without putting it into blocking mode, as Fd would.
func stat(f *os.File) (st unix.Stat_t, ok bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return st, false
	}
	failed := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
	return st, err == nil && failed == nil
}

func isSocket(f *os.File) bool {
	st, ok := stat(f)
	return ok && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

func sameFile(a, b *os.File) bool {
	x, ok1 := stat(a)
	y, ok2 := stat(b)
	return ok1 && ok2 && x.Dev == y.Dev && x.Ino == y.Ino && x.Mode&unix.S_IFMT == y.Mode&unix.S_IFMT
}

// open makes a stream of a file, which stays open. Each gets a descriptor of its own: writing to descriptor 1
// when nobody reads any more would end a Go program.
func (c *Stdio) open(f *os.File) (stream, error) {
	st, ok := stat(f)
	if !ok {
		return nil, os.ErrInvalid
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return net.FileConn(f)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if failed := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, systemdFD) }); failed != nil || err != nil {
		return nil, errors.Join(failed, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return untimed{os.NewFile(uintptr(fd), f.Name())}, nil
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK == 0 && unix.SetNonblock(fd, true) == nil {
		c.restore = append(c.restore, fd) // the other end of a pipe does not see it, but who shares ours does
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// untimed is a file that is always ready, or whose reader has no patience with ours.
type untimed struct{ *os.File }

func (untimed) SetReadDeadline(time.Time) error  { return nil }
func (untimed) SetWriteDeadline(time.Time) error { return nil }

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

func (c *Stdio) Read(p []byte) (int, error)         { return c.in.Read(p) }
func (c *Stdio) Write(p []byte) (int, error)        { return c.out.Write(p) }
func (c *Stdio) SetReadDeadline(t time.Time) error  { return c.in.SetReadDeadline(t) }
func (c *Stdio) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }

// CloseWrite ends our side of a socket.
func (c *Stdio) CloseWrite() error {
	if half, ok := c.out.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close lets go of the connection.
func (c *Stdio) Close() error {
	for _, fd := range c.restore {
		unix.SetNonblock(fd, false)
	}
	var err error
	if c.out != nil && c.out != c.in {
		err = c.out.Close()
	}
	return errors.Join(c.in.Close(), err)
}
