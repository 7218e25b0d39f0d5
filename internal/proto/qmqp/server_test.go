package qmqp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/netstring"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
	"qmail/internal/system/serve"
)

// world is a server and a queue that keeps what it is given.
type world struct {
	Server
	queued []string
	open   int
	held   int
	told   []string
	refuse error // of Open
	stop   error // of Write, once a message is large
	commit error
}

type memoryMessage struct {
	w    *world
	body bytes.Buffer
}

func (m *memoryMessage) Write(p []byte) error {
	m.body.Write(p)
	if m.w.stop != nil && m.body.Len() > 1000 {
		return m.w.stop
	}
	return nil
}

func (m *memoryMessage) Abort() { m.w.open-- }

func (m *memoryMessage) Commit(e *envelope.Envelope) (uint64, error) {
	m.w.open--
	trace, text, _ := strings.Cut(m.body.String(), "-0000\n")
	if !strings.HasPrefix(trace, "Received: from c.example (192.0.2.7)\n  by mx.example with QMQP; ") {
		return 0, fmt.Errorf("trace %q", trace)
	}
	if m.w.commit != nil {
		return 0, m.w.commit
	}
	m.w.queued = append(m.w.queued, fmt.Sprintf("%s>%s:%s", e.Sender, strings.Join(e.Recipients, " "), text))
	return uint64(len(m.w.queued)), nil
}

func newWorld() *world {
	w := &world{}
	w.Server = Server{
		Patience: func() serve.Patience {
			return serve.Patience{Wait: time.Minute, Total: time.Hour, Grace: time.Minute, Rate: 100}
		},
		Open: func() (Message, error) {
			if w.refuse != nil {
				return nil, w.refuse
			}
			w.open++
			return &memoryMessage{w: w}, nil
		},
		Hold: func(n int) bool {
			if n > 0 && w.held+n > 1<<20 {
				return false
			}
			w.held += n
			return true
		},
		Refused: func(_ *received.From, what, answer string) { w.told = append(w.told, what+": "+answer) },
		Now:     func() time.Time { return time.Unix(1800000000, 0) },
	}
	return w
}

var from = &received.From{IP: "192.0.2.7", Host: "c.example", Local: "mx.example"}

// memoryStream is a client that has sent all that it will send, in pieces of n bytes.
type memoryStream struct {
	s string
	n int
	bytes.Buffer
}

func (r *memoryStream) Read(p []byte) (int, error) {
	if r.s == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(r.n, len(p))], r.s)
	r.s = r.s[n:]
	return n, nil
}
func (r *memoryStream) SetReadDeadline(time.Time) error  { return nil }
func (r *memoryStream) SetWriteDeadline(time.Time) error { return nil }

func (w *world) run(input string, n int) (string, error) {
	s := &memoryStream{s: input, n: n}
	err := w.Serve(context.Background(), s, from)
	return s.String(), err
}

// request makes a request.
func request(message, sender string, recipients ...string) string {
	b := netstring.Append(netstring.Append(nil, message), sender)
	for _, r := range recipients {
		b = netstring.Append(b, r)
	}
	return string(netstring.Append(nil, b))
}

func str(s string) string { return string(netstring.Append(nil, s)) }

