package client

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// chunked gives its bytes in pieces of n, then EOF.
type chunked struct {
	net.Conn
	data []byte
	n    int
}

func (c *chunked) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	k := copy(p[:min(len(p), c.n)], c.data)
	c.data = c.data[k:]
	return k, nil
}

func (c *chunked) SetReadDeadline(time.Time) error { return nil }

func TestReply(t *testing.T) {
	long := strings.Repeat("x", 3000)
	tests := []struct {
		name string
		in   string
		code int
		text string
		left string
		err  error
	}{
		{"one line", "250 ok\r\n", 250, "250 ok\n", "", nil},
		{"a line without text", "250\r\n", 250, "250\n", "", nil},
		{"line ends without CR", "250-a\n250 b\n", 250, "250-a\n250 b\n", "", nil},
		{"several lines, the first code counts", "250-a\r\n554-b\r\n250 c\r\nmore", 250, "250-a\n554-b\n250 c\n", "more", nil},
		{"a continuation line without text ends nothing", "553-\r\n553\r\n\r\ntype: mda\r\n", 553, "553-\n553\n", "\r\ntype: mda\r\n", nil},
		{"two digits", "22 hi\r\n", unknownCode, "22 hi\n", "", nil},
		{"an empty line", "\r\n", unknownCode, "\n", "", nil},
		{"letters", "HTTP/1.1 400 Bad Request\r\n", unknownCode, "HTTP/1.1 400 Bad Request\n", "", nil},
		{"control bytes are hidden, CRs dropped", "550 a\x00b\x1b[31m\rc\td\x7f\r\n", 550, "550 a?b?[31mc\td?\n", "", nil},
		{"bytes over 127 stay", "550 \xc3\xa9\xff\r\n", 550, "550 \xc3\xa9\xff\n", "", nil},
		{"text is kept up to 5000 bytes", "554-" + long + "\r\n554 " + long + "\r\n", 554, ("554-" + long + "\n554 " + long)[:5000], "", nil},
		{"cut off", "250 o", 0, "250 o", "", io.EOF},
		{"cut off between lines", "250-o\r\n", 0, "250-o\n", "", io.EOF},
		{"nothing", "", 0, "", "", io.EOF},
		{"a line without end", "220 " + strings.Repeat("a", maxReply), 0, ("220 " + strings.Repeat("a", 5000))[:5000], "", errLong},
		{"lines without end", strings.Repeat("220-a\r\n", maxReply/6), 0, strings.Repeat("220-a\n", 1000)[:5000], "", errLong},
	}
	for _, tt := range tests {
		for _, n := range []int{1, 3, 1 << 20} {
			t.Run(tt.name, func(t *testing.T) {
				rd := reader{conn: &chunked{data: []byte(tt.in), n: n}}
				code, err := rd.reply(time.Time{}, nil)
				if code != tt.code || !errors.Is(err, tt.err) || string(rd.text) != tt.text {
					t.Errorf("%d %.100q %v, want %d %.100q %v", code, rd.text, err, tt.code, tt.text, tt.err)
				}
				if err == nil {
					left, _ := io.ReadAll(io.MultiReader(bytes.NewReader(rd.buf[rd.r:rd.w]), rd.conn))
					if string(left) != tt.left {
						t.Errorf("%q is left, want %q", left, tt.left)
					}
				}
			})
		}
	}
}

// deaf is a server whose words stand fixed; what it is told is thrown away.
type deaf struct{ chunked }

func (*deaf) Write(p []byte) (int, error)      { return len(p), nil }
func (*deaf) SetWriteDeadline(time.Time) error { return nil }
func (*deaf) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)} }
func (*deaf) Close() error                     { return nil }

// FuzzServer: whatever a server says, the message has one verdict, each recipient a report, and none is K
// without a 354 and a 2xx on lines of their own.
func FuzzServer(f *testing.F) {
	f.Add([]byte("220 x\r\n250-x\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 taken\r\n250 ok\r\n"), 1)
	f.Add([]byte("220 x\r\n502 x\r\n250 x\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n"), 7)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		c := New(&deaf{chunked{data: in, n: 1 + n&0xff}}, Options{Hello: "here.example"})
		if c.Hello().Letter != 0 {
			return
		}
		for range 3 {
			if !c.Usable() {
				break
			}
			r := c.Deliver(&Message{Recipients: []string{"a@x", "b@x"}, Body: Memory([]byte("x\n"))})
			for i := range 2 {
				text := r.Of(i)
				if !strings.Contains("KZD", text[:1]) || text[len(text)-1] != '\n' || strings.ContainsAny(text, "\x00\r") {
					t.Fatalf("%q", text)
				}
				if text[0] == 'K' && (!bytes.Contains(in, []byte("3")) || bytes.Count(in, []byte("\n2")) < 3) {
					t.Fatalf("%q from %q", text, in)
				}
			}
		}
		c.Quit()
	})
}

func FuzzReply(f *testing.F) { // law: bounded and clean, and packets do not matter
	f.Add([]byte("250-a\r\n250 b\r\n421 bye\r\n"), 1)
	f.Add([]byte("553-\r\n553\r\n\r\nx"), 2)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		a := reader{conn: &chunked{data: in, n: 1 << 20}}
		b := reader{conn: &chunked{data: in, n: 1 + n&0xff}}
		for {
			ca, ea := a.reply(time.Time{}, nil)
			cb, eb := b.reply(time.Time{}, nil)
			if ca != cb || (ea == nil) != (eb == nil) || !bytes.Equal(a.text, b.text) {
				t.Fatalf("%d %q %v in one piece, %d %q %v in pieces", ca, a.text, ea, cb, b.text, eb)
			}
			if len(a.text) > maxText || bytes.ContainsAny(a.text, "\x00\r\x1b\x7f") || ca < 0 || ca > 999 {
				t.Fatalf("%d %q", ca, a.text)
			}
			if ea != nil {
				return
			}
		}
	})
}
