package qmtp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/netstring"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
	"qmail/internal/system/serve"
)

// memoryQueue keeps what it is given. commit, if set, is called before it does, with the message's body.
type memoryQueue struct {
	mu     sync.Mutex
	queued []string
	open   int
	opened int
	refuse error // of Open
	stop   error // of Write, once a message is large
	commit func(body string) error
}

type memoryMessage struct {
	q    *memoryQueue
	body bytes.Buffer
}

func (q *memoryQueue) Open() (Message, error) {
	if q.refuse != nil {
		return nil, q.refuse
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open++
	q.opened++
	return &memoryMessage{q: q}, nil
}

func (m *memoryMessage) Write(p []byte) error {
	m.body.Write(p)
	if m.q.stop != nil && m.body.Len() > 1000 {
		return m.q.stop
	}
	return nil
}

func (m *memoryMessage) end() {
	m.q.mu.Lock()
	m.q.open--
	m.q.mu.Unlock()
}

func (m *memoryMessage) Abort() { m.end() }

func (m *memoryMessage) Commit(e *envelope.Envelope) (uint64, error) {
	defer m.end()
	trace, text, _ := strings.Cut(m.body.String(), "-0000\n")
	if !strings.HasPrefix(trace, "Received: from c.example (192.0.2.7)\n  by mx.example with QMTP; ") {
		return 0, fmt.Errorf("trace %q", trace)
	}
	if m.q.commit != nil {
		if err := m.q.commit(text); err != nil {
			return 0, err
		}
	}
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.q.queued = append(m.q.queued, fmt.Sprintf("%s>%s:%s", e.Sender, strings.Join(e.Recipients, " "), text))
	return uint64(len(m.q.queued)), nil
}

// policy lets mail for ok.example through.
type policy struct{}

func (policy) Recipient(p *Peer, _, recipient string) (string, error) {
	switch {
	case p.Relay != nil:
		return recipient + *p.Relay, nil
	case strings.HasSuffix(recipient, "@ok.example"):
		return recipient, nil
	}
	return "", &reply.Error{Code: 553, Status: "5.7.1", Text: "no relay (#5.7.1)"}
}

func verify(recipient string) error {
	if strings.HasPrefix(recipient, "nouser@") {
		return &reply.Error{Code: 550, Status: "5.1.1", Text: "no such user (#5.1.1)"}
	}
	return nil
}

// world is a server with its surroundings.
type world struct {
	Server
	queue  *memoryQueue
	config Config
	held   int
	mu     sync.Mutex
	told   []string
}

func newWorld() *world {
	w := &world{queue: &memoryQueue{}, config: Config{Policy: policy{}, MaxRecipients: 10,
		Patience: serve.Patience{Wait: time.Minute, Total: time.Hour, Grace: time.Minute, Rate: 100}}}
	w.Server = Server{
		Settings: func() *Config { return &w.config }, Open: func() (Message, error) { return w.queue.Open() }, Verify: verify,
		Hold: func(n int) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			if n > 0 && w.held+n > 1<<20 {
				return false
			}
			w.held += n
			return true
		},
		Now: func() time.Time { return time.Unix(1800000000, 0) },
		Refused: func(_ *Peer, what, reply string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, what+": "+reply)
		},
	}
	return w
}

var peer = &Peer{From: received.From{IP: "192.0.2.7", Host: "c.example", Local: "mx.example"}}

// memoryStream is a client that has sent all that it will send.
type memoryStream struct {
	io.Reader
	bytes.Buffer
}

func (s *memoryStream) Read(p []byte) (int, error)       { return s.Reader.Read(p) }
func (s *memoryStream) SetReadDeadline(time.Time) error  { return nil }
func (s *memoryStream) SetWriteDeadline(time.Time) error { return nil }

// pieces gives a string in pieces of n bytes.
type pieces struct {
	s string
	n int
}

func (r *pieces) Read(p []byte) (int, error) {
	if r.s == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(r.n, len(p))], r.s)
	r.s = r.s[n:]
	return n, nil
}

// run serves a client that sends input in pieces of n bytes, and returns what it is told.
func (w *world) run(input string, n int) (string, error) {
	s := &memoryStream{Reader: &pieces{input, n}}
	err := w.Serve(context.Background(), s, peer)
	return s.String(), err
}

