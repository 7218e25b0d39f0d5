package sender

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/store/control"
)

// bubble runs f in virtual time, then closes the sender and waits for the servers.
func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

func TestRoutes(t *testing.T) {
	const kept = "K%s accepted message. Remote host said: 250 taken"
	const soft = "ZSorry, I couldn't find any host by that name. (#4.1.2)"
	const none = "DSorry, I couldn't find any host named far.example. (#5.1.2)"
	const empty = "DSorry, I couldn't find a mail exchanger or IP address. (#5.4.4)"
	const me = "DSorry. Although I'm listed as a best-preference MX or A for that host, it isn't in my control/locals file, so I don't treat it as local. (#5.4.6)"
	const noConn = "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)"
	tests := []struct {
		name    string
		domain  string
		routes  string
		records string
		want    string // or an address: accepted there
		story   string
	}{
		{"the best exchanger", "far.example", "", "MX far.example 20 b.example; MX far.example 10 a.example; A a.example 10.0.0.1; A b.example 10.0.0.2", "10.0.0.1", ""},
		{"the next where the best refuses", "far.example", "", "MX far.example 10 a.example; MX far.example 20 b.example; A a.example 10.9.9.9; A b.example 10.0.0.2", "10.0.0.2", "dial 10.9.9.9, dial 10.0.0.2, message at 10.0.0.2"},
		{"the next address of a host", "far.example", "", "MX far.example 10 a.example; A a.example 10.9.9.9; A a.example 10.0.0.1", "10.0.0.1", ""},
		{"an IPv6 address after the IPv4 ones", "far.example", "", "MX far.example 10 a.example; AAAA a.example 2001:db8::2; A a.example 10.9.9.9", "2001:db8::2", "dial 10.9.9.9, dial 2001:db8::2, message at 2001:db8::2"},
		{"without MX the host itself", "far.example", "", "A far.example 10.0.0.1", "10.0.0.1", ""},
		{"the host itself by IPv6 alone", "far.example", "", "AAAA far.example 2001:db8::2", "2001:db8::2", ""},
		{"an address instead of a host", "10.0.0.1", "", "", "10.0.0.1", ""},
		{"an address literal", "[10.0.0.1]", "", "", "10.0.0.1", ""},
		{"an IPv6 address literal", "[IPv6:2001:db8::2]", "", "", "2001:db8::2", ""},
		{"no such host", "far.example", "", "", none, ""},
		{"a host name that cannot be", "f r\xff.example", "", "", "DSorry, I couldn't find any host named f?r?.example. (#5.1.2)", ""},
		{"the DNS cannot say MX", "far.example", "", "MX far.example ?; A far.example 10.0.0.1", soft, ""},
		{"the DNS cannot say A", "far.example", "", "A far.example ?", soft, ""},
		{"exchangers without addresses", "far.example", "", "MX far.example 10 a.example; A far.example 10.0.0.1", empty, ""},
		{"exchangers one of which may have an address", "far.example", "", "MX far.example 10 a.example; MX far.example 20 b.example; A b.example ?", soft, ""},
		{"an exchanger that may have an address, and one that has", "far.example", "", "MX far.example 10 a.example; MX far.example 20 b.example; A a.example ?; A b.example 10.0.0.2", "10.0.0.2", ""},
		{"null MX", "far.example", "", "MX far.example 0 .; A far.example 10.0.0.1", "DSorry, that host says that it does not take mail (null MX). (#5.1.10)", ""},
		{"null MX beside a real one", "far.example", "", "MX far.example 0 .; MX far.example 10 a.example; A a.example 10.0.0.1", "10.0.0.1", ""},
		{"an exchanger with an impossible name", "far.example", "", "MX far.example 10 BAD; A far.example 10.0.0.1", empty, ""},
		{"an exchanger whose name reads as an address is not that address", "far.example", "", "MX far.example 10 127.0.0.1", empty, ""},
		{"an exchanger whose name reads as an address, though the DNS plays along", "far.example", "", "MX far.example 10 10.0.0.1; A 10.0.0.1 10.0.0.1", empty, ""},
		{"we are the best exchanger", "far.example", "", "MX far.example 10 me.example; MX far.example 20 b.example; A me.example 192.0.2.1; A b.example 10.0.0.2", me, ""},
		{"an exchanger points at the loopback address", "far.example", "", "MX far.example 10 a.example; A a.example 127.0.0.1", me, ""},
		{"an exchanger points at nowhere", "far.example", "", "MX far.example 10 a.example; A a.example 0.0.0.0", me, ""},
		{"an exchanger points at the loopback address of IPv6", "far.example", "", "MX far.example 10 a.example; AAAA a.example ::1", me, ""},
		{"an exchanger points at us by a mapped address", "far.example", "", "MX far.example 10 a.example; AAAA a.example ::ffff:127.0.0.1", me, ""},
		{"the host itself is us", "far.example", "", "A far.example 192.0.2.1", me, ""},
		{"the address is ours", "[127.0.0.1]", "", "", me, ""},
		{"we are the second exchanger: never past us", "far.example", "", "MX far.example 10 a.example; MX far.example 20 me.example; MX far.example 30 b.example; A a.example 10.9.9.9; A me.example 192.0.2.1; A b.example 10.0.0.2", noConn, "dial 10.9.9.9"},
		{"a route to an address", "far.example", "far.example:10.0.0.1", "MX far.example 10 a.example", "10.0.0.1", ""},
		{"a route to an address and a port", "far.example", ":10.0.0.1:2525", "", "10.0.0.1", "dial 10.0.0.1:2525, message at 10.0.0.1:2525"},
		{"a route to an IPv6 address and a port", "far.example", ":[2001:db8::2]:2525", "", "2001:db8::2", "dial [2001:db8::2]:2525, message at [2001:db8::2]:2525"},
		{"a route to a host: its address, not its exchangers", "far.example", ":relay.example", "MX relay.example 10 b.example; A relay.example 10.0.0.1; A b.example 10.0.0.2", "10.0.0.1", ""},
		{"a route to a host that does not exist", "far.example", ":relay.example", "A far.example 10.0.0.1", "DSorry, I couldn't find any host named relay.example. (#5.1.2)", ""},
		{"a route to a host that the DNS cannot say", "far.example", ":relay.example", "A relay.example ?", soft, ""},
		{"a route may lead to us", "far.example", ":127.0.0.1:2525", "", "127.0.0.1", ""},
		{"a route for a suffix", "far.example", ".example:10.0.0.1;:10.0.0.2", "", "10.0.0.1", ""},
		{"an empty route means the exchangers", "far.example", "far.example:;:10.0.0.1", "MX far.example 10 a.example; A a.example 10.0.0.2", "10.0.0.2", ""},
		{"our own files are exhausted", "far.example", ":10.0.0.99", "", "ZSystem resources temporarily unavailable. (#4.3.0)", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newInternet(t, map[string]string{
				"10.0.0.1": "ok", "10.0.0.2": "ok", "2001:db8::2": "ok", "10.0.0.1:2525": "ok", "[2001:db8::2]:2525": "ok", "127.0.0.1:2525": "ok", "127.0.0.1": "ok",
				"10.0.0.99": "no files",
			})
			for _, r := range strings.Split(tt.records, "; ") {
				if r != "" {
					n.add(r)
				}
			}
			s := n.sender(strings.Split(tt.routes, ";")...)
			want := tt.want
			if _, err := netip.ParseAddr(want); err == nil {
				want = strings.ReplaceAll(kept, "%s", want)
			}
			foretold := s.Explain(t.Context(), tt.domain)
			if story := n.story(); story != "" {
				t.Errorf("to explain took %q", story)
			}
			got := send(s, tt.domain)
			if got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			story := n.story()
			checkForetold(t, foretold, got, story)
			if tt.story != "" && story != tt.story {
				t.Errorf("story %q, want %q", story, tt.story)
			}
			if want[0] == 'D' && len(n.conns) > 0 {
				t.Errorf("connected: %v", n.conns)
			}
			s.Close()
			n.wg.Wait()
		})
	}
}

