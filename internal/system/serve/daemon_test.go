package serve

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// daemon runs a Daemon whose sessions answer "hello" and then wait for the client or their ctx.
func daemon(orders chan env.Order, log io.Writer, change func(d *Daemon)) (done chan struct{}) {
	e := &env.Env{Stderr: log, Orders: orders, Ready: func() error { return nil }}
	d := &Daemon{
		Env: e, Log: e.Log("qmail-x"), Refusals: NewRefusals(e.Log("qmail-x")), TooMany: "enough\n",
		Limits:  func() Limits { return Limits{Total: 2, PerClient: 2} },
		Connect: func(*ipc.Conn) {}, Reload: func() {},
		Session: func(ctx context.Context, _ string, conn net.Conn, _ netip.Addr) {
			defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
			io.WriteString(conn, "hello\n")
			io.Copy(io.Discard, conn)
		},
	}
	change(d)
	done = make(chan struct{})
	go func() { defer close(done); d.Run(context.Background()) }()
	return done
}

func line(t *testing.T, conn net.Conn) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := conn.Read(b)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestADaemonObeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var links []string
		reloads := 0
		orders := make(chan env.Order)
		done := daemon(orders, io.Discard, func(d *Daemon) {
			d.Connect = func(c *ipc.Conn) { links = append(links, fmt.Sprint(c != nil)) }
			d.Reload = func() { reloads++ }
		})
		ln := newListener()
		orders <- env.Order{Kind: env.Listen, Listener: ln}
		a, b, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		defer a.Close()
		other, far, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		orders <- env.Order{Kind: env.Link, Name: "send", Link: a}
		orders <- env.Order{Kind: env.Link, Name: "stranger", Link: other}
		orders <- env.Order{Kind: env.Reload}
		client := ln.dial("192.0.2.1")
		if got := line(t, client); got != "hello\n" {
			t.Errorf("a client is told %q", got)
		}
		orders <- env.Order{Kind: env.Stop}
		<-done
		if fmt.Sprint(links, reloads) != "[true false] 1" {
			t.Errorf("links %v, %d reloads", links, reloads)
		}
	})
}

func TestWhoIsNotWelcomeHearsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		orders := make(chan env.Order)
		done := daemon(orders, &log, func(d *Daemon) {
			d.Welcome = func(ip netip.Addr) bool { return ip == netip.MustParseAddr("192.0.2.1") }
		})
		ln := newListener()
		orders <- env.Order{Kind: env.Listen, Listener: ln}
		if got := line(t, ln.dial("192.0.2.1")); got != "hello\n" {
			t.Errorf("a friend is told %q", got)
		}
		if got := line(t, ln.dial("192.0.2.2")); got != "" {
			t.Errorf("a stranger is told %q", got)
		}
		orders <- env.Order{Kind: env.Stop}
		<-done
		if want := "qmail-x: refused 192.0.2.2: \"\": not a client of ours\n"; log.String() != want {
			t.Errorf("log %q", &log)
		}
	})
}

func TestTooManyAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		orders := make(chan env.Order)
		done := daemon(orders, io.Discard, func(*Daemon) {})
		ln := newListener()
		orders <- env.Order{Kind: env.Listen, Listener: ln}
		for _, want := range []string{"hello\n", "hello\n", "enough\n"} {
			if got := line(t, ln.dial("192.0.2.1")); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		orders <- env.Order{Kind: env.Stop}
		<-done
	})
}

