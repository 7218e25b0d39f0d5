package client

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

const esmtp = "250-sink\r\n250-PIPELINING\r\n250-SIZE 100000\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n"

func classic(r Result) string { return string(r.Classic(nil)) }

func TestDialogue(t *testing.T) {
	const ok = "r\x00K127.0.0.1 accepted message.\nRemote host said: 250 taken\n\x00"
	const giveUp = "DGiving up on 127.0.0.1.\n\x00"
	const died = "ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n\x00"
	tests := []struct {
		name    string
		replies map[string]string
		rcpts   string
		want    string
	}{
		{"accepted", nil, "u", ok},
		{"several recipients, several verdicts", map[string]string{"rcpt2": "550 no\r\n", "rcpt3": "450 later\r\n"}, "u v w x",
			"r\x00h127.0.0.1 does not like recipient.\nRemote host said: 550 no\n\x00s127.0.0.1 does not like recipient.\nRemote host said: 450 later\n\x00" + ok},
		{"sender refused for good", map[string]string{"mail": "550-a\r\n550 b\r\n", "rcpt": "503 no\r\n", "data": "503 no\r\n"}, "u v",
			"DConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 550-a\n550 b\n\x00"},
		{"sender refused for now", map[string]string{"mail": "451 b\r\n", "rcpt": "503 no\r\n", "data": "503 no\r\n"}, "u",
			"ZConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 451 b\n\x00"},
		{"sender refused, but DATA taken", map[string]string{"mail": "550 b\r\n", "rcpt": "503 no\r\n"}, "u",
			"DConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 550 b\n\x00"},
		{"a code that nobody knows means later", map[string]string{"mail": "999 b\r\n", "rcpt": "503 no\r\n", "data": "503 no\r\n"}, "u",
			"ZConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 999 b\n\x00"},
		{"no recipient taken, DATA refused", map[string]string{"rcpt": "550 no\r\n", "data": "554 none\r\n"}, "u",
			"h127.0.0.1 does not like recipient.\nRemote host said: 550 no\n\x00" + giveUp},
		{"no recipient taken, but DATA", map[string]string{"rcpt": "550 no\r\n"}, "u",
			"h127.0.0.1 does not like recipient.\nRemote host said: 550 no\n\x00" + giveUp},
		{"DATA refused for good", map[string]string{"data": "554 no\r\n"}, "u", "r\x00D127.0.0.1 failed on DATA command.\nRemote host said: 554 no\n\x00"},
		{"DATA refused for now", map[string]string{"data": "451 no\r\n"}, "u", "r\x00Z127.0.0.1 failed on DATA command.\nRemote host said: 451 no\n\x00"},
		{"250 is no go-ahead", map[string]string{"data": "250 no\r\n"}, "u", "r\x00Z127.0.0.1 failed on DATA command.\nRemote host said: 250 no\n\x00"},
		{"message refused for good", map[string]string{"body": "554 no\r\n"}, "u", "r\x00D127.0.0.1 failed after I sent the message.\nRemote host said: 554 no\n\x00"},
		{"message refused for now", map[string]string{"body": "451 no\r\n"}, "u", "r\x00Z127.0.0.1 failed after I sent the message.\nRemote host said: 451 no\n\x00"},
		{"garbage after the message", map[string]string{"body": "what?\r\n"}, "u", "r\x00Z127.0.0.1 failed after I sent the message.\nRemote host said: what?\n\x00"},
		{"closed at MAIL", map[string]string{"mail": "CLOSE"}, "u", died},
		{"reset at MAIL", map[string]string{"mail": "RESET"}, "u", died},
		{"closed at the second RCPT", map[string]string{"rcpt2": "CLOSE"}, "u v", "r\x00" + died},
		{"closed at DATA", map[string]string{"data": "CLOSE"}, "u", "r\x00" + died},
		{"closed after the message", map[string]string{"body": "CLOSE"}, "u", "r\x00ZConnected to 127.0.0.1 but connection died. Possible duplicate! (#4.4.2)\n\x00"},
		{"half a reply after the message", map[string]string{"body": "250-ok\r\n", "quit": ""}, "u", "r\x00ZConnected to 127.0.0.1 but connection died. Possible duplicate! (#4.4.2)\n\x00"},
	}
	for _, tt := range tests {
		for _, ehlo := range []string{"502 no\r\n", esmtp} {
			t.Run(tt.name+", "+ehlo[:3], func(t *testing.T) {
				replies := map[string]string{"ehlo": ehlo}
				for k, v := range tt.replies {
					replies[k] = v
				}
				c := startSink(t, replies).connect(t, Options{Hello: "here.example", Timeout: 500 * time.Millisecond})
				if r := c.Hello(); r.Letter != 0 {
					t.Fatalf("%+v", r)
				}
				var to []string
				for _, u := range strings.Fields(tt.rcpts) {
					to = append(to, u+"@far.example")
				}
				r := c.Deliver(&Message{Sender: "s@here.example", Recipients: to, Body: Memory([]byte("Subject: test\n\nHello.\n"))})
				if got := classic(r); got != tt.want {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
			})
		}
	}
}

func TestHello(t *testing.T) {
	tests := []struct {
		name    string
		replies map[string]string
		want    string
	}{
		{"fine", nil, ""},
		{"busy", map[string]string{"greeting": "421 busy\r\n"}, "ZConnected to 127.0.0.1 but greeting failed.\nRemote host said: 421 busy\n"},
		{"no service", map[string]string{"greeting": "554 no\r\n"}, "ZConnected to 127.0.0.1 but greeting failed.\nRemote host said: 554 no\n"},
		{"not SMTP", map[string]string{"greeting": "HTTP/1.1 400 Bad Request\r\n"}, "ZConnected to 127.0.0.1 but greeting failed.\nRemote host said: HTTP/1.1 400 Bad Request\n"},
		{"closed at once", map[string]string{"greeting": "CLOSE"}, "ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n"},
		{"silent", map[string]string{"greeting": "STALL"}, "ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n"},
		{"HELO refused", map[string]string{"helo": "550 bad name\r\n"}, "ZConnected to 127.0.0.1 but my name was rejected.\nRemote host said: 550 bad name\n"},
		{"closed at HELO", map[string]string{"helo": "CLOSE"}, "ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n"},
		{"shut down at EHLO", map[string]string{"ehlo": "421 bye\r\n"}, "ZConnected to 127.0.0.1 but my name was rejected.\nRemote host said: 421 bye\n"},
		{"it speaks out of turn", map[string]string{"greeting": "220 a\r\n250 b\r\n"}, "ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := startSink(t, tt.replies).connect(t, Options{Hello: "here.example", Timeout: 200 * time.Millisecond})
			r := c.Hello()
			if got := strings.TrimPrefix(string(r.Letter)+r.Text, "\x00"); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if (r.Letter != 0) == c.Usable() {
				t.Errorf("usable: %v", c.Usable())
			}
		})
	}
}