func TestWhereASessionMayEndForTheNextToTry(t *testing.T) {
	tests := []struct {
		how  string
		next bool
		want string // if there is no next, or it refuses
	}{
		{"dead", true, "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)"},
		{"closes", true, "ZConnected to 10.0.0.1 but connection died. (#4.4.2)"},
		{"mute", true, "ZConnected to 10.0.0.1 but connection died. (#4.4.2)"},
		{"busy", true, "ZConnected to 10.0.0.1 but greeting failed. Remote host said: 421 busy"},
		{"no service", true, "ZConnected to 10.0.0.1 but greeting failed. Remote host said: 554 no"},
		{"garbage", true, "ZConnected to 10.0.0.1 but greeting failed. Remote host said: ?\xff\xfe"},
		{"no helo", true, "ZConnected to 10.0.0.1 but my name was rejected. Remote host said: 550 no"},
		{"dies at MAIL", true, "ZConnected to 10.0.0.1 but connection died. (#4.4.2)"},
		{"shuts down at MAIL", true, "ZConnected to 10.0.0.1 but sender was rejected. Remote host said: 421 bye"},
		{"refuses MAIL", false, "DConnected to 10.0.0.1 but sender was rejected. Remote host said: 550 no"},
		{"dies at RCPT", false, "ZConnected to 10.0.0.1 but connection died. (#4.4.2)"},
		{"refuses RCPT", false, "D10.0.0.1 does not like recipient. Remote host said: 550 no Giving up on 10.0.0.1."},
		{"dies at the end", false, "ZConnected to 10.0.0.1 but connection died. Possible duplicate! (#4.4.2)"},
		{"no ehlo", false, "K10.0.0.1 accepted message. Remote host said: 250 taken"},
	}
	for _, tt := range tests {
		t.Run(tt.how, func(t *testing.T) {
			for _, second := range []string{"ok", ""} {
				bubble(t, func(t *testing.T) {
					n := newInternet(t, map[string]string{"10.0.0.1": tt.how, "10.0.0.2": second},
						"MX far.example 10 a.example", "MX far.example 20 b.example", "A a.example 10.0.0.1", "A b.example 10.0.0.2")
					s := n.sender()
					want := tt.want
					if tt.next && second == "ok" {
						want = "K10.0.0.2 accepted message. Remote host said: 250 taken"
					}
					if got := send(s, "far.example"); got != want {
						t.Errorf("got  %q\nwant %q", got, want)
					}
					if tried := strings.Contains(n.story(), "dial 10.0.0.2"); tried != tt.next {
						t.Errorf("the next was tried: %v", tried)
					}
					s.Close()
					n.wg.Wait()
				})
			}
		})
	}
}

func TestConnectionsWaitForTheNextMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"10.0.0.1": "ok"}, "A far.example 10.0.0.1", "MX other.example 10 far.example")
		s := n.sender()
		steps := []struct {
			name   string
			after  time.Duration
			domain string
			story  string
		}{
			{"the first connects", 0, "far.example", "dial 10.0.0.1, message at 10.0.0.1"},
			{"the second does not", 4 * time.Second, "far.example", "message at 10.0.0.1"},
			{"nor does another domain there", 4 * time.Second, "other.example", "message at 10.0.0.1"},
			{"after five seconds it has ended", 7 * time.Second, "far.example", "quit 10.0.0.1, dial 10.0.0.1, message at 10.0.0.1"},
		}
		for _, st := range steps {
			time.Sleep(st.after)
			if got := send(s, st.domain); got[0] != 'K' {
				t.Errorf("%s: %q", st.name, got)
			}
			if story := n.story(); story != st.story {
				t.Errorf("%s: %q, want %q", st.name, story, st.story)
			}
		}
		s.Close()
		n.wg.Wait()
		if story := n.story(); story != "quit 10.0.0.1" {
			t.Errorf("at the end: %q", story)
		}
	})
}

func TestAConnectionHasItsDay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"10.0.0.1": "ok"}, "A far.example 10.0.0.1")
		s := n.sender()
		for range maxUses + 1 {
			send(s, "far.example")
		}
		if n.conns["10.0.0.1"] != 2 {
			t.Errorf("%d connections for %d messages", n.conns["10.0.0.1"], maxUses+1)
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestAStaleConnectionCostsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"10.0.0.1": "stale"}, "A far.example 10.0.0.1")
		s := n.sender()
		for range 2 {
			if got := send(s, "far.example"); got[0] != 'K' {
				t.Errorf("%q", got)
			}
		}
		if story := n.story(); story != "dial 10.0.0.1, message at 10.0.0.1, dial 10.0.0.1, message at 10.0.0.1" {
			t.Errorf("%q", story)
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestANewNameNeedsNewConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"10.0.0.1": "ok"}, "A far.example 10.0.0.1")
		s := n.sender()
		send(s, "far.example")
		c := *s.config.Load()
		c.Hello = "new.example"
		s.Configure(&c)
		send(s, "far.example")
		if n.conns["10.0.0.1"] != 2 {
			t.Errorf("%d connections", n.conns["10.0.0.1"])
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestDeadHostsAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"10.0.0.1": "dead", "10.0.0.2": "ok"},
			"MX far.example 10 a.example", "MX far.example 20 b.example", "A a.example 10.0.0.1", "A b.example 10.0.0.2")
		s := n.sender()
		const both = "dial 10.0.0.1, dial 10.0.0.2, message at 10.0.0.2"
		for i, want := range []string{both, "quit 10.0.0.2, " + both, "quit 10.0.0.2, dial 10.0.0.2, message at 10.0.0.2"} {
			if got := send(s, "far.example"); got[0] != 'K' {
				t.Errorf("%q", got)
			}
			if story := n.story(); story != want {
				t.Errorf("message %d: %q, want %q", i, story, want)
			}
			time.Sleep(3 * time.Minute)
		}
		n.hosts["10.0.0.1"] = "ok"
		time.Sleep(65 * time.Minute)
		send(s, "far.example")
		if story := n.story(); !strings.HasSuffix(story, "dial 10.0.0.1, message at 10.0.0.1") {
			t.Errorf("after an hour: %q", story)
		}
		if list := s.Slow().Entries(); len(list) != 0 {
			t.Errorf("still remembered: %v", list)
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestTheSearchEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{})
		for i := range 30 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String()
			n.hosts[a] = "mute"
			n.add("A far.example " + a)
		}
		s := n.sender()
		start := time.Now()
		if got := send(s, "far.example"); got[0] != 'Z' || time.Since(start) > 15*time.Minute {
			t.Errorf("%q after %v", got, time.Since(start))
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestCloseCutsWhatIsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"10.0.0.1": "mute", "10.0.0.2": "ok"}, "A far.example 10.0.0.1", "A next.example 10.0.0.2")
		s := n.sender()
		result := make(chan string)
		go func() { result <- send(s, "far.example") }()
		synctest.Wait()
		start := time.Now()
		s.Close()
		if got := <-result; got[0] != 'Z' || time.Since(start) > time.Second {
			t.Errorf("%q after %v", got, time.Since(start))
		}
		if got := send(s, "next.example"); got[0] != 'Z' {
			t.Errorf("sent after Close: %q", got)
		}
		n.wg.Wait()
	})
}

func TestACancelledMessageTriesNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"10.0.0.1": "dead", "10.0.0.2": "ok"}, "A far.example 10.0.0.1", "A far.example 10.0.0.2")
		s := n.sender()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		r := s.Send(ctx, "far.example", message())
		if r.Message.Letter != 'Z' || n.story() != "dial 10.0.0.1" || len(s.Slow().Entries()) != 0 {
			t.Errorf("%+v", r)
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestWithoutConfigurationAllIsDeferred(t *testing.T) {
	n := newInternet(t, nil)
	s := n.sender(":10.0.0.1")
	for _, c := range []*Config{nil, {}} {
		s.config.Store(c)
		if got := send(s, "far.example"); got != "ZUnable to read control files. (#4.3.0)" {
			t.Errorf("%q", got)
		}
	}
}

func TestUnknownOwnAddressesAreNotGuessed(t *testing.T) {
	n := newInternet(t, map[string]string{"10.0.0.1": "ok"}, "A far.example 10.0.0.1")
	n.slow = errors.New("netlink")
	s := n.sender()
	if got := send(s, "far.example"); got != "ZSystem resources temporarily unavailable. (#4.3.0)" {
		t.Errorf("%q", got)
	}
	n.slow = nil
	if got := send(s, "far.example"); got[0] != 'K' {
		t.Errorf("%q", got)
	}
	s.Close()
	n.wg.Wait()
}

func TestManyAtOnce(t *testing.T) {
	n := newInternet(t, map[string]string{"10.0.0.1": "ok", "10.0.0.2": "stale", "10.0.0.3": "dies at MAIL"},
		"A a.example 10.0.0.1", "A b.example 10.0.0.2", "A c.example 10.0.0.3", "A c.example 10.0.0.1")
	s := n.sender()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 50 {
				if got := send(s, string(rune('a'+i%3))+".example"); got[0] != 'K' {
					t.Errorf("%q", got)
				}
			}
		})
	}
	wg.Wait()
	s.Close()
	n.wg.Wait()
	if s.pool.count != 0 || len(s.pool.inUse) != 0 || len(s.pool.idle) != 0 {
		t.Errorf("left: %d idle, %d in use", s.pool.count, len(s.pool.inUse))
	}
}

