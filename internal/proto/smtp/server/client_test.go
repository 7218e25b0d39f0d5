package server

import (
	"net/netip"
	"strings"
	"testing"
)

// trusting gives relay rights to one address, and trust to its own network.
func trusting(q Queue) *Server {
	config := testConfig()
	config.Mechanisms = func(*Peer) ([]string, bool) { return []string{"PLAIN"}, true }
	config.Moved = func(p *Peer) {
		if p.Address == netip.MustParseAddr("192.0.2.9") {
			p.Relay = new(string)
		}
		p.Trust.XClient = p.Address == netip.MustParseAddr("192.0.2.10")
	}
	return &Server{Settings: func() *Config { return config }, Queue: q, Now: now, Auth: &checker{}}
}

func TestXClient(t *testing.T) {
	tests := []struct {
		name, send, want string
		p                Peer // the parts that matter
		relay            bool
	}{
		{"for another", "XCLIENT ADDR=192.0.2.9 NAME=a.example HELO=b.example PORT=25 PROTO=ESMTP\r\n", "220, 220", Peer{IP: "192.0.2.9", Host: "a.example", Helo: "b.example"}, true},
		{"after EHLO", ehlo + "xclient addr=IPV6:2001:db8::1\r\n" + from, "220, 250, 220, 503 5.5.1", Peer{IP: "2001:db8::1", Helo: "client.example"}, false},
		{"mapped IPv4", "XCLIENT ADDR=IPV6:::ffff:192.0.2.9\r\n", "220, 220", Peer{IP: "192.0.2.9"}, true},
		{"unknown address", "XCLIENT ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL]\r\n", "220, 220", Peer{}, false},
		{"in xtext", "XCLIENT NAME=a+2Bb HELO=c+20d\r\n", "220, 220", Peer{IP: "192.0.2.7", Host: "a+b", Helo: "c d"}, false},
		{"once, if that one is not trusted", "XCLIENT ADDR=192.0.2.9\r\nXCLIENT ADDR=192.0.2.8\r\n", "220, 220, 550 5.7.0", Peer{IP: "192.0.2.9"}, true},
		{"twice, if that one is", "XCLIENT ADDR=192.0.2.10\r\nXCLIENT ADDR=192.0.2.8\r\n", "220, 220, 220", Peer{IP: "192.0.2.8"}, false},
		{"it is not logged in", ehlo + right + "XCLIENT ADDR=192.0.2.9\r\n", "220, 250, 235 2.7.0, 220", Peer{IP: "192.0.2.9", Helo: "client.example"}, true},
		{"a login is not for it to say", "XCLIENT LOGIN=alice\r\n", "220, 501 5.5.4", Peer{IP: "192.0.2.7", Host: "client.example"}, false},
		{"no address", "XCLIENT ADDR=localhost\r\n", "220, 501 5.5.4", Peer{IP: "192.0.2.7", Host: "client.example"}, false},
		{"half of it wrong", "XCLIENT ADDR=192.0.2.9 NAME=a=b\r\n", "220, 501 5.5.4", Peer{IP: "192.0.2.7", Host: "client.example"}, false},
		{"a name of two lines", "XCLIENT NAME=a+0D+0Ab\r\n", "220, 501 5.5.4", Peer{IP: "192.0.2.7", Host: "client.example"}, false},
		{"no attributes", "XCLIENT\r\nXCLIENT ADDR\r\n", "220, 501 5.5.4, 501 5.5.4", Peer{IP: "192.0.2.7", Host: "client.example"}, false},
		{"within a transaction", ehlo + from + "XCLIENT ADDR=192.0.2.9\r\n", "220, 250, 250 2.1.0, 503 5.5.1", Peer{IP: "192.0.2.7", Host: "client.example", Helo: "client.example"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := testPeer()
			p.Trust.XClient = true
			got := codes(t, playAs(t, trusting(&memoryQueue{}), p, tt.send))
			if got != tt.want || p.IP != tt.p.IP || p.Host != tt.p.Host || p.Helo != tt.p.Helo || (p.Relay != nil) != tt.relay {
				t.Errorf("%s, %+v; want %s, %+v", got, p, tt.want, tt.p)
			}
			if p.IP != "" && p.Address.String() != p.IP || p.Login != "" {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestXForward(t *testing.T) {
	p := testPeer()
	p.Trust.XForward = true
	send := ehlo + "XFORWARD NAME=x ADDR=192.0.2.9 PORT=1 PROTO=SMTP HELO=y IDENT=z SOURCE=REMOTE\r\nXFORWARD ADDR=nonsense\r\n" + from + "XFORWARD ADDR=192.0.2.1\r\n"
	if got := codes(t, playAs(t, trusting(&memoryQueue{}), p, send)); got != "220, 250, 250 2.0.0, 501 5.5.4, 250 2.1.0, 503 5.5.1" {
		t.Error(got)
	}
	if p.Origin != "192.0.2.9" || p.IP != "192.0.2.7" || p.Relay != nil {
		t.Errorf("%+v", p)
	}
}

func TestStrangersAreNotBelieved(t *testing.T) {
	p := testPeer()
	got := playAs(t, trusting(&memoryQueue{}), p, ehlo+"XCLIENT ADDR=192.0.2.9\r\nXFORWARD ADDR=192.0.2.9\r\n")
	if codes(t, got) != "220, 250, 550 5.7.0, 550 5.7.0" || strings.Contains(got, "250-X") || p.IP != "192.0.2.7" || p.Relay != nil || p.Origin != "" {
		t.Errorf("%q, %+v", got, p)
	}
	p.Trust = Trust{true, true}
	if got := playAs(t, trusting(&memoryQueue{}), p, ehlo); !strings.Contains(got, "250-XCLIENT NAME ADDR PORT PROTO HELO\r\n250-XFORWARD ") {
		t.Errorf("not offered: %q", got)
	}
}
