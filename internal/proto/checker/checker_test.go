package checker

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/system/ipc"
)

// script is a Backend whose conversations follow the name of their mechanism.
type script struct {
	mu         sync.Mutex
	mechanisms []string
	begun      []Who
	ended      chan string // what became of those that were given up
}

func (s *script) Mechanisms(string) []string { s.mu.Lock(); defer s.mu.Unlock(); return s.mechanisms }

func (s *script) Begin(peer string, who Who, mechanism string) Conversation {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = append(s.begun, who)
	return &talk{s: s, mechanism: mechanism}
}

type talk struct {
	s         *script
	mechanism string
	heard     []string
}

func (c *talk) Next(ctx context.Context, response []byte) Answer {
	if response == nil {
		c.heard = append(c.heard, "nothing")
	} else {
		c.heard = append(c.heard, fmt.Sprintf("%q", response))
	}
	switch {
	case c.mechanism == "PLAIN" && string(response) == "\x00alice\x00right":
		return Answer{Verdict: Yes, Login: "alice"}
	case c.mechanism == "PLAIN":
		return Answer{Verdict: No}
	case c.mechanism == "ECHO" && string(response) != "end":
		return Answer{Verdict: More, Challenge: response}
	case c.mechanism == "ECHO":
		return Answer{Verdict: Yes, Login: strings.Join(c.heard, " ")}
	case c.mechanism == "SLOW":
		<-ctx.Done()
		c.s.ended <- "given up"
		return Answer{Verdict: Yes, Login: "mallory"}
	case c.mechanism == "BUSY":
		return Answer{Verdict: Later, Text: "not now"}
	}
	return Answer{Verdict: Malformed}
}

// link joins an agent and a server.
func link(t *testing.T, s *script) (*Agent, *Server) {
	t.Helper()
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	v := &Server{Backend: s}
	served := make(chan error, 1)
	go func() { served <- v.Serve(context.Background(), theirs, "smtpd") }()
	a := &Agent{}
	a.Connect(ours)
	t.Cleanup(func() { a.Connect(nil); <-served })
	return a, v
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAnswers(t *testing.T) {
	s := &script{}
	a, _ := link(t, s)
	who := Who{Service: "submission", IP: "192.0.2.1", Secure: true, Bindings: []Binding{{"tls-exporter", []byte("\x00\xff")}, {"tls-server-end-point", []byte("x")}}}
	tests := []struct {
		mechanism string
		initial   []byte
		want      Answer
	}{
		{"PLAIN", []byte("\x00alice\x00right"), Answer{Verdict: Yes, Login: "alice"}},
		{"PLAIN", []byte("\x00alice\x00wrong"), Answer{Verdict: No}},
		{"BUSY", nil, Answer{Verdict: Later, Text: "not now"}},
		{"NTLM", nil, Answer{Verdict: Malformed}},
		{strings.Repeat("A", 100), nil, Answer{Verdict: Malformed}},
		{"PLAIN", make([]byte, maxMessage+1), Answer{Verdict: Malformed}},
	}
	for _, tt := range tests {
		x, got := a.Begin(within(t), who, tt.mechanism, tt.initial)
		if x != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%.20s: %+v, want %+v", tt.mechanism, got, tt.want)
		}
	}
	s.mu.Lock()
	first := s.begun[0]
	s.mu.Unlock()
	if !reflect.DeepEqual(first, who) {
		t.Errorf("the client is %+v, want %+v", first, who)
	}
	if got := a.Check(within(t), who, "alice", "right"); got.Verdict != Yes {
		t.Errorf("%+v", got)
	}
	if got := a.Check(within(t), who, "x\x00alice", "right"); got.Verdict != No {
		t.Errorf("a name with a NUL: %+v", got)
	}
}

func TestAnExchangeOfMany(t *testing.T) {
	a, _ := link(t, &script{})
	for _, tt := range []struct {
		initial []byte
		want    string
	}{{nil, `nothing "b\x00" "end"`}, {[]byte{}, `"" "b\x00" "end"`}, {[]byte("a"), `"a" "b\x00" "end"`}} {
		x, got := a.Begin(within(t), Who{}, "ECHO", tt.initial)
		if got.Verdict != More || !bytes.Equal(got.Challenge, tt.initial) {
			t.Fatalf("%+v", got)
		}
		if got = x.Next(within(t), []byte("b\x00")); got.Verdict != More || string(got.Challenge) != "b\x00" {
			t.Fatalf("%+v", got)
		}
		if got = x.Next(within(t), []byte("end")); got.Verdict != Yes || got.Login != tt.want {
			t.Errorf("%+v, want %s", got, tt.want)
		}
		if got = x.Next(within(t), []byte("more")); got.Verdict != Malformed {
			t.Errorf("after the end: %+v", got)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	a, _ := link(t, &script{})
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			x, got := a.Begin(within(t), Who{}, "ECHO", fmt.Append(nil, i))
			for n := range 5 {
				if got.Verdict != More || string(got.Challenge) != fmt.Sprint(i, n)[:len(got.Challenge)] {
					t.Errorf("%d, %d: %+v", i, n, got)
					return
				}
				got = x.Next(within(t), fmt.Append(nil, i))
			}
			x.Abort()
		})
	}
	all.Wait()
}

