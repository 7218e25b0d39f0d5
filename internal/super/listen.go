package super

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/ipc"
)

// socket is a listening socket; its file is all that keeps it.
type socket struct {
	service, address string
	file             *os.File
}

// dup returns the socket with a file of its own.
func (k socket) dup() (socket, error) {
	fd, err := unix.FcntlInt(k.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return socket{}, os.NewSyscallError("dup", err)
	}
	k.file = os.NewFile(uintptr(fd), k.file.Name())
	return k, nil
}

// listeners are the sockets of control/listen, and the queue's doors.
type listeners struct {
	home     string
	classic  bool // without control/listen there is nothing to listen to
	services []string
	names    []string // of doors
	log      *slog.Logger
	doors    []socket
	sockets  []socket
	left     map[string]*os.File // by the qmail-start before us, by service and address
}

func servicesOf(table []process) (all []string) {
	for _, p := range table {
		all = append(all, p.services...)
	}
	return all
}

// doorPath is where a door is. Those who knock know it as enqueue.SocketPath and admin.SocketPath, which a test
// compares; those packages are not for root.
func doorPath(home, name string) string { return filepath.Join(home, "queue", name) }

func doorsOf(table []process) (all []string) {
	for _, p := range table {
		all = append(all, p.doors...)
	}
	return all
}

// leftover is how long the start waits for sockets that are in use. The roles of a supervisor that was killed die
// with it, but not in the same moment.
const leftover = 3 * time.Second

func (l *listeners) open() error {
	deadline := time.Now().Add(leftover)
	for _, name := range l.names {
		if err := l.openDoor(name, deadline); err != nil {
			return err
		}
	}
	wanted, err := l.read()
	if err != nil {
		return err
	}
	_, err = l.change(wanted)
	for errors.Is(err, unix.EADDRINUSE) && time.Now().Before(deadline) {
		time.Sleep(leftover / 100)
		_, err = l.change(wanted)
	}
	l.disown()
	return err
}

// openDoor binds a Unix socket that everybody on this machine may knock at: who may do what there is for the role
// behind it to say.
func (l *listeners) openDoor(name string, deadline time.Time) error {
	path := doorPath(l.home, name)
	if f := l.take(name); f != nil {
		l.doors = append(l.doors, socket{service: name, file: f})
		return nil
	}
	for answers(path) && time.Now().Before(deadline) { // another qmail-send still has the queue
		time.Sleep(leftover / 100)
	}
	door, err := ipc.Listen(path, 0o666)
	if err != nil {
		return err
	}
	file, err := door.File()
	door.Close()
	if err == nil {
		l.doors = append(l.doors, socket{service: name, file: file})
	}
	return err
}

// answers reports whether somebody listens on a Unix socket.
func answers(path string) bool {
	c, err := ipc.Dial(path, leftover/100)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
}

func (l *listeners) close() {
	for _, k := range append(l.doors, l.sockets...) {
		k.file.Close()
	}
}

func (l *listeners) of(p process) (list []socket, err error) {
	for _, k := range append(l.doors[:len(l.doors):len(l.doors)], l.sockets...) {
		if k.address == "" && !names(p.doors, k.service) || k.address != "" && !names(p.services, k.service) {
			continue
		}
		if k, err = k.dup(); err != nil {
			for _, k := range list {
				k.file.Close()
			}
			return nil, err
		}
		list = append(list, k)
	}
	return list, nil
}

func (l *listeners) wanted(p process) bool {
	if len(p.files) > 0 && !slices.ContainsFunc(p.files, l.has) {
		return false
	}
	for _, k := range l.sockets {
		if names(p.services, k.service) {
			return true
		}
	}
	return len(p.services) == 0
}

// has reports whether there is a file below the home.
func (l *listeners) has(name string) bool {
	_, err := os.Lstat(filepath.Join(l.home, name))
	return err == nil
}

func (l *listeners) reload() ([]socket, error) {
	wanted, err := l.read()
	if err != nil {
		return nil, err
	}
	return l.change(wanted)
}

// change binds what is new, and only if all of that is possible closes what is no longer wanted. It returns
// the new ones.
func (l *listeners) change(wanted []socket) (added []socket, err error) {
	var keep, drop []socket
	for _, k := range l.sockets {
		if find(wanted, k) {
			keep = append(keep, k)
		} else {
			drop = append(drop, k)
		}
	}
	for _, k := range wanted {
		if find(keep, k) {
			continue
		}
		if k.file = l.take(k.service + " " + k.address); k.file == nil {
			k.file, err = bind(k.address)
		}
		if err != nil {
			for _, k := range added {
				k.file.Close()
			}
			return nil, fmt.Errorf("%s: %w", k.service, err)
		}
		added = append(added, k)
	}
	for _, k := range drop {
		// The role has a descriptor of its own; this ends the socket for both.
		if err := unix.Shutdown(int(k.file.Fd()), unix.SHUT_RDWR); err != nil {
			l.log.Warn("unable to close a socket", "address", k.address, "err", err)
		}
		k.file.Close()
		l.log.Info("no longer listening", "service", k.service, "address", k.address)
	}
	for _, k := range added {
		l.log.Info("listening", "service", k.service, "address", k.address)
	}
	l.sockets = append(keep, added...)
	return added, nil
}

func find(list []socket, k socket) bool {
	for _, other := range list {
		if other.service == k.service && other.address == k.address {
			return true
		}
	}
	return false
}

// bind opens a listening TCP socket. Multipath TCP is left out: it escapes the confinement of the roles.
func bind(address string) (*os.File, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	ln, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	return ln.(*net.TCPListener).File()
}

// maxListen bounds control/listen, in bytes.
const maxListen = 64 << 10

// read reads control/listen of our home.
func (l *listeners) read() ([]socket, error) {
	if l.classic {
		if _, err := os.Stat(filepath.Join(l.home, "control", "listen")); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	return readListen(l.home, l.services)
}

// readListen reads control/listen: lines "SERVICE ADDRESS:PORT", empty ones and those that begin with # left
// out. The address is a number or nothing, for any; names are not looked up here.
func readListen(home string, services []string) ([]socket, error) {
	path := filepath.Join(home, "control", "listen")
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return []socket{{service: "smtp", address: ":25"}}, nil
	}
	if err != nil {
		return nil, err
	}
	var list []socket
	for i, line := range bytes.Split(b, []byte("\n")) {
		text := strings.TrimRight(string(line), " \t\r")
		if text == "" || text[0] == '#' {
			continue
		}
		k, err := parseListen(text, services)
		if err == nil && find(list, k) {
			err = errors.New("the same socket twice")
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		list = append(list, k)
	}
	return list, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxListen+1))
	if err == nil && len(b) > maxListen {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxListen)
	}
	return b, err
}

func parseListen(line string, services []string) (socket, error) {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return socket{}, fmt.Errorf("not of the form SERVICE ADDRESS:PORT: %q", line)
	}
	k := socket{service: fields[0], address: fields[1]}
	if !names(services, k.service) {
		return socket{}, fmt.Errorf("unknown service %q (there are: %s)", k.service, strings.Join(services, " "))
	}
	host, port, err := net.SplitHostPort(k.address)
	if err != nil {
		return socket{}, fmt.Errorf("malformed address %q", k.address)
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return socket{}, fmt.Errorf("malformed address %q: not an IP address", k.address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return socket{}, fmt.Errorf("malformed address %q: not a port number", k.address)
	}
	return k, nil
}
