package serve

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/system/env"
)

// header2 is a header of version 2.
func header2(command, family byte, rest string) string {
	return proxyMagic + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + rest
}

func TestReadProxy(t *testing.T) {
	four := "\xc0\x00\x02\x09\xc0\x00\x02\x01\x00\x19\x00\x19"
	six := "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + strings.Repeat("\x00", 20)
	tests := []struct{ name, in, want string }{
		{"version 1", "PROXY TCP4 192.0.2.9 192.0.2.1 1000 25\r\n", "192.0.2.9"},
		{"version 1 with IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 65535 25\r\n", "2001:db8::1"},
		{"version 1, mapped", "PROXY TCP6 ::ffff:192.0.2.9 2001:db8::2 1 25\r\n", "192.0.2.9"},
		{"version 1, unknown", "PROXY UNKNOWN\r\n", "invalid IP"},
		{"version 1, unknown and more", "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", "invalid IP"},
		{"version 1 without CR", "PROXY TCP4 192.0.2.9 192.0.2.1 1000 25\n", ""},
		{"version 1 of the wrong family", "PROXY TCP4 2001:db8::1 192.0.2.1 1000 25\r\n", ""},
		{"version 1 with a zone", "PROXY TCP6 fe80::1%eth0 2001:db8::2 1 25\r\n", ""},
		{"version 1 with a port too large", "PROXY TCP4 192.0.2.9 192.0.2.1 65536 25\r\n", ""},
		{"version 1 with two blanks", "PROXY TCP4  192.0.2.9 192.0.2.1 1000 25\r\n", ""},
		{"version 1 without end", "PROXY TCP4 " + strings.Repeat("1", 200), ""},
		{"version 1 cut short", "PROXY TCP4 192", ""},
		{"SMTP", "EHLO client.example\r\n", ""},
		{"version 2", header2(0x21, 0x11, four), "192.0.2.9"},
		{"version 2 with IPv6", header2(0x21, 0x21, six), "2001:db8::1"},
		{"version 2 with more than addresses", header2(0x21, 0x11, four+"\x04\x00\x01x"), "192.0.2.9"},
		{"version 2, the proxy itself", header2(0x20, 0x00, ""), "invalid IP"},
		{"version 2, unspecified", header2(0x21, 0x00, "x"), "invalid IP"},
		{"version 2 with too little", header2(0x21, 0x11, four[:11]), ""},
		{"version 2 of a Unix socket", header2(0x21, 0x31, strings.Repeat("x", 216)), ""},
		{"version 2 by datagram", header2(0x21, 0x12, four), ""},
		{"version 3", header2(0x31, 0x11, four), ""},
		{"version 2 too long", header2(0x21, 0x11, strings.Repeat("x", proxyRest+1)), ""},
		{"version 2 cut short", header2(0x21, 0x11, four)[:20], ""},
		{"another magic", "\r\n\r\n\x00\r\nQUIT\r" + "\x21\x11\x00\x00", ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		r := strings.NewReader(tt.in + "EHLO")
		ip, err := ReadProxy(r)
		if (err == nil) != (tt.want != "") || err == nil && ip.String() != tt.want {
			t.Errorf("%s: %v, %v", tt.name, ip, err)
		}
		if rest, _ := io.ReadAll(r); err == nil && string(rest) != "EHLO" {
			t.Errorf("%s: %q is left", tt.name, rest)
		}
	}
}

// A header that is read has said an address or nothing, and takes no byte of what follows it; two readings agree.
func FuzzReadProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.9 192.0.2.1 1000 25\r\nx"))
	f.Add([]byte(header2(0x21, 0x11, "\xc0\x00\x02\x09\xc0\x00\x02\x01\x00\x19\x00\x19")))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		ip, err := ReadProxy(r)
		used := len(in) - r.Len()
		if used > proxyFixed+proxyRest {
			t.Fatalf("%d bytes were read", used)
		}
		if err != nil {
			return
		}
		if ip.Is4In6() || ip.Zone() != "" {
			t.Fatalf("%v", ip)
		}
		if again, err := ReadProxy(bytes.NewReader(in[:used])); err != nil || again != ip {
			t.Fatalf("%q: %v, then %v, %v", in[:used], ip, again, err)
		}
		if _, err := ReadProxy(bytes.NewReader(in[:used-1])); err == nil {
			t.Fatalf("%q ends before its end", in[:used])
		}
	})
}

func TestAProxySpeaksForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		orders := make(chan env.Order)
		proxy := netip.MustParseAddr("192.0.2.250")
		done := daemon(orders, &log, func(d *Daemon) {
			d.Proxy = func(ip netip.Addr) bool { return ip == proxy }
			d.Limits = func() Limits { return Limits{Total: 10, PerClient: 2} }
			d.Welcome = func(ip netip.Addr) bool { return ip != proxy && ip != netip.MustParseAddr("192.0.2.6") }
		})
		ln := newListener()
		orders <- env.Order{Kind: env.Listen, Listener: ln}
		for _, tt := range []struct{ from, header, want string }{
			{"192.0.2.250", "PROXY TCP4 192.0.2.9 192.0.2.1 1 25\r\n", "hello\n"},
			{"192.0.2.250", "PROXY TCP4 192.0.2.9 192.0.2.1 2 25\r\n", "hello\n"},
			{"192.0.2.250", "PROXY TCP4 192.0.2.9 192.0.2.1 3 25\r\n", "enough\n"},
			{"192.0.2.250", "PROXY TCP4 192.0.2.8 192.0.2.1 3 25\r\n", "hello\n"},
			{"192.0.2.250", "PROXY TCP4 192.0.2.6 192.0.2.1 3 25\r\n", ""},
			{"192.0.2.250", "PROXY UNKNOWN\r\n", "hello\n"},
			{"192.0.2.250", "EHLO x\r\n", ""},
			{"192.0.2.5", "", "hello\n"},
		} {
			conn := ln.dial(tt.from)
			go io.WriteString(conn, tt.header)
			if got := line(t, conn); got != tt.want {
				t.Errorf("%s %q is told %q, want %q", tt.from, tt.header, got, tt.want)
			}
		}
		silent := ln.dial("192.0.2.250")
		began := time.Now()
		if got := line(t, silent); got != "" || time.Since(began) != proxyTime {
			t.Errorf("a silent proxy is told %q after %v", got, time.Since(began))
		}
		orders <- env.Order{Kind: env.Stop}
		<-done
		for _, want := range []string{"refused 192.0.2.9: \"\": enough", "refused 192.0.2.6: \"\": not a client", "refused 192.0.2.250: \"\": PROXY header"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("log %q lacks %q", &log, want)
			}
		}
	})
}
