// Package poll runs many non-blocking sockets on one thread with epoll(7).
//
// The load generator and the sink share two cores with the server they measure, so what they cost is taken from
// it. One thread that reads only sockets known to be ready makes no failed read, wakes no other thread and
// switches no goroutine; that is why this is not one goroutine per session.
package poll

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Source is one socket of a loop. Ready is called on the thread of the loop whenever the socket has something to
// read, can be written (if that was asked for), or has failed; Tick is called about once a second.
type Source interface {
	Ready()
	Tick(now time.Time)
}

// Loop is a set of sources. All methods but Wake belong to the goroutine that calls Run.
type Loop struct {
	fd, wake int
	sources  map[int]Source
	events   [256]unix.EpollEvent
	swept    time.Time
}

// New opens a loop.
func New() (*Loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &Loop{fd: fd, wake: wake, sources: map[int]Source{}}
	if err := l.Add(wake, nil); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Add watches a socket for reading.
func (l *Loop) Add(fd int, s Source) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}
	if err := unix.EpollCtl(l.fd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	l.sources[fd] = s
	return nil
}

// Want also watches for room to write, or no longer does.
func (l *Loop) Want(fd int, write bool) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}
	if write {
		ev.Events |= unix.EPOLLOUT
	}
	return unix.EpollCtl(l.fd, unix.EPOLL_CTL_MOD, fd, &ev)
}

// Drop closes a socket and forgets it.
func (l *Loop) Drop(fd int) {
	delete(l.sources, fd)
	unix.Close(fd)
}

// Wake makes Run look at its condition again. It may be called from any goroutine.
func (l *Loop) Wake() { unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Run serves the sources until done says so or ctx ends; done is asked after each round of events.
func (l *Loop) Run(ctx context.Context, done func() bool) error {
	defer context.AfterFunc(ctx, l.Wake)()
	for !done() {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := l.round(); err != nil {
			return err
		}
	}
	return nil
}

// round waits for events, at most a second, and hands them out.
func (l *Loop) round() error {
	n, err := unix.EpollWait(l.fd, l.events[:], 1000)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("epoll: %w", err)
	}
	for _, ev := range l.events[:max(n, 0)] {
		if int(ev.Fd) == l.wake {
			unix.Read(l.wake, make([]byte, 8))
			continue
		}
		// A source dropped earlier in this round is no longer in the map.
		if s := l.sources[int(ev.Fd)]; s != nil {
			s.Ready()
		}
	}
	if now := time.Now(); now.Sub(l.swept) >= time.Second {
		l.swept = now
		for _, s := range l.sources {
			if s != nil {
				s.Tick(now)
			}
		}
	}
	return nil
}

// Close closes the loop and every socket left in it.
func (l *Loop) Close() {
	for fd := range l.sources {
		unix.Close(fd)
	}
	clear(l.sources)
	unix.Close(l.fd)
}

// Connect begins a connection. The socket becomes writable, or fails, when the outcome is known.
func Connect(to netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(family(to), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	// A command line sent in two writes must not wait for an acknowledgement.
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %v: %w", to, err)
	}
	return fd, nil
}

// Listen opens a listening socket and says where it listens, which tells the port when 0 was asked for.
func Listen(at netip.AddrPort) (fd int, got netip.AddrPort, err error) {
	fd, err = unix.Socket(family(at), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, got, fmt.Errorf("socket: %w", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err = unix.Bind(fd, sockaddr(at)); err == nil {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		unix.Close(fd)
		return -1, got, fmt.Errorf("listen on %v: %w", at, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return -1, got, fmt.Errorf("getsockname: %w", err)
	}
	return fd, addrPort(name), nil
}

// Accept takes one waiting connection; ok is false when there is none.
func Accept(listener int) (fd int, ok bool, err error) {
	fd, _, err = unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch {
	case err == nil:
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		return fd, true, nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		return -1, false, nil
	}
	return -1, false, fmt.Errorf("accept: %w", err)
}

// Failure is what the kernel holds against a socket, such as a refused connection.
func Failure(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if n != 0 {
		return unix.Errno(n)
	}
	return nil
}

// Read reads once. Nothing to read now is 0 and no error; the end of the stream is eof.
func Read(fd int, b []byte) (n int, eof bool, err error) {
	n, err = unix.Read(fd, b)
	switch {
	case err == nil:
		return n, n == 0, nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0, false, nil
	}
	return 0, false, err
}

// Write writes once and says how much went; no room now is 0 and no error.
func Write(fd int, b []byte) (n int, err error) {
	n, err = unix.Write(fd, b)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return 0, nil
	}
	return max(n, 0), err
}

func family(a netip.AddrPort) int {
	if a.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return netip.AddrPort{}
}