// pack makes a package.
func pack(message, sender string, recipients ...string) string {
	var list []byte
	for _, r := range recipients {
		list = netstring.Append(list, r)
	}
	b := netstring.Append(netstring.Append(nil, message), sender)
	return string(netstring.Append(b, list))
}

func strs(list ...string) string {
	var b []byte
	for _, s := range list {
		b = netstring.Append(b, s)
	}
	return string(b)
}

const (
	ok1  = "Kok 1800000000 qp 1"
	ok2  = "Kok 1800000000 qp 2"
	size = "Dsorry, that message size exceeds my databytes limit (#5.3.4)"
)

func TestServer(t *testing.T) {
	long := strings.Repeat("x", 1000)
	suffix := "@relay"
	relayed := &Peer{From: peer.From, Relay: &suffix}
	tests := []struct {
		name, in string
		change   func(w *world)
		peer     *Peer
		out      string
		queued   []string
		err      error
	}{
		{"one message", pack("\nSubject: x\n\nhi\n", "s@a", "u@ok.example"), nil, nil, strs(ok1), []string{"s@a>u@ok.example:Subject: x\n\nhi\n"}, io.EOF},
		{"CRLF becomes LF", pack("\ra\r\nb\r\n", "", "u@ok.example"), nil, nil, strs(ok1), []string{">u@ok.example:a\nb\n"}, io.EOF},
		{"a lone CR and a lone LF stay", pack("\ra\rb\nc\r\r\n\r", "", "u@ok.example"), nil, nil, strs(ok1), []string{">u@ok.example:a\rb\nc\r\n\r"}, io.EOF},
		{"CRLF stays where lines end in LF", pack("\na\r\n", "", "u@ok.example"), nil, nil, strs(ok1), []string{">u@ok.example:a\r\n"}, io.EOF},
		{"the first byte only", pack("\n", "", "u@ok.example"), nil, nil, strs(ok1), []string{">u@ok.example:"}, io.EOF},
		{"each recipient has its answer, in order", pack("\nx\n", "s@a", "a@ok.example", "b@else", "nouser@ok.example", "c@ok.example"), nil, nil,
			strs(ok1, "Dno relay (#5.7.1)", "Dno such user (#5.1.1)", ok1), []string{"s@a>a@ok.example c@ok.example:x\n"}, io.EOF},
		{"nobody is good", pack("\nx\n", "s@a", "b@else"), nil, nil, strs("Dno relay (#5.7.1)"), nil, io.EOF},
		{"nobody at all", pack("\nx\n", "s@a"), nil, nil, "", nil, io.EOF},
		{"an empty recipient of a relay client", pack("\nx\n", "s@a", ""), nil, relayed, strs(ok1), []string{"s@a>@relay:x\n"}, io.EOF},
		{"RELAYCLIENT is added", pack("\nx\n", "s@a", "u@else"), nil, relayed, strs(ok1), []string{"s@a>u@else@relay:x\n"}, io.EOF},
		{"RELAYCLIENT makes it too long", pack("\nx\n", "s@a", strings.Repeat("x", 994)), nil, relayed, strs("Dsorry, I can't handle that recipient (#5.1.3)"), nil, io.EOF},
		{"two packages", pack("\nx\n", "s@a", "u@ok.example") + pack("\ry\r\n", "s@b", "v@ok.example"), nil, nil, "", []string{"s@a>u@ok.example:x\n", "s@b>v@ok.example:y\n"}, io.EOF},
		{"a NUL in the sender", pack("\nx\n", "s\x00Tx@a", "u@ok.example", "u@else"), nil, nil, strs("Dunacceptable sender (#5.1.7)", "Dno relay (#5.7.1)"), nil, io.EOF},
		{"a sender of 1000 bytes", pack("\nx\n", long, "u@ok.example"), nil, nil, strs("Dunacceptable sender (#5.1.7)"), nil, io.EOF},
		{"a line end in a recipient", pack("\nx\n", "", "u@ok.example\nBcc: v@ok.example", "u@ok.example"), nil, nil, strs("Dsorry, I can't handle that recipient (#5.1.3)", ok1), []string{">u@ok.example:x\n"}, io.EOF},
		{"a recipient of 1000 bytes", pack("\nx\n", "", long, "u@ok.example"), nil, nil, strs("Dsorry, I can't handle that recipient (#5.1.3)", ok1), []string{">u@ok.example:x\n"}, io.EOF},
		{"larger than databytes", pack("\n123456\n", "", "u@ok.example", "u@else"), func(w *world) { w.config.Databytes = 6 }, nil, strs(size, "Dno relay (#5.7.1)"), nil, io.EOF},
		{"exactly databytes, decoded", pack("\r12345\r\n", "", "u@ok.example"), func(w *world) { w.config.Databytes = 6 }, nil, strs(ok1), []string{">u@ok.example:12345\n"}, io.EOF},
		{"larger than databytes, decoded", pack("\r123456\r\n", "", "u@ok.example"), func(w *world) { w.config.Databytes = 6 }, nil, strs(size), nil, io.EOF},
		{"a hundred hops", pack("\n"+strings.Repeat("Received: x\n", 100)+"\n", "", "u@ok.example"), nil, nil, strs("Dtoo many hops, this message is looping (#5.4.6)"), nil, io.EOF},
		{"too many recipients", pack("\nx\n", "", slicesOf("u@ok.example", 12)...), nil, nil, strs(append(slicesOf(ok1, 10), slicesOf("Ztoo many recipients, send me the others in another message (#4.5.3)", 2)...)...),
			[]string{">" + strings.Join(slicesOf("u@ok.example", 10), " ") + ":x\n"}, io.EOF},
		{"no memory for recipients", pack("\nx\n", "", slicesOf(strings.Repeat("x", 900)+"@ok.example", 6)...), func(w *world) { w.held = 1 << 20 }, nil,
			strs(append(slicesOf(ok1, 4), slicesOf("Ztoo many recipients for all clients together, try again later (#4.3.0)", 2)...)...),
			[]string{">" + strings.Join(slicesOf(strings.Repeat("x", 900)+"@ok.example", 4), " ") + ":x\n"}, io.EOF},
		{"the queue cannot begin", pack("\nx\n", "", "u@ok.example", "u@else") + pack("\nx\n", "", "u@else"), func(w *world) { w.queue.refuse = errors.New("no disk") }, nil,
			strs("Ztemporary local problem (#4.3.0)", "Dno relay (#5.7.1)", "Dno relay (#5.7.1)"), nil, io.EOF},
		{"the queue refuses in the middle", pack("\n"+long, "", "u@ok.example"), func(w *world) { w.queue.stop = reply.Permanent("5.3.4", "too large (#5.3.4)", nil) }, nil, strs("Dtoo large (#5.3.4)"), nil, io.EOF},
		{"the queue refuses at the end", pack("\nx\n", "", "u@ok.example"), func(w *world) { w.queue.commit = func(string) error { return errors.New("disk full") } }, nil, strs("Ztemporary local problem (#4.3.0)"), nil, io.EOF},
		{"a panic of the queue", pack("\nx\n", "", "u@ok.example"), func(w *world) { w.queue.commit = func(string) error { panic("bug") } }, nil, strs("Ztemporary local problem (#4.3.0)"), nil, io.EOF},
		{"a refusal that would break the line", pack("\nx\n", "", "u@ok.example"), func(w *world) {
			w.queue.commit = func(string) error { return reply.Permanent("5.0.0", "a\r\n1:K,\xff", nil) }
		}, nil, strs("Da??1:K,? (#5.0.0)"), nil, io.EOF},

		{"an empty message", "0:,0:,0:,", nil, nil, "", nil, ErrSyntax},
		{"a message in no known encoding", pack("Subject: x\n", "", "u@ok.example"), nil, nil, "", nil, ErrSyntax},
		{"a letter in a length", "1x:\n,0:,0:,", nil, nil, "", nil, netstring.ErrSyntax},
		{"a letter in an inner length", "1:\n,0:,15:0;:elevenchars,,", nil, nil, "", nil, ErrSyntax},
		{"a leading zero", "01:\n,0:,0:,", nil, nil, "", nil, netstring.ErrSyntax},
		{"a wrong comma", "2:\nx;0:,0:,", nil, nil, "", nil, netstring.ErrSyntax},
		{"a length beyond all bounds", "20000000000000:\n", nil, nil, "", nil, netstring.ErrTooLong},
		{"a list beyond all bounds", "1:\n,0:,99999999999:", nil, nil, "", nil, netstring.ErrTooLong},
		{"a recipient longer than its list", "1:\n,0:,10:30:alice@te,", nil, nil, "", nil, ErrSyntax},
		{"a recipient that needs one byte more", "1:\n,0:,4:2:ab,", nil, nil, "", nil, ErrSyntax},
		{"garbage after the recipients", "1:\n,0:,5:0:,zz,", nil, nil, "", nil, ErrSyntax},
		{"a list that ends in a length", "1:\n,0:,4:0:,1,", nil, nil, "", nil, ErrSyntax},
		{"a list without its comma", "1:\n,0:,3:0:,;", nil, nil, "", nil, ErrSyntax},
		{"a package cut short after a good one", pack("\nx\n", "", "u@ok.example") + "5:\nxx", nil, nil, strs(ok1), []string{">u@ok.example:x\n"}, io.EOF},
		{"a bad package after a good one", pack("\nx\n", "", "u@ok.example") + "5:xx", nil, nil, strs(ok1), []string{">u@ok.example:x\n"}, ErrSyntax},
		{"nothing", "", nil, nil, "", nil, io.EOF},
	}
	for _, tt := range tests {
		for _, n := range []int{1, 7, 1 << 20} {
			t.Run(fmt.Sprintf("%s, in pieces of %d", tt.name, n), func(t *testing.T) {
				w := newWorld()
				if tt.change != nil {
					tt.change(w)
				}
				before := w.held
				p := peer
				if tt.peer != nil {
					p = tt.peer
				}
				s := &memoryStream{Reader: &pieces{tt.in, n}}
				err := w.Serve(t.Context(), s, p)
				if out := s.String(); out != tt.out && !(tt.out == "" && len(tt.queued) > 1) || !errors.Is(err, tt.err) {
					t.Errorf("told %q, want %q; %v, want %v", out, tt.out, err, tt.err)
				}
				if fmt.Sprint(sorted(w.queue.queued)) != fmt.Sprint(sorted(tt.queued)) {
					t.Errorf("queued %q, want %q", w.queue.queued, tt.queued)
				}
				if w.queue.open != 0 || w.held != before {
					t.Errorf("%d messages and %d bytes are still held", w.queue.open, w.held-before)
				}
			})
		}
	}
}

