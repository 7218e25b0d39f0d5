package smtproute

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestParseRelay(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", "direct:25"},
		{"mx.example", "mx.example:25"},
		{"mx.example:2525", "mx.example:2525"},
		{"127.0.0.1", "127.0.0.1:25"},
		{"127.0.0.1:2525", "127.0.0.1:2525"},
		{"[127.0.0.1]:2525", "127.0.0.1:2525"},
		{"[::1]", "[::1]:25"},
		{"[::1]:2525", "[::1]:2525"},
		{"[IPv6:::1]:2525", "[::1]:2525"},
		{":2525", "direct:2525"},
		{"mx.example:", "error"},
		{"mx.example:smtp", "error"},
		{"mx.example:0", "error"},
		{"mx.example:65536", "error"},
		{"mx.example:25:26", "error"},
		{"[::1", "error"},
		{"[mx.example]:25", "error"},
		{"[::1]25", "error"},
		{"[]", "error"},
	}
	for _, tt := range tests {
		r, err := ParseRelay(tt.in, SMTP)
		got := fmt.Sprint(r.Host, ":", r.Port)
		switch {
		case err != nil:
			got = "error"
		case r.Direct():
			got = fmt.Sprint("direct:", r.Port)
		case r.Addr.IsValid():
			got = netip.AddrPortFrom(r.Addr, r.Port).String()
		}
		if got != tt.want {
			t.Errorf("%q is %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestLiteral(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1": "127.0.0.1", "[127.0.0.1]": "127.0.0.1", "[IPv6:2001:db8::1]": "2001:db8::1", "[ipv6:2001:db8::1]": "2001:db8::1",
		"2001:db8::1": "2001:db8::1", "[::ffff:127.0.0.1]": "127.0.0.1",
		"": "", "[]": "", "[a]": "", "127.0.0": "", "127.1": "", "0x7f.0.0.1": "", "1.2.3.4.5": "", "[1.2.3.4": "", "fe80::1%eth0": "", "mx.example": "",
	} {
		a, ok := Literal(in)
		if ok != (want != "") || ok && a.String() != want {
			t.Errorf("Literal(%q) = %v %v, want %q", in, a, ok, want)
		}
	}
}

// host reads "preference name addr,addr"; an address of ? means that the DNS could not say.
func host(s string) Host {
	var h Host
	var addrs string
	fmt.Sscan(s, &h.Preference, &h.Host, &addrs)
	for _, a := range strings.Split(addrs, ",") {
		switch a {
		case "":
		case "?":
			h.Unknown = true
		default:
			h.Addrs = append(h.Addrs, netip.MustParseAddr(a))
		}
	}
	return h
}

func TestTargets(t *testing.T) {
	mine := func(a netip.Addr) bool {
		return a == netip.MustParseAddr("192.0.2.1") || a == netip.MustParseAddr("2001:db8::1")
	}
	tests := []struct {
		name  string
		hosts []string
		want  string
		out   Outcome
	}{
		{"all addresses in order, IPv4 first within a host", []string{"10 a 2001:db8::a,10.0.0.1,10.0.0.2", "20 b 10.0.0.3"}, "10.0.0.1 10.0.0.2 2001:db8::a 10.0.0.3", Some},
		{"an address stands once", []string{"10 a 10.0.0.1", "10 b 10.0.0.1,::ffff:10.0.0.1"}, "10.0.0.1", Some},
		{"hosts behind us are not tried", []string{"10 a 10.0.0.1", "20 b 10.0.0.2,192.0.2.1", "20 c 10.0.0.3", "30 d 10.0.0.4"}, "10.0.0.1", Some},
		{"hosts of our own preference that stand before us are not tried", []string{"10 a 10.0.0.1", "10 b 192.0.2.1"}, "", Myself},
		{"we are the best", []string{"10 a 192.0.2.1", "20 b 10.0.0.2"}, "", Myself},
		{"we are the best, by IPv6", []string{"10 a 2001:db8::1", "20 b 10.0.0.2"}, "", Myself},
		{"we are the best, by a mapped address", []string{"10 a ::ffff:192.0.2.1", "20 b 10.0.0.2"}, "", Myself},
		{"nobody has an address", []string{"10 a", "20 b"}, "", None},
		{"no hosts", nil, "", None},
		{"one may have", []string{"10 a", "20 b ?"}, "", Unknown},
		{"the better one may have, the next is us", []string{"10 a ?", "20 b 192.0.2.1"}, "", Unknown},
		{"one has nothing, one is not known behind us", []string{"10 a 192.0.2.1", "20 b ?"}, "", Myself},
		{"what is known is enough", []string{"10 a ?", "20 b 10.0.0.1,?"}, "10.0.0.1", Some},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var hosts []Host
			for _, s := range tt.hosts {
				hosts = append(hosts, host(s))
			}
			targets, out := Targets(hosts, SMTP, mine)
			var got []string
			for _, x := range targets {
				got = append(got, x.Addr.Addr().String())
			}
			if strings.Join(got, " ") != tt.want || out != tt.out {
				t.Errorf("%v %d, want %s %d", got, out, tt.want, tt.out)
			}
		})
	}
}

func TestTargetsAreBounded(t *testing.T) {
	var h Host
	for i := range 200 {
		h.Addrs = append(h.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	if list, _ := Targets([]Host{h}, SMTP, func(netip.Addr) bool { return false }); len(list) != MaxTargets {
		t.Errorf("%d targets", len(list))
	}
}

func TestPickIsRandomWithinAPreference(t *testing.T) {
	list := []Exchanger{{20, "x"}, {10, "a"}, {10, "b"}, {10, "c"}, {5, "best"}}
	seed := uint32(1)
	random := func(n int) int {
		seed = seed*1664525 + 1013904223
		return int(seed>>16) % n
	}
	first := map[string]int{}
	for range 3000 {
		p := Pick(list, random)
		if len(p) != 5 || p[0].Host != "best" || p[4].Host != "x" {
			t.Fatalf("%v", p)
		}
		first[p[1].Host]++
	}
	for _, h := range []string{"a", "b", "c"} {
		if first[h] < 800 || first[h] > 1200 {
			t.Errorf("%s came first %d times of 3000", h, first[h])
		}
	}
	many := make([]Exchanger, 1000)
	for i := range many {
		many[i].Preference = uint16(1000 - i)
	}
	if p := Pick(many, random); len(p) != MaxHosts || p[0].Preference != 1 {
		t.Errorf("%d kept, best %d", len(p), p[0].Preference)
	}
}

func FuzzParseRelay(f *testing.F) { // law: a relay has a host or an address, a port, and no way to say two things
	f.Add("[::1]:25")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRelay(s, SMTP)
		if err == nil && (r.Port == 0 || r.Host != "" && r.Addr.IsValid() || strings.Contains(r.Host, ":")) {
			t.Fatalf("%q: %+v", s, r)
		}
	})
}
