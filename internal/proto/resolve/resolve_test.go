package resolve

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"qmail/internal/store/control"
	"qmail/internal/system/dns"
	"qmail/internal/system/ipc"
)

const patience = 20 * time.Second

func then() time.Time { return time.Unix(1000, 0) }

// answers are one of each kind that the resolver gives.
func answers() map[string]struct {
	kind dns.Type
	dns.Answer
} {
	soon := then().Add(time.Minute)
	return map[string]struct {
		kind dns.Type
		dns.Answer
	}{
		"four.example":  {dns.TypeA, dns.Answer{Status: dns.Found, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, Expires: soon}},
		"six.example":   {dns.TypeAAAA, dns.Answer{Status: dns.Found, Secure: true, Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, Expires: soon}},
		"mx.example":    {dns.TypeMX, dns.Answer{Status: dns.Found, MX: []dns.MX{{Preference: 0}, {Preference: 5, Host: "a.example"}, {Preference: 5, Bad: true}, {Preference: 65535, Host: "b.example"}}, Expires: soon}},
		"txt.example":   {dns.TypeTXT, dns.Answer{Status: dns.Found, Secure: true, Texts: []string{"v=spf1 -all", "", strings.Repeat("\x00\r\n", 20000)}, Expires: soon}},
		"ptr.example":   {dns.TypePTR, dns.Answer{Status: dns.Found, Names: []string{"a.example", "_b.example"}, Expires: soon}},
		"lost.example":  {dns.TypePTR, dns.Answer{Status: dns.Found, Expires: soon}}, // its pointers were no names
		"tlsa.example":  {dns.TypeTLSA, dns.Answer{Status: dns.Found, Secure: true, TLSA: []dns.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: []byte{0xaa, 0xbb}}}, Expires: soon}},
		"empty.example": {dns.TypeMX, dns.Answer{Status: dns.NoData, Secure: true, Expires: soon}},
		"no.example":    {dns.TypeA, dns.Answer{Status: dns.NoName, Expires: then()}},
	}
}

// links joins a Link and a server that looks up by lookup.
func links(t *testing.T, lookup Lookup) *Link {
	t.Helper()
	l := &Link{Now: then}
	connect(t, l, lookup)
	t.Cleanup(func() { l.Connect(nil) })
	return l
}