func TestServer(t *testing.T) {
	ok := str("Kok 1800000000 qp 1")
	address := str("Dsorry, I can't accept addresses like that (#5.1.3)")
	long := strings.Repeat("x", 1000)
	tests := []struct {
		name, in string
		change   func(w *world)
		out      string
		queued   string
		err      error
	}{
		{"one recipient", request("Subject: x\n\nhi\n", "s@a", "u@b"), nil, ok, "s@a>u@b:Subject: x\n\nhi\n", nil},
		{"several", request("x\n", "", "u@b", "v", ""), nil, ok, ">u@b v :x\n", nil},
		{"none", request("x\n", "s@a"), nil, ok, "s@a>:x\n", nil},
		{"an empty message", request("", "s@a", "u@b"), nil, ok, "s@a>u@b:", nil},
		{"all bytes stay as they are", request("\r\na\x00\r", "s@a", "u@b"), nil, ok, "s@a>u@b:\r\na\x00\r", nil},
		{"what follows is not read", request("x\n", "s@a", "u@b") + "garbage", nil, ok, "s@a>u@b:x\n", nil},
		{"a NUL in a recipient", request("x\n", "s@a", "u@b", "u\x00Tv@b"), nil, address, "", nil},
		{"a NUL in the sender", request("x\n", "s\x00Tv@b", "u@b"), nil, address, "", nil},
		{"a line end in the sender", request("x\n", "s\nv@b", "u@b"), nil, address, "", nil},
		{"an address of 1000 bytes", request("x\n", "s@a", long), nil, address, "", nil},
		{"a hundred hops", request(strings.Repeat("Received: x\n", 100)+"\n", "", "u@b"), nil, str("Dtoo many hops, this message is looping (#5.4.6)"), "", nil},
		{"no memory for recipients", request("x\n", "", long[:900], long[:900], long[:900], long[:900], long[:900]), func(w *world) { w.held = 1 << 20 },
			str("Ztoo many recipients for all clients together, try again later (#4.3.0)"), "", nil},
		{"the queue cannot begin", request("x\n", "", "u@b"), func(w *world) { w.refuse = errors.New("no disk") }, str("Ztemporary local problem (#4.3.0)"), "", nil},
		{"the queue refuses in the middle", request(long, "", "u@b"), func(w *world) { w.stop = reply.Permanent("5.3.4", "too large (#5.3.4)", nil) }, str("Dtoo large (#5.3.4)"), "", nil},
		{"the queue refuses at the end", request("x", "", "u@b"), func(w *world) { w.commit = reply.Temporary("4.3.0", "disk full (#4.3.0)", nil) }, str("Zdisk full (#4.3.0)"), "", nil},

		{"the queue does not answer", request("x", "", "u@b"), func(w *world) { w.commit = &reply.Error{Code: 451, Text: "gone", Err: reply.ErrInDoubt} }, "", "", reply.ErrInDoubt},

		{"a letter in the length", "12a:", nil, "", "", netstring.ErrSyntax},
		{"a leading zero", "0005:hello,x", nil, "", "", netstring.ErrSyntax},
		{"a length beyond all bounds", "20000000000000:5:", nil, "", "", netstring.ErrTooLong},
		{"an inner length beyond the outer one", "7:50:abc,,", nil, "", "", ErrSyntax},
		{"a letter in an inner length", "7:3x:abc,,", nil, "", "", ErrSyntax},
		{"no sender", "4:1:a,,", nil, "", "", ErrSyntax},
		{"nothing inside", "0:,", nil, "", "", ErrSyntax},
		{"something else where a recipient should be", "12:3:abc,1:a,z,", nil, "", "", ErrSyntax},
		{"a wrong comma at the end", strings.TrimSuffix(request("x\n", "", "u@b"), ",") + ";", nil, "", "", ErrSyntax},
		{"no comma at the end", strings.TrimSuffix(request("x\n", "", "u@b"), ","), nil, "", "", io.EOF},
		{"cut short", "50:hello,x", nil, "", "", ErrSyntax},
		{"cut short in the message", "50:40:hello", nil, "", "", io.EOF},
		{"nothing", "", nil, "", "", io.EOF},
	}
	for _, tt := range tests {
		for _, n := range []int{1, 7, 1 << 20} {
			t.Run(fmt.Sprintf("%s, in pieces of %d", tt.name, n), func(t *testing.T) {
				w := newWorld()
				if tt.change != nil {
					tt.change(w)
				}
				before := w.held
				out, err := w.run(tt.in, n)
				if out != tt.out || !errors.Is(err, tt.err) {
					t.Errorf("told %q, want %q; %v, want %v", out, tt.out, err, tt.err)
				}
				if got := strings.Join(w.queued, ""); got != tt.queued {
					t.Errorf("queued %q, want %q", got, tt.queued)
				}
				if w.open != 0 || w.held != before {
					t.Errorf("%d messages and %d bytes are still held", w.open, w.held-before)
				}
				if refused := out != "" && out != ok || err != nil && err != io.EOF; refused != (len(w.told) == 1) {
					t.Errorf("log %q", w.told)
				}
			})
		}
	}
}

