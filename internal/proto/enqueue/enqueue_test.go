package enqueue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/system/ipc"
)

// memory is a queue that takes everything but what its fields refuse.
type memory struct {
	mu       sync.Mutex
	last     uint64
	arrivals map[uint64]stored
	spools   int
	refuse   error // of Accept
	hold     chan struct{}
}

type stored struct {
	envelope *envelope.Envelope
	body     []byte
}

type memorySpool struct {
	m *memory
	bytes.Buffer
}

func (s *memorySpool) Close() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.spools--
	return nil
}

func (m *memory) NewID() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	return m.last
}

func (m *memory) Spool() (Spool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spools++
	return &memorySpool{m: m}, nil
}

func (m *memory) Now() time.Time { return time.Unix(1700000000, 0) }

// got is what was stored under id; count how many there are.
func (m *memory) got(id uint64) stored {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.arrivals[id]
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.arrivals)
}

// block makes Accept wait until the returned function is called.
func (m *memory) block() func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	hold := make(chan struct{})
	m.hold = hold
	return func() { close(hold) }
}

func (m *memory) Accept(a *Arrival, done func(error)) {
	go func() {
		m.mu.Lock()
		hold := m.hold
		m.mu.Unlock()
		if hold != nil {
			<-hold
		}
		body := a.Body
		if a.Spool != nil {
			body = a.Spool.(*memorySpool).Bytes()
			a.Spool.Close()
		}
		m.mu.Lock()
		if m.refuse == nil {
			m.arrivals[a.ID] = stored{a.Envelope, body}
		}
		err := m.refuse
		m.mu.Unlock()
		done(err)
	}()
}

func (m *memory) Verify(address string, done func(error)) {
	if strings.HasPrefix(address, "nouser@") {
		done(reply.Permanent("5.1.1", "sorry, no mailbox here by that name.", nil))
		return
	}
	done(nil)
}

func start(t *testing.T, peer Peer) (*memory, *Client, *ipc.Conn) {
	t.Helper()
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{arrivals: map[uint64]stored{}}
	ended := make(chan struct{})
	go func() { defer close(ended); Serve(b, peer, m) }()
	c := NewClient(a)
	t.Cleanup(func() {
		c.Close()
		<-ended
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.spools != 0 {
			t.Errorf("%d spool files left open", m.spools)
		}
	})
	return m, c, a
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func TestSubmit(t *testing.T) {
	sizes := []int{0, 1, 4096, piece, piece + 1, inMemory, 3 * inMemory}
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			m, c, _ := start(t, Peer{UID: 1000, PID: 42, How: ByUID(1000)})
			body := bytes.Repeat([]byte("x"), size)
			e := &envelope.Envelope{Sender: "s@t", Recipients: []string{"a@b", "c@d"}, Options: []string{"BODY=8BITMIME"}}
			got, err := c.Submit(ctx(t), e, body[:size/2], body[size/2:])
			if err != nil {
				t.Fatal(err)
			}
			s := m.got(got.ID)
			want := "Received: (qmail 42 invoked by uid 1000); 14 Nov 2023 22:13:20 -0000\n" + string(body)
			if string(s.body) != want {
				t.Errorf("stored %d bytes, want %d", len(s.body), len(want))
			}
			if s.envelope.Sender != "s@t" || len(s.envelope.Recipients) != 2 || s.envelope.UID != 1000 || s.envelope.QP != 42 {
				t.Errorf("%+v", s.envelope)
			}
		})
	}
}

func TestANetworkPeerShowsTheID(t *testing.T) {
	m, c, _ := start(t, Peer{PID: 42, How: "from network", Network: true})
	got, err := c.Submit(ctx(t), &envelope.Envelope{Recipients: []string{"a@b"}}, []byte("x\n"))
	if err != nil || got.ID == 0 {
		t.Fatal(got, err)
	}
	s := m.got(got.ID)
	if !bytes.HasPrefix(s.body, fmt.Appendf(nil, "Received: (qmail %d invoked from network);", got.ID)) || s.envelope.QP != int64(got.ID) {
		t.Errorf("%q %d", s.body, s.envelope.QP)
	}
}

func TestManyAtOnce(t *testing.T) {
	m, c, _ := start(t, Peer{How: "from network"})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			e := &envelope.Envelope{Sender: fmt.Sprint(i), Recipients: make([]string, i)}
			body := strings.Repeat(fmt.Sprint(i), i*100)
			got, err := c.Submit(ctx(t), e, []byte(body))
			if err != nil {
				t.Error(err)
				return
			}
			s := m.got(got.ID)
			if s.envelope.Sender != e.Sender || len(s.envelope.Recipients) != i || !strings.HasSuffix(string(s.body), "\n"+body) {
				t.Errorf("message %d is not what was sent", i)
			}
		})
	}
	wg.Wait()
}

