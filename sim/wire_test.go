package sim

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how much a connection holds for a reader who is slow, in bytes.
const window = 256 << 10

// half is one direction of a connection.
type half struct {
	mu       sync.Mutex
	changed  sync.Cond
	buf      []byte
	flying   [][]byte // nil is the end
	left     int64    // what may still be written before the end that the plan has for the connection; negative for any
	silent   bool     // that end is silence: what is written is lost, and nobody is told
	lost     bool     // it has come
	written  int64    // ever
	taken    int64    // and read
	eof      bool
	broken   error // for the reader, once what has come is read
	closed   bool  // by the reader
	deadline [2]deadline
	watch    []watcher
}

const (
	reader = 0
	writer = 1
)

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d deadline) past() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// watcher is told when the reader has taken so many bytes.
type watcher struct {
	at   int64
	seen func()
}

func newHalf() *half {
	h := &half{left: -1}
	h.changed.L = &h.mu
	return h
}

func (h *half) setDeadline(who int, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := &h.deadline[who]
	d.at = t
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), h.changed.Broadcast)
	}
	h.changed.Broadcast()
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.closed:
			return 0, net.ErrClosed
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.taken += int64(n)
			for len(h.watch) > 0 && h.watch[0].at <= h.taken {
				h.watch[0].seen()
				h.watch = h.watch[1:]
			}
			h.changed.Broadcast()
			return n, nil
		case h.broken != nil:
			return 0, h.broken
		case h.eof:
			return 0, io.EOF
		case h.deadline[reader].past():
			return 0, os.ErrDeadlineExceeded
		}
		h.changed.Wait()
	}
}

// write takes bytes. What is left of them when the connection meets its end is lost.
func (h *half) write(p []byte, latency time.Duration, arrive func()) (met bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		switch {
		case h.lost:
			return false, nil
		case h.closed || h.broken != nil:
			return false, syscall.EPIPE
		case h.written-h.taken < window:
			n := min(len(p), int(window-(h.written-h.taken)))
			if h.left >= 0 && int64(n) > h.left {
				n, h.lost = int(h.left), true
			}
			h.put(p[:n], latency, arrive)
			p = p[n:]
			if h.lost {
				return true, nil
			}
			continue
		case h.deadline[writer].past():
			return false, os.ErrDeadlineExceeded
		}
		h.changed.Wait()
	}
	return false, nil
}

func (h *half) put(p []byte, latency time.Duration, arrive func()) {
	h.written += int64(len(p))
	if h.left >= 0 {
		h.left -= int64(len(p))
	}
	if latency == 0 && len(h.flying) == 0 {
		h.buf = append(h.buf, p...)
		h.changed.Broadcast()
		return
	}
	h.flying = append(h.flying, append(make([]byte, 0, len(p)), p...))
	time.AfterFunc(latency, arrive)
}

// land moves what flew longest to the reader.
func (h *half) land() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.flying) == 0 {
		return
	}
	p := h.flying[0]
	h.flying = h.flying[1:]
	if p == nil {
		h.eof = true
	}
	h.buf = append(h.buf, p...)
	h.changed.Broadcast()
}

// fin says that no more comes, after what flies already.
func (h *half) fin(latency time.Duration, arrive func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost {
		return
	}
	if latency == 0 && len(h.flying) == 0 {
		h.eof = true
		h.changed.Broadcast()
		return
	}
	h.flying = append(h.flying, nil)
	time.AfterFunc(latency, arrive)
}

// fail ends a direction for its reader; what has not arrived never will.
func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken == nil {
		h.broken, h.flying = err, nil
	}
	h.changed.Broadcast()
}

// shut is the reader's close.
func (h *half) shut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed, h.buf = true, nil
	for i := range h.deadline {
		if t := h.deadline[i].timer; t != nil {
			t.Stop()
		}
	}
	h.changed.Broadcast()
}

// silence loses all that is written from now on.
func (h *half) silence() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost = true
	h.changed.Broadcast()
}

// whenTaken calls seen once the reader has taken all that has been written so far.
func (h *half) whenTaken(seen func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost || h.broken != nil {
		return
	}
	if h.taken >= h.written {
		seen()
		return
	}
	h.watch = append(h.watch, watcher{h.written, seen})
}

// end is one end of a connection.
type end struct {
	in, out       *half
	local, remote net.Addr
	latency       time.Duration
	path          func() time.Duration // how much longer the way is blocked; nil if it never is

	mu      sync.Mutex
	closed  bool
	onClose func()
}

// wire makes a connection; the first end is the client's.
func wire(client, server net.Addr, latency time.Duration, path func() time.Duration) (a, b *end) {
	up, down := newHalf(), newHalf()
	a = &end{in: down, out: up, local: client, remote: server, latency: latency, path: path}
	b = &end{in: up, out: down, local: server, remote: client, latency: latency, path: path}
	return a, b
}

func (e *end) Read(p []byte) (int, error) { return e.in.read(p) }

// arriving is what to do when bytes come to the other end: wait longer if the way is blocked.
func (e *end) arriving() func() {
	if e.path == nil {
		return e.out.land
	}
	var arrive func()
	arrive = func() {
		if blocked := e.path(); blocked > 0 {
			time.AfterFunc(blocked+time.Millisecond, arrive)
			return
		}
		e.out.land()
	}
	return arrive
}

func (e *end) Write(p []byte) (int, error) {
	if e.isClosed() {
		return 0, net.ErrClosed
	}
	met, err := e.out.write(p, e.latency, e.arriving())
	switch {
	case err != nil:
		return 0, err
	case met && e.out.silent:
		e.in.silence()
	case met: // what was written before flies on
		time.AfterFunc(e.latency, func() { e.out.fail(syscall.ECONNRESET) })
		e.in.fail(syscall.ECONNRESET)
		return 0, syscall.ECONNRESET
	}
	return len(p), nil
}

func (e *end) isClosed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

// close marks an end closed, and says whether it was the first to do so.
func (e *end) close() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.closed = true
	if e.onClose != nil {
		e.onClose()
	}
	return true
}

// Close is orderly: what was written still arrives.
func (e *end) Close() error {
	if !e.close() {
		return net.ErrClosed
	}
	e.out.fin(e.latency, e.arriving())
	e.in.shut()
	return nil
}

// cut is how the end of a process that dies is closed: nothing that it says from now on is heard. If it is the machine
// that dies the peer is not told.
func (e *end) cut(told bool) {
	if !e.close() {
		return
	}
	if told {
		e.out.fin(e.latency, e.arriving())
	} else {
		e.in.silence()
	}
	e.out.silence()
	e.in.shut()
}

func (e *end) LocalAddr() net.Addr  { return e.local }
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) SetDeadline(t time.Time) error {
	e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

func (e *end) SetReadDeadline(t time.Time) error {
	if e.isClosed() {
		return net.ErrClosed
	}
	e.in.setDeadline(reader, t)
	return nil
}

func (e *end) SetWriteDeadline(t time.Time) error {
	if e.isClosed() {
		return net.ErrClosed
	}
	e.out.setDeadline(writer, t)
	return nil
}

// link is an end between two processes of one machine, as package ipc wants it.
type link struct{ *end }

func (l link) Read(p []byte) (int, []*os.File, error) {
	n, err := l.end.Read(p)
	return n, nil, err
}

func (l link) Write(p []byte, _ *os.File) error {
	_, err := l.end.Write(p)
	return err
}
