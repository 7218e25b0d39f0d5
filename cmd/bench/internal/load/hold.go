package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Held are sessions that have said EHLO and now say nothing.
type Held struct{ conns []net.Conn }

// ramp is how many sessions are being opened at once.
const ramp = 32

// Hold opens n sessions and leaves them idle after EHLO. On an error those already open are closed.
func Hold(ctx context.Context, addr netip.AddrPort, n int) (*Held, error) {
	h := &Held{conns: make([]net.Conn, n)}
	errs := make([]error, ramp)
	var wg sync.WaitGroup
	for w := range ramp {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil && ctx.Err() == nil; i += ramp {
				h.conns[i], errs[w] = idle(ctx, addr)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(append(errs, context.Cause(ctx))...); err != nil {
		opened := h.Alive()
		h.Close()
		return nil, fmt.Errorf("load: %d of %d sessions held: %w", opened, n, err)
	}
	return h, nil
}

// idle opens one session.
func idle(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: 30 * time.Second}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if err = hello(c); err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

func hello(c net.Conn) error {
	if err := expect(c, "220"); err != nil {
		return err
	}
	if _, err := c.Write([]byte("EHLO load.example\r\n")); err != nil {
		return err
	}
	return expect(c, "250")
}

// expect reads one reply. A server that has nothing more to say sends no more than one reply here, so what comes with
// its last line can be thrown away.
func expect(c net.Conn, code string) error {
	var got []byte
	b := make([]byte, 1024)
	for len(got) < maxReply {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		got = append(got, b[:n]...)
		if line, ok := lastLine(got); ok {
			if string(line[:3]) != code {
				return fmt.Errorf("%q where %s was expected", line, code)
			}
			return nil
		}
	}
	return errors.New("endless reply")
}

// lastLine finds the line that ends a reply: its code is not followed by a hyphen.
func lastLine(b []byte) (line []byte, ok bool) {
	start := 0
	for i, c := range b {
		if c != '\n' {
			continue
		}
		if line = b[start:i]; len(line) >= 4 && line[3] != '-' {
			return line, true
		}
		start = i + 1
	}
	return nil, false
}

// Alive counts the sessions that the server has neither closed nor spoken to.
func (h *Held) Alive() (n int) {
	for _, c := range h.conns {
		if c != nil && silent(c) {
			n++
		}
	}
	return n
}

// silent looks without waiting: a deadline in the past would not tell a closed connection from a quiet one.
func silent(c net.Conn) (quiet bool) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = errors.Is(err, unix.EAGAIN)
		return true
	})
	return quiet && err == nil
}

// Close ends the sessions without ceremony.
func (h *Held) Close() {
	for _, c := range h.conns {
		if c != nil {
			c.Close()
		}
	}
}
