package load

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
	"qmail/internal/proto/qmqp"
	"qmail/internal/proto/qmtp"
	"qmail/internal/system/serve"
)

// counted is a queue that counts, and refuses mail for nobody@.
type counted struct {
	mu         sync.Mutex
	messages   int
	recipients int
	bytes      int
}

type counting struct {
	q    *counted
	size int
}

func (m *counting) Write(p []byte) error { m.size += len(p); return nil }
func (m *counting) Abort()               {}

func (m *counting) Commit(e *envelope.Envelope) (uint64, error) {
	if strings.HasPrefix(e.Recipients[0], "nobody@") {
		return 0, reply.Temporary("4.3.0", "not today", nil)
	}
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.q.messages++
	m.q.recipients += len(e.Recipients)
	m.q.bytes += m.size
	return 1, nil
}

type anybody struct{}

func (anybody) Recipient(_ *qmtp.Peer, _, recipient string) (string, error) { return recipient, nil }

// listen serves QMTP or QMQP with our own servers.
func listenAs(t *testing.T, protocol string) (net.Listener, *counted) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	q := &counted{}
	patience := serve.Patience{Wait: time.Minute, Total: time.Hour, Grace: time.Minute, Rate: 1}
	config := &qmtp.Config{Policy: anybody{}, Patience: patience}
	a := &qmtp.Server{
		Settings: func() *qmtp.Config { return config }, Now: time.Now, Verify: func(string) error { return nil },
		Open: func() (qmtp.Message, error) { return &counting{q: q}, nil },
	}
	b := &qmqp.Server{
		Patience: func() serve.Patience { return patience }, Now: time.Now,
		Open: func() (qmqp.Message, error) { return &counting{q: q}, nil },
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if protocol == QMTP {
					a.Serve(context.Background(), conn, &qmtp.Peer{})
				} else {
					b.Serve(context.Background(), conn, &received.From{})
				}
			}()
		}
	}()
	return ln, q
}

func TestPackages(t *testing.T) {
	tests := []struct {
		name     string
		protocol string
		pipeline bool
		to       []string
	}{
		{"QMTP, one after another", QMTP, false, []string{"a@b"}},
		{"QMTP, many at once, to several", QMTP, true, []string{"a@b", "c@d", "e@f"}},
		{"QMQP", QMQP, false, []string{"a@b", "c@d"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ln, q := listenAs(t, tt.protocol)
			res, err := Run(t.Context(), Config{
				Addr: ln.Addr().(*net.TCPAddr).AddrPort(), Sessions: 3, Messages: 100, Keep: true, Pipeline: tt.pipeline,
				Protocol: tt.protocol, From: "s@a", To: tt.to, Size: 5000,
			})
			if err != nil || res.Sent != 100 || res.Failed != 0 {
				t.Fatalf("%+v, %v", res, err)
			}
			q.mu.Lock()
			defer q.mu.Unlock()
			if q.messages != 100 || q.recipients != 100*len(tt.to) || q.bytes < 500_000 {
				t.Errorf("%d messages, %d recipients, %d bytes", q.messages, q.recipients, q.bytes)
			}
		})
	}
}

func TestRefusedPackagesAreCounted(t *testing.T) {
	for _, protocol := range []string{QMTP, QMQP} {
		ln, _ := listenAs(t, protocol)
		res, err := Run(t.Context(), Config{
			Addr: ln.Addr().(*net.TCPAddr).AddrPort(), Sessions: 2, Messages: 10, Protocol: protocol, From: "s@a", To: []string{"nobody@b"}, Size: 10,
		})
		if err != nil || res.Sent != 0 || res.Failed != 10 || !strings.HasPrefix(res.Reasons[0], "Znot today") {
			t.Errorf("%s: %+v, %v", protocol, res, err)
		}
	}
	if _, err := Run(t.Context(), Config{Sessions: 1, Messages: 1, To: []string{"a@b"}, Protocol: "uucp"}); err == nil {
		t.Error("an unknown protocol")
	}
}
