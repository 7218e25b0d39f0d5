package tcpenv

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"qmail/internal/system/dns"
	"qmail/internal/system/env"
)

// names is a DNS in memory; "?" stands for one that cannot say.
type names map[string]string

func (n names) Lookup(_ context.Context, name string, kind dns.Type) (dns.Answer, error) {
	switch host, ok := n[name]; {
	case kind != dns.TypePTR || host == "?":
		return dns.Answer{}, errors.New("SERVFAIL")
	case ok:
		return dns.Answer{Status: dns.Found, Names: []string{host}}, nil
	}
	return dns.Answer{Status: dns.NoName}, nil
}

// connection is one over the loopback, as inetd would pass it.
func connection(t *testing.T) (file *os.File, local, remote netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if file, err = server.(*net.TCPConn).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); file.Close() })
	return file, server.LocalAddr().(*net.TCPAddr).AddrPort(), server.RemoteAddr().(*net.TCPAddr).AddrPort()
}

// identServer answers one question, and returns its port and what it was asked.
func identServer(t *testing.T, answer string) (port uint16, asked chan string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	asked = make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		asked <- line
		io.WriteString(conn, answer)
		if answer == "" {
			io.Copy(io.Discard, conn)
		}
	}()
	return uint16(ln.Addr().(*net.TCPAddr).Port), asked
}

func TestVariables(t *testing.T) {
	both := names{"1.0.0.127.in-addr.arpa": "mx.test.example", "9.0.0.127.in-addr.arpa": "client.example"}
	tests := []struct {
		name, args, ident string
		names             names
		host, info, local string
	}{
		{"everything is known", "", "1, 2 : USERID : UNIX : joe user\r\n", both, "client.example", "joeuser", "mx.test.example"},
		{"nothing is known", "", "1, 2 : ERROR : NO-USER\r\n", nil, "", "", ""},
		{"the DNS cannot say", "", "\r\n", names{"9.0.0.127.in-addr.arpa": "?"}, "softdnserror", "", ""},
		{"the ident server is not to be asked", "-R", "1,2:USERID:UNIX:joe\r\n", both, "client.example", "", "mx.test.example"},
		{"the last option counts, and unknown ones do not", "-Rxr -q", "1,2:USERID:UNIX:joe:x\r\n", both, "client.example", "joe:x", "mx.test.example"},
		{"an ident server that says nothing", "-t1", "", both, "client.example", "", "mx.test.example"},
		{"one that never ends its line", "-t 1", strings.Repeat("x:", 10000), both, "client.example", "", "mx.test.example"},
		{"one that says a lot", "", "1,2:USERID:UNIX:" + strings.Repeat("x", 2000) + "\r\n", both, "client.example", strings.Repeat("x", 998), "mx.test.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file, local, remote := connection(t)
			port, asked := identServer(t, tt.ident)
			var argv, vars []string
			m := machine{ident: port, resolver: func() (resolver, error) { return tt.names, nil },
				exec: func(a, v []string) error { argv, vars = a, v; return errors.New("not here") }}
			e := &env.Env{Stdin: file, Vars: []string{"HOME=/", "PROTO=UDP", "TCPREMOTEHOST=forged.example", "TCPREMOTEINFO=forged", "TCPLOCALHOST=forged"}}
			if code := m.run(t.Context(), e, append(strings.Fields(tt.args), "prog", "-x")); code != 111 {
				t.Errorf("exit %d", code)
			}
			e.Vars = vars
			want := [][2]string{
				{"HOME", "/"}, {"PROTO", "TCP"}, {"TCPLOCALIP", "127.0.0.1"}, {"TCPLOCALHOST", tt.local},
				{"TCPREMOTEIP", "127.0.0.9"}, {"TCPREMOTEHOST", tt.host}, {"TCPREMOTEINFO", tt.info},
			}
			for _, w := range want {
				if got, set := e.Lookup(w[0]); got != w[1] || set != (w[1] != "") {
					t.Errorf("%s is %q, set %v; want %q", w[0], got, set, w[1])
				}
			}
			if e.Get("TCPLOCALPORT")+" "+e.Get("TCPREMOTEPORT") != strings.TrimPrefix(local.String(), "127.0.0.1:")+" "+strings.TrimPrefix(remote.String(), "127.0.0.9:") {
				t.Errorf("ports of %v and %v in %q", local, remote, vars)
			}
			if !slices.Equal(argv, []string{"prog", "-x"}) {
				t.Errorf("becomes %q", argv)
			}
			if tt.args != "-R" {
				if got := <-asked; got != e.Get("TCPREMOTEPORT")+" , "+e.Get("TCPLOCALPORT")+"\r\n" {
					t.Errorf("asked %q", got)
				}
			}
		})
	}
}

func TestWhatIsKnownStaysAsItIs(t *testing.T) {
	var vars []string
	m := machine{exec: func(_, v []string) error { vars = v; return errors.New("not here") }}
	e := &env.Env{Stdin: os.Stdin, Vars: []string{"PROTO=TCP", "TCPREMOTEIP=192.0.2.7"}}
	if m.run(t.Context(), e, []string{"prog"}); !slices.Equal(vars, e.Vars) {
		t.Errorf("%q", vars)
	}
}

func TestFailures(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	socket, _, _ := connection(t)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unixEnd, other := os.NewFile(uintptr(fds[0]), "one"), os.NewFile(uintptr(fds[1]), "other")
	defer unixEnd.Close()
	defer other.Close()
	tests := []struct {
		name  string
		stdin *os.File
		args  []string
		err   error
	}{
		{"no program", socket, []string{"-R"}, nil},
		{"no connection", file, []string{"prog"}, nil},
		{"a connection, but not over TCP", unixEnd, []string{"prog"}, nil},
		{"no resolver", socket, []string{"-R", "prog"}, errors.New("malformed")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := machine{
				resolver: func() (resolver, error) { return names{}, tt.err },
				exec:     func(a, _ []string) error { t.Errorf("becomes %q", a); return nil },
			}
			var said strings.Builder
			if code := m.run(t.Context(), &env.Env{Stdin: tt.stdin, Stderr: &said}, tt.args); code != 111 || said.Len() > 0 {
				t.Errorf("exit %d: %s", code, &said)
			}
		})
	}
}

func TestReverse(t *testing.T) {
	for ip, want := range map[string]string{
		"192.0.2.7":   "7.2.0.192.in-addr.arpa",
		"2001:db8::1": "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := reverse(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s: %s", ip, got)
		}
	}
}

// FuzzUserOf: whatever an ident server says, the environment gets one bounded word.
func FuzzUserOf(f *testing.F) {
	f.Add([]byte("1, 2 : USERID : UNIX : joe user\r\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if got := userOf(line); len(got) > maxIdent || strings.ContainsAny(got, " \t\r\n\x00") {
			t.Errorf("%q", got)
		}
	})
}
