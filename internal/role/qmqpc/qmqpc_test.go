package qmqpc

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

func TestReadEnvelope(t *testing.T) {
	tests := []struct {
		name, in, want string
		code           int
	}{
		{"sender and recipients", "Fs\x00Ta@b\x00T\x00\x00Tx\x00", "1:s,3:a@b,0:,", 0},
		{"nobody", "F\x00\x00", "0:,", 0},
		{"no sender", "Ta\x00\x00", "", qq.CodeBug},
		{"two senders", "Fa\x00Fb\x00\x00", "", qq.CodeBug},
		{"another letter", "Fa\x00Xb\x00\x00", "", qq.CodeBug},
		{"nothing", "", "", qq.CodeBug},
		{"the empty record first", "\x00", "", qq.CodeBug},
		{"no end", "Fa\x00Tb\x00", "", qq.CodeBug},
		{"cut short", "Fa\x00Tb", "", qq.CodeBug},
		{"a long address", "F" + strings.Repeat("a", 70000) + "\x00\x00", "70000:" + strings.Repeat("a", 70000) + ",", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := &pack{}
			code := p.readEnvelope(bufio.NewReader(strings.NewReader(tt.in)))
			if code != tt.code || code == 0 && string(p.envelope) != tt.want {
				t.Errorf("%d, %.50q", code, p.envelope)
			}
		})
	}
}

func TestServer(t *testing.T) {
	for line, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "10.0.0.1:700 x": "10.0.0.1", "10.0.0.1 mx": "10.0.0.1",
		"mx.example": "", "": "", "10.0.0": "", "10.0.0.256": "", " 10.0.0.1": "", "1.2.3.4.5": "",
	} {
		ip, ok := server(line)
		if ok != (want != "") || ok && ip.String() != want {
			t.Errorf("%q: %v %v", line, ip, ok)
		}
	}
}

// peer is a QMQP server that reads so many bytes, or all of a package if that is negative, says something and
// closes.
func peer(t *testing.T, read int64, say string) (netip.AddrPort, <-chan string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	got := make(chan string, 1)
	go func() {
		defer close(got)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(conn)
		if read < 0 {
			length, _ := r.ReadString(':')
			n := int64(0)
			for _, c := range strings.TrimSuffix(length, ":") {
				n = n*10 + int64(c-'0')
			}
			b := make([]byte, n+1)
			if _, err := io.ReadFull(r, b); err == nil {
				got <- length + string(b)
			}
		} else {
			io.CopyN(io.Discard, r, read)
			conn.(*net.TCPConn).SetLinger(0)
		}
		io.WriteString(conn, say)
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort(), got
}

func TestSend(t *testing.T) {
	tests := []struct {
		name string
		read int64
		say  string
		code int
		next bool
	}{
		{"it takes the message", -1, "20:Kok 1 qp 2,", 0, false},
		{"it refuses for now", -1, "5:Zbusy,", qq.CodeLater, false},
		{"it refuses for good", -1, "2:Dno,", qq.CodeNever, false},
		{"it had everything and says nothing: another could be one too many", -1, "", qq.CodeTalk, false},
		{"it babbles", -1, strings.Repeat("x", 100000), qq.CodeTalk, false},
		{"it goes away before it has everything", 10, "", qq.CodeTalk, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			to, got := peer(t, tt.read, tt.say)
			p := &pack{message: qq.NewHold(t.TempDir()), envelope: []byte("1:s,3:a@b,")}
			defer p.message.Close()
			message := strings.Repeat("0123456\n", 1<<20) // more than sockets hold
			io.WriteString(p.message, message)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			code, next := p.send(ctx, to)
			if code != tt.code || next != tt.next {
				t.Errorf("%d %v, want %d %v", code, next, tt.code, tt.next)
			}
			if text := <-got; tt.read < 0 && text != "8388627:8388608:"+message+",1:s,3:a@b,," {
				t.Errorf("it got %.50q", text)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	p := &pack{message: qq.NewHold(t.TempDir())}
	if code, next := p.send(context.Background(), to); code != qq.CodeRefused || !next {
		t.Error(code, next)
	}
}

func TestConfiguration(t *testing.T) {
	home := t.TempDir()
	file := func(name, text string) *os.File {
		path := filepath.Join(home, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	e := &env.Env{Home: home, Now: time.Now}
	run := func() int {
		e.Stdin, e.Stdout = file("0", "x\n"), file("1", "F\x00\x00")
		return Main(context.Background(), e, nil)
	}
	if code := run(); code != qq.CodeConfig {
		t.Errorf("no file: %d", code)
	}
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	file("control/qmqpservers", "# nobody\nmx.example\n")
	if code := run(); code != qq.CodeConfig {
		t.Errorf("no address: %d", code)
	}
	e.Home = filepath.Join(home, "none")
	if code := run(); code != qq.CodeHome {
		t.Errorf("no home: %d", code)
	}
}