func TestWhoGivesUpIsForgotten(t *testing.T) {
	s := &script{ended: make(chan string, 1)}
	a, _ := link(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if x, got := a.Begin(ctx, Who{}, "SLOW", nil); x != nil || got.Verdict != Later {
		t.Errorf("%+v", got)
	}
	<-s.ended
	if _, got := a.Begin(within(t), Who{}, "BUSY", nil); got.Text != "not now" {
		t.Errorf("another exchange: %+v", got)
	}
}

func TestMechanismsAreAnnounced(t *testing.T) {
	s := &script{mechanisms: []string{"SCRAM-SHA-256-PLUS", "PLAIN"}}
	a, v := link(t, s)
	wait := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); fmt.Sprint(a.Mechanisms(true)) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%v, want %v", a.Mechanisms(true), want)
			}
		}
	}
	wait("[SCRAM-SHA-256-PLUS PLAIN]")
	if got := fmt.Sprint(a.Mechanisms(false)); got != "[PLAIN]" {
		t.Errorf("without a binding: %v", got)
	}
	s.mu.Lock()
	s.mechanisms = nil
	s.mu.Unlock()
	v.Announce()
	wait("[]")
}

func TestWithoutALink(t *testing.T) {
	a := &Agent{}
	if x, got := a.Begin(within(t), Who{}, "PLAIN", nil); x != nil || got.Verdict != Later || a.Mechanisms(true) != nil {
		t.Errorf("%+v", got)
	}
	a, _ = link(t, &script{mechanisms: []string{"PLAIN"}})
	x, _ := a.Begin(within(t), Who{}, "ECHO", nil)
	a.Connect(nil)
	if got := x.Next(within(t), nil); got.Verdict != Later || a.Mechanisms(true) != nil {
		t.Errorf("after the link: %+v", got)
	}
}

// frames are what a hostile peer sends, and what it is answered.
func TestAHostileServerHurtsItselfOnly(t *testing.T) {
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	v := &Server{Backend: &script{ended: make(chan string, 10)}}
	served := make(chan error, 1)
	go func() { served <- v.Serve(context.Background(), theirs, "smtpd") }()
	defer func() { ours.Close(); <-served }()
	begin := func(mechanism string) []byte {
		b := begin{mechanism: mechanism}
		return b.append(nil)
	}
	for i, tt := range []struct {
		name    string
		kind    byte
		payload []byte
		more    [][]byte
		want    byte
	}{
		{"no frame of ours", '?', nil, nil, 'E'},
		{"a response to nothing", 'R', []byte("x"), nil, 'E'},
		{"no netstrings", 'S', []byte("PLAIN"), nil, 'E'},
		{"too little", 'S', []byte("0:,0:,0:,"), nil, 'E'},
		{"too many bindings", 'S', append(begin("ECHO"), []byte(strings.Repeat("1:a,1:b,", 5))...), nil, 'E'},
		{"half a binding", 'S', append(begin("ECHO"), []byte("1:a,")...), nil, 'E'},
		{"a response before the answer, twice", 'S', begin("SLOW"), [][]byte{[]byte("a"), []byte("b"), []byte("c")}, 'E'},
	} {
		stream := uint32(i + 1)
		if err := ours.Send(tt.kind, stream, tt.payload); err != nil {
			t.Fatal(err)
		}
		for _, m := range tt.more {
			if err := ours.Send('R', stream, m); err != nil {
				t.Fatal(err)
			}
		}
		for {
			f, err := ours.Read()
			if err != nil {
				t.Fatal(err)
			}
			if f.Kind == 'M' {
				continue
			}
			if f.Stream != stream || f.Kind != tt.want {
				t.Errorf("%s: %c on %d, want %c", tt.name, f.Kind, f.Stream, tt.want)
			}
			break
		}
	}
}

func TestAHostileAuthdLosesTheLink(t *testing.T) {
	for name, frame := range map[string]struct {
		kind    byte
		payload string
	}{
		"an unknown kind":         {'?', ""},
		"a login too long":        {'K', strings.Repeat("a", 256)},
		"no login":                {'K', ""},
		"a challenge too long":    {'C', strings.Repeat("a", maxMessage+1)},
		"a mechanism of 2 lines":  {'M', "9:PLAIN\r\nX,"},
		"no end of the mechanism": {'M', "5:PLAIN"},
		"mechanisms without end":  {'M', strings.Repeat("1:A,", maxMechanisms+1)},
	} {
		ours, theirs, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		a := &Agent{}
		a.Connect(ours)
		answered := make(chan Answer)
		go func() { _, got := a.Begin(within(t), Who{}, "PLAIN", nil); answered <- got }()
		f, err := theirs.Read()
		if err != nil {
			t.Fatal(err)
		}
		if err := theirs.Send(frame.kind, f.Stream, []byte(frame.payload)); err != nil {
			t.Fatal(err)
		}
		if got := <-answered; got.Verdict != Later {
			t.Errorf("%s: %+v", name, got)
		}
		theirs.Close()
		a.Connect(nil)
	}
}

// A frame that is read is written in the same way.
func FuzzBegin(f *testing.F) {
	b := begin{who: Who{Service: "smtp", IP: "::1", Secure: true, Bindings: []Binding{{"a", []byte("b")}}}, mechanism: "PLAIN", initial: []byte("x"), hasInitial: true}
	f.Add(b.append(nil))
	f.Add([]byte("0:,0:,0:,0:,0:,"))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := parseBegin(in)
		if err == nil && !bytes.Equal(b.append(nil), in) {
			t.Fatalf("%q is written as %q", in, b.append(nil))
		}
	})
}
