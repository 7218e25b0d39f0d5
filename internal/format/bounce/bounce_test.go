package bounce

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

var date = time.Date(2026, 11, 23, 3, 58, 18, 0, time.UTC)

func TestEnvelope(t *testing.T) {
	tests := []struct {
		name, sender, from, to string
		ok                     bool
	}{
		{"a sender is told by nobody", "joe@local.example", "", "joe@local.example", true},
		{"a bounce that fails goes to the postmaster", "", "#@[]", "postmaster@send.example", true},
		{"a double bounce that fails is dropped", "#@[]", "", "", false},
		{"a sender per recipient is told without its mark", "owner-@host-@[]", "", "owner-@host", true},
		{"nothing but the mark is nobody", "-@[]", "#@[]", "postmaster@send.example", true},
		{"a marked double bounce is one", "#@[]-@[]", "", "", false},
		{"the mark is taken off once", "x-@[]-@[]", "", "x-@[]", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			from, to, ok := Envelope(tt.sender, "postmaster@send.example")
			if from != tt.from || to != tt.to || ok != tt.ok {
				t.Errorf("%q: %q %q %v", tt.sender, from, to, ok)
			}
		})
	}
}

func TestAppendFailure(t *testing.T) { // the first six as recorded from qmail-send
	tests := []struct{ name, recipient, report, want string }{
		{"a report", "nobody@local.example", "Sorry, no mailbox here by that name. (#5.1.1)\n", "<nobody@local.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n"},
		{"blank lines within", "joe-lines@local.example", "line one\n\nline three\n\n\nline six\n", "<joe-lines@local.example>:\nline one\n/line three\n//line six\n\n"},
		{"a report without line end", "r", "gone", "<r>:\ngone\n\n"},
		{"no report", "r", "", "<r>:\n\n"},
		{"a blank line at the end", "r", "gone\n\n", "<r>:\ngone\n\n\n"},
		{"old age", "joe-temp@local.example", "Still busy.\n" + Expired, "<joe-temp@local.example>:\nStill busy.\nI'm not going to try again; this message has been in the queue too long.\n\n"},
		{"a blank line at the start", "r", "\ngone\n", "<r>:\n/gone\n\n"},
		{"only a line end", "r", "\n", "<r>:\n\n\n"},
		{"a line end in the address", "a\nb@c", "x\n", "<a_b@c>:\nx\n\n"},
		{"an address is not quoted", "a b%c\tä@local.example", "x\n", "<a b%c\tä@local.example>:\nx\n\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := AppendFailure(nil, tt.recipient, tt.report); string(got) != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAppend(t *testing.T) { // as recorded from qmail-send, but for the last two
	no := func(recipient string) []byte {
		return AppendFailure(nil, recipient, "Sorry, no mailbox here by that name. (#5.1.1)\n")
	}
	tests := []struct {
		name string
		n    Notice
		want string
	}{
		{"two failures",
			Notice{Host: "send.example", From: "MAILER-DAEMON", Sender: "joe@local.example", To: "joe@local.example", Failures: append(no("no1@local.example"), no("no2@send.example")...)},
			"Date: 23 Nov 2026 03:58:18 -0000\nFrom: MAILER-DAEMON@send.example\nTo: joe@local.example\nSubject: failure notice\n\nHi. This is the qmail-send program at send.example.\nI'm afraid I wasn't able to deliver your message to the following addresses.\nThis is a permanent error; I've given up. Sorry it didn't work out.\n\n<no1@local.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n<no2@send.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <joe@local.example>\n"},
		{"a double bounce",
			Notice{Host: "send.example", From: "MAILER-DAEMON", To: "postmaster@send.example", Failures: no("void@local.example")},
			"Date: 23 Nov 2026 03:58:18 -0000\nFrom: MAILER-DAEMON@send.example\nTo: postmaster@send.example\nSubject: failure notice\n\nHi. This is the qmail-send program at send.example.\nI tried to deliver a bounce message to this address, but the bounce bounced!\n\n<void@local.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n--- Below this line is the original bounce.\n\nReturn-Path: <>\n"},
		{"a name that must be quoted",
			Notice{Host: "bounces.example", From: "Mail Robot", Sender: "joe@local.example", To: "joe@local.example", Failures: no("nobody@local.example")},
			"Date: 23 Nov 2026 03:58:18 -0000\nFrom: \"Mail Robot\"@bounces.example\nTo: joe@local.example\nSubject: failure notice\n\nHi. This is the qmail-send program at bounces.example.\nI'm afraid I wasn't able to deliver your message to the following addresses.\nThis is a permanent error; I've given up. Sorry it didn't work out.\n\n<nobody@local.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <joe@local.example>\n"},
		{"a sender per recipient, unusual",
			Notice{Host: "h", From: "m", Sender: "a b-@h.example-@[]", To: "a b-@h.example", Failures: nil},
			"Date: 23 Nov 2026 03:58:18 -0000\nFrom: m@h\nTo: \"a b-\"@h.example\nSubject: failure notice\n\nHi. This is the qmail-send program at h.\nI'm afraid I wasn't able to deliver your message to the following addresses.\nThis is a permanent error; I've given up. Sorry it didn't work out.\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <\"a b-\"@h.example>\n"},
		{"addresses that would begin a field of their own",
			Notice{Host: "h", From: "m", Sender: "x\nBcc: y\r@z", To: "x\nBcc: y\r@z\n", Failures: nil},
			"Date: 23 Nov 2026 03:58:18 -0000\nFrom: m@h\nTo: \"x_Bcc: y_\"@z_\nSubject: failure notice\n\nHi. This is the qmail-send program at h.\nI'm afraid I wasn't able to deliver your message to the following addresses.\nThis is a permanent error; I've given up. Sorry it didn't work out.\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <\"x_Bcc: y_\"@z>\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.n.Date = date
			if got := Append([]byte("Received: by us\n"), tt.n); string(got) != "Received: by us\n"+tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// scan is AppendFailure as qmail-send(8) describes it: the paragraph first, then a walk over it from behind.
func scan(recipient, report string) []byte {
	b := []byte("<" + strings.ReplaceAll(recipient, "\n", "_") + ">:\n" + report)
	if report != "" && !strings.HasSuffix(report, "\n") {
		b = append(b, '\n')
	}
	for i := len(b) - 2; i > 0; i-- {
		if b[i] == '\n' && b[i-1] == '\n' {
			b[i] = '/'
		}
	}
	return append(b, '\n')
}

// FuzzAppendFailure: the same bytes as the description gives, and one paragraph, so that no report can
// write paragraphs of its own, but for a report that ends in a blank line.
func FuzzAppendFailure(f *testing.F) {
	f.Add("a@b", "line one\n\nline three\n\n\nline six\n")
	f.Add("a\nb", "\n\n\n")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, recipient, report string) {
		got := AppendFailure(nil, recipient, report)
		if want := scan(recipient, report); !bytes.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		end := bytes.Index(got, []byte("\n\n"))
		if rest := got[end+2:]; end < 0 || len(rest) != 0 && string(rest) != "\n" {
			t.Fatalf("%q is more than a paragraph", got)
		}
	})
}

// FuzzAppend: whatever the addresses are, the header has its four fields and the body its three parts.
func FuzzAppend(f *testing.F) {
	f.Add("joe@local.example", "MAILER-DAEMON", "send.example")
	f.Add("x\n\nHi.@y", "a\nb", "c\rd")
	f.Fuzz(func(t *testing.T, sender, from, host string) {
		_, to, ok := Envelope(sender, "postmaster@x")
		if !ok {
			return
		}
		got := string(Append(nil, Notice{Date: date, From: from, Host: host, Sender: sender, To: to}))
		header, body, _ := strings.Cut(got, "\n\n")
		if n := strings.Count(header, "\n"); n != 3 {
			t.Fatalf("%d lines in header %q", n+1, header)
		}
		if n := strings.Count(body, "\n\n"); n != 2 || !strings.HasPrefix(body, "Hi. This is the qmail-send program at ") {
			t.Fatalf("%d parts in body %q", n+1, body)
		}
		if strings.ContainsRune(got, '\r') {
			t.Fatalf("a bare CR in %q", got)
		}
	})
}
