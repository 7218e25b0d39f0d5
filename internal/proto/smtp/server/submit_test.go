package server

import (
	"strings"
	"testing"
)

func submitter() *Peer {
	p := testPeer()
	p.Kind, p.Login = Submission, "alice"
	return p
}

func TestSubmissionNeedsALogin(t *testing.T) {
	p := testPeer()
	p.Kind = Submission
	p.Relay = new(string)
	got := codes(t, playAs(t, authServer(&memoryQueue{}, &checker{}, true), p, ehlo+from+to+right+from+to))
	if got != "220, 250, 530 5.7.0, 503 5.5.1, 235 2.7.0, 250 2.1.0, 250 2.1.5" {
		t.Error(got)
	}
}

const (
	madeDate = "Date: 15 Jan 2027 08:00:00 -0000\n"
	madeID   = "Message-ID: <20270115080000.abababababababab@id.test.example>\n"
)

func TestWhatAMessageLacksIsAdded(t *testing.T) {
	tests := []struct{ name, send, want string }{
		{"both", "Subject: x\r\n\r\nhi\r\n", "Subject: x\n" + madeDate + madeID + "\nhi\n"},
		{"neither", "date: x\r\nMESSAGE-Id : y\r\n\r\nhi\r\n", "date: x\nMESSAGE-Id : y\n\nhi\n"},
		{"the date", "Message-ID: y\r\n\r\nhi\r\n", "Message-ID: y\n" + madeDate + "\nhi\n"},
		{"the id, since that in the body does not count", "Date: x\r\n\r\nMessage-ID: y\r\n", "Date: x\n" + madeID + "\nMessage-ID: y\n"},
		{"what is folded is no field", "Subject: x\r\n Date: x\r\n\tMessage-ID: y\r\n\r\nhi\r\n", "Subject: x\n Date: x\n\tMessage-ID: y\n" + madeDate + madeID + "\nhi\n"},
		{"other names", "Dates: x\r\nX-Message-ID: y\r\nMessage-IDX: z\r\nMessage-ID-and-more: x\r\n\r\n", "Dates: x\nX-Message-ID: y\nMessage-IDX: z\nMessage-ID-and-more: x\n" + madeDate + madeID + "\n"},
		{"a header without a body", "Subject: x\r\n", "Subject: x\n" + madeDate + madeID},
		{"a body without a header", "hello\r\nDate: x\r\n", madeDate + madeID + "\nhello\nDate: x\n"},
		{"an empty line first", "\r\nhello\r\n", madeDate + madeID + "\nhello\n"},
		{"nothing at all", "", madeDate + madeID},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, send := range map[string]string{
				"DATA": "DATA\r\n" + tt.send + ".\r\n",
				"BDAT": bdat(tt.send, " LAST"),
			} {
				q := &memoryQueue{}
				playAs(t, authServer(q, &checker{}, true), submitter(), ehlo+from+to+send)
				if len(q.messages) != 1 {
					t.Fatalf("%s: %d messages", name, len(q.messages))
				}
				_, body, _ := strings.Cut(q.messages[0].body, " 08:00:00 -0000\n")
				if body != tt.want {
					t.Errorf("%s: stored %q\nwant %q", name, body, tt.want)
				}
			}
		})
	}
	q := &memoryQueue{}
	play(t, newServer(q), ehlo+from+to+"DATA\r\nSubject: x\r\n\r\n.\r\n")
	if strings.Contains(q.messages[0].body, "Message-ID") {
		t.Error("mail from elsewhere is changed")
	}
}

func TestTwoFroms(t *testing.T) {
	q := &memoryQueue{}
	got := codes(t, playAs(t, authServer(q, &checker{}, true), submitter(),
		ehlo+from+to+"DATA\r\nFrom: a@b.example\r\nSubject: x\r\nFROM: c@d.example\r\n\r\nx\r\n.\r\nNOOP\r\n"))
	if !strings.HasSuffix(got, "354, 550 5.6.0, 250 2.0.0") || len(q.messages) != 0 || q.aborted != 1 {
		t.Errorf("%s, %d messages", got, len(q.messages))
	}
	playAs(t, authServer(q, &checker{}, true), submitter(), ehlo+from+to+"DATA\r\nFrom: a@b.example\r\n\r\nFrom: x\r\n.\r\n")
	if len(q.messages) != 1 {
		t.Error("a From in the body counts")
	}
}

// However a message is cut, what it lacks goes to the same place, and nothing else changes.
func FuzzCompleter(f *testing.F) {
	f.Add("Subject: x\n\nhi\n", uint8(3))
	f.Add("Date: x\nFrom:\n y\nmessage-id:\n", uint8(1))
	f.Add("hello\n", uint8(2))
	f.Fuzz(func(t *testing.T, in string, step uint8) {
		place := func(n int) (int, bool, completer) {
			c := completer{on: true}
			found := -1
			var naked bool
			for i := 0; i < len(in) || i == 0; i += n {
				part := in[min(i, len(in)):min(i+n, len(in))]
				if at, bare := c.scan([]byte(part), i+n >= len(in)); at >= 0 {
					if found >= 0 || at > len(part) {
						t.Fatalf("%q: at %d and at %d", in, found, i+at)
					}
					found, naked = i+at, bare
				}
			}
			return found, naked, c
		}
		at, naked, whole := place(len(in) + 1)
		if at < 0 {
			t.Fatalf("%q: nowhere", in)
		}
		first, _, _ := strings.Cut(in, "\n")
		cut, cutNaked, c := place(len(first) + 1 + int(step)) // the first line comes in one piece
		if cut != at || cutNaked != naked || c.date != whole.date || c.id != whole.id || c.from != whole.from {
			t.Fatalf("%q: %d, %v, %+v in one piece; %d, %v, %+v in many", in, at, naked, whole, cut, cutNaked, c)
		}
	})
}
