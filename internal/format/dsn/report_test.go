package dsn

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/textproto"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestExplain(t *testing.T) {
	tests := []struct {
		name   string
		action Action
		report string
		want   explanation
	}{
		{"a refusal of ours", Failed, "Sorry, no mailbox here by that name. (#5.1.1)\n",
			explanation{"5.1.1", "", "x-qmail; Sorry, no mailbox here by that name. (#5.1.1)\n"}},
		{"a server's enhanced status", Failed, "192.0.2.1 does not like recipient.\nRemote host said: 550 5.2.1 gone\nGiving up on 192.0.2.1.\n",
			explanation{"5.2.1", "192.0.2.1", "smtp; 550 5.2.1 gone\n"}},
		{"a server's code alone", Failed, "192.0.2.1 does not like recipient.\nRemote host said: 550 gone\nGiving up on 192.0.2.1.\n",
			explanation{"5.0.0", "192.0.2.1", "smtp; 550 gone\n"}},
		{"several lines", Failed, "Connected to 2001:db8::1 but sender was rejected.\nRemote host said: 554-5.7.1 no\n554 5.7.1 really\n",
			explanation{"5.7.1", "2001:db8::1", "smtp; 554-5.7.1 no\n554 5.7.1 really\n"}},
		{"a lost connection", Delayed, "Connected to 192.0.2.1 but connection died. (#4.4.2)\n",
			explanation{"4.4.2", "192.0.2.1", "x-qmail; Connected to 192.0.2.1 but connection died. (#4.4.2)\n"}},
		{"what never came through keeps its class", Failed, "no connection. (#4.4.1)\nI'm not going to try again; this message has been in the queue too long.\n",
			explanation{"4.4.1", "", "x-qmail; no connection. (#4.4.1)\nI'm not going to try again; this message has been in the queue too long.\n"}},
		{"a program's silence", Failed, "", explanation{"5.0.0", "", ""}},
		{"a permanent code in a delay", Delayed, "odd (#5.1.1)\n", explanation{"4.0.0", "", "x-qmail; odd (#5.1.1)\n"}},
		{"the last code counts", Failed, "(#5.1.1) was before (#5.2.2) and (#nonsense)\n", explanation{"5.2.2", "", "x-qmail; (#5.1.1) was before (#5.2.2) and (#nonsense)\n"}},
		{"a recipient's program speaks for itself", Delivered, "secret\ndid 0+0+1\n", explanation{"2.0.0", "", ""}},
		{"a server that will not report", Relayed, "192.0.2.1 accepted message.\nRemote host said: 250 ok\n", explanation{"2.1.9", "192.0.2.1", "smtp; 250 ok\n"}},
		{"a status in another class than the code", Failed, "x\nRemote host said: 550 2.1.1 huh\n", explanation{"5.0.0", "", "smtp; 550 2.1.1 huh\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := explain(tt.action, tt.report); got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func sample() *Report {
	return &Report{
		Fields: []byte("Date: 23 Nov 2026 03:58:18 -0000\nFrom: MAILER-DAEMON@mx.example\nTo: ann@far.example\nSubject: failure notice\n"),
		ID:     "17", Host: "mx.example", MTA: "mx.example", Text: []byte("Hi. This is the text.\n\n"), Preamble: []byte("Hi. This is the preamble.\n"),
		EnvelopeID: "a+b", Arrival: time.Unix(1795406298, 0), Whole: true, Boundary: NewBoundary("r"),
		Outcomes: []Outcome{
			{Recipient: "nobody@local.example", Original: "rfc822;No+2BBody@Local.example", Action: Failed, Report: "no (#5.1.1)\n", Tried: time.Unix(1795406298, 0)},
			{Recipient: "a b@x", Action: Delayed, Report: "later", Until: time.Unix(1795406298, 0)},
			{Recipient: "ü@bücher.example", Original: "utf-8;ö@x", Action: Failed, Report: "192.0.2.1 no\nRemote host said: 550 5.1.2 nö\r\n\n550 x"},
			{Recipient: "evil\n\nStatus: 2.0.0\n--=_r_0@x", Action: Failed, Report: "x\n\nStatus: 2.0.0\n"},
		},
	}
}

func (r *Report) whole(original string) []byte {
	return r.AppendEnd(append(r.Append(nil), original...))
}

func TestReport(t *testing.T) {
	want := `Date: 23 Nov 2026 03:58:18 -0000
From: MAILER-DAEMON@mx.example
To: ann@far.example
Subject: failure notice
Message-ID: <17@mx.example>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
	boundary="=_r_0"

Hi. This is the preamble.

--=_r_0
Content-Description: notification
Content-Type: text/plain; charset=us-ascii

Hi. This is the text.


--=_r_0
Content-Description: delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example
Original-Envelope-Id: a+b
Arrival-Date: 23 Nov 2026 03:58:18 -0000

Original-Recipient: rfc822; No+Body@Local.example
Final-Recipient: rfc822; nobody@local.example
Action: failed
Status: 5.1.1
Diagnostic-Code: x-qmail; no (#5.1.1)
Last-Attempt-Date: 23 Nov 2026 03:58:18 -0000

Final-Recipient: rfc822; "a b"@x
Action: delayed
Status: 4.0.0
Diagnostic-Code: x-qmail; later
Will-Retry-Until: 23 Nov 2026 03:58:18 -0000

Original-Recipient: utf-8; \x{F6}@x
Final-Recipient: utf-8; \x{FC}@b\x{FC}cher.example
Action: failed
Status: 5.1.2
Remote-MTA: dns; [192.0.2.1]
Diagnostic-Code: smtp; 550 5.1.2 n?  550 x

Final-Recipient: rfc822; "evil\ \ Status: 2.0.0\ --=_r_0"@x
Action: failed
Status: 5.0.0
Diagnostic-Code: x-qmail; x  Status: 2.0.0

--=_r_0
Content-Description: undelivered message
Content-Type: message/rfc822

Subject: x

body
--=_r_0--
`
	if got := string(sample().whole("Subject: x\n\nbody")); got != want {
		t.Errorf("%s", got)
	}
}

func TestReportInUTF8(t *testing.T) {
	r := sample()
	r.UTF8, r.EightBit, r.Whole, r.Text = true, true, false, []byte("grüezi\n")
	got := string(r.whole("Subject: ü\n"))
	for _, text := range []string{
		"\nContent-Transfer-Encoding: 8bit\n\ngrüezi\n",
		"text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\ngrüezi\n",
		"message/global-delivery-status\nContent-Transfer-Encoding: 8bit\n\n",
		"Original-Recipient: utf-8; ö@x\nFinal-Recipient: utf-8; ü@bücher.example\n", "550 5.1.2 nö",
		"message/global-headers\nContent-Transfer-Encoding: 8bit\n\nSubject: ü\n\n--",
	} {
		if !strings.Contains(got, text) {
			t.Errorf("no %q in\n%s", text, got)
		}
	}
	if !slices.Equal(r.Options(), []string{"BODY=8BITMIME", "SMTPUTF8"}) {
		t.Error(r.Options())
	}
	r.UTF8 = false
	if r.Text = []byte("gr\xfcezi\n"); !bytes.Contains(r.Append(nil), []byte("charset=unknown-8bit\n")) {
		t.Errorf("%s", r.Append(nil))
	}
}

// parts reads a report as MIME programs do.
func parts(t *testing.T, message []byte) (types []string, bodies [][]byte) {
	t.Helper()
	message = bytes.ReplaceAll(message, []byte("\n"), []byte("\r\n"))
	header, body, ok := bytes.Cut(message, []byte("\r\n\r\n"))
	if !ok {
		t.Fatalf("no header in %q", message)
	}
	i := bytes.Index(header, []byte("Content-Type: "))
	value, _, _ := strings.Cut(string(header[i+14:]), "\r\nContent-T")
	kind, params, err := mime.ParseMediaType(strings.ReplaceAll(value, "\r\n", ""))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("%q %v: %q", kind, err, header)
	}
	r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return types, bodies
		}
		if err != nil {
			t.Fatalf("%v in %q", err, message)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		types = append(types, textproto.MIMEHeader(p.Header).Get("Content-Type"))
		bodies = append(bodies, bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
	}
}

// FuzzReport states: whatever strangers say, a MIME program finds three parts, the text and the message as they are,
// and in the second a block of fields for the message and for each recipient, with none that we did not write.
func FuzzReport(f *testing.F) {
	f.Add("=_r_0", "a@b", "rfc822;x", "no (#5.1.1)\n", "Hi.\n--=_r_0--\n", "Subject: x\n\n--=_r_0\n\nbody", "--=_r_0\n", true, true)
	f.Add("", "ü@x", "utf-8;ü@x", "x\nRemote host said: 550 5.1.1 \r\nStatus: 2\n", "", "", "", false, true)
	f.Add("\r\n", "\n\n", "rfc822;a+0Ab", "\r\r\n\n--\n", "--\n--", "\n\n--", "--", true, false)
	f.Fuzz(func(t *testing.T, id, recipient, orcpt, report, text, original, preamble string, utf8, whole bool) {
		if strings.ContainsAny(text+original+preamble, "\r") {
			return // they are split into other lines on the wire, but into no others that begin with the boundary
		}
		r := &Report{
			Fields: []byte("Subject: failure notice\n"), ID: id, Host: recipient, MTA: report, Text: []byte(text), Preamble: []byte(preamble),
			EnvelopeID: id, Arrival: time.Unix(1, 0), UTF8: utf8, Whole: whole, EightBit: !ascii(original),
			Outcomes: []Outcome{
				{Recipient: recipient, Original: orcpt, Action: Failed, Report: report, Tried: time.Unix(1, 0)},
				{Recipient: id, Original: recipient, Action: Relayed, Report: original},
			},
			Boundary: NewBoundary("r", []byte(text), []byte(original), []byte(preamble)),
		}
		_, bodies := parts(t, r.whole(original))
		if len(bodies) != 3 || string(bodies[0]) != text || string(bodies[2]) != original {
			t.Fatalf("%d parts: %q", len(bodies), bodies)
		}
		blocks := strings.Split(strings.TrimSuffix(string(bodies[1]), "\n"), "\n\n")
		if len(blocks) != 3 {
			t.Fatalf("%d blocks: %q", len(blocks), bodies[1])
		}
		known := []string{
			"Reporting-MTA", "Original-Envelope-Id", "Arrival-Date", "Original-Recipient", "Final-Recipient", "Action", "Status",
			"Remote-MTA", "Diagnostic-Code", "Last-Attempt-Date",
		}
		for _, block := range blocks {
			seen := map[string]int{}
			for line := range strings.SplitSeq(block, "\n") {
				name, _, ok := strings.Cut(line, ": ")
				if seen[name]++; !ok || !slices.Contains(known, name) || seen[name] > 1 || len(line) > 4000 {
					t.Fatalf("line %q in %q", line, bodies[1])
				}
				if !utf8 && !ascii(line) || strings.ContainsAny(line, "\r\x00") {
					t.Fatalf("bytes of %q", line)
				}
			}
		}
	})
}

// pythonReads prints what Python's email package finds in a report.
const pythonReads = `
import sys, email
m = email.message_from_binary_file(sys.stdin.buffer)
print(m.get_content_type(), m.get_param('report-type'), len(m.get_payload()), len(m.defects))
text, status, original = m.get_payload()
print(text.get_content_type(), status.get_content_type(), original.get_content_type())
for block in status.get_payload():
    for field in ('Original-Envelope-Id', 'Final-Recipient', 'Original-Recipient', 'Action', 'Status', 'Diagnostic-Code'):
        if field in block:
            print(field, block[field])
print(original.get_payload()[0]['Subject'], repr(original.get_payload()[0].get_payload()))
`

func TestPythonReadsEveryRecipient(t *testing.T) {
	if err := exec.Command("python3", "-c", "import email").Run(); err != nil {
		t.Skip("python3 is not here:", err)
	}
	cmd := exec.Command("python3", "-c", pythonReads)
	cmd.Stdin = bytes.NewReader(sample().whole("Subject: x\n\nbody\n"))
	got, err := cmd.CombinedOutput()
	want := `multipart/report delivery-status 3 0
text/plain message/delivery-status message/rfc822
Original-Envelope-Id a+b
Final-Recipient rfc822; nobody@local.example
Original-Recipient rfc822; No+Body@Local.example
Action failed
Status 5.1.1
Diagnostic-Code x-qmail; no (#5.1.1)
Final-Recipient rfc822; "a b"@x
Action delayed
Status 4.0.0
Diagnostic-Code x-qmail; later
Final-Recipient utf-8; \x{FC}@b\x{FC}cher.example
Original-Recipient utf-8; \x{F6}@x
Action failed
Status 5.1.2
Diagnostic-Code smtp; 550 5.1.2 n?  550 x
Final-Recipient rfc822; "evil\ \ Status: 2.0.0\ --=_r_0"@x
Action failed
Status 5.0.0
Diagnostic-Code x-qmail; x  Status: 2.0.0
x 'body\n'
`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
}
