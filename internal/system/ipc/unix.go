package ipc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxFilesPerRead bounds the descriptors one read may bring; more are closed by the kernel.
const maxFilesPerRead = 4

// unixStream is a Unix stream socket.
type unixStream struct {
	*net.UnixConn
	oob []byte
}

// Unix makes a stream of a connected Unix socket.
func Unix(c *net.UnixConn) Stream {
	return &unixStream{c, make([]byte, unix.CmsgSpace(4*maxFilesPerRead))}
}

func (s *unixStream) Read(p []byte) (int, []*os.File, error) {
	n, oobn, flags, _, err := s.UnixConn.ReadMsgUnix(p, s.oob)
	if errors.Is(err, io.EOF) {
		err = io.EOF // net wraps it here, unlike in Read
	}
	if oobn == 0 || n < 0 {
		return max(n, 0), nil, err
	}
	files, ferr := parseFiles(s.oob[:oobn])
	if ferr == nil && flags&unix.MSG_CTRUNC != 0 {
		ferr = ErrFrame
	}
	if ferr != nil {
		closeAll(files)
		return n, nil, ferr
	}
	return n, files, err
}

func parseFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials and the like carry no descriptor
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (s *unixStream) Write(p []byte, f *os.File) error {
	if f != nil {
		n, _, err := s.UnixConn.WriteMsgUnix(p, unix.UnixRights(int(f.Fd())), nil)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	if len(p) == 0 {
		return nil
	}
	_, err := s.UnixConn.Write(p)
	return err
}

func (s *unixStream) SetReadDeadline(t time.Time) error { return s.UnixConn.SetReadDeadline(t) }

// Pair makes two connected sockets, ready to be given to other processes.
func Pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

// FromFile makes a connection of a Unix stream socket that another process made; f is closed.
func FromFile(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("ipc: not a Unix socket")
	}
	return New(Unix(u)), nil
}

// LocalPair makes a connected pair inside this process, for tests.
func LocalPair() (a, b *Conn, err error) {
	fa, fb, err := Pair()
	if err != nil {
		return nil, nil, err
	}
	if a, err = FromFile(fa); err != nil {
		fb.Close()
		return nil, nil, err
	}
	if b, err = FromFile(fb); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

// Peer is who is at the other end of a Unix socket, as the kernel says.
type Peer struct{ UID, GID, PID int }

// PeerOf asks the kernel for the credentials that the peer had when it connected.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if cerr != nil {
		return Peer{}, cerr
	}
	return Peer{int(cred.Uid), int(cred.Gid), int(cred.Pid)}, nil
}

// maxGroups bounds the groups that a peer may have: Linux has no more.
const maxGroups = 65536

// PeerGroups asks the kernel for the supplementary groups that the peer had when it connected.
func PeerGroups(c *net.UnixConn) ([]int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	list := make([]uint32, 32)
	for {
		size := uint32(4 * len(list))
		var errno unix.Errno
		err := raw.Control(func(fd uintptr) {
			_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		})
		switch {
		case err != nil:
			return nil, err
		case errno == unix.ERANGE && size > uint32(4*len(list)) && size <= 4*maxGroups:
			list = make([]uint32, size/4)
			continue
		case errno != 0:
			return nil, os.NewSyscallError("getsockopt", errno)
		}
		groups := make([]int, size/4)
		for i := range groups {
			groups[i] = int(list[i])
		}
		return groups, nil
	}
}

// maxPath is what sun_path holds, less its NUL.
const maxPath = 107

// Listen binds a Unix socket at path, replacing a stale one, with the given mode. Paths longer than a socket
// address are reached through their directory's descriptor.
//
// The mode comes by way of the umask, which belongs to the whole process, so nothing else may create files at
// that time. A chmod afterwards would follow a symbolic link that the owner of the directory, whom the
// caller need not trust, has put in the socket's place.
func Listen(path string, mode os.FileMode) (*net.UnixListener, error) {
	short, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	old := unix.Umask(int(0o777 &^ mode.Perm()))
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	return ln, nil
}

// Dial connects to the Unix socket at path.
func Dial(path string, timeout time.Duration) (*net.UnixConn, error) {
	short, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := net.DialTimeout("unix", short, timeout)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

func shorten(path string) (short string, done func(), err error) {
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)), func() { unix.Close(fd) }, nil
}
