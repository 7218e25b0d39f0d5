package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
)

// The stand-ins of the tests: a policy, a queue in memory, a connection whose input is there from the start.

type openPolicy struct{}

func (openPolicy) Sender(_ *Peer, p address.Path) (string, error) { return p.Address, nil }
func (openPolicy) Recipient(_ *Peer, _ string, p address.Path) (string, error) {
	if strings.HasSuffix(p.Address, "@elsewhere.example") {
		return "", &reply.Error{Code: 553, Status: "5.7.1", Text: "not here"}
	}
	return p.Address, nil
}

type stored struct {
	sender     string
	recipients []string
	options    []string
	body       string
}

// memoryQueue keeps what was committed. Its errors, if set, are given once for all.
type memoryQueue struct {
	mu                                sync.Mutex
	messages                          []stored
	wishes                            []map[int][]string // options of their recipients
	aborted                           int
	verifyErr, openErr, write, commit error
}

func (q *memoryQueue) Verify(recipient string) error {
	if strings.HasPrefix(recipient, "nouser@") {
		return &reply.Error{Code: 550, Status: "5.1.1", Text: "no such user"}
	}
	return q.verifyErr
}

func (q *memoryQueue) Open(e *envelope.Envelope) (Message, error) {
	if q.openErr != nil {
		return nil, q.openErr
	}
	return &memoryMessage{q: q, e: e}, nil
}

type memoryMessage struct {
	q    *memoryQueue
	e    *envelope.Envelope
	body []byte
}

func (m *memoryMessage) Write(p []byte) error {
	m.body = append(m.body, p...)
	return m.q.write
}

func (m *memoryMessage) Commit() (uint64, error) {
	if m.q.commit != nil {
		return 0, m.q.commit
	}
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.q.messages = append(m.q.messages, stored{m.e.Sender, m.e.Recipients, m.e.Options, string(m.body)})
	m.q.wishes = append(m.q.wishes, m.e.RecipientOptions)
	return uint64(len(m.q.messages)), nil
}

func (m *memoryMessage) Abort() {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.q.aborted++
}

func (q *memoryQueue) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages)
}

// script is a Stream that gives its chunks one per read, then EOF, and keeps what is written.
type script struct {
	chunks [][]byte
	out    bytes.Buffer
	writes int
}

func (s *script) Read(p []byte) (int, error) {
	for len(s.chunks) > 0 && len(s.chunks[0]) == 0 {
		s.chunks = s.chunks[1:]
	}
	if len(s.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.chunks[0])
	s.chunks[0] = s.chunks[0][n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { s.writes++; return s.out.Write(p) }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// now is the clock of all tests that are not in a synctest bubble.
func now() time.Time { return time.Unix(1800000000, 0) }

func testConfig() *Config {
	return &Config{
		Greeting: "mx.test.example", Databytes: 1 << 20, MaxRecipients: 100, MaxErrors: 20, MaxIdle: 1000, Policy: openPolicy{},
		Limits: Limits{Command: 10 * time.Second, Block: 20 * time.Second, Transaction: time.Minute, Grace: 30 * time.Second, Rate: 100},
	}
}

func testPeer() *Peer {
	return &Peer{IP: "192.0.2.7", Address: netip.MustParseAddr("192.0.2.7"), Host: "client.example", Local: "mx.test.example"}
}

func newServer(q Queue) *Server {
	config := testConfig()
	return &Server{Settings: func() *Config { return config }, Queue: q, Now: now}
}

// play sends chunks, each read on its own, and returns the replies.
func play(t testing.TB, v *Server, chunks ...string) string {
	t.Helper()
	s := &script{}
	for _, c := range chunks {
		s.chunks = append(s.chunks, []byte(c))
	}
	if err := v.Serve(context.Background(), s, testPeer()); err != nil && err != io.EOF && err != errLine {
		t.Fatalf("%q: %v", chunks, err)
	}
	return s.out.String()
}

// codes is the code and enhanced status of each reply, multi-line replies as one.
func codes(t testing.TB, replies string) string {
	t.Helper()
	var list []string
	for line := range strings.SplitSeq(strings.TrimSuffix(replies, "\r\n"), "\r\n") {
		if len(line) < 4 || len(line) > 510 || strings.ContainsAny(line, "\r\n\x00") {
			t.Fatalf("malformed reply line %q", line)
		}
		if line[3] == '-' {
			continue
		}
		code := line[:3]
		if f := strings.Fields(line); len(f) > 1 && strings.Count(f[1], ".") == 2 && f[1][0] == code[0] {
			code += " " + f[1]
		}
		list = append(list, code)
	}
	return strings.Join(list, ", ")
}

// dial runs a session over a pipe and returns the client's end; done gives the session's error.
func dial(ctx context.Context, v *Server) (client net.Conn, done chan error) {
	client, server := net.Pipe()
	done = make(chan error, 1)
	go func() {
		err := v.Serve(ctx, server, testPeer())
		server.Close()
		done <- err
	}()
	return client, done
}

var errDisk = errors.New("disk full")
