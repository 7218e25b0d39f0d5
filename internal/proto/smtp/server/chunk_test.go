package server

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func bdat(s, rest string) string { return fmt.Sprintf("BDAT %d%s\r\n%s", len(s), rest, s) }

func TestChunks(t *testing.T) {
	begin := ehlo + from + to
	const at = "220, 250, 250 2.1.0, 250 2.1.5, "
	tests := []struct{ name, send, want, body string }{
		{"one", begin + bdat("Subject: x\r\n\r\nhi\r\n", " LAST"), at + "250 2.0.0", "Subject: x\n\nhi\n"},
		{"many, of any size", begin + bdat("Subj", "") + bdat("ect: x\r", "") + bdat("\n\r\n", "") + bdat("", "") + bdat("hi\r\n", " last"),
			at + "250 2.0.0, 250 2.0.0, 250 2.0.0, 250 2.0.0, 250 2.0.0", "Subject: x\n\nhi\n"},
		{"an empty one at the end", begin + bdat("a: b\r\n", "") + bdat("", " LAST"), at + "250 2.0.0, 250 2.0.0", "a: b\n"},
		{"dots are dots", begin + bdat("a: b\r\n\r\n.\r\n..\r\n.x\r\n", " LAST"), at + "250 2.0.0", "a: b\n\n.\n..\n.x\n"},
		{"what looks like commands is none", begin + bdat("QUIT\r\n.\r\nMAIL FROM:<e@e.example>\r\n", " LAST") + "NOOP\r\n", at + "250 2.0.0, 250 2.0.0", "QUIT\n.\nMAIL FROM:<e@e.example>\n"},
		{"no line end at the end", begin + bdat("a: b\r\n\r\nx", " LAST"), at + "250 2.0.0", "a: b\n\nx"},
		{"pipelined, with what follows", begin + bdat("a: b\r\n", "") + bdat("x\r\n", " LAST") + from + to + bdat("c: d\r\n", " LAST") + "QUIT\r\n",
			at + "250 2.0.0, 250 2.0.0, 250 2.1.0, 250 2.1.5, 250 2.0.0, 221 2.0.0", "a: b\nx\n"},
		{"a CR that is no line end", begin + bdat("a\r", "") + bdat("b\r\n", " LAST") + "NOOP\r\n", at + "250 2.0.0, 550 5.6.0", ""},
		{"a CR at the very end", begin + bdat("a\r", " LAST"), at + "550 5.6.0", ""},
		{"a LF alone", begin + bdat("a\nb\r\n", " LAST"), at + "550 5.6.0", ""},
		{"a LF alone, and more to come", begin + bdat("a\nb\r\n", "") + bdat("c\r\n", " LAST") + "NOOP\r\n", at + "550 5.6.0, 503 5.5.1, 250 2.0.0", ""},
		{"a NUL", begin + bdat("a\x00b\r\n", " LAST"), at + "550 5.6.0", ""},
		{"RSET ends it", begin + bdat("a\r\n", "") + "RSET\r\n" + bdat("b\r\n", " LAST") + "NOOP\r\n", at + "250 2.0.0, 250 2.0.0, 503 5.5.1, 250 2.0.0", ""},
		{"EHLO ends it", begin + bdat("a\r\n", "") + ehlo + "NOOP\r\n", at + "250 2.0.0, 250, 250 2.0.0", ""},
		{"DATA does not belong to it", begin + bdat("a\r\n", "") + "DATA\r\n" + bdat("b\r\n", " LAST"), at + "250 2.0.0, 503 5.5.1, 250 2.0.0", "a\nb\n"},
		{"nor more recipients", begin + bdat("a\r\n", "") + to + from + bdat("b\r\n", " LAST"), at + "250 2.0.0, 503 5.5.1, 503 5.5.1, 250 2.0.0", "a\nb\n"},
		{"without a recipient its bytes are no commands", ehlo + from + bdat("QUIT\r\n", " LAST") + "NOOP\r\n", "220, 250, 250 2.1.0, 503 5.5.1, 250 2.0.0", ""},
		{"without a greeting", bdat("QUIT\r\n", "") + "NOOP\r\n", "220, 503 5.5.1, 250 2.0.0", ""},
		{"a size that is none", begin + "BDAT x\r\nNOOP\r\n", at + "501 5.5.4", ""},
		{"no size", begin + "BDAT\r\nNOOP\r\n", at + "501 5.5.4", ""},
		{"a negative size", begin + "BDAT -1 LAST\r\nNOOP\r\n", at + "501 5.5.4", ""},
		{"a size of ages", begin + "BDAT 9999999999999999999 LAST\r\nNOOP\r\n", at + "552 5.3.4", ""},
		{"a word that is not LAST", begin + "BDAT 1 FIRST\r\nx", at + "501 5.5.4", ""},
		{"too large", begin + bdat(strings.Repeat("0123456789abcde\r\n", 66000), " LAST") + "NOOP\r\n", at + "552 5.3.4, 250 2.0.0", ""},
		{"too large in pieces", begin + bdat(strings.Repeat("0123456789abcde\r\n", 33000), "") + bdat(strings.Repeat("0123456789abcde\r\n", 33000), "") + bdat("x\r\n", " LAST"),
			at + "250 2.0.0, 552 5.3.4, 503 5.5.1", ""},
		{"a hundred hops", begin + bdat(strings.Repeat("Received: x\r\n", 60), "") + bdat(strings.Repeat("Received: x\r\n", 40)+"\r\n", " LAST"), at + "250 2.0.0, 554 5.4.6", ""},
		{"cut short", begin + "BDAT 100 LAST\r\nabc", at[:len(at)-2], ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, pieces := range [][]string{{tt.send}, strings.SplitAfter(tt.send, "\n"), strings.Split(tt.send, "")} {
				if len(pieces) > 100000 {
					continue
				}
				q := &memoryQueue{}
				if got := codes(t, play(t, newServer(q), pieces...)); got != tt.want {
					t.Errorf("%d pieces: %s\nwant %s", len(pieces), got, tt.want)
				}
				if (tt.body != "") != (len(q.messages) > 0) {
					t.Fatalf("%d messages", len(q.messages))
				}
				if tt.body == "" {
					continue
				}
				_, body, _ := strings.Cut(q.messages[0].body, " -0000\n")
				if body != tt.body {
					t.Errorf("stored %q, want %q", body, tt.body)
				}
			}
		})
	}
}