// connect gives l a new link, and returns what becomes of its other end.
func connect(t *testing.T, l *Link, lookup Lookup) (ended chan error) {
	t.Helper()
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() { ended <- Serve(t.Context(), theirs, lookup, then) }()
	l.Connect(ours)
	return ended
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestAnswersArriveAsTheyWere(t *testing.T) {
	all := answers()
	l := links(t, func(_ context.Context, name string, kind dns.Type) (dns.Answer, error) {
		a, ok := all[name]
		if !ok || a.kind != kind {
			return dns.Answer{}, &dns.Error{Name: name, Type: kind, Err: errors.New("resolver says SERVFAIL")}
		}
		return a.Answer, nil
	})
	for name, want := range all {
		got, err := l.Ask(within(t), name, want.kind)
		if err != nil || !reflect.DeepEqual(got, want.Answer) {
			t.Errorf("%s: got %+v %v, want %+v", name, got, err, want.Answer)
		}
	}
	if _, err := l.Ask(within(t), "other.example", dns.TypeA); err == nil || err.Error() != "resolver says SERVFAIL" {
		t.Errorf("trouble: %v", err)
	}
}

func TestManyAskAtOnce(t *testing.T) {
	l := links(t, func(_ context.Context, name string, _ dns.Type) (dns.Answer, error) {
		return dns.Answer{Status: dns.Found, Texts: []string{name}, Expires: then()}, nil
	})
	var wg sync.WaitGroup
	for g := range 50 {
		wg.Go(func() {
			for i := range 50 {
				name := strings.Repeat("a", g+1) + "." + strings.Repeat("b", i+1)
				if a, err := l.Ask(within(t), name, dns.TypeTXT); err != nil || a.Texts[0] != name {
					t.Errorf("%s: %+v %v", name, a, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestALostLinkIsAskedAgain kills the other side in the middle of questions: they are answered over the next link.
func TestALostLinkIsAskedAgain(t *testing.T) {
	asked := make(chan struct{}, 10)
	l := &Link{Now: then}
	first := connect(t, l, func(ctx context.Context, _ string, _ dns.Type) (dns.Answer, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return dns.Answer{}, ctx.Err()
	})
	defer l.Connect(nil)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if a, err := l.Ask(within(t), "x.example", dns.TypeTXT); err != nil || a.Texts[0] != "second" {
				t.Errorf("%+v %v", a, err)
			}
		})
	}
	for range 10 {
		<-asked
	}
	connect(t, l, func(context.Context, string, dns.Type) (dns.Answer, error) {
		return dns.Answer{Status: dns.Found, Texts: []string{"second"}, Expires: then()}, nil
	})
	<-first
	wg.Wait()
}

func TestWithoutALinkTheAnswerIsLater(t *testing.T) {
	l := &Link{Now: then}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errNoLink)
	defer cancel()
	if _, err := l.Ask(ctx, "x.example", dns.TypeA); !errors.Is(err, errNoLink) {
		t.Error(err)
	}
	connect(t, l, func(context.Context, string, dns.Type) (dns.Answer, error) {
		return dns.Answer{Status: dns.NoName, Expires: then()}, nil
	})
	if a, err := l.Ask(within(t), "x.example", dns.TypeA); err != nil || a.Status != dns.NoName {
		t.Error(a, err)
	}
	l.Connect(nil)
}

// raw is a link whose other end a test plays.
func raw(t *testing.T) (*ipc.Conn, *ipc.Conn) {
	t.Helper()
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	deadline := time.Now().Add(patience)
	ours.SetReadDeadline(deadline)
	theirs.SetReadDeadline(deadline)
	return ours, theirs
}

func ask(kind dns.Type, name string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(kind)), name...)
}

func TestAnAskerWhoLiesIsCutOff(t *testing.T) {
	tests := []struct {
		name string
		do   func(t *testing.T, c *ipc.Conn)
	}{
		{"a kind that is none", func(t *testing.T, c *ipc.Conn) { c.Send('A', 1, ask(dns.TypeA, "x.example")) }},
		{"no name", func(t *testing.T, c *ipc.Conn) { c.Send('Q', 1, ask(dns.TypeA, "")) }},
		{"half a type", func(t *testing.T, c *ipc.Conn) { c.Send('Q', 1, []byte{0}) }},
		{"a name with a newline", func(t *testing.T, c *ipc.Conn) { c.Send('Q', 1, ask(dns.TypeA, "x\n.example")) }},
		{"a name in capitals", func(t *testing.T, c *ipc.Conn) { c.Send('Q', 1, ask(dns.TypeA, "X.example")) }},
		{"a name of 200 KB", func(t *testing.T, c *ipc.Conn) { c.Send('Q', 1, ask(dns.TypeA, strings.Repeat("a.", 100000))) }},
		{"a number that is in use", func(t *testing.T, c *ipc.Conn) {
			c.Send('Q', 1, ask(dns.TypeA, "slow.example"))
			c.Send('Q', 1, ask(dns.TypeA, "slow.example"))
		}},
		{"a descriptor", func(t *testing.T, c *ipc.Conn) {
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			c.SendFile('Q', 1, f, ask(dns.TypeA, "x.example"))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := raw(t)
			ended := make(chan error, 1)
			go func() {
				ended <- Serve(t.Context(), theirs, func(ctx context.Context, _ string, _ dns.Type) (dns.Answer, error) {
					<-ctx.Done()
					return dns.Answer{}, ctx.Err()
				}, then)
			}()
			tt.do(t, ours)
			for {
				if _, err := ours.Read(); err != nil {
					break
				}
			}
			if err := <-ended; !Broken(err) {
				t.Errorf("ended by %v", err)
			}
		})
	}
}

// TestAFloodTakesNoMoreThanItsShare asks far more than one may: what is beyond is refused at once, what is within is
// answered, and what is asked of us stays bounded.
func TestAFloodTakesNoMoreThanItsShare(t *testing.T) {
	ours, theirs := raw(t)
	var under, most atomic.Int64
	gate := make(chan struct{})
	go Serve(t.Context(), theirs, func(context.Context, string, dns.Type) (dns.Answer, error) {
		n := under.Add(1)
		defer under.Add(-1)
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		<-gate
		return dns.Answer{Status: dns.NoName, Expires: then()}, nil
	}, then)
	const flood = 5000
	go func() {
		for i := range uint32(flood) {
			ours.SendSoon('Q', i, ask(dns.TypeA, "x.example"))
		}
	}()
	seen := map[byte]int{}
	for n := range flood {
		if n == flood-maxAsked {
			close(gate)
		}
		f, err := ours.Read()
		if err != nil {
			t.Fatal(err, seen)
		}
		seen[f.Kind]++
	}
	if seen['A'] != maxAsked || seen['Z'] != flood-maxAsked || most.Load() > maxAsked {
		t.Errorf("%d answered, %d refused, %d at once", seen['A'], seen['Z'], most.Load())
	}
}

func TestAResolverWhoLiesIsCutOff(t *testing.T) {
	good := appendAnswer(nil, dns.Answer{Status: dns.Found, MX: []dns.MX{{Preference: 1, Host: "a.example"}}, Expires: then().Add(time.Hour)}, dns.TypeMX, then())
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	tests := []struct {
		name    string
		kind    byte
		stream  uint32
		payload []byte
		file    bool
	}{
		{"an answer to a question never put", 'A', 2, good, false},
		{"trouble with a question never put", 'Z', 7, []byte("no"), false},
		{"a question", 'Q', 1, ask(dns.TypeMX, "x.example"), false},
		{"an answer with a descriptor", 'A', 1, good, true},
		{"an empty answer", 'A', 1, nil, false},
		{"a status that is none", 'A', 1, change(func(b []byte) []byte { b[0] = 4; return b }), false},
		{"an unknown flag", 'A', 1, change(func(b []byte) []byte { b[1] = 2; return b }), false},
		{"an answer for ever", 'A', 1, change(func(b []byte) []byte { b[2] = 0xff; return b }), false},
		{"found, without records", 'A', 1, good[:answerHeader], false},
		{"not found, with records", 'A', 1, change(func(b []byte) []byte { b[0] = 3; return b }), false},
		{"half a record", 'A', 1, good[:len(good)-1], false},
		{"a name in capitals", 'A', 1, change(func(b []byte) []byte { b[answerHeader+4] = 'A'; return b }), false},
		{"a name with a newline", 'A', 1, change(func(b []byte) []byte { b[answerHeader+4] = '\n'; return b }), false},
		{"preferences in disorder", 'A', 1, append(append([]byte{1, 0, 0, 0, 0, 1}, good[answerHeader:]...), 0, 2, 0, 0), false},
		{"too many records", 'A', 1, append(bytes.Clone(good[:answerHeader]), bytes.Repeat(good[answerHeader:], dns.MaxRecords+1)...), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := raw(t)
			l := &Link{Now: then}
			l.Connect(ours)
			defer l.Connect(nil)
			got := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				_, err := l.Ask(ctx, "x.example", dns.TypeMX)
				got <- err
			}()
			if f, err := theirs.Read(); err != nil || f.Kind != 'Q' || f.Stream != 1 {
				t.Fatal(f, err)
			}
			if tt.file {
				f, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				theirs.SendFile(tt.kind, tt.stream, f, tt.payload)
			} else {
				theirs.Send(tt.kind, tt.stream, tt.payload)
			}
			if f, err := theirs.Read(); err == nil {
				t.Errorf("the link lives on: %c", f.Kind)
			}
			cancel() // whoever waits for the next link, does not any more
			if err := <-got; err == nil {
				t.Error("it was believed")
			}
		})
	}
}