func TestExtensionsAreUsedWhereOffered(t *testing.T) {
	high := Memory([]byte("Subject: x\n\n\xc3\xa9\n"))
	utf8header := Memory([]byte("Subject: \xc3\xa9\n\nx\n"))
	plain := Memory([]byte("Subject: x\n\ny\n"))
	tests := []struct {
		name string
		ehlo string
		m    Message
		want string // the MAIL line, or the report
	}{
		{"nothing offered", "502 no\r\n", Message{Sender: "s@h", Body: high}, "MAIL FROM:<s@h>"},
		{"size and 8-bit text", esmtp, Message{Sender: "s@h", Body: high}, "MAIL FROM:<s@h> SIZE=18 BODY=8BITMIME"},
		{"7-bit text", esmtp, Message{Sender: "s@h", Body: plain}, "MAIL FROM:<s@h> SIZE=17"},
		{"8-bit text announced to us", esmtp, Message{Sender: "s@h", EightBit: true, Body: plain}, "MAIL FROM:<s@h> SIZE=17 BODY=8BITMIME"},
		{"an internationalized sender", esmtp, Message{Sender: "\xc3\xa9@h", Body: plain}, "MAIL FROM:<\"\xc3\xa9\"@h> SIZE=17 SMTPUTF8"},
		{"an internationalized header", esmtp, Message{Sender: "s@h", UTF8: true, Body: utf8header}, "MAIL FROM:<s@h> SIZE=18 BODY=8BITMIME SMTPUTF8"},
		{"the same without SMTPUTF8 there", "250-x\r\n250 8BITMIME\r\n", Message{Sender: "s@h", UTF8: true, Body: utf8header}, "D127.0.0.1 does not take internationalized mail. (#5.6.7)\n"},
		{"announced, but plain after all", "250 x\r\n", Message{Sender: "s@h", UTF8: true, Body: high}, "MAIL FROM:<s@h>"},
		{"an internationalized sender without SMTPUTF8 there", "250 x\r\n", Message{Sender: "\xc3\xa9@h", Body: plain}, "D127.0.0.1 does not take internationalized mail. (#5.6.7)\n"},
		{"too large for the server", "250-x\r\n250 SIZE 16\r\n", Message{Sender: "s@h", Body: plain}, "D127.0.0.1 does not take messages of more than 16 bytes. (#5.3.4)\n"},
		{"a limit of zero is none", "250-x\r\n250 size 0\r\n", Message{Sender: "s@h", Body: plain}, "MAIL FROM:<s@h> SIZE=17"},
		{"a limit beyond numbers is none", "250-x\r\n250 SIZE 18446744073709551616\r\n", Message{Sender: "s@h", Body: plain}, "MAIL FROM:<s@h> SIZE=17"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startSink(t, map[string]string{"ehlo": tt.ehlo})
			tt.m.Recipients = []string{"u@far.example"}
			r := s.client(t).Deliver(&tt.m)
			got := string(r.Message.Letter) + r.Message.Text
			for _, c := range strings.Split(s.saw(), "|") {
				if strings.HasPrefix(c, "MAIL") {
					got = c
				}
			}
			if got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestAddressesThatCannotStandOnTheWire(t *testing.T) {
	for _, bad := range []string{"u@far.example>\r\nDATA", "u\r\n@far.example", "u\n@x", "u@x\r", "u@\x00x", "\x00@x", "u@x>SIZE=1", "u@x y", "u@<x", "u\x7f@x", "\x1b@x", "u@x\"", "u@x\\"} {
		t.Run(bad, func(t *testing.T) {
			s := startSink(t, map[string]string{"ehlo": esmtp})
			c := s.client(t)
			r := c.Deliver(&Message{Sender: bad, Recipients: []string{"u@far.example"}})
			if r.Message.Letter != 'D' || !strings.Contains(r.Of(0), "(#5.1.7)") || !c.Usable() {
				t.Errorf("as sender: %+v", r)
			}
			r = c.Deliver(&Message{Sender: "s@here.example", Recipients: []string{bad}})
			if r.Message.Letter != 'D' || !strings.HasPrefix(r.Of(0), "D") || !strings.Contains(r.Of(0), "(#5.1.3)") {
				t.Errorf("as the only recipient: %+v", r)
			}
			r = c.Deliver(&Message{Sender: "s@here.example", Recipients: []string{"u@far.example", bad}})
			if r.Of(0)[0] != 'K' || r.Of(1)[0] != 'D' {
				t.Errorf("as one of two recipients: %+v", r)
			}
			if got := s.saw(); got != "EHLO here.example|MAIL FROM:<s@here.example> SIZE=0|RCPT TO:<u@far.example>|DATA" {
				t.Errorf("the server saw %q", got)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	for in, want := range map[string]string{
		"": "<>", "u@far.example": "<u@far.example>", "a b@x": `<"a b"@x>`, `x"y@x`: `<"x\"y"@x>`, ".dot@x": `<".dot"@x>`, "a@b@x": `<"a@b"@x>`,
		"postmaster": "<postmaster>", "u@[127.0.0.1]": "<u@[127.0.0.1]>", "u@[IPv6:::1]": "<u@[IPv6:::1]>", "a> RCPT@x": `<"a> RCPT"@x>`, "no host": `<"no host">`, "@x": `<""@x>`,
	} {
		if got := string(appendPath(nil, in)); got != want || !carriable(in) {
			t.Errorf("%q is written as %q (%v), want %q", in, got, carriable(in), want)
		}
	}
}

func TestConnectionsAreReused(t *testing.T) {
	const one = "MAIL FROM:<s@here.example> SIZE=3|RCPT TO:<u@far.example>|DATA"
	tests := []struct {
		name    string
		replies map[string]string
		between string
		usable  bool
	}{
		{"after success nothing stands between", nil, "|", true},
		{"after a refused message comes RSET", map[string]string{"body": "554 no\r\n"}, "|RSET|", true},
		{"after a refused recipient comes RSET", map[string]string{"rcpt1": "550 no\r\n"}, "|RSET|", true},
		{"a sender that is put off leaves", map[string]string{"mail": "451 later\r\n", "rcpt": "503 no\r\n", "data": "503 no\r\n"}, "", false},
		{"after a refused sender comes RSET", map[string]string{"mail": "550 no\r\n", "rcpt": "503 no\r\n", "data": "503 no\r\n"}, "|RSET|", true},
		{"after a shutdown nothing comes", map[string]string{"rcpt1": "421 bye\r\n", "data": "503 no\r\n"}, "", false},
		{"after words out of turn nothing comes", map[string]string{"body": "250 ok\r\n250 again\r\n"}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			replies := map[string]string{"ehlo": esmtp}
			for k, v := range tt.replies {
				replies[k] = v
			}
			s := startSink(t, replies)
			c := s.client(t)
			m := &Message{Sender: "s@here.example", Recipients: []string{"u@far.example"}, Body: Memory([]byte("x\n"))}
			c.Deliver(m)
			if c.Usable() != tt.usable {
				t.Fatalf("usable: %v", c.Usable())
			}
			want := "EHLO here.example|" + one
			if tt.usable {
				c.Deliver(m)
				want += tt.between + one
			}
			if got := s.saw(); got != want {
				t.Errorf("%q\nwant %q", got, want)
			}
		})
	}
}

func TestAStaleConnectionIsNoVerdict(t *testing.T) {
	for _, reply := range []string{"CLOSE", "RESET", "421 idle too long\r\n"} {
		s := startSink(t, map[string]string{"ehlo": esmtp, "mail": reply, "rcpt": "CLOSE"})
		c := s.client(t)
		r := c.Deliver(&Message{Recipients: []string{"u@far.example"}, Body: Memory([]byte("x\n"))})
		if r.Answered || r.Message.Letter != 'Z' || c.Usable() {
			t.Errorf("%s: %+v, usable %v", reply, r, c.Usable())
		}
	}
}

type broken struct{ n int }

func (b *broken) Read(p []byte) (int, error) {
	if b.n--; b.n < 0 {
		return 0, errors.New("disk on fire")
	}
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestAMessageThatCannotBeReadIsNotEnded(t *testing.T) {
	s := startSink(t, map[string]string{"ehlo": esmtp})
	c := s.client(t)
	r := c.Deliver(&Message{Recipients: []string{"u@far.example"}, Body: Body{Rest: &broken{2}}})
	if classic(r) != "r\x00ZUnable to read message. (#4.3.0)\n\x00" || c.Usable() {
		t.Errorf("%q", classic(r))
	}
	c.Quit()
	s.ln.Close()
	s.wg.Wait()
	if s.take() != nil || strings.Contains(s.saw(), "QUIT") {
		t.Errorf("half a message was taken; the server saw %q", s.saw())
	}
}

func TestARefusalInMidBodyIsHeard(t *testing.T) {
	s := startSink(t, map[string]string{"ehlo": esmtp, "data": "354 go\r\n552 too much\r\n"})
	r := s.client(t).Deliver(&Message{Recipients: []string{"u@far.example"}, Body: Body{Rest: io.LimitReader(zeros{}, 1<<20)}})
	if got := classic(r); got != "r\x00D127.0.0.1 failed after I sent the message.\nRemote host said: 552 too much\n\x00" {
		t.Errorf("%q", got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

func TestManyRecipientsGoInGroups(t *testing.T) {
	for _, ehlo := range []string{esmtp, "250 x\r\n"} {
		s := startSink(t, map[string]string{"ehlo": ehlo, "rcpt2": "550 no\r\n"})
		var to []string
		for range 1000 {
			to = append(to, strings.Repeat("u", 200)+"@far.example")
		}
		r := s.client(t).Deliver(&Message{Recipients: to, Body: Memory([]byte("x\n"))})
		if r.Message.Letter != 'K' || strings.Count(s.saw(), "RCPT TO") != 1000 || r.Of(1)[0] != 'D' || r.Of(999)[0] != 'K' {
			t.Errorf("%+v, %d recipients seen", r.Message, strings.Count(s.saw(), "RCPT TO"))
		}
	}
}

func TestReportsOfOneRecipient(t *testing.T) {
	message := func(letter byte, text string) Report { return Report{letter, text} }
	tests := []struct {
		name string
		rcpt Report
		msg  Report
		want string
	}{
		{"accepted", Report{'r', ""}, message('K', "1.1.1.1 accepted.\n"), "K1.1.1.1 accepted.\n"},
		{"refused for good, though others got it", Report{'h', "one\n"}, message('K', "accepted\n"), "Done\nGiving up on 1.1.1.1.\n"},
		{"refused for now, though the message was refused for good", Report{'s', "one\n"}, message('D', "no\n"), "Zone\nGiving up on 1.1.1.1.\n"},
		{"no verdict on the recipient", Report{}, message('Z', "died\n"), "Zdied\n"},
		{"accepted, then the message refused", Report{'r', ""}, message('D', "no\n"), "Dno\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Result{Recipients: []Report{tt.rcpt}, Message: tt.msg, gaveUp: "Giving up on 1.1.1.1.\n"}
			if got := r.Of(0); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestQuitIsSaid(t *testing.T) {
	s := startSink(t, map[string]string{})
	s.client(t).Quit()
	s.ln.Close()
	s.wg.Wait()
	if !strings.HasSuffix(s.saw(), "|QUIT") {
		t.Errorf("%q", s.saw())
	}
}

func BenchmarkDeliver(b *testing.B) {
	s := startSink(b, map[string]string{"ehlo": esmtp})
	c := s.client(b)
	m := &Message{Sender: "s@here.example", Recipients: []string{"u@far.example"}, Body: Memory(bytes.Repeat([]byte(strings.Repeat("x", 63)+"\n"), 64))}
	b.ReportAllocs()
	for b.Loop() {
		if r := c.Deliver(m); r.Message.Letter != 'K' {
			b.Fatalf("%+v", r)
		}
		s.take()
	}
}
