package popup

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/proto/pop3"
	"qmail/internal/system/ipc"
)

// handshake begins TLS on a connection that has not begun with it. POP3 clients come again, so that a session ticket
// saves both sides something.
func (l *listener) handshake(ctx context.Context, conn pop3.Conn) (pop3.Conn, error) {
	c, _, err := l.tls.Handshake(ctx, conn, true)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// hangUp says goodbye inside TLS, if that is where we are: without it a client cannot tell the end from a cut.
func hangUp(conn net.Conn, stream pop3.Conn) {
	if c, ok := stream.(*tls.Conn); ok && conn.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		c.CloseWrite() // best effort: the connection is closed in any case
	}
}

// tunnel is a connection for a program that cannot speak TLS: it gets one end of a socket pair, and what goes through
// the other one we read from and write to the client.
type tunnel struct {
	file  *os.File // the program's end
	near  *net.UnixConn
	far   pop3.Conn
	flows [2]sync.WaitGroup // in, out
	ended atomic.Bool
}

// What is carried at a time: a client has little to say.
const (
	fromClient = 1 << 10
	toClient   = 16 << 10
)

var errNoPair = errors.New("no socket pair")

// newTunnel begins to carry bytes. close ends it.
func newTunnel(far pop3.Conn) (*tunnel, error) {
	ours, file, err := ipc.Pair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		file.Close()
		return nil, err
	}
	near, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		file.Close()
		return nil, errNoPair
	}
	t := &tunnel{file: file, near: near, far: far}
	t.flows[0].Go(t.in)
	t.flows[1].Go(t.out)
	return t, nil
}

// in carries what the client says. Its end is the program's end of input.
func (t *tunnel) in() {
	defer t.near.CloseWrite() // fails if the program is gone
	b := make([]byte, fromClient)
	for {
		// A client that does nothing is the program's to lose patience with; this is for programs that have none to lose.
		if t.far.SetReadDeadline(time.Now().Add(2*pop3.Timeout)) != nil || t.ended.Load() {
			return
		}
		n, err := t.far.Read(b)
		if n > 0 {
			if _, err := t.near.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// out carries what the program says, to the end. A client that does not take it costs the program its session.
func (t *tunnel) out() {
	defer t.near.CloseRead() // fails if the program is gone
	b := make([]byte, toClient)
	for {
		n, err := t.near.Read(b)
		if n > 0 {
			if t.far.SetWriteDeadline(time.Now().Add(pop3.Timeout)) != nil {
				return
			}
			if _, err := t.far.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// close is for when the program has ended: what it has said still goes out. The client's side stays open.
func (t *tunnel) close() {
	t.file.Close()
	t.flows[1].Wait()
	t.ended.Store(true)
	t.far.SetReadDeadline(time.Unix(1, 0)) // wakes in up, which else waits for a client with nothing to say
	t.flows[0].Wait()
	t.near.Close()
}

// cut ends the session of a program that is still there.
func (t *tunnel) cut() {
	t.ended.Store(true)
	t.far.SetReadDeadline(time.Unix(1, 0))
	t.near.Close()
}
