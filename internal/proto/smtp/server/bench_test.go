package server

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/envelope"
)

// sink is a queue that takes all and keeps nothing.
type sink struct{ n uint64 }

func (*sink) Verify(string) error                        { return nil }
func (s *sink) Open(*envelope.Envelope) (Message, error) { return s, nil }
func (*sink) Write([]byte) error                         { return nil }
func (s *sink) Commit() (uint64, error)                  { s.n++; return s.n, nil }
func (*sink) Abort()                                     {}

// repeat is a Stream in which the same pipelined transaction comes n times.
type repeat struct {
	unit, left []byte
	n          int
}

func (r *repeat) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		if r.n == 0 {
			return 0, io.EOF
		}
		r.n--
		r.left = r.unit
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func (r *repeat) Write(p []byte) (int, error)      { return len(p), nil }
func (r *repeat) SetReadDeadline(time.Time) error  { return nil }
func (r *repeat) SetWriteDeadline(time.Time) error { return nil }

// message4K is one of 4 KiB on the wire.
func message4K() string {
	return "Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 56) + "\r\n.\r\n"
}

// BenchmarkMessages is a session's work without its system calls.
func BenchmarkMessages(b *testing.B) {
	q := &sink{}
	b.ReportAllocs()
	r := &repeat{unit: []byte(from + to + "DATA\r\n" + message4K()), left: []byte(ehlo), n: b.N}
	newServer(q).Serve(context.Background(), r, testPeer())
	if q.n != uint64(b.N) {
		b.Fatalf("%d messages of %d", q.n, b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkLoopback is the same over TCP, with a client that sends a transaction in two writes as PIPELINING
// has it. Both ends are counted.
func BenchmarkLoopback(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	v := newServer(&sink{})
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			v.Serve(context.Background(), conn, testPeer())
			conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 4096)
	expect := func(n int) {
		for n > 0 {
			k, err := conn.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			n -= bytes.Count(buf[:k], []byte("\r\n"))
		}
	}
	expect(1)
	io.WriteString(conn, ehlo)
	expect(9)
	head, body := []byte(from+to+"DATA\r\n"), []byte(message4K())
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		conn.Write(head)
		expect(3)
		conn.Write(body)
		expect(1)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// TestIdleSessionsAreSmall holds sessions that have sent a message each and measures what they cost. The
// connections are Unix sockets, both ends in this process; only half of what the runtime holds for
// descriptors is the server's, so the figure is an upper bound.
func TestIdleSessionsAreSmall(t *testing.T) {
	sessions := 5000
	if testing.Short() {
		sessions = 200
	}
	v := newServer(&sink{})
	ctx, stop := context.WithCancel(t.Context())
	before := held()
	done := make(chan error, sessions)
	clients := make([]net.Conn, 0, sessions)
	defer func() {
		stop()
		for _, c := range clients {
			c.Close()
		}
		for range clients {
			<-done
		}
	}()
	for range sessions {
		client, server, err := socketPair(t)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, client)
		go func() {
			err := v.Serve(ctx, server, testPeer())
			server.Close()
			done <- err
		}()
		buf := make([]byte, 1024)
		for _, s := range []string{"", ehlo, from + to + "DATA\r\n", message4K()} {
			if _, err := io.WriteString(client, s); err != nil {
				t.Fatal(err)
			}
			for n := bytes.Count([]byte(s), []byte("\r\nRCPT")) + 1; n > 0; { // the last reply of those due
				k, err := client.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				n -= k
			}
		}
	}
	each := (held() - before) / uint64(sessions)
	t.Logf("%d bytes for each of %d sessions", each, sessions)
	if each > 20<<10 {
		t.Errorf("%d bytes a session", each)
	}
}

// held is the memory in use: heap and stacks.
func held() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func socketPair(t *testing.T) (a, b net.Conn, err error) {
	t.Helper()
	ln, err := net.Listen("unix", "")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if a, err = net.Dial("unix", ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	b, err = ln.Accept()
	return a, b, err
}
