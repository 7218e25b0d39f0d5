// Package tcpenv is tcp-env(1): it finds out who is at the other end of descriptor 0, sets the variables of
// tcp-environ(5), and becomes a program. It is for inetd; tcpserver sets them itself.
//
// The names of both ends come from the DNS (control/resolvers, else resolv.conf(5)), the user's name from the
// client's ident server (RFC 1413). None of the three is to be trusted; what cannot be known is taken out of the
// environment. Nothing is ever said, since descriptor 2 may be the client: exit code 111 means failure.
package tcpenv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/proto/resolve"
	"qmail/internal/store/control"
	"qmail/internal/system/child"
	"qmail/internal/system/dns"
	"qmail/internal/system/env"
)

const (
	failure   = 111
	identTime = 30 * time.Second // -t
	identPort = 113
	maxIdent  = 998 // bytes of the user's name
	maxAnswer = 8 << 10
	dnsTime   = 40 * time.Second
	softError = "softdnserror" // stands for a name when the DNS cannot say
)

// Main becomes the program of its arguments: tcp-env [ -rR ] [ -tN ] program [ arg ... ].
func Main(ctx context.Context, e *env.Env, args []string) int {
	m := machine{ident: identPort, exec: child.Exec, resolver: func() (resolver, error) {
		c, err := resolve.Servers(control.Open(e.Home))
		if err != nil {
			return nil, err
		}
		return dns.New(c), nil
	}}
	return m.run(ctx, e, args)
}

// resolver is the part of dns.Resolver that is used.
type resolver interface {
	Lookup(ctx context.Context, name string, kind dns.Type) (dns.Answer, error)
}

// machine is what is around the program.
type machine struct {
	ident    uint16 // port of ident servers
	exec     func(argv, vars []string) error
	resolver func() (resolver, error)
}

func (m *machine) run(ctx context.Context, e *env.Env, args []string) int {
	patience, program := options(args)
	if len(program) == 0 {
		return failure
	}
	vars := e.Vars
	if e.Get("PROTO") != "TCP" {
		local, remote, err := ends(e.Stdin)
		if err != nil {
			return failure
		}
		if vars, err = m.variables(ctx, vars, local, remote, patience); err != nil {
			return failure
		}
	}
	m.exec(program, vars) // if it returns it has failed
	return failure
}

// options reads the options, and passes over those that it does not know. patience is 0 if no ident server is to be
// asked.
func options(args []string) (patience time.Duration, program []string) {
	ask, seconds := true, identTime
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		letters := args[0][1:]
		args = args[1:]
		if letters == "-" {
			break
		}
		for i := 0; i < len(letters); i++ {
			switch letters[i] {
			case 'r', 'R':
				ask = letters[i] == 'r'
			case 't':
				value := letters[i+1:]
				if value == "" && len(args) > 0 {
					value, args = args[0], args[1:]
				}
				n, _ := control.ScanInt(value)
				seconds = time.Duration(min(n, 3600)) * time.Second
				i = len(letters)
			}
		}
	}
	if !ask {
		seconds = 0
	}
	return seconds, args
}

// ends are the two ends of a TCP connection. The descriptor stays as it is, blocking or not.
func ends(f *os.File) (local, remote netip.AddrPort, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return local, remote, err
	}
	failed := raw.Control(func(fd uintptr) {
		var kind int
		if kind, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
			err = errors.Join(err, errNoTCP)
			return
		}
		var a, b unix.Sockaddr
		if a, err = unix.Getsockname(int(fd)); err != nil {
			return
		}
		if b, err = unix.Getpeername(int(fd)); err != nil {
			return
		}
		if local, remote = addrPort(a), addrPort(b); !local.IsValid() || !remote.IsValid() {
			err = errNoTCP
		}
	})
	return local, remote, errors.Join(failed, err)
}

var errNoTCP = errors.New("not a TCP connection")

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// variables replaces those of the connection.
func (m *machine) variables(ctx context.Context, vars []string, local, remote netip.AddrPort, patience time.Duration) ([]string, error) {
	r, err := m.resolver()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dnsTime)
	defer cancel()
	set := []struct{ name, value string }{
		{"PROTO", "TCP"},
		{"TCPLOCALIP", local.Addr().String()}, {"TCPLOCALPORT", strconv.Itoa(int(local.Port()))}, {"TCPLOCALHOST", nameOf(ctx, r, local.Addr())},
		{"TCPREMOTEIP", remote.Addr().String()}, {"TCPREMOTEPORT", strconv.Itoa(int(remote.Port()))}, {"TCPREMOTEHOST", nameOf(ctx, r, remote.Addr())},
		{"TCPREMOTEINFO", m.askIdent(local, remote, patience)},
	}
	out := make([]string, 0, len(vars)+len(set))
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		ours := false
		for _, s := range set {
			ours = ours || s.name == name
		}
		if !ours {
			out = append(out, v)
		}
	}
	for _, s := range set {
		if s.value != "" {
			out = append(out, s.name+"="+s.value)
		}
	}
	return out, nil
}

// nameOf asks for the name of an address: "" if it has none.
func nameOf(ctx context.Context, r resolver, ip netip.Addr) string {
	a, err := r.Lookup(ctx, reverse(ip), dns.TypePTR)
	switch {
	case err != nil:
		return softError
	case a.Status != dns.Found || len(a.Names) == 0:
		return ""
	}
	return a.Names[0]
}

// reverse is the name under which the DNS has the name of an address (RFC 1035 3.5, RFC 3596 2.5).
func reverse(ip netip.Addr) string {
	var b strings.Builder
	bytes := ip.AsSlice()
	for i := len(bytes) - 1; i >= 0; i-- {
		if ip.Is4() {
			fmt.Fprintf(&b, "%d.", bytes[i])
		} else {
			fmt.Fprintf(&b, "%x.%x.", bytes[i]&15, bytes[i]>>4)
		}
	}
	if ip.Is4() {
		return b.String() + "in-addr.arpa"
	}
	return b.String() + "ip6.arpa"
}

// askIdent asks the client's machine whose connection this is: "" if it does not say.
func (m *machine) askIdent(local, remote netip.AddrPort, patience time.Duration) string {
	if patience <= 0 {
		return ""
	}
	deadline := time.Now().Add(patience)
	d := net.Dialer{Deadline: deadline, LocalAddr: &net.TCPAddr{IP: local.Addr().AsSlice()}}
	d.SetMultipathTCP(false)
	conn, err := d.Dial("tcp", netip.AddrPortFrom(remote.Addr(), m.ident).String())
	if err != nil {
		return ""
	}
	defer conn.Close()
	if conn.SetDeadline(deadline) != nil {
		return ""
	}
	if _, err := fmt.Fprintf(conn, "%d , %d\r\n", remote.Port(), local.Port()); err != nil {
		return ""
	}
	line, err := bufio.NewReaderSize(conn, maxAnswer).ReadSlice('\n')
	if err != nil {
		return ""
	}
	return userOf(line)
}

// userOf is what follows the third colon of an ident server's answer, without blanks.
func userOf(line []byte) string {
	for range 3 {
		var found bool
		if _, line, found = bytes.Cut(line, []byte(":")); !found {
			return ""
		}
	}
	var b []byte
	for _, c := range line {
		switch c {
		case ' ', '\t', '\r', '\n', 0:
		default:
			if len(b) < maxIdent {
				b = append(b, c)
			}
		}
	}
	return string(b)
}