// TestASilentResolverIsGivenUp lets questions go unanswered until the link is dropped: they must not pile up.
func TestASilentResolverIsGivenUp(t *testing.T) {
	ours, theirs := raw(t)
	go func() {
		for {
			if _, err := theirs.Read(); err != nil {
				return
			}
		}
	}()
	l := &Link{Now: then}
	l.Connect(ours)
	defer l.Connect(nil)
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	for range maxUnanswered {
		c, err := l.wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ask(impatient, "x.example", dns.TypeA); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if _, err := l.Ask(impatient, "x.example", dns.TypeA); err == nil {
		t.Error("an answer out of nothing")
	}
	if _, err := ours.Read(); err == nil {
		t.Error("the link lives on")
	}
}

// FuzzAnswer states the law: what is understood has one spelling, is bounded and has clean names.
func FuzzAnswer(f *testing.F) {
	for _, a := range answers() {
		f.Add(uint16(a.kind), appendAnswer(nil, a.Answer, a.kind, then()))
	}
	f.Fuzz(func(t *testing.T, kind uint16, in []byte) {
		a, err := parseAnswer(in, dns.Type(kind), then())
		if err != nil {
			return
		}
		if again := appendAnswer(nil, a, dns.Type(kind), then()); !bytes.Equal(again, in) {
			t.Errorf("%x is another spelling of %x", in, again)
		}
		if n := len(a.MX) + len(a.Addrs) + len(a.Texts) + len(a.Names) + len(a.TLSA); n > dns.MaxRecords || n > 0 && a.Status != dns.Found {
			t.Errorf("%d records, %v", n, a.Status)
		}
		for _, mx := range a.MX {
			if mx.Host != "" && (!clean(mx.Host) || mx.Bad) {
				t.Errorf("%+v", mx)
			}
		}
	})
}

// FuzzServe states the law: whatever comes over a link ends it or is answered, question by question.
func FuzzServe(f *testing.F) {
	frame := func(kind byte, stream byte, payload []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
		return append(append(b, kind, 0, 0, 0, 0, stream), payload...)
	}
	f.Add(frame('Q', 1, ask(dns.TypeA, "x.example")))
	f.Add(append(frame('Q', 1, ask(dns.TypeA, "x.example")), frame('Q', 2, ask(99, "y.example"))...))
	f.Add(frame('A', 1, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &script{in: bytes.NewReader(in)}
		var asked atomic.Int64
		err := Serve(t.Context(), ipc.New(s), func(_ context.Context, name string, _ dns.Type) (dns.Answer, error) {
			asked.Add(1)
			if !clean(name) {
				t.Errorf("asked for %q", name)
			}
			return dns.Answer{Status: dns.NoName, Expires: then()}, nil
		}, then)
		if err == nil {
			t.Error("ended without a reason")
		}
		if asked.Load() > int64(len(in)/13) {
			t.Errorf("%d questions in %d bytes", asked.Load(), len(in))
		}
	})
}

// script is a peer whose words are fixed and who does not listen.
type script struct{ in io.Reader }

func (s *script) Read(p []byte) (int, []*os.File, error) { n, err := s.in.Read(p); return n, nil, err }
func (s *script) Write([]byte, *os.File) error           { return nil }
func (s *script) SetReadDeadline(time.Time) error        { return nil }
func (s *script) SetWriteDeadline(time.Time) error       { return nil }
func (s *script) Close() error                           { return nil }

func TestServers(t *testing.T) {
	tests := []struct {
		name, text string
		want       string // the servers, or part of the error
	}{
		{"addresses and ports", "# ours\n127.0.0.1:5353\n::1\n[::1]:54\n", "127.0.0.1:5353 [::1]:53 [::1]:54"},
		{"a name", "127.0.0.1\nns.example\n", "resolvers: line 2"},
		{"a port that is none", "127.0.0.1:0\n", "resolvers: line 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			home := t.TempDir()
			if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(home, "control/resolvers"), []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			c, err := Servers(control.Open(home))
			if got := strings.Join(c.Servers, " "); err == nil && got != tt.want || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q %v, want %s", got, err, tt.want)
			}
		})
	}
	if c, err := Servers(control.Open(t.TempDir())); err != nil || len(c.Servers) == 0 {
		t.Errorf("without the file: %v %v", c, err)
	}
}
