package load_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"qmail/cmd/bench/internal/load"
	"qmail/cmd/bench/internal/sink"
)

// openSink runs a sink until the test ends.
func openSink(t *testing.T, addrs ...string) *sink.Sink {
	t.Helper()
	var at []netip.AddrPort
	for _, a := range addrs {
		at = append(at, netip.MustParseAddrPort(a))
	}
	s, err := sink.Open(at...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("sink:", err)
		}
	})
	return s
}

func TestCountsAgree(t *testing.T) {
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprintf("r%d@d%d.example", i, i%100)
	}
	tests := []struct {
		name  string
		cfg   load.Config
		conns int64 // 0: as many as messages
	}{
		{"a connection for each message", load.Config{Sessions: 7, Messages: 50, To: []string{"a@b.example"}, Size: 4096}, 0},
		{"connections kept", load.Config{Sessions: 7, Messages: 50, To: []string{"a@b.example"}, Size: 4096, Keep: true}, 7},
		{"pipelined, a connection for each message", load.Config{Sessions: 7, Messages: 50, To: []string{"a@b.example"}, Pipeline: true}, 0},
		{"pipelined, connections kept", load.Config{Sessions: 7, Messages: 50, To: []string{"a@b.example"}, Size: 4096, Keep: true, Pipeline: true}, 7},
		{"fewer messages than sessions", load.Config{Sessions: 20, Messages: 3, To: []string{"a@b.example"}, Keep: true, Pipeline: true}, 3},
		{"a thousand recipients", load.Config{Sessions: 1, Messages: 1, To: many, Pipeline: true}, 1},
		{"a thousand recipients, one after the other", load.Config{Sessions: 2, Messages: 2, To: many}, 2},
		{"a message larger than any buffer", load.Config{Sessions: 2, Messages: 4, To: []string{"a@b.example"}, Size: 5 << 20, Keep: true, Pipeline: true}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openSink(t, "127.0.0.1:0")
			tt.cfg.Addr, tt.cfg.From = s.Addr(), "me@load.example"
			want := int64(tt.cfg.Messages * len(tt.cfg.To))
			done := s.Expect(want, true)
			res, err := load.Run(t.Context(), tt.cfg)
			if err != nil || res.Sent != tt.cfg.Messages || res.Failed != 0 {
				t.Fatalf("Run = %+v, %v", res, err)
			}
			got := <-done
			if got.Messages != int64(tt.cfg.Messages) || got.Recipients != want || got.Distinct != int64(len(tt.cfg.To)) {
				t.Errorf("the sink counts %+v", got)
			}
			content := load.Stuff(load.Message("me@load.example", tt.cfg.To[0], tt.cfg.Size))
			if got.Bytes != int64(tt.cfg.Messages*len(content)) {
				t.Errorf("the sink has %d bytes, want %d of %d", got.Bytes, tt.cfg.Messages, len(content))
			}
			conns := tt.conns
			if conns == 0 {
				conns = int64(tt.cfg.Messages)
			}
			if got := s.Counts().Sessions; got != conns {
				t.Errorf("%d connections, want %d", got, conns)
			}
		})
	}
}