func TestRefusals(t *testing.T) {
	m, c, _ := start(t, Peer{How: "x", MaxRecipients: 3})
	tests := []struct {
		name   string
		e      *envelope.Envelope
		refuse error
		letter byte
	}{
		{"an address that is too long", &envelope.Envelope{Recipients: []string{strings.Repeat("x", 1003)}}, nil, 'D'},
		{"a NUL in an address", &envelope.Envelope{Recipients: []string{"a\x00Tb"}}, nil, 'D'},
		{"too many recipients for the server", &envelope.Envelope{Recipients: make([]string, 4)}, nil, 'D'},
		{"a full disk", &envelope.Envelope{}, reply.Temporary("4.3.0", "qq write error or disk full", nil), 'Z'},
		{"an error nobody classified", &envelope.Envelope{}, errors.New("surprise"), 'Z'},
	}
	for _, tt := range tests {
		for _, size := range []int{10, 2 * inMemory} {
			t.Run(fmt.Sprintf("%s, %d bytes", tt.name, size), func(t *testing.T) {
				m.mu.Lock()
				m.refuse = tt.refuse
				m.mu.Unlock()
				_, err := c.Submit(ctx(t), tt.e, make([]byte, size))
				if reply.Letter(err) != tt.letter {
					t.Errorf("%v", err)
				}
			})
		}
	}
	m.mu.Lock()
	m.refuse = nil
	m.mu.Unlock()
	if _, err := c.Submit(ctx(t), &envelope.Envelope{}, nil); err != nil {
		t.Errorf("the connection does not work any more: %v", err)
	}
	if m.count() != 1 {
		t.Errorf("%d messages were taken", m.count())
	}
}

