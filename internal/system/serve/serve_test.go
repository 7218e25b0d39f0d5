package serve

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fakeListener gives what is sent to it.
type fakeListener struct {
	next chan any // net.Conn or error
	once sync.Once
	shut chan struct{}
}

func newListener() *fakeListener {
	return &fakeListener{next: make(chan any), shut: make(chan struct{})}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case v := <-l.next:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil
	case <-l.shut:
		return nil, net.ErrClosed
	}
}
func (l *fakeListener) Close() error   { l.once.Do(func() { close(l.shut) }); return nil }
func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

// fakeConn is a pipe with a peer's address.
type fakeConn struct {
	net.Conn
	ip string
}

func (c fakeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.ip), Port: 1} }

func (l *fakeListener) dial(ip string) net.Conn {
	client, server := net.Pipe()
	l.next <- fakeConn{server, ip}
	return client
}

// echo handles sessions that say hello, and end when the client does or ctx does.
func echo(limits Limits) *Group {
	return &Group{
		Limits: func() Limits { return limits },
		Handle: func(ctx context.Context, _ string, conn net.Conn, _ netip.Addr) {
			defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
			conn.Write([]byte("y"))
			conn.Read(make([]byte, 1))
		},
		Refuse: func(_ string, conn net.Conn, _ netip.Addr) { conn.Write([]byte("n")) },
		Log:    slog.New(slog.DiscardHandler),
	}
}

func first(t *testing.T, conn net.Conn) string {
	t.Helper()
	b := make([]byte, 1)
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		g, ln := echo(Limits{Total: 5, PerClient: 2}), newListener()
		g.Listen(ctx, "smtp", ln)
		var open []net.Conn
		for _, tt := range []struct{ ip, want string }{
			{"192.0.2.1", "y"}, {"::ffff:192.0.2.1", "y"}, {"192.0.2.1", "n"}, {"192.0.2.2", "y"},
			{"2001:db8::1", "y"}, {"2001:db8::2", "y"}, {"2001:db8:0:1::1", "n"}, {"192.0.2.3", "n"},
		} {
			c := ln.dial(tt.ip)
			if got := first(t, c); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.ip, got, tt.want)
			}
			if tt.want == "y" {
				open = append(open, c)
			}
		}
		open[0].Close()
		open[2].Close()
		synctest.Wait()
		for _, tt := range []struct{ ip, want string }{{"192.0.2.1", "y"}, {"2001:db8::3", "n"}, {"192.0.2.3", "y"}, {"192.0.2.4", "n"}} {
			if got := first(t, ln.dial(tt.ip)); got != tt.want {
				t.Errorf("after two have left, %s: %s, want %s", tt.ip, got, tt.want)
			}
		}
		stop()
		if cut := g.Drain(time.Minute); cut != 0 || g.Len() != 0 || len(g.clients) != 0 {
			t.Errorf("%d cut off, %d left, %v", cut, g.Len(), g.clients)
		}
	})
}

func TestLimitsOfNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		g, ln := echo(Limits{Total: 100, PerClient: 2, PerNetwork: 3}), newListener()
		g.Listen(ctx, "smtp", ln)
		for _, tt := range []struct{ ip, want string }{
			{"192.0.2.1", "y"}, {"192.0.2.1", "y"}, {"192.0.2.1", "n"}, {"192.0.2.2", "y"}, {"192.0.2.3", "n"}, {"192.0.3.1", "y"},
			{"2001:db8:0:100::1", "y"}, {"2001:db8:0:101::1", "y"}, {"2001:db8:0:1ff::1", "y"}, {"2001:db8:0:102::1", "n"}, {"2001:db8:0:200::1", "y"},
		} {
			if got := first(t, ln.dial(tt.ip)); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.ip, got, tt.want)
			}
		}
		g.Limits = func() Limits { return Limits{Total: 100, PerClient: 5, PerNetwork: 3} }
		for _, want := range []string{"y", "y", "n"} { // a client may have all that it was given
			if got := first(t, ln.dial("192.0.2.1")); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		stop()
		if g.Drain(time.Minute); len(g.clients) != 0 {
			t.Errorf("left: %v", g.clients)
		}
	})
}

func TestARefusalDoesNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		g, ln := echo(Limits{}), newListener()
		g.Listen(ctx, "smtp", ln)
		began := time.Now()
		for range 3 { // clients that never read
			ln.dial("192.0.2.1")
		}
		stop()
		g.Drain(0)
		if took := time.Since(began); took > 3*refuseTime {
			t.Errorf("it took %v", took)
		}
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		g, ln := echo(Limits{Total: 9, PerClient: 9}), newListener()
		g.Handle = func(_ context.Context, _ string, conn net.Conn, _ netip.Addr) { conn.Read(make([]byte, 1)) } // deaf to ctx
		g.Listen(ctx, "smtp", ln)
		a := ln.dial("192.0.2.1")
		ln.dial("192.0.2.1")
		synctest.Wait()
		stop()
		began := time.Now()
		time.AfterFunc(3*time.Second, func() { a.Close() })
		if cut := g.Drain(10 * time.Second); cut != 1 || time.Since(began) != 10*time.Second {
			t.Errorf("%d cut off after %v", cut, time.Since(began))
		}
	})
}

func TestTroubleWithAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		g, ln := echo(Limits{Total: 9, PerClient: 9}), newListener()
		g.Listen(ctx, "smtp", ln)
		began := time.Now()
		for range 20 { // no busy loop
			ln.next <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}
		c := ln.dial("192.0.2.1")
		if got := first(t, c); got != "y" || time.Since(began) < 10*time.Second {
			t.Errorf("%s after %v", got, time.Since(began))
		}
		ln.next <- &net.OpError{Op: "accept", Err: syscall.EINVAL} // the supervisor shut it down
		c.Close()
		if g.Drain(time.Minute); ctx.Err() != nil {
			t.Error("the listener did not end by itself")
		}
	})
}

// A socket that another process shuts down ends Listen: the supervisor does that to one no longer wanted.
func TestShutdownElsewhereEndsListen(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	g := echo(Limits{Total: 9, PerClient: 9})
	g.Listen(t.Context(), "smtp", ln)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	first(t, c)
	if err := syscall.Shutdown(int(file.Fd()), syscall.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	c.Close()
	g.Drain(time.Minute) // hangs, ctx being alive, unless the listener has ended
}