func slicesOf(s string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = s
	}
	return list
}

func sorted(list []string) []string {
	out := append([]string{}, list...)
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func TestALargeMessageForNobodyIsNotOpened(t *testing.T) {
	w := newWorld()
	w.config.Databytes = 1000
	out, _ := w.run(pack("\n"+strings.Repeat("x", 5000), "", "u@ok.example"), 1<<20)
	if out != strs(size) || w.queue.opened != 0 {
		t.Errorf("%q, %d opened", out, w.queue.opened)
	}
}

// TestAnswersKeepTheirOrder: packages are on their way to the disk together, and the last is there first.
func TestAnswersKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		const n = 20
		w.queue.commit = func(body string) error {
			time.Sleep(time.Duration(n-len(body)) * time.Second)
			if len(body)%2 == 0 {
				return reply.Temporary("4.3.0", fmt.Sprintf("%d (#4.3.0)", len(body)), nil)
			}
			return nil
		}
		var in strings.Builder
		var want []string
		for i := range n {
			in.WriteString(pack("\n"+strings.Repeat("x", i), "", "u@ok.example"))
			if i%2 == 0 {
				want = append(want, fmt.Sprintf("Z%d (#4.3.0)", i))
			} else {
				want = append(want, fmt.Sprintf("Kok 1800000000 qp %d", (n-i+1)/2))
			}
		}
		began := time.Now()
		out, err := w.run(in.String(), 1<<20)
		if out != strs(want...) || err != io.EOF {
			t.Errorf("%q, want %q, %v", out, strs(want...), err)
		}
		if took := time.Since(began); took != n*time.Second {
			t.Errorf("one after another: %v", took)
		}
	})
}