func TestStuff(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"nothing is the final dot alone", "", ".\r\n"},
		{"a missing line end is added", "a", "a\r\n.\r\n"},
		{"LF becomes CRLF", "a\nb\n", "a\r\nb\r\n.\r\n"},
		{"CRLF stays", "a\r\nb\r\n", "a\r\nb\r\n.\r\n"},
		{"a dot at the start of a line is doubled", ".\n..\n.a\na.\n", "..\r\n...\r\n..a\r\na.\r\n.\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := load.Stuff([]byte(tt.in)); string(got) != tt.want {
				t.Errorf("Stuff(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func FuzzStuff(f *testing.F) { // the law: the final dot is the only line of one dot, and undoing gives the lines again
	f.Add([]byte("a\n.\r\nb"))
	f.Add([]byte("\r\n.\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, ok := bytes.CutSuffix(load.Stuff(in), []byte(".\r\n"))
		if !ok || bytes.HasPrefix(out, []byte(".\r\n")) || bytes.Contains(out, []byte("\r\n.\r\n")) {
			t.Fatalf("%q ends too early in %q", in, out)
		}
		var back []byte
		for line := range bytes.Lines(out) {
			back = append(back, bytes.TrimPrefix(bytes.TrimSuffix(line, []byte("\r\n")), []byte("."))...)
			back = append(back, '\n')
		}
		want := bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n"))
		if len(want) > 0 && want[len(want)-1] != '\n' {
			want = append(bytes.TrimSuffix(want, []byte("\r")), '\n')
		}
		if !bytes.Equal(back, want) {
			t.Errorf("%q came back as %q", want, back)
		}
	})
}

// play serves one connection with what script says after each line that begins with a key, and gives all that came.
func play(t *testing.T, script map[string]string) (addr netip.AddrPort, got <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	all := make(chan string, 1)
	go func() {
		var b strings.Builder
		defer func() { all <- b.String() }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		l.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, script["connect"])
		for in := bufio.NewReader(c); ; {
			line, err := in.ReadString('\n')
			b.WriteString(line)
			if err != nil {
				return
			}
			for key, reply := range script {
				if strings.HasPrefix(line, key) {
					if reply == "" {
						return
					}
					io.WriteString(c, reply)
				}
			}
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String()), all
}

func TestFailuresAreCounted(t *testing.T) {
	good := map[string]string{"connect": "220 hi\r\n", "EHLO": "250-a\r\n250 b\r\n", "MAIL": "250 ok\r\n", "RCPT": "250 ok\r\n", "DATA": "354 go\r\n", ".\r\n": "250 ok\r\n", "QUIT": "221 bye\r\n"}
	tests := []struct {
		name, key, reply string
		sent             int
		reason           string
	}{
		{"all is well", "QUIT", "221 bye\r\n", 1, ""},
		{"a server that hangs up after the message has taken it", "QUIT", "", 1, ""},
		{"a refused greeting", "connect", "554 no\r\n", 0, "greeting: 554 no"},
		{"a refused sender", "MAIL", "550-no\r\n550 never\r\n", 0, "MAIL: 550 never"},
		{"a refused recipient", "RCPT", "451 later\r\n", 0, "RCPT: 451 later"},
		{"a refused message", ".\r\n", "452 full\r\n", 0, "the message: 452 full"},
		{"a connection lost in the middle", "DATA", "", 0, "DATA: connection"},
		{"a reply that is none", "MAIL", "x\r\n", 0, "MAIL: not a reply"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			script := map[string]string{}
			for k, v := range good {
				script[k] = v
			}
			script[tt.key] = tt.reply
			addr, _ := play(t, script)
			res, err := load.Run(t.Context(), load.Config{Addr: addr, Sessions: 1, Messages: 1, From: "a@b.example", To: []string{"c@d.example"}})
			if err != nil || res.Sent != tt.sent || res.Failed != 1-tt.sent {
				t.Fatalf("Run = %+v, %v", res, err)
			}
			if tt.sent == 0 && !strings.HasPrefix(res.Reasons[0], tt.reason) {
				t.Errorf("the reason is %q, want %q", res.Reasons[0], tt.reason)
			}
		})
	}
}

func TestPipelinedCommandsComeInOneGroup(t *testing.T) {
	addr, got := play(t, map[string]string{"connect": "220 hi\r\n", "EHLO": "250 a\r\n",
		"DATA": "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", ".\r\n": "250 ok\r\n", "QUIT": "221 bye\r\n"})
	res, err := load.Run(t.Context(), load.Config{Addr: addr, Sessions: 1, Messages: 1, Pipeline: true, From: "a@b.example", Params: " BODY=8BITMIME",
		To: []string{"c@d.example", "e@f.example"}, Body: []byte("Subject: x\n\n.\n")})
	if err != nil || res.Sent != 1 {
		t.Fatalf("Run = %+v, %v", res, err)
	}
	want := "EHLO load.example\r\nMAIL FROM:<a@b.example> BODY=8BITMIME\r\nRCPT TO:<c@d.example>\r\nRCPT TO:<e@f.example>\r\nDATA\r\n" +
		"Subject: x\r\n\r\n..\r\n.\r\nQUIT\r\n"
	if s := <-got; s != want {
		t.Errorf("sent %q, want %q", s, want)
	}
}

func TestSilenceHasAnEnd(t *testing.T) {
	addr, _ := play(t, map[string]string{"connect": "220 hi\r\n"}) // and then nothing
	res, err := load.Run(t.Context(), load.Config{Addr: addr, Sessions: 1, Messages: 1, To: []string{"a@b.example"}, Timeout: time.Millisecond})
	if err != nil || res.Failed != 1 || !strings.Contains(res.Reasons[0], "no reply") {
		t.Errorf("Run = %+v, %v", res, err)
	}
}

func TestHoldCountsTheLiving(t *testing.T) {
	s := openSink(t, "127.0.0.1:0")
	h, err := load.Hold(t.Context(), s.Addr(), 100)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if n := h.Alive(); n != 100 {
		t.Errorf("%d of 100 are alive", n)
	}
	if n := s.Counts().Sessions; n != 100 {
		t.Errorf("the sink has %d sessions", n)
	}
}

func TestHoldNoticesTheDead(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hangUp := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "220 hi\r\n")
		if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			io.WriteString(c, "250 ok\r\n")
			<-hangUp
		}
	}()
	h, err := load.Hold(t.Context(), netip.MustParseAddrPort(l.Addr().String()), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if n := h.Alive(); n != 1 {
		t.Errorf("%d are alive before the end", n)
	}
	close(hangUp)
	for end := time.Now().Add(10 * time.Second); h.Alive() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a closed session is still counted")
		}
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	if _, err := load.Hold(t.Context(), addr, 3); err == nil {
		t.Error("Hold found somebody")
	}
	res, err := load.Run(t.Context(), load.Config{Addr: addr, Sessions: 3, Messages: 1000, To: []string{"a@b.example"}})
	if err == nil || res.Sent != 0 || res.Failed < 100 {
		t.Errorf("Run = %+v, %v", res, err)
	}
}
