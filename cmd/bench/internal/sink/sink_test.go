package sink_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"qmail/cmd/bench/internal/sink"
)

// open runs a sink until the test ends.
func open(t *testing.T, addrs ...string) *sink.Sink {
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

// talk sends a whole session and gives the reply codes.
func talk(t *testing.T, addr netip.AddrPort, in io.Reader) string {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(c, in); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for line := range strings.Lines(string(out)) {
		if len(line) > 3 && line[3] != '-' {
			codes = append(codes, line[:3])
		}
	}
	return strings.Join(codes, " ")
}

var sessions = []struct {
	name, in, codes                string
	messages, recipients, distinct int64
}{
	{"a message", "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n", "220 250 250 250 354 250 221", 1, 1, 1},
	{"two at once", "HELO x\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n1\r\n.\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n2\r\n.\r\nQUIT\r\n",
		"220 250 250 250 354 250 250 250 354 250 221", 2, 2, 1},
	{"an empty message", "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\nQUIT\r\n", "220 250 250 354 250 221", 1, 1, 1},
	{"a doubled dot is no end", "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n..\r\n.a\r\n\r\n.\r\nQUIT\r\n", "220 250 250 354 250 221", 1, 1, 1},
	{"a dot after a bare LF is no end", "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\na\n.\r\nb\r\n.\n\r\n.\r\nQUIT\r\n", "220 250 250 354 250 221", 1, 1, 1},
	{"several recipients", "mail from:<a>\r\nrcpt to:<b>\r\nrcpt to:<c>\r\nrcpt to:<c>\r\ndata\r\nx\r\n.\r\nquit\r\n", "220 250 250 250 250 354 250 221", 1, 3, 2},
	{"each with its own sender", "MAIL FROM:<a1>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\nMAIL FROM:<a2>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\nQUIT\r\n",
		"220 250 250 354 250 250 250 354 250 221", 2, 2, 2},
	{"wrong order", "RCPT TO:<b>\r\nDATA\r\nFROB\r\nMAIL FROM:<a>\r\nDATA\r\nRCPT TO:<b>\r\nRSET\r\nDATA\r\nNOOP\r\nQUIT\r\n", "220 503 503 502 250 503 250 250 503 250 221", 0, 0, 0},
	{"what is no message is not counted", "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nQUIT\r\n", "220 250 250 221", 0, 0, 0},
	{"a line without end", strings.Repeat("x", 5000), "220 500", 0, 0, 0},
}

func TestSession(t *testing.T) {
	for _, tt := range sessions {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, "127.0.0.1:0")
			s.Expect(1<<40, true)
			if got := talk(t, s.Addr(), strings.NewReader(tt.in)); got != tt.codes {
				t.Errorf("replies %s, want %s", got, tt.codes)
			}
			c := s.Counts()
			if c.Messages != tt.messages || c.Recipients != tt.recipients || c.Distinct != tt.distinct {
				t.Errorf("counted %+v", c)
			}
		})
	}
}

func TestSeveralAddressesShareAPort(t *testing.T) {
	s := open(t, "127.0.0.1:0", "127.1.0.1:0", "127.1.0.2:0")
	done := s.Expect(3, false)
	for _, host := range []string{"127.0.0.1", "127.1.0.1", "127.1.0.2"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(host), s.Addr().Port())
		talk(t, at, strings.NewReader("MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\nQUIT\r\n"))
	}
	if c := <-done; c.Recipients != 3 || c.Sessions != 3 || c.Last.IsZero() {
		t.Errorf("counted %+v", c)
	}
}

func TestExpectBeginsAnew(t *testing.T) {
	s := open(t, "127.0.0.1:0")
	const one = "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\nQUIT\r\n"
	for range 3 {
		done := s.Expect(1, true)
		talk(t, s.Addr(), strings.NewReader(one))
		if c := <-done; c.Messages != 1 || c.Distinct != 1 {
			t.Errorf("counted %+v", c)
		}
	}
}