// TestDoubtIsNotARefusal: the queue took a message and did not answer. What was known before is said, and nothing
// after it.
func TestDoubtIsNotARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.queue.commit = func(body string) error {
			if body == "doubt\n" {
				return &reply.Error{Code: 451, Status: "4.3.0", Text: "unable to reach the queue", Err: reply.ErrInDoubt}
			}
			return nil
		}
		client, _, done := talk(t, w)
		go func() {
			for _, body := range []string{"\nfirst\n", "\ndoubt\n", "\nthird\n"} {
				io.WriteString(client, pack(body, "", "u@ok.example"))
				time.Sleep(time.Second)
			}
		}()
		got, err := io.ReadAll(client)
		if string(got) != strs(ok1) || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if err := <-done; err != io.ErrClosedPipe {
			t.Errorf("ended with %v", err)
		}
		time.Sleep(time.Minute)
	})
}

// talk is a session over a pipe, in virtual time.
func talk(t *testing.T, w *world) (client net.Conn, stop context.CancelFunc, done chan error) {
	client, server := net.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	done = make(chan error, 1)
	go func() { defer server.Close(); done <- w.Serve(ctx, server, peer) }()
	return client, stop, done
}

func answer(t *testing.T, client net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(client, b); string(b) != want {
		t.Fatalf("%q, want %q, %v", b, want, err)
	}
}