func TestLoad(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  string // part of the error
	}{
		{"nothing there", nil, ""},
		{"all there", map[string]string{"helohost": "a.example\n", "smtproutes": "# old\nx.example:relay:26\n:\n", "timeoutconnect": "5\n", "timeoutremote": "7\n"}, ""},
		{"a route without a colon", map[string]string{"me": "a\n", "smtproutes": ":r\n\nnonsense\n"}, "smtproutes: line 3"},
		{"a port that is none", map[string]string{"me": "a\n", "smtproutes": "x:r:smtp\n"}, "smtproutes: line 1"},
		{"a name that is none", map[string]string{"helohost": "a b\n"}, "helohost: line 1"},
		{"an empty name", map[string]string{"helohost": ""}, "helohost: line 1"},
		{"a time that is none", map[string]string{"timeoutremote": "soon\n"}, "timeoutremote: line 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			home := t.TempDir()
			if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, text := range tt.files {
				if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			c, err := Load(control.Open(home), Strict)
			switch {
			case tt.want != "":
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), home) {
					t.Errorf("%v, want %q and the file", err, tt.want)
				}
				return
			case err != nil:
				t.Fatal(err)
			case tt.files == nil:
				if c.Hello != "" || c.ConnectTimeout != time.Minute || c.Timeout != 20*time.Minute {
					t.Errorf("%+v", c)
				}
				return
			}
			relay, ok := c.Route("X.example")
			if c.Hello != "a.example" || !ok || relay.Host != "relay" || relay.Port != 26 || c.ConnectTimeout != 5*time.Second || c.Timeout != 7*time.Second {
				t.Errorf("%+v %+v", c, relay)
			}
		})
	}
}

func TestMalformedLinesMeanWhatTheyAlwaysDid(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"me": "a\n", "smtproutes": "nonsense\nx.example:127.0.0.1:smtp\ny.example:[z]\n", "timeoutremote": "soon\n"} {
		if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load(control.Open(home), Classic)
	if err != nil || c.Timeout != 20*time.Minute {
		t.Fatalf("%+v %v", c, err)
	}
	if _, ok := c.Route("nonsense"); ok {
		t.Error("a line without a colon is a route")
	}
	n := newInternet(t, nil)
	s := n.sender()
	s.Configure(c)
	for _, domain := range []string{"x.example", "y.example"} {
		if got := send(s, domain); got != "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)" {
			t.Errorf("%s: %q", domain, got)
		}
	}
}

func TestLocalKnowsTheLoopbackAddress(t *testing.T) {
	addrs, err := Local()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, a := range addrs {
		if a.IsLoopback() {
			found++
		}
	}
	if found < 2 {
		t.Errorf("%v", addrs)
	}
}

func TestDialerTimesOutAndRefuses(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(ln.Addr().String())
	c, err := Dialer()(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	ln.Close()
	if _, err = Dialer()(t.Context(), addr); err == nil || timedOut(err) || exhausted(err) {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if _, err = Dialer()(ctx, addr); !timedOut(err) {
		t.Errorf("timed out: %v", err)
	}
}