func TestEveryMessageOfChunksIsEnded(t *testing.T) {
	begin := ehlo + from + to + bdat("a\r\n", "")
	for name, send := range map[string]string{
		"RSET": "RSET\r\n", "the end of the connection": "", "QUIT": "QUIT\r\n", "EHLO": ehlo, "a refusal": bdat("a\nb", ""),
		"a chunk cut short": "BDAT 10\r\nx", "a malformed command": "BDAT x\r\n", "a malformed line": "NOOP\n",
	} {
		q := &memoryQueue{}
		play(t, newServer(q), begin+send)
		if q.aborted != 1 || len(q.messages) != 0 {
			t.Errorf("%s: %d aborted, %d queued", name, q.aborted, len(q.messages))
		}
	}
	q := &memoryQueue{openErr: errDisk}
	if got := codes(t, play(t, newServer(q), ehlo+from+to+bdat("QUIT\r\n", "")+"NOOP\r\n")); got != "220, 250, 250 2.1.0, 250 2.1.5, 451 4.3.0, 250 2.0.0" {
		t.Errorf("a queue that cannot: %s", got)
	}
	q = &memoryQueue{commit: errDisk}
	if got := codes(t, play(t, newServer(q), begin+bdat("x\r\n", " LAST")+from)); !strings.HasSuffix(got, "250 2.0.0, 451 4.3.0, 250 2.1.0") {
		t.Errorf("a queue that cannot at the end: %s", got)
	}
}

func TestLMTP(t *testing.T) {
	lmtp := func(q *memoryQueue, send string) string {
		p := testPeer()
		p.Kind = LMTP
		return codes(t, playAs(t, newServer(q), p, send))
	}
	two := "LHLO x\r\n" + from + to + "RCPT TO:<nouser@test.example>\r\n" + "RCPT TO:<v@test.example>\r\n"
	const at = "220, 250, 250 2.1.0, 250 2.1.5, 550 5.1.1, 250 2.1.5, "
	for _, tt := range []struct {
		name, send, want string
		q                *memoryQueue
	}{
		{"a reply for each recipient that was taken", two + "DATA\r\n" + text + "QUIT\r\n", at + "354, 250 2.0.0, 250 2.0.0, 221 2.0.0", &memoryQueue{}},
		{"also if it fails", two + "DATA\r\n" + text, at + "354, 451 4.3.0, 451 4.3.0", &memoryQueue{commit: errDisk}},
		{"also of chunks", two + bdat("a\r\n", "") + bdat("b\r\n", " LAST"), at + "250 2.0.0, 250 2.0.0, 250 2.0.0", &memoryQueue{}},
		{"also of chunks that are refused", two + bdat("a\nb\r\n", " LAST"), at + "550 5.6.0, 550 5.6.0", &memoryQueue{}},
		{"HELO is no command", "HELO x\r\n" + ehlo + from, "220, 502 5.5.1, 502 5.5.1, 503 5.5.1", &memoryQueue{}},
	} {
		if got := lmtp(tt.q, tt.send); got != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, got, tt.want)
		}
	}
	if got := codes(t, play(t, newServer(&memoryQueue{}), "LHLO x\r\n")); got != "220, 502 5.5.1" {
		t.Errorf("LHLO of SMTP: %s", got)
	}
}

// However the bytes are cut, what is stored is the same; it is refused exactly if something in it is a line end to
// somebody else; and CRLF is the only thing that changes.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("Subject: x\r\n\r\nhi\r\n"), uint8(3))
	f.Add([]byte("a\r"), uint8(1))
	f.Add([]byte("a\rb\nc\r\r\n\x00"), uint8(2))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		whole, cut := &Decoder{}, &Decoder{}
		want := append([]byte(nil), whole.Raw(append([]byte(nil), in...), true)...)
		var got []byte
		n := int(step)%7 + 1
		for i := 0; i < len(in); i += n {
			got = append(got, cut.Raw(append([]byte(nil), in[i:min(i+n, len(in))]...), i+n >= len(in))...)
		}
		if len(in) == 0 {
			got = append(got, cut.Raw(nil, true)...)
		}
		if !bytes.Equal(got, want) || cut.Bare != whole.Bare || cut.Size != whole.Size || cut.Hops != whole.Hops {
			t.Fatalf("%q: %q and %q, %v and %v", in, got, want, cut.Bare, whole.Bare)
		}
		rest := bytes.ReplaceAll(in, []byte("\r\n"), nil)
		if bare := bytes.ContainsAny(rest, "\r\n\x00"); bare != whole.Bare {
			t.Fatalf("%q: bare is %v", in, whole.Bare)
		}
		if !whole.Bare && !bytes.Equal(want, bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n"))) {
			t.Fatalf("%q is stored as %q", in, want)
		}
	})
}