func TestPatience(t *testing.T) {
	good := pack("\nx\n", "", "u@ok.example")
	tests := []struct {
		name  string
		play  func(client net.Conn)
		after time.Duration
	}{
		{"a client that says nothing", func(net.Conn) {}, time.Minute},
		{"one that stops in the middle", func(c net.Conn) { io.WriteString(c, good[:10]) }, time.Minute},
		{"one that sends a byte now and then", func(c net.Conn) {
			io.WriteString(c, "1000:\n")
			for {
				time.Sleep(10 * time.Second)
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		}, time.Minute},
		{"one that never ends", func(c net.Conn) {
			go io.Copy(io.Discard, c)
			for {
				time.Sleep(59 * time.Second)
				if _, err := io.WriteString(c, good); err != nil {
					return
				}
			}
		}, time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				client, _, done := talk(t, w)
				defer client.Close()
				began := time.Now()
				played := make(chan struct{})
				go func() { defer close(played); tt.play(client) }()
				if err := <-done; err != errTimeout || time.Since(began) != tt.after {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				client.Close()
				<-played
				if w.queue.open != 0 {
					t.Error("a message is still open")
				}
			})
		})
	}
}

func TestAClientThatTakesNoAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		client, _, done := talk(t, w)
		defer client.Close()
		go func() {
			for {
				if _, err := io.WriteString(client, pack("\nx\n", "", "u@ok.example")); err != nil {
					return
				}
			}
		}()
		if err := <-done; err == nil || err == io.EOF {
			t.Errorf("%v", err)
		}
		// One write of answers is under way, up to flushAt of them, before those of maxPending packages pile up.
		if n := len(w.queue.queued); n > maxPending+3+flushAt/len(ok1) {
			t.Errorf("%d messages taken without an answer", n)
		}
	})
}

func TestAnOrderlyStop(t *testing.T) {
	good := pack("\nx\n", "", "u@ok.example")
	t.Run("between packages it ends at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			client, stop, done := talk(t, w)
			defer client.Close()
			io.WriteString(client, good)
			answer(t, client, strs(ok1))
			synctest.Wait()
			stop()
			if err := <-done; err != errStopping {
				t.Error(err)
			}
		})
	})
	t.Run("in the middle of a package it waits for its end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			client, stop, done := talk(t, w)
			defer client.Close()
			io.WriteString(client, good[:len(good)-3])
			synctest.Wait()
			stop()
			synctest.Wait()
			io.WriteString(client, good[len(good)-3:])
			answer(t, client, strs(ok1))
			if err := <-done; err != errStopping || len(w.queue.queued) != 1 {
				t.Errorf("%v, %q", err, w.queue.queued)
			}
		})
	})
}

func TestAVerifierThatTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.Verify = func(string) error { time.Sleep(25 * time.Second); return nil }
		out, _ := w.run(pack("\nx\n", "", slicesOf("u@ok.example", 5)...), 1<<20)
		late := "Zlooking recipients up takes too long (#4.3.0)"
		if out != strs(ok1, ok1, ok1, late, late) {
			t.Errorf("%q", out)
		}
	})
}

