package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"qmail/internal/system/secure"
)

// checker is an Auth of one user: alice, whose password is secret.
type checker struct {
	begun   []string
	aborted int
	answer  Answer // of all, if its Outcome is set
	text    string // of Unknown
}

func (c *checker) Begin(_ context.Context, p *Peer, mechanism string, initial []byte) (Exchange, Answer) {
	c.begun = append(c.begun, fmt.Sprintf("%s %q %v", mechanism, initial, initial == nil))
	x := &passing{c: c, mechanism: mechanism}
	if initial == nil {
		return x, Answer{Outcome: Challenged, Challenge: []byte("go\x00on")}
	}
	return x, x.Next(context.Background(), initial)
}

type passing struct {
	c         *checker
	mechanism string
	heard     []string
}

func (x *passing) Abort() { x.c.aborted++ }

func (x *passing) Next(_ context.Context, response []byte) Answer {
	x.heard = append(x.heard, string(response))
	switch {
	case x.c.answer.Outcome != 0:
		return x.c.answer
	case x.c.text != "":
		return Answer{Text: x.c.text}
	case x.mechanism == "LOGIN" && len(x.heard) == 1:
		return Answer{Outcome: Challenged, Challenge: []byte("Password:")}
	case x.mechanism == "LOGIN":
		x.heard = []string{"\x00" + strings.Join(x.heard, "\x00")}
	}
	fields := strings.Split(x.heard[0], "\x00")
	switch {
	case len(fields) != 3:
		return Answer{Outcome: Malformed}
	case fields[1] == "alice" && fields[2] == "secret":
		return Answer{Outcome: Accepted, Login: "alice"}
	}
	return Answer{Outcome: Rejected}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

var (
	right = "AUTH PLAIN " + b64("\x00alice\x00secret") + "\r\n"
	wrong = "AUTH PLAIN " + b64("\x00alice\x00guess") + "\r\n"
)

// authServer offers AUTH inside TLS, or with clear everywhere.
func authServer(q Queue, c *checker, clear bool) *Server {
	config := testConfig()
	config.Mechanisms = func(p *Peer) ([]string, bool) {
		if p.TLS == nil && !clear {
			return nil, true
		}
		return []string{"PLAIN", "LOGIN"}, true
	}
	config.IDHost = "id.test.example"
	return &Server{
		Settings: func() *Config { return config }, Queue: q, Now: now, Auth: c,
		Random: func(b []byte) {
			for i := range b {
				b[i] = 0xab
			}
		},
	}
}

// playAs is play for a peer.
func playAs(t *testing.T, v *Server, p *Peer, send string) string {
	t.Helper()
	s := &script{chunks: [][]byte{[]byte(send)}}
	v.Serve(context.Background(), s, p)
	return s.out.String()
}

func TestAuth(t *testing.T) {
	long := strings.Repeat("x", 9000)
	tests := []struct{ name, send, want, login string }{
		{"a right password", ehlo + right, "220, 250, 235 2.7.0", "alice"},
		{"a wrong one", ehlo + wrong, "220, 250, 535 5.7.8", ""},
		{"in another case", ehlo + "auth plain " + b64("\x00alice\x00secret") + "\r\n", "220, 250, 235 2.7.0", "alice"},
		{"with a challenge in between", ehlo + "AUTH PLAIN\r\n" + b64("\x00alice\x00secret") + "\r\n", "220, 250, 334, 235 2.7.0", "alice"},
		{"LOGIN", ehlo + "AUTH LOGIN\r\n" + b64("alice") + "\r\n" + b64("secret") + "\r\n", "220, 250, 334, 334, 235 2.7.0", "alice"},
		{"LOGIN with the name at once", ehlo + "AUTH LOGIN " + b64("alice") + "\r\n" + b64("secret") + "\r\n", "220, 250, 334, 235 2.7.0", "alice"},
		{"given up", ehlo + "AUTH PLAIN\r\n*\r\nNOOP\r\n", "220, 250, 334, 501 5.7.0, 250 2.0.0", ""},
		{"an empty initial response", ehlo + "AUTH PLAIN =\r\n", "220, 250, 501 5.5.2", ""},
		{"an empty response", ehlo + "AUTH PLAIN\r\n\r\nNOOP\r\n", "220, 250, 334, 501 5.5.2, 250 2.0.0", ""},
		{"no base64", ehlo + "AUTH PLAIN !!!!\r\nNOOP\r\n", "220, 250, 501 5.5.2, 250 2.0.0", ""},
		{"base64 with blanks", ehlo + "AUTH PLAIN AGFs aWNl\r\n", "220, 250, 501 5.5.2", ""},
		{"base64 without its padding", ehlo + "AUTH PLAIN " + strings.TrimRight(b64("\x00alice\x00secret!"), "=") + "\r\n", "220, 250, 501 5.5.2", ""},
		{"base64 with bits to spare", ehlo + "AUTH PLAIN AGFsaWNlAHNlY3JldC==\r\n", "220, 250, 501 5.5.2", ""},
		{"no base64 within an exchange", ehlo + "AUTH LOGIN\r\nQUIT now\r\nNOOP\r\n", "220, 250, 334, 501 5.5.2, 250 2.0.0", ""},
		{"an unknown mechanism", ehlo + "AUTH NTLM TlRM\r\nAUTH\r\nAUTH " + strings.Repeat("A", 100) + "\r\n", "220, 250, 504 5.5.4, 504 5.5.4, 504 5.5.4", ""},
		{"twice", ehlo + right + right, "220, 250, 235 2.7.0, 503 5.5.1", "alice"},
		{"within a transaction", ehlo + from + right, "220, 250, 250 2.1.0, 503 5.5.1", ""},
		{"before EHLO", right, "220, 503 5.5.1", ""},
		{"three times wrong", ehlo + wrong + wrong + wrong + right, "220, 250, 535 5.7.8, 535 5.7.8, 421 4.7.0", ""},
		{"a response of 12 kB", ehlo + "AUTH PLAIN\r\n" + b64(long) + "\r\n", "220, 250, 334, 501 5.5.2", ""},
		{"a command of 12 kB", ehlo + "AUTH PLAIN " + b64(long) + "\r\nNOOP\r\n", "220, 250, 501 5.5.2, 250 2.0.0", ""},
		{"a longer one", ehlo + "AUTH PLAIN " + b64(long+long) + "\r\nNOOP\r\n", "220, 250, 500 5.5.2", ""},
		{"a longer response", ehlo + "AUTH PLAIN\r\n" + b64(long+long) + "\r\nNOOP\r\n", "220, 250, 334, 500 5.5.2", ""},
		{"other commands stay short", ehlo + "NOOP " + long + "\r\n", "220, 250, 500 5.5.2", ""},
		{"EHLO keeps who it is", ehlo + right + ehlo + from, "220, 250, 235 2.7.0, 250, 250 2.1.0", "alice"},
		{"the word of somebody else", ehlo + "MAIL FROM:<a@b.example> AUTH=alice@test.example\r\n" + "RSET\r\nMAIL FROM:<a@b.example> AUTH=<>\r\n", "220, 250, 250 2.1.0, 250 2.0.0, 250 2.1.0", ""},
		{"which is no xtext", ehlo + "MAIL FROM:<a@b.example> AUTH=a=b\r\nMAIL FROM:<> AUTH=\r\nMAIL FROM:<> AUTH=<> AUTH=<>\r\n", "220, 250, 501 5.5.4, 501 5.5.4, 501 5.5.4", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, step := range []int{1 << 20, 1} {
				c, p := &checker{}, testPeer()
				s := &script{}
				for chunk := range slices.Chunk([]byte(tt.send), step) {
					s.chunks = append(s.chunks, chunk)
				}
				authServer(&memoryQueue{}, c, true).Serve(context.Background(), s, p)
				if got := codes(t, s.out.String()); got != tt.want || p.Login != tt.login {
					t.Errorf("in pieces of %d: login %q, %s\nwant %s", step, p.Login, got, tt.want)
				}
			}
		})
	}
}

