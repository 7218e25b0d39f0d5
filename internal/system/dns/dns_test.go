package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// server runs a resolver on 127.0.0.1, UDP and TCP on one port, that answers as handle says.
func server(t *testing.T, handle func(w wire.ResponseWriter, m *wire.Msg)) string {
	t.Helper()
	udp, tcp := listen(t)
	for _, s := range []*wire.Server{{PacketConn: udp}, {Listener: tcp}} {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		s.Handler = wire.HandlerFunc(handle)
		done := make(chan error, 1)
		go func() { done <- s.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return udp.LocalAddr().String()
}

// listen finds a port that is free for both.
func listen(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

// zone answers from records in the form of a zone file; a name without any is NXDOMAIN.
func zone(t *testing.T, records ...string) func(wire.ResponseWriter, *wire.Msg) {
	t.Helper()
	var rrs []wire.RR
	for _, s := range records {
		rr, err := wire.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	soa, _ := wire.NewRR("example. 60 IN SOA ns.example. root.example. 1 2 3 4 30")
	return func(w wire.ResponseWriter, m *wire.Msg) {
		out := new(wire.Msg).SetReply(m)
		name, exists := m.Question[0].Name, false
		for _, rr := range rrs {
			if !strings.EqualFold(rr.Header().Name, name) {
				continue
			}
			exists = true
			if rr.Header().Rrtype == m.Question[0].Qtype {
				out.Answer = append(out.Answer, rr)
			}
		}
		if !exists {
			out.Rcode = wire.RcodeNameError
		}
		if len(out.Answer) == 0 {
			out.Ns = append(out.Ns, soa)
		}
		w.WriteMsg(out)
	}
}

func resolver(t *testing.T, c Config) *Resolver {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = 300 * time.Millisecond
	}
	r := New(c)
	t.Cleanup(r.Close)
	return r
}

func TestLookup(t *testing.T) {
	r := resolver(t, Config{Servers: []string{server(t, zone(t,
		"far.example. 300 IN MX 20 B.far.example.",
		"far.example. 300 IN MX 10 a.far.example.",
		"far.example. 300 IN MX 30 bad\\032name.example.",
		"a.far.example. 300 IN A 127.0.0.2",
		"a.far.example. 300 IN A 127.0.0.3",
		"a.far.example. 300 IN AAAA 2001:db8::1",
		"a.far.example. 300 IN AAAA ::ffff:127.0.0.1",
		"t.example. 300 IN TXT \"v=spf1 \" \"-a\\001ll\"",
		"2.0.0.127.in-addr.arpa. 300 IN PTR A.far.example.",
		"_25._tcp.a.far.example. 300 IN TLSA 3 1 1 aabb",
		"xn--bcher-kva.example. 300 IN MX 1 a.far.example.",
	))}})
	tests := []struct {
		name  string
		query string
		kind  Type
		want  string
	}{
		{"exchangers come by preference, in lower case", "far.example", TypeMX, "found [{10 a.far.example false} {20 b.far.example false} {30  true}]"},
		{"addresses", "A.FAR.example.", TypeA, "found [127.0.0.2 127.0.0.3]"},
		{"a mapped address is the IPv4 address it connects to", "a.far.example", TypeAAAA, "found [2001:db8::1 127.0.0.1]"},
		{"strings of a text are joined and unescaped", "t.example", TypeTXT, `found ["v=spf1 -a\x01ll"]`},
		{"a pointer", "2.0.0.127.in-addr.arpa", TypePTR, `found ["a.far.example"]`},
		{"a name with underscores", "_25._tcp.a.far.example", TypeTLSA, "found [{3 1 1 [170 187]}]"},
		{"an internationalized name is asked as A-labels", "bücher.example", TypeMX, "found [{1 a.far.example false}]"},
		{"a name without such records", "far.example", TypeTXT, "no data"},
		{"a name that does not exist", "no.example", TypeA, "no such name"},
		{"a name that cannot exist is not asked", "a b.example", TypeA, "no such name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := r.Lookup(t.Context(), tt.query, tt.kind)
			got := a.Status.String()
			switch {
			case err != nil:
				got = err.Error()
			case a.MX != nil:
				got += fmt.Sprint(" ", a.MX)
			case a.Addrs != nil:
				got += fmt.Sprint(" ", a.Addrs)
			case a.Texts != nil:
				got += fmt.Sprintf(" %q", a.Texts)
			case a.Names != nil:
				got += fmt.Sprintf(" %q", a.Names)
			case a.TLSA != nil:
				got += fmt.Sprint(" ", a.TLSA)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNullMX(t *testing.T) {
	r := resolver(t, Config{Servers: []string{server(t, zone(t, "null.example. 300 IN MX 0 ."))}})
	a, err := r.Lookup(t.Context(), "null.example", TypeMX)
	if err != nil || len(a.MX) != 1 || a.MX[0].Host != "" || a.MX[0].Bad {
		t.Errorf("%+v %v", a, err)
	}
}

func TestSoftFailures(t *testing.T) {
	silent := func(w wire.ResponseWriter, m *wire.Msg) {}
	rcode := func(code int) func(w wire.ResponseWriter, m *wire.Msg) {
		return func(w wire.ResponseWriter, m *wire.Msg) { w.WriteMsg(new(wire.Msg).SetRcode(m, code)) }
	}
	unused, listener := listen(t)
	unused.Close()
	listener.Close()
	tests := []struct {
		name   string
		server string
	}{
		{"SERVFAIL", server(t, rcode(wire.RcodeServerFailure))},
		{"REFUSED", server(t, rcode(wire.RcodeRefused))},
		{"FORMERR with and without EDNS", server(t, rcode(wire.RcodeFormatError))},
		{"silence", server(t, silent)},
		{"nobody listens", unused.LocalAddr().String()},
		{"a loop of CNAMEs", server(t, func(w wire.ResponseWriter, m *wire.Msg) {
			out := new(wire.Msg).SetReply(m)
			rr, _ := wire.NewRR("x.example. 60 IN CNAME x.example.")
			out.Answer = append(out.Answer, rr)
			w.WriteMsg(out)
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := resolver(t, Config{Servers: []string{tt.server}, Timeout: 50 * time.Millisecond})
			a, err := r.Lookup(t.Context(), "x.example", TypeA)
			if e, ok := errors.AsType[*Error](err); !ok || a.Status != 0 || e.Name != "x.example" {
				t.Errorf("%+v %v", a, err)
			}
		})
	}
}

func TestOtherServersAreTried(t *testing.T) {
	broken := server(t, func(w wire.ResponseWriter, m *wire.Msg) {
		w.WriteMsg(new(wire.Msg).SetRcode(m, wire.RcodeServerFailure))
	})
	old := server(t, func(w wire.ResponseWriter, m *wire.Msg) { // it does not know EDNS
		if m.IsEdns0() != nil {
			w.WriteMsg(new(wire.Msg).SetRcode(m, wire.RcodeFormatError))
			return
		}
		zone(t, "x.example. 60 IN A 127.0.0.9")(w, m)
	})
	r := resolver(t, Config{Servers: []string{broken, old}})
	if a, err := r.Lookup(t.Context(), "x.example", TypeA); err != nil || len(a.Addrs) != 1 {
		t.Errorf("%+v %v", a, err)
	}
}

func TestTruncatedAnswersComeByTCP(t *testing.T) {
	var records []string
	for i := range 80 {
		records = append(records, fmt.Sprintf("big.example. 60 IN A 127.0.1.%d", i))
	}
	whole := zone(t, records...)
	r := resolver(t, Config{Servers: []string{server(t, func(w wire.ResponseWriter, m *wire.Msg) {
		if w.RemoteAddr().Network() == "udp" {
			out := new(wire.Msg).SetReply(m)
			out.Truncated = true
			rr, _ := wire.NewRR(records[0])
			out.Answer = append(out.Answer, rr)
			w.WriteMsg(out)
			return
		}
		whole(w, m)
	})}})
	if a, err := r.Lookup(t.Context(), "big.example", TypeA); err != nil || len(a.Addrs) != 80 {
		t.Errorf("%d addresses, %v", len(a.Addrs), err)
	}
}

func TestStrangersAreOverheard(t *testing.T) {
	r := resolver(t, Config{Servers: []string{server(t, func(w wire.ResponseWriter, m *wire.Msg) {
		evil, _ := wire.NewRR("x.example. 60 IN A 127.6.6.6")
		for _, forge := range []func(m *wire.Msg){
			func(m *wire.Msg) { m.Id++ },
			func(m *wire.Msg) { m.Response = false },
			func(m *wire.Msg) { m.Question[0].Name = "y.example." },
			func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeAAAA },
		} {
			out := new(wire.Msg).SetReply(m)
			out.Question = slices.Clone(out.Question)
			out.Answer = append(out.Answer, evil)
			forge(out)
			w.WriteMsg(out)
		}
		zone(t, "x.example. 60 IN A 127.0.0.1")(w, m)
	})}})
	a, err := r.Lookup(t.Context(), "x.example", TypeA)
	if err != nil || len(a.Addrs) != 1 || a.Addrs[0] != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("%+v %v", a, err)
	}
}

func TestCache(t *testing.T) {
	var asked atomic.Int64
	z := zone(t, "x.example. 60 IN A 127.0.0.1", "zero.example. 0 IN A 127.0.0.1")
	addr := server(t, func(w wire.ResponseWriter, m *wire.Msg) { asked.Add(1); z(w, m) })
	var mu sync.Mutex
	now := time.Unix(1e9, 0)
	r := resolver(t, Config{Servers: []string{addr}, Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	pass := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	steps := []struct {
		name  string
		query string
		after time.Duration
		asks  int64
	}{
		{"the first time it is asked", "x.example", 0, 1},
		{"then it is known, in any case of letters", "X.example", 59 * time.Second, 0},
		{"until its time is over", "x.example", 2 * time.Second, 1},
		{"absence is asked once", "no.example", 0, 1},
		{"and known as long as the SOA says", "no.example", 29 * time.Second, 0},
		{"and no longer", "no.example", 2 * time.Second, 1},
		{"a TTL of zero is not kept", "zero.example", 0, 1},
		{"so it is asked again", "zero.example", 0, 1},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			pass(s.after)
			before := asked.Load()
			if _, err := r.Lookup(t.Context(), s.query, TypeA); err != nil {
				t.Fatal(err)
			}
			if n := asked.Load() - before; n != s.asks {
				t.Errorf("asked %d times, want %d", n, s.asks)
			}
		})
	}
}

func TestOtherServersMayKnowOtherThings(t *testing.T) {
	one := server(t, zone(t, "x.example. 60 IN A 127.0.0.1"))
	two := server(t, zone(t, "x.example. 60 IN A 127.0.0.2"))
	r := resolver(t, Config{Servers: []string{one}})
	for _, s := range []struct{ server, want string }{{one, "127.0.0.1"}, {two, "127.0.0.2"}} {
		r.Configure(Config{Servers: []string{s.server}})
		if a, err := r.Lookup(t.Context(), "x.example", TypeA); err != nil || len(a.Addrs) != 1 || a.Addrs[0].String() != s.want {
			t.Errorf("%+v %v, want %s", a, err, s.want)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := cache{limit: cacheBytes, longest: MaxTTL}
	now := time.Unix(1, 0)
	a := Answer{Status: Found, Texts: []string{strings.Repeat("x", 60000)}, Expires: now.Add(time.Hour)}
	for i := range 1000 {
		c.put(question{fmt.Sprint(i, ".example"), TypeTXT}, a, now)
	}
	sum := 0
	for q, a := range c.m {
		sum += cost(q, a)
	}
	if sum != c.bytes || sum > cacheBytes || sum < cacheBytes/2 {
		t.Errorf("%d bytes counted, %d held", c.bytes, sum)
	}
}

func TestEqualQuestionsShareAFlight(t *testing.T) {
	var asked atomic.Int64
	gate := make(chan struct{})
	z := zone(t, "x.example. 60 IN A 127.0.0.1")
	addr := server(t, func(w wire.ResponseWriter, m *wire.Msg) { asked.Add(1); <-gate; z(w, m) })
	r := resolver(t, Config{Servers: []string{addr}, Timeout: 10 * time.Second})
	var wg sync.WaitGroup
	r.Prefetch("x.example", TypeA)
	for range 50 {
		wg.Go(func() {
			if a, err := r.Lookup(t.Context(), "x.example", TypeA); err != nil || len(a.Addrs) != 1 {
				t.Errorf("%+v %v", a, err)
			}
		})
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Lookup(impatient, "x.example", TypeA); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller whose time is over got %v", err)
	}
	close(gate)
	wg.Wait()
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

func TestCloseGivesUp(t *testing.T) {
	addr := server(t, func(w wire.ResponseWriter, m *wire.Msg) {})
	r := New(Config{Servers: []string{addr}, Timeout: time.Hour})
	result := make(chan error)
	go func() { _, err := r.Lookup(context.Background(), "x.example", TypeA); result <- err }()
	for len(r.room) == 0 {
		time.Sleep(time.Millisecond)
	}
	r.Close()
	if err := <-result; err == nil {
		t.Error("an answer from nowhere")
	}
	if _, err := r.Lookup(context.Background(), "x.example", TypeA); err == nil {
		t.Error("asked after Close")
	}
}

func TestADBitNeedsATrustedResolver(t *testing.T) {
	z := zone(t, "x.example. 60 IN A 127.0.0.1")
	addr := server(t, func(w wire.ResponseWriter, m *wire.Msg) {
		if !m.AuthenticatedData {
			t.Error("the question does not ask for AD")
		}
		z(secure{w}, m)
	})
	r := resolver(t, Config{Servers: []string{addr}})
	if a, err := r.Lookup(t.Context(), "x.example", TypeA); err != nil || !a.Secure {
		t.Errorf("a resolver on this machine: %+v %v", a, err)
	}
	for _, tt := range []struct {
		server string
		trust  bool
		want   bool
	}{{"127.0.0.53:53", false, true}, {"[::1]:53", false, true}, {"192.0.2.53:53", false, false}, {"192.0.2.53:53", true, true}} {
		c := Config{TrustAD: tt.trust}
		if got := c.believes(tt.server); got != tt.want {
			t.Errorf("%s trusted %v: %v", tt.server, tt.trust, got)
		}
	}
}

type secure struct{ wire.ResponseWriter }

func (s secure) WriteMsg(m *wire.Msg) error {
	m.AuthenticatedData = true
	return s.ResponseWriter.WriteMsg(m)
}

func TestASCII(t *testing.T) {
	long := strings.Repeat("a", 63)
	tests := []struct {
		in, want string
		ok       bool
	}{
		{"Far.Example", "far.example", true},
		{"far.example.", "far.example", true},
		{"_dmarc.far.example", "_dmarc.far.example", true},
		{"bücher.example", "xn--bcher-kva.example", true},
		{"BÜCHER.example", "xn--bcher-kva.example", true},
		{long + ".example", long + ".example", true},
		{long + "a.example", "", false},
		{strings.Repeat(long+".", 4) + "a", "", false},
		{"", "", false},
		{".", "", false},
		{"a..b", "", false},
		{"ü..b", "", false},
		{".a", "", false},
		{"a\r\nb", "", false},
		{"a b", "", false},
		{"a\x00b", "", false},
		{"ü\x00b", "", false},
		{"ü\xff", "", false},
		{"127.0.0.1", "127.0.0.1", true},
		{"[127.0.0.1]", "", false},
	}
	for _, tt := range tests {
		if got, ok := ASCII(tt.in); got != tt.want || ok != tt.ok {
			t.Errorf("ASCII(%q) = %q %v, want %q %v", tt.in, got, ok, tt.want, tt.ok)
		}
	}
}

func TestParseConf(t *testing.T) {
	c := ParseConf([]byte("# comment\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver 2001:db8::1\nsearch example\noptions timeout:2 attempts:3 rotate trust-ad\nnameserver 192.0.2.3\nnameserver 192.0.2.4"))
	want := []string{"192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"}
	if !slices.Equal(c.Servers, want) || c.Timeout != 2*time.Second || c.Attempts != 3 || !c.TrustAD {
		t.Errorf("%+v", c)
	}
	if c := ParseConf(nil); !slices.Equal(c.Servers, []string{"127.0.0.1:53"}) {
		t.Errorf("without a server: %+v", c)
	}
	for in, want := range map[string]string{
		"127.0.0.1": "127.0.0.1:53", "127.0.0.1:5353": "127.0.0.1:5353", "[::1]:5353": "[::1]:5353", "::1": "[::1]:53", "[::1]": "[::1]:53",
		"": "", "host:53": "", "127.0.0.1:": "", "127.0.0.1:0": "", "127.0.0.1:99999": "",
	} {
		if got, err := ParseServer(in); got != want || (err == nil) != (want != "") {
			t.Errorf("ParseServer(%q) = %q %v", in, got, err)
		}
	}
}

func BenchmarkCached(b *testing.B) {
	r := New(Config{})
	defer r.Close()
	q := question{"mail.far.example", TypeMX}
	r.cache.put(q, Answer{Status: Found, Expires: time.Now().Add(time.Hour)}, time.Now())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Lookup(context.Background(), q.name, q.kind); err != nil {
			b.Fatal(err)
		}
	}
}