func TestManyDifferentRefusals(t *testing.T) {
	w := newWorld()
	i := 0
	w.Verify = func(string) error { i++; return reply.Permanent("5.1.1", fmt.Sprintf("no %d (#5.1.1)", i), nil) }
	const n = 1000
	out, err := w.run(pack("\nx\n", "", slicesOf("u@ok.example", n)...), 1<<20)
	if err != io.EOF {
		t.Fatal(err)
	}
	rest := []byte(out)
	for i := range n {
		val, more, err := netstring.Cut(rest, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if rest = more; i < 100 && string(val) != fmt.Sprintf("Dno %d (#5.1.1)", i+1) || i > maxTexts && val[0] != 'Z' {
			t.Fatalf("recipient %d: %q", i, val)
		}
	}
}

// TestListsOfNames: who tries name after name is not told for ever who is here.
func TestListsOfNames(t *testing.T) {
	w := newWorld()
	asked := 0
	w.Verify = func(r string) error { asked++; return reply.Permanent("5.1.1", "no (#5.1.1)", nil) }
	once := pack("\nx\n", "", slicesOf("u@ok.example", maxStrangers-1)...)
	out, err := w.run(once+once, 1<<20)
	if err != io.EOF || asked != maxStrangers {
		t.Errorf("asked %d times, %v", asked, err)
	}
	if d, z := strings.Count(out, ":Dno (#5.1.1),"), strings.Count(out, ":Ztoo many recipients that are not here (#4.7.1),"); d != maxStrangers || z != maxStrangers-2 {
		t.Errorf("%d D, %d Z", d, z)
	}
}

// FuzzServer: nothing that a client sends, in whatever pieces, makes the server panic, hold on to anything, queue
// what was not complete, or say other than one answer for each recipient.
func FuzzServer(f *testing.F) {
	f.Add(pack("\nSubject: x\n\nhi\n", "s@a", "u@ok.example", "v@else"), 3)
	f.Add(pack("\ra\r\nb\r", "", "u@ok.example")+pack("\n", "")+"2:\n", 1)
	f.Add("1:\n,0:,10:30:alice@te,", 5)
	f.Fuzz(func(t *testing.T, in string, n int) {
		outcomes := [2]string{}
		for i, n := range []int{1 << 20, max(n, 1)} {
			w := newWorld()
			out, err := w.run(in, n)
			if err == nil || w.queue.open != 0 || w.held != 0 {
				t.Fatalf("%v, %d messages and %d bytes held", err, w.queue.open, w.held)
			}
			answers, rest := 0, []byte(out)
			for len(rest) > 0 {
				val, more, err := netstring.Cut(rest, 500)
				if err != nil || val[0] != 'K' && val[0] != 'Z' && val[0] != 'D' {
					t.Fatalf("told %q", out)
				}
				answers, rest = answers+1, more
			}
			packages, recipients := reference(in)
			if answers != recipients || len(w.queue.queued) > packages {
				t.Fatalf("%q: %d answers, want %d; %d queued of %d", in, answers, recipients, len(w.queue.queued), packages)
			}
			outcomes[i] = fmt.Sprint(strings.Count(out, "Kok"), sorted(w.queue.queued))
		}
		if outcomes[0] != outcomes[1] {
			t.Errorf("%q: %s in one piece, %s in pieces of %d", in, outcomes[0], outcomes[1], n)
		}
	})
}

// reference counts the complete packages in a string, and their recipients.
func reference(in string) (packages, recipients int) {
	rest := []byte(in)
	for {
		message, after, err := netstring.Cut(rest, maxMessage)
		if err != nil || len(message) == 0 || message[0] != '\n' && message[0] != '\r' {
			return packages, recipients
		}
		_, after, err = netstring.Cut(after, maxMessage)
		if err != nil {
			return packages, recipients
		}
		list, after, err := netstring.Cut(after, maxList)
		if err != nil {
			return packages, recipients
		}
		n := 0
		for ; len(list) > 0; n++ {
			if _, list, err = netstring.Cut(list, int64(len(list))); err != nil {
				return packages, recipients
			}
		}
		packages, recipients, rest = packages+1, recipients+n, after
	}
}