func TestAuthNeedsTLS(t *testing.T) {
	c := &checker{}
	p := testPeer()
	got := playAs(t, authServer(&memoryQueue{}, c, false), p, ehlo+right)
	if codes(t, got) != "220, 250, 538 5.7.11" || strings.Contains(got, "AUTH ") && strings.Contains(got, "250-AUTH") || len(c.begun) > 0 {
		t.Errorf("in clear: %s, %q", got, c.begun)
	}
	p = testPeer()
	p.TLS = &secure.State{}
	got = playAs(t, authServer(&memoryQueue{}, c, false), p, ehlo+right+ehlo)
	if !strings.Contains(got, "250-AUTH PLAIN LOGIN\r\n") || strings.Count(got, "250-AUTH") != 1 || p.Login != "alice" {
		t.Errorf("in TLS: %s", got)
	}
	if got := play(t, newServer(&memoryQueue{}), ehlo+right); codes(t, got) != "220, 250, 502 5.5.1" || strings.Contains(got, "AUTH") {
		t.Errorf("where there is no AUTH: %s", got)
	}
}

func TestStartTLSForgetsWhoItWas(t *testing.T) {
	p := testPeer()
	s := New(func() *Config { return testConfig() }, p)
	s.peer.Login, s.login.refused, s.login.tried = "alice", 2, true
	s.Secured(&secure.State{})
	if p.Login != "" || s.login.tried || s.login.refused != 0 {
		t.Errorf("%+v, %+v", p, s.login)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	tests := []struct {
		name string
		c    checker
		want string
	}{
		{"nobody to ask", checker{answer: Answer{Outcome: 17}}, "454 4.7.0 unable to check passwords now, try again later (#4.7.0)"},
		{"words of its own", checker{text: "not\r\n235 now"}, "454 4.7.0 not??235 now"},
		{"too many words", checker{text: strings.Repeat("x", 1000)}, "454 4.7.0 " + strings.Repeat("x", maxText)},
	}
	for i := range tests {
		tt := &tests[i]
		got := playAs(t, authServer(&memoryQueue{}, &tt.c, true), testPeer(), ehlo+right)
		if !strings.HasSuffix(got, "\r\n"+tt.want+"\r\n") {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

func TestExchangesAreEnded(t *testing.T) {
	for name, send := range map[string]string{
		"given up":             "AUTH LOGIN\r\n*\r\n",
		"no base64":            "AUTH LOGIN\r\n!\r\n",
		"left alone":           "AUTH LOGIN\r\n",
		"with too long a line": "AUTH LOGIN\r\n" + strings.Repeat("x", 20000),
	} {
		c := &checker{}
		playAs(t, authServer(&memoryQueue{}, c, true), testPeer(), ehlo+send)
		if c.aborted != 1 || len(c.begun) != 1 {
			t.Errorf("%s: %d of %d were ended", name, c.aborted, len(c.begun))
		}
	}
	c := &checker{}
	playAs(t, authServer(&memoryQueue{}, c, true), testPeer(), ehlo+wrong+right)
	if c.aborted != 0 || len(c.begun) != 2 {
		t.Errorf("%d of %d that had ended were ended again", c.aborted, len(c.begun))
	}
}

func TestNoSecretIsTold(t *testing.T) {
	for _, send := range []string{
		wrong, "AUTH PLAIN " + b64("hunter2") + "\r\n", "AUTH LOGIN\r\n" + b64("alice") + "\r\n" + b64("hunter2") + "\r\n",
		"AUTH NTLM\r\n" + b64("alice") + "\r\n" + b64("hunter2") + "\r\n", // goes on as if it had been understood
		"AUTH LOGIN\r\n*\r\n" + b64("hunter2") + "\r\n", "AUTH\t" + b64("hunter2") + "\r\nAUTH LOGIN\r\n!\r\nhunter2\r\n",
		"AUTH LOGIN\r\n" + b64("hunter2") + " x\r\n", "USER alice\r\nPASS hunter2\r\n",
	} {
		var told []string
		v := authServer(&memoryQueue{}, &checker{}, true)
		v.Refused = func(_ *Peer, command, reply string) { told = append(told, command+": "+reply) }
		playAs(t, v, testPeer(), ehlo+send+"MAIL FROM:bad\r\n")
		all := strings.Join(told, "\n")
		if len(told) == 0 || strings.Contains(all, "hunter2") || strings.Contains(all, b64("hunter2")) ||
			strings.Contains(all, b64("\x00alice\x00guess")) || !strings.Contains(all, "MAIL FROM:bad") {
			t.Errorf("%q: told %q", send, told)
		}
	}
}

func TestReceivedSaysHowItCame(t *testing.T) {
	tests := []struct {
		name string
		p    func(p *Peer)
		show bool
		want string
	}{
		{"logged in", func(p *Peer) { p.Login = "alice" }, false, "Received: from client.example (192.0.2.7)\n  by mx.test.example with ESMTPA; "},
		{"logged in, and shown", func(p *Peer) { p.Login = "a b" }, true, "Received: from client.example (a?b@192.0.2.7)\n  by mx.test.example with ESMTPA; "},
		{"nobody, shown or not", func(p *Peer) {}, true, "Received: from client.example (192.0.2.7)\n  by mx.test.example with ESMTP; "},
		{"LMTP", func(p *Peer) { p.Kind = LMTP }, false, "Received: from client.example (192.0.2.7)\n  by mx.test.example with LMTP; "},
	}
	for _, tt := range tests {
		p, config := testPeer(), testConfig()
		tt.p(p)
		config.ShowLogin = tt.show
		s := New(func() *Config { return config }, p)
		s.extended, p.Helo = true, "client.example"
		if got := string(s.Received(nil, now())); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	p := testPeer()
	p.Login, p.TLS, p.Helo = "alice", &secure.State{}, "client.example"
	s := New(func() *Config { return testConfig() }, p)
	for want, set := range map[string]func(){
		" with ESMTPSA ":    func() { s.extended = true },
		" with UTF8SMTPSA ": func() { s.tx.utf8 = true },
		" with UTF8LMTPSA ": func() { s.tx.utf8, p.Kind = true, LMTP },
	} {
		s.tx.utf8, p.Kind = false, Relay
		set()
		if got := string(s.Received(nil, now())); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