func TestPatience(t *testing.T) {
	whole := request("x\n", "", "u@b")
	tests := []struct {
		name  string
		play  func(client net.Conn)
		after time.Duration
	}{
		{"a client that says nothing", func(net.Conn) {}, time.Minute},
		{"one that stops in the middle", func(c net.Conn) { io.WriteString(c, whole[:5]) }, time.Minute},
		{"one that sends a byte now and then", func(c net.Conn) {
			for _, b := range []byte("100000:90000:") {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}, time.Minute},
		{"one that takes no answer", func(c net.Conn) { io.WriteString(c, whole) }, time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				done, played := make(chan error, 1), make(chan struct{})
				w := newWorld()
				began := time.Now()
				go func() { done <- w.Serve(t.Context(), server, from); server.Close() }()
				go func() { defer close(played); tt.play(client) }()
				if err := <-done; err == nil || err == io.EOF || time.Since(began) != tt.after {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				client.Close()
				<-played
			})
		})
	}
}

func TestAnOrderlyStop(t *testing.T) {
	whole := request("x\n", "", "u@b")
	for _, sent := range []int{0, 5} {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			w := newWorld()
			go func() { done <- w.Serve(ctx, server, from); server.Close() }()
			io.WriteString(client, whole[:sent])
			synctest.Wait()
			stop()
			synctest.Wait()
			if sent > 0 {
				io.WriteString(client, whole[sent:])
				if got, err := io.ReadAll(client); string(got) != str("Kok 1800000000 qp 1") || err != nil {
					t.Errorf("%q, %v", got, err)
				}
			}
			if err := <-done; sent == 0 && err != errStopping || sent > 0 && err != nil {
				t.Errorf("after %d bytes: %v", sent, err)
			}
		})
	}
}

// FuzzServer: nothing that a client sends, in whatever pieces, makes the server panic, hold on to anything, queue
// what was not complete, or answer more than once; and complete requests are queued as they are.
func FuzzServer(f *testing.F) {
	f.Add(request("Subject: x\n\nhi\n", "s@a", "u@b", "v@c"), 3)
	f.Add("12:3:abc,1:a,z,", 1)
	f.Add("7:50:abc,,", 2)
	f.Fuzz(func(t *testing.T, in string, n int) {
		for _, n := range []int{1 << 20, max(n, 1)} {
			w := newWorld()
			out, err := w.run(in, n)
			if w.open != 0 || w.held != 0 {
				t.Fatalf("%d messages and %d bytes held", w.open, w.held)
			}
			want, complete := reference(in)
			if complete != (err == nil) || complete != (out != "") {
				t.Fatalf("%q: told %q, %v", in, out, err)
			}
			if len(w.queued) > 1 || len(w.queued) == 1 && w.queued[0] != want {
				t.Fatalf("%q: queued %q, want %q", in, w.queued, want)
			}
			if complete {
				if val, rest, err := netstring.Cut([]byte(out), 500); err != nil || len(rest) > 0 || (val[0] == 'K') != (len(w.queued) == 1) {
					t.Fatalf("%q: told %q", in, out)
				}
			}
		}
	})
}

// reference reads a request that is at hand.
func reference(in string) (queued string, complete bool) {
	list, _, err := netstring.Cut([]byte(in), maxRequest)
	if err != nil {
		return "", false
	}
	var parts []string
	for len(list) > 0 {
		var val []byte
		if val, list, err = netstring.Cut(list, int64(len(list))); err != nil {
			return "", false
		}
		parts = append(parts, string(val))
	}
	if len(parts) < 2 {
		return "", false
	}
	return fmt.Sprintf("%s>%s:%s", parts[1], strings.Join(parts[2:], " "), parts[0]), true
}