// A bug that one session meets does not end the process.
func TestAPanicEndsOneSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		orders := make(chan env.Order)
		done := daemon(orders, &log, func(d *Daemon) {
			calm := d.Session
			d.Session = func(ctx context.Context, _ string, conn net.Conn, ip netip.Addr) {
				if ip == netip.MustParseAddr("192.0.2.66") {
					panic("bad\nluck")
				}
				calm(ctx, "smtp", conn, ip)
			}
		})
		ln := newListener()
		orders <- env.Order{Kind: env.Listen, Listener: ln}
		if got := line(t, ln.dial("192.0.2.66")); got != "" {
			t.Errorf("told %q", got)
		}
		if got := line(t, ln.dial("192.0.2.1")); got != "hello\n" {
			t.Errorf("the next is told %q", got)
		}
		orders <- env.Order{Kind: env.Stop}
		<-done
		if !strings.Contains(log.String(), "qmail-x: alert: bug: a session panicked panic=bad?luck ") {
			t.Errorf("log %q", &log)
		}
	})
}

func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		r := NewRefusals((&env.Env{Stderr: &log}).Log("qmail-smtpd"))
		done := make(chan struct{})
		go func() { r.Write(); close(done) }()
		for i := range 10000 {
			r.Note(fmt.Sprintf("192.0.%d.%d", i/250%250, i%250), "FOO", "502 5.5.1 unimplemented\r\n")
		}
		synctest.Wait()
		time.Sleep(1500 * time.Millisecond)
		r.Note("", "a\nqmail-smtpd: b \"\x1b\xff"+strings.Repeat("x", 500), "500 5.5.2 no\r\n")
		synctest.Wait()
		r.Close()
		<-done
		lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
		if len(lines) != refusalRate+2 || lines[refusalRate] != fmt.Sprintf("qmail-smtpd: refused %d more that are not logged", 10000-refusalRate) {
			t.Errorf("%d lines, %q", len(lines), lines[len(lines)-2:])
		}
		if last := lines[len(lines)-1]; !strings.HasPrefix(last, `qmail-smtpd: refused unknown: "a\nqmail-smtpd: b \"\x1b\xffxxx`) || len(last) > 300 {
			t.Errorf("%q", last)
		}
	})
}

// TestOneClientDoesNotFillTheLog has a client be refused all the time: what it causes is cut and counted, and others are
// logged as if it were not there.
func TestOneClientDoesNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		r := NewRefusals((&env.Env{Stderr: &log}).Log("qmail-smtpd"))
		r.perClient = func() int { return 5 }
		end := r.Start()
		for range 90 { // seconds
			for i := range 10 {
				r.Note(fmt.Sprintf("2001:db8::%x", i), "FOO", "502 5.5.1 unimplemented\r\n") // one /64
			}
			synctest.Wait()
			time.Sleep(time.Second)
		}
		r.Note("192.0.2.1", "BAR", "502 5.5.1 unimplemented\r\n")
		end()
		if n := strings.Count(log.String(), `"FOO"`); n != 10 {
			t.Errorf("%d lines of the first in two minutes, want 5 in each", n)
		}
		if n := strings.Count(log.String(), `refused 192.0.2.1: "BAR": 502`); n != 1 {
			t.Errorf("%d lines of the second", n)
		}
		sum, found := 0, 0
		for line := range strings.Lines(log.String()) {
			var n int
			if _, err := fmt.Sscanf(line, "qmail-smtpd: refused 2001:db8::: %d more that are not logged", &n); err == nil {
				sum, found = sum+n, found+1
			}
		}
		if sum != 90*10-10 || found != 2 {
			t.Errorf("%d not logged, told in %d lines:\n%s", sum, found, &log)
		}
	})
}

// TestManyClientsDoNotFillTheMemory counts a bounded number of clients.
func TestManyClientsDoNotFillTheMemory(t *testing.T) {
	r := NewRefusals((&env.Env{Stderr: io.Discard}).Log("qmail-smtpd"))
	end := r.Start()
	for i := range 10 * refusalsKnown {
		r.Note(fmt.Sprintf("10.%d.%d.1", i>>8, i&255), "FOO", "502 no\r\n")
	}
	if n := len(r.clients); n != refusalsKnown {
		t.Errorf("%d clients are known, not %d", n, refusalsKnown)
	}
	end()
}
