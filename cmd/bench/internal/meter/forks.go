package meter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Forks counts the processes that a tree starts. The kernel tells of all processes (the proc connector), to root alone.
type Forks struct {
	fd   int
	done chan struct{}

	mu    sync.Mutex
	tree  map[uint32]bool
	count int
	lost  bool
}

// The messages of linux/connector.h and linux/cn_proc.h: a netlink header, then one of the connector, then the event.
const (
	netlinkHeader   = 16
	connectorHeader = 20
	eventHeader     = 16
	procConnector   = 1 // index and value, and the order to tell
	eventFork       = 0x00000001
	eventExit       = 0x80000000
)

// Watch begins to count.
func (t Tree) Watch() (*Forks, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, fmt.Errorf("meter: proc connector: %w", err)
	}
	f := &Forks{fd: fd, done: make(chan struct{}), tree: map[uint32]bool{uint32(t): true}}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: procConnector}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		unix.Sendto(fd, listen(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("meter: proc connector: %w", err)
	}
	pids, err := t.Pids() // events are kept from before that on
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	for _, pid := range pids {
		f.tree[uint32(pid)] = true
	}
	go f.read()
	return f, nil
}

// listen is the order to tell of all processes.
func listen() []byte {
	b := make([]byte, netlinkHeader+connectorHeader+4)
	ne := binary.NativeEndian
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], unix.NLMSG_DONE)
	ne.PutUint32(b[12:], uint32(os.Getpid()))
	ne.PutUint32(b[16:], procConnector)
	ne.PutUint32(b[20:], procConnector)
	ne.PutUint16(b[32:], 4)
	ne.PutUint32(b[36:], 1) // PROC_CN_MCAST_LISTEN
	return b
}

func (f *Forks) read() {
	defer close(f.done)
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(f.fd, b)
		f.mu.Lock()
		switch {
		case f.tree == nil: // closed
			f.mu.Unlock()
			return
		case err == unix.ENOBUFS:
			f.lost = true
		case err == nil:
			f.event(b[:n])
		}
		f.mu.Unlock()
	}
}

// event takes one message. A thread is no process: its group is another's.
func (f *Forks) event(b []byte) {
	if len(b) < netlinkHeader+connectorHeader+eventHeader+16 {
		return
	}
	ne := binary.NativeEndian
	b = b[netlinkHeader+connectorHeader:]
	what, b := ne.Uint32(b), b[eventHeader:]
	switch what {
	case eventFork:
		parent, child, group := ne.Uint32(b[4:]), ne.Uint32(b[8:]), ne.Uint32(b[12:])
		if child == group && f.tree[parent] {
			f.tree[child] = true
			f.count++
		}
	case eventExit:
		if process, group := ne.Uint32(b), ne.Uint32(b[4:]); process == group {
			delete(f.tree, process)
		}
	}
}

// Count is how many there were so far; false if the kernel could not tell of all.
func (f *Forks) Count() (n int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count, !f.lost
}

// Close ends the count.
func (f *Forks) Close() {
	f.mu.Lock()
	f.tree = nil
	f.mu.Unlock()
	<-f.done
	unix.Close(f.fd)
}
