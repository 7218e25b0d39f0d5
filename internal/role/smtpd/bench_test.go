package smtpd

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// accepting is a queue that takes all at once and keeps nothing.
type accepting struct{ backend }

func (b *accepting) Accept(_ *enqueue.Arrival, done func(error)) { done(nil) }
func (b *accepting) Verify(_ string, done func(error))           { done(nil) }

// BenchmarkRole is messages of 4 KiB over TCP from 20 clients, through the role, to the other end of its link:
// all of it in this process, the clients included.
func BenchmarkRole(b *testing.B) {
	orders, ended := make(chan env.Order), make(chan struct{})
	e := &env.Env{Home: makeHome(b, fixture), Stderr: io.Discard, Now: time.Now, Orders: orders, Ready: func() error { return nil }}
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		b.Fatal(err)
	}
	defer theirs.Close()
	go enqueue.Serve(theirs, enqueue.Peer{Network: true}, &accepting{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { Main(b.Context(), e, nil); close(ended) }()
	orders <- env.Order{Kind: env.Link, Name: "send", Link: ours}
	orders <- env.Order{Kind: env.Listen, Listener: ln}

	const clients = 20
	text := []byte("Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 56) + "\r\n.\r\n")
	var work sync.WaitGroup
	b.ReportAllocs()
	for i := range clients {
		work.Go(func() { deliver(b, ln.Addr().String(), text, (b.N+i)/clients) })
	}
	work.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	orders <- env.Order{Kind: env.Stop}
	<-ended
}

// deliver sends n messages, each in two writes.
func deliver(b *testing.B, address string, text []byte, n int) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		b.Error(err)
		return
	}
	defer conn.Close()
	buf := make([]byte, 4096)
	expect := func(lines int) {
		for lines > 0 {
			k, err := conn.Read(buf)
			if err != nil || buf[0] >= '4' {
				b.Errorf("%q, %v", buf[:k], err)
				return
			}
			lines -= bytes.Count(buf[:k], []byte("\r\n"))
		}
	}
	expect(1)
	io.WriteString(conn, "EHLO x\r\n")
	expect(6)
	for range n {
		io.WriteString(conn, toData)
		expect(3)
		conn.Write(text)
		expect(1)
	}
}