func TestVerify(t *testing.T) {
	_, c, _ := start(t, Peer{})
	if err := c.Verify(ctx(t), "alice@here"); err != nil {
		t.Error(err)
	}
	err := c.Verify(ctx(t), "nouser@here")
	if e := reply.Of(err); e == nil || e.Status != "5.1.1" || e.Code != 554 {
		t.Errorf("%v", err)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	m, c, _ := start(t, Peer{How: "x"})
	for _, size := range []int{0, 10, 2 * inMemory} {
		msg, err := c.Begin(&envelope.Envelope{Sender: "s"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(msg, bytes.NewReader(make([]byte, size))); err != nil {
			t.Fatal(err)
		}
		msg.Abort()
	}
	if err := c.Verify(ctx(t), "a@b"); err != nil { // all earlier frames are through
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.arrivals) != 0 || m.spools != 0 {
		t.Errorf("%d messages, %d spools", len(m.arrivals), m.spools)
	}
}

func TestALostConnectionIsTemporary(t *testing.T) {
	m, c, conn := start(t, Peer{How: "x"})
	defer m.block()()
	got := make(chan error)
	go func() {
		_, err := c.Submit(ctx(t), &envelope.Envelope{}, []byte("x"))
		got <- err
	}()
	for !waitingFor(c) {
		time.Sleep(time.Millisecond)
	}
	conn.Close()
	if err := <-got; reply.Letter(err) != 'Z' || !errors.Is(err, reply.ErrInDoubt) {
		t.Errorf("%v", err)
	}
	if _, err := c.Submit(ctx(t), &envelope.Envelope{}, nil); reply.Letter(err) != 'Z' || errors.Is(err, reply.ErrInDoubt) {
		t.Errorf("%v", err)
	}
}

func waitingFor(c *Client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) > 0
}

func TestTimeoutIsTemporary(t *testing.T) {
	m, c, _ := start(t, Peer{How: "x"})
	defer m.block()()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Submit(short, &envelope.Envelope{}, nil); reply.Letter(err) != 'Z' || !errors.Is(err, reply.ErrInDoubt) {
		t.Errorf("%v", err)
	}
}

func TestALyingClientIsDropped(t *testing.T) {
	frames := map[string][]ipc.Message{
		"an end without an envelope":      {{Kind: kindDone}},
		"an envelope after the body":      {{Kind: kindEnvelope, Parts: [][]byte{[]byte("Fa\x00")}}, {Kind: kindBody}, {Kind: kindEnvelope}},
		"an unknown kind":                 {{Kind: 'z'}},
		"a question in a message":         {{Kind: kindEnvelope}, {Kind: kindVerify}},
		"a question that is far too long": {{Kind: kindVerify, Parts: [][]byte{make([]byte, 2000)}}},
	}
	for name, list := range frames {
		t.Run(name, func(t *testing.T) {
			m, c, conn := start(t, Peer{How: "x"})
			if err := conn.SendAll(7, list...); err != nil {
				t.Fatal(err)
			}
			select {
			case <-c.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the server goes on")
			}
			if m.count() != 0 {
				t.Error("something was queued")
			}
		})
	}
	t.Run("a forged identity", func(t *testing.T) {
		m, c, conn := start(t, Peer{How: "x"})
		stream, ch, err := c.open()
		if err != nil {
			t.Fatal(err)
		}
		conn.SendAll(stream, ipc.Message{Kind: kindEnvelope, Parts: [][]byte{[]byte("u0\x00Fa\x00")}}, ipc.Message{Kind: kindDone})
		if _, err := c.wait(ctx(t), stream, ch); reply.Letter(err) != 'D' {
			t.Errorf("%v", err)
		}
		if m.count() != 0 {
			t.Error("queued")
		}
	})
}

func TestDrop(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(DropDir(home), 0o755); err != nil {
		t.Fatal(err)
	}
	e := &envelope.Envelope{Sender: "s@t", Recipients: []string{"a@b"}}
	if err := Drop(home, e, strings.NewReader("hello\x00\n")); err != nil {
		t.Fatal(err)
	}
	if err := Drop(home, e, io.MultiReader(strings.NewReader("x"), failing{})); reply.Of(err) == nil || !strings.Contains(err.Error(), "read error") {
		t.Errorf("a failed read: %v", err)
	}
	paths, err := ListDropped(home)
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	d, err := OpenDropped(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(d.Body)
	if err != nil || string(body) != "hello\x00\n" || d.UID != os.Getuid() || d.Envelope.Sender != "s@t" {
		t.Errorf("%q %v %+v", body, err, d)
	}
	if err := d.Done(); err != nil {
		t.Error(err)
	}
	if all, _ := os.ReadDir(DropDir(home)); len(all) != 0 {
		t.Errorf("left behind: %v", all)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestOpenDroppedRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir + "/" + name
	}
	good := "Fa\x00Tb\x00\x00body"
	linked := write("linked", good)
	if err := os.Link(linked, dir+"/second"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(write("target", good), dir+"/symlink"); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a second link": linked, "a symbolic link": dir + "/symlink", "a directory": dir,
		"a cut envelope": write("cut", "Fa\x00Tb"), "a forged uid": write("uid", "u0\x00Fa\x00\x00"),
		"an endless record": write("long", "F"+strings.Repeat("x", 100<<10)),
		"nothing":           write("empty", ""),
	} {
		if d, err := OpenDropped(path); err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func FuzzServer(f *testing.F) { // no sequence of frames panics, or queues what no D completed
	f.Add([]byte("E\x05Fa\x00Tb"), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, _ uint8) {
		a, b, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		m := &memory{arrivals: map[uint64]stored{}}
		ended := make(chan struct{})
		go func() { defer close(ended); Serve(b, Peer{How: "x"}, m) }()
		dones := 0
		for len(in) >= 3 {
			kind, stream, n := in[0], uint32(in[1]%4), min(int(in[2]), len(in)-3)
			if kind == kindDone {
				dones++
			}
			if a.Send(kind, stream, in[3:3+n]) != nil {
				break
			}
			in = in[3+n:]
		}
		a.Close()
		<-ended
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.arrivals) > dones {
			t.Errorf("%d messages from %d ends", len(m.arrivals), dones)
		}
	})
}

func BenchmarkSubmit(b *testing.B) {
	x, y, err := ipc.LocalPair()
	if err != nil {
		b.Fatal(err)
	}
	go Serve(y, Peer{How: "from network", Network: true}, quick{})
	c := NewClient(x)
	defer c.Close()
	e := &envelope.Envelope{Sender: "sender@example.org", Recipients: []string{"box@example.net"}}
	body := make([]byte, 4096)
	b.ReportAllocs()
	b.SetParallelism(10)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Submit(context.Background(), e, body); err != nil {
				b.Error(err)
			}
		}
	})
}

type quick struct{}

func (quick) NewID() uint64                       { return 1 }
func (quick) Spool() (Spool, error)               { return nil, errors.New("no") }
func (quick) Now() time.Time                      { return time.Unix(1700000000, 0) }
func (quick) Accept(_ *Arrival, done func(error)) { done(nil) }
func (quick) Verify(_ string, done func(error))   { done(nil) }
