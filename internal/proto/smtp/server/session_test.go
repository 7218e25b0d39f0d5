package server

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"qmail/internal/format/reply"
)

const (
	ehlo = "EHLO client.example\r\n"
	from = "MAIL FROM:<s@client.example>\r\n"
	to   = "RCPT TO:<u@test.example>\r\n"
	text = "Subject: x\r\n\r\nhello\r\n.\r\n"
)

func TestReplies(t *testing.T) {
	tests := []struct{ name, send, want string }{
		{"a whole message", ehlo + from + to + "DATA\r\n" + text + "QUIT\r\n", "220, 250, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0, 221 2.0.0"},
		{"RCPT before MAIL is refused, and the session goes on", ehlo + to + "NOOP\r\n", "220, 250, 503 5.5.1, 250 2.0.0"},
		{"MAIL before HELO", from, "220, 503 5.5.1"},
		{"DATA before MAIL", ehlo + "DATA\r\n", "220, 250, 503 5.5.1"},
		{"DATA before RCPT", ehlo + from + "DATA\r\n", "220, 250, 250 2.1.0, 503 5.5.1"},
		{"DATA after refused recipients only", ehlo + from + "RCPT TO:<x@elsewhere.example>\r\nDATA\r\n", "220, 250, 250 2.1.0, 553 5.7.1, 503 5.5.1"},
		{"a second MAIL", ehlo + from + from, "220, 250, 250 2.1.0, 503 5.5.1"},
		{"RSET forgets the sender", ehlo + from + "RSET\r\n" + to, "220, 250, 250 2.1.0, 250 2.0.0, 503 5.5.1"},
		{"RSET before HELO is no greeting", "RSET\r\n" + from, "220, 250 2.0.0, 503 5.5.1"},
		{"HELO forgets the recipients", ehlo + from + to + "HELO x\r\nDATA\r\n", "220, 250, 250 2.1.0, 250 2.1.5, 250, 503 5.5.1"},
		{"a message ends the transaction", ehlo + from + to + "DATA\r\n" + text + to, "220, 250, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0, 503 5.5.1"},
		{"an unknown recipient", ehlo + from + "RCPT TO:<nouser@test.example>\r\n" + to, "220, 250, 250 2.1.0, 550 5.1.1, 250 2.1.5"},
		{"HELO without a name", "HELO\r\nEHLO \r\n", "220, 501 5.5.4, 501 5.5.4"},
		{"HELO with control bytes", "HELO a\tb\r\nEHLO \xff\r\n", "220, 501 5.5.4, 501 5.5.4"},
		{"commands in any case", "eHlo x\r\nmAiL fRoM:<>\r\nrcpt tO:<a@b.example>\r\n", "220, 250, 250 2.1.0, 250 2.1.5"},
		{"blanks around", "EHLO  x  \r\nMAIL  FROM: <a@b.example> \r\nNOOP  \r\n", "220, 250, 250 2.1.0, 250 2.0.0"},
		{"help and the like", "HELP\r\nVRFY x\r\nNOOP x\r\n", "220, 214 2.0.0, 252 2.0.0, 250 2.0.0"},
		{"unknown commands", "EXPN x\r\n\r\nAUTH PLAIN\r\nSTARTTLS\r\nVERYLONGCOMMAND x\r\n", "220, 502 5.5.1, 502 5.5.1, 502 5.5.1, 502 5.5.1, 502 5.5.1"},
		{"input after QUIT is not read", "QUIT\r\nNOOP\r\n", "220, 221 2.0.0"},
		{"a chunk is not read as commands", ehlo + "BDAT 6 LAST\r\nNOOP\r\n", "220, 250, 503 5.5.1"},
		{"a browser is sent away", "POST / HTTP/1.1\r\nHost: x\r\n", "220, 502 5.5.1"},
		{"arguments where there are none", ehlo + from + to + "DATA now\r\nRSET now\r\n", "220, 250, 250 2.1.0, 250 2.1.5, 501 5.5.4, 501 5.5.4"},

		{"MAIL without FROM", ehlo + "MAIL <a@b.example>\r\nMAIL\r\n", "220, 250, 501 5.5.4, 501 5.5.4"},
		{"RCPT without TO", ehlo + from + "RCPT <a@b.example>\r\nRCPT\r\n", "220, 250, 250 2.1.0, 501 5.5.4, 501 5.5.4"},
		{"a path without brackets", ehlo + "MAIL FROM:a@b.example\r\n", "220, 250, 501 5.1.7"},
		{"the null recipient", ehlo + from + "RCPT TO:<>\r\n", "220, 250, 250 2.1.0, 501 5.1.3"},
		{"parameters we know", ehlo + "MAIL FROM:<a@b.example> size=10 BODY=8bitmime SMTPUTF8\r\n", "220, 250, 250 2.1.0"},
		{"parameters we do not", ehlo + "MAIL FROM:<a@b.example> AUTH=<>\r\nMAIL FROM:<a@b.example> =\r\n", "220, 250, 555 5.5.4, 555 5.5.4"},
		{"a parameter of RCPT that we do not know", ehlo + from + "RCPT TO:<u@test.example> X=NEVER\r\n", "220, 250, 250 2.1.0, 555 5.5.4"},
		{"what the sender wants to hear of", ehlo + "MAIL FROM:<> RET=hdrs ENVID=a+2Bb\r\nRCPT TO:<u@test.example> NOTIFY=NEVER ORCPT=rfc822;u+2B@x\r\n" +
			"RCPT TO:<u@test.example> notify=success,FAILURE,delay\r\n", "220, 250, 250 2.1.0, 250 2.1.5, 250 2.1.5"},
		{"wishes that are none", ehlo + "MAIL FROM:<> RET=NONE\r\nMAIL FROM:<> RET\r\nMAIL FROM:<> RET=FULL RET=FULL\r\nMAIL FROM:<> ENVID=\r\n" +
			"MAIL FROM:<> ENVID=a=b\r\nMAIL FROM:<> ENVID=+0a\r\nMAIL FROM:<> ENVID=+0A\r\nMAIL FROM:<> ENVID=x ENVID=x\r\n",
			"220, 250, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4"},
		{"wishes of recipients that are none", ehlo + from + "RCPT TO:<u@test.example> NOTIFY=NEVER,SUCCESS\r\nRCPT TO:<u@test.example> NOTIFY\r\n" +
			"RCPT TO:<u@test.example> NOTIFY=DELAY NOTIFY=DELAY\r\nRCPT TO:<u@test.example> ORCPT=u@x\r\nRCPT TO:<u@test.example> ORCPT=rfc822;u+0A@x\r\n" +
			"RCPT TO:<u@test.example> ORCPT=utf-8;ü@x\r\n",
			"220, 250, 250 2.1.0, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4"},
		{"an original address in UTF-8", ehlo + "MAIL FROM:<> SMTPUTF8\r\nRCPT TO:<u@test.example> ORCPT=utf-8;ü@x\r\n", "220, 250, 250 2.1.0, 250 2.1.5"},
		{"a parameter glued on", ehlo + "MAIL FROM:<a@b.example>SIZE=1\r\n", "220, 250, 501 5.1.7"},
		{"sizes that are none", ehlo + "MAIL FROM:<> SIZE=\r\nMAIL FROM:<> SIZE=-1\r\nMAIL FROM:<> SIZE=1 SIZE=1\r\nMAIL FROM:<> SIZE=123456789012345678901\r\n",
			"220, 250, 501 5.5.4, 501 5.5.4, 501 5.5.4, 501 5.5.4"},
		{"a size over the limit", ehlo + "MAIL FROM:<> SIZE=1048577\r\nMAIL FROM:<> SIZE=99999999999999999999\r\nMAIL FROM:<> SIZE=1048576\r\n",
			"220, 250, 552 5.3.4, 552 5.3.4, 250 2.1.0"},
		{"bodies that are none", ehlo + "MAIL FROM:<> BODY=BINARYMIME\r\nMAIL FROM:<> BODY\r\nMAIL FROM:<> BODY=7BIT BODY=7BIT\r\n", "220, 250, 501 5.5.4, 501 5.5.4, 501 5.5.4"},
		{"SMTPUTF8 has no value", ehlo + "MAIL FROM:<> SMTPUTF8=1\r\nMAIL FROM:<> SMTPUTF8 SMTPUTF8\r\n", "220, 250, 501 5.5.4, 501 5.5.4"},
		{"UTF-8 needs SMTPUTF8", ehlo + "MAIL FROM:<ü@b.example>\r\n" + from + "RCPT TO:<ü@test.example>\r\n", "220, 250, 553 5.6.7, 250 2.1.0, 553 5.6.7"},
		{"UTF-8 with SMTPUTF8", ehlo + "MAIL FROM:<ü@b.example> SMTPUTF8\r\nRCPT TO:<ü@test.example>\r\n", "220, 250, 250 2.1.0, 250 2.1.5"},
		{"bytes that are no UTF-8", ehlo + "MAIL FROM:<\xff@b.example> SMTPUTF8\r\n", "220, 250, 501 5.1.7"},
		{"a refused MAIL leaves nothing open", ehlo + "MAIL FROM:<a@b> X=1\r\n" + to, "220, 250, 555 5.5.4, 503 5.5.1"},

		{"a command that ends in LF", ehlo + "MAIL FROM:<a@b.example>\nRCPT TO:<u@test.example>\r\nNOOP\r\n", "220, 250, 500 5.5.2"},
		{"a CR inside", ehlo + "NOOP\rMAIL FROM:<a@b.example>\r\nNOOP\r\n", "220, 250, 500 5.5.2"},
		{"two CR at the end", ehlo + "NOOP\r\r\nNOOP\r\n", "220, 250, 500 5.5.2"},
		{"a NUL inside", ehlo + "RSET\x00\r\nNOOP\r\n", "220, 250, 500 5.5.2"},
		{"a line of 2000 bytes", ehlo + "NOOP " + strings.Repeat("x", 1993) + "\r\nNOOP\r\n", "220, 250, 250 2.0.0, 250 2.0.0"},
		{"a line of 2001 bytes", ehlo + "NOOP " + strings.Repeat("x", 1994) + "\r\nNOOP\r\n", "220, 250, 500 5.5.2"},
		{"a line without end", ehlo + strings.Repeat("x", 100000), "220, 250, 500 5.5.2"},

		{"a bare LF in the message", ehlo + from + to + "DATA\r\na\nb\r\n.\r\nNOOP\r\n", "220, 250, 250 2.1.0, 250 2.1.5, 354, 550 5.6.0"},
		{"an end of data that is none", ehlo + from + to + "DATA\r\na\n.\nMAIL FROM:<evil@e.example>\r\n.\r\nNOOP\r\n", "220, 250, 250 2.1.0, 250 2.1.5, 354, 550 5.6.0"},
		{"a message too large", ehlo + from + to + "DATA\r\n" + strings.Repeat("0123456789abcde\r\n", 66000) + ".\r\nNOOP\r\n",
			"220, 250, 250 2.1.0, 250 2.1.5, 354, 552 5.3.4, 250 2.0.0"},
		{"a hundred hops", ehlo + from + to + "DATA\r\n" + strings.Repeat("received:\r\n x\r\n", 50) + strings.Repeat("Delivered-To : x\r\n", 50) + "\r\n.\r\nNOOP\r\n",
			"220, 250, 250 2.1.0, 250 2.1.5, 354, 554 5.4.6, 250 2.0.0"},
		{"ninety-nine hops", ehlo + from + to + "DATA\r\n" + strings.Repeat("Received: x\r\n", 99) + "Received-SPF: x\r\n\r\nReceived: x\r\n.\r\n",
			"220, 250, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := &memoryQueue{}
			got := play(t, newServer(q), tt.send)
			if got := codes(t, got); got != tt.want {
				t.Errorf("one chunk: %s\nwant %s", got, tt.want)
			}
			if again := play(t, newServer(&memoryQueue{}), strings.Split(tt.send, "")...); again != got {
				t.Errorf("byte by byte: %q\nwant %q", again, got)
			}
			if want := strings.Count(tt.want, "354, 250"); len(q.messages) != want {
				t.Errorf("%d messages, want %d", len(q.messages), want)
			}
		})
	}
}

func TestWordsOfQmail(t *testing.T) {
	want := "220 mx.test.example ESMTP\r\n" +
		"250-mx.test.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 1048576\r\n250-ENHANCEDSTATUSCODES\r\n250-DSN\r\n250-CHUNKING\r\n" +
		"250-LIMITS RCPTMAX=100\r\n250 SMTPUTF8\r\n" +
		"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n250 2.0.0 ok 1800000000 qp 1\r\n" +
		"250 mx.test.example\r\n250 2.0.0 flushed\r\n221 2.0.0 mx.test.example\r\n"
	if got := play(t, newServer(&memoryQueue{}), ehlo+from+to+"DATA\r\n"+text+"HELO x\r\nRSET\r\nQUIT\r\n"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestWhatIsStored(t *testing.T) {
	q := &memoryQueue{}
	play(t, newServer(q), ehlo+"MAIL FROM:<\"a b\"@client.example> BODY=8BITMIME SMTPUTF8\r\n"+
		"RCPT TO:<@r.example:u@test.example>\r\n"+"RCPT TO:<x@elsewhere.example>\r\n"+"RCPT TO:<\"v\"@test.example>\r\n"+
		"DATA\r\nSubject: \xff\r\n\r\n..\r\n.a\r\n..b\r\n\r\n.\r\n"+
		"HELO other\r\nMAIL FROM:<>\r\n"+to+"DATA\r\n.\r\nQUIT\r\n")
	want := []stored{
		{"a b@client.example", []string{"u@test.example", "v@test.example"}, []string{"BODY=8BITMIME", "SMTPUTF8"},
			"Received: from client.example (192.0.2.7)\n  by mx.test.example with UTF8SMTP; 15 Jan 2027 08:00:00 -0000\nSubject: \xff\n\n.\na\n.b\n\n"},
		{"", []string{"u@test.example"}, nil,
			"Received: from client.example (HELO other) (192.0.2.7)\n  by mx.test.example with SMTP; 15 Jan 2027 08:00:00 -0000\n"},
	}
	if fmt.Sprintf("%q", q.messages) != fmt.Sprintf("%q", want) {
		t.Errorf("got  %q\nwant %q", q.messages, want)
	}
}

func TestWishesAreStored(t *testing.T) {
	q := &memoryQueue{}
	play(t, newServer(q), ehlo+"MAIL FROM:<a@b.example> ret=hdrs ENVID=a+2Bb\r\nRCPT TO:<u@test.example>\r\n"+
		"RCPT TO:<nouser@test.example> NOTIFY=SUCCESS\r\nRCPT TO:<v@test.example> orcpt=RFC822;V+2B@x notify=delay,SUCCESS\r\nDATA\r\n"+text+
		from+to+"DATA\r\n"+text)
	options := []string{"RET=HDRS", "ENVID=a+2Bb"}
	wishes := []map[int][]string{{1: {"ORCPT=RFC822;V+2B@x", "NOTIFY=SUCCESS,DELAY"}}, nil}
	if !reflect.DeepEqual(q.messages[0].options, options) || !reflect.DeepEqual(q.wishes, wishes) || q.messages[1].options != nil {
		t.Errorf("%q %v", q.messages, q.wishes)
	}
}

func TestReceivedIsInert(t *testing.T) {
	p := &Peer{IP: "2001:db8::1", Host: "a_b", Info: "x y(z)\r\nBcc: v", Local: "me\n"}
	got := string(appendReceived(nil, p, "() { :;};\x00", "ESMTP", now()))
	want := "Received: from a?b (HELO ?????:????) (x?y?z???Bcc:?v@2001:db8::1)\n  by me? with ESMTP; 15 Jan 2027 08:00:00 -0000\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := string(appendReceived(nil, &Peer{}, "", "SMTP", now())); !strings.HasPrefix(got, "Received: from unknown (unknown)\n  by unknown with SMTP; ") {
		t.Errorf("got %q", got)
	}
}

func TestTheQueueRefuses(t *testing.T) {
	whole := ehlo + from + to + "DATA\r\n" + text + "NOOP\r\n"
	tests := []struct {
		name string
		q    memoryQueue
		want string
	}{
		{"at RCPT, for a while", memoryQueue{verifyErr: errDisk}, "220, 250, 250 2.1.0, 451 4.3.0, 503 5.5.1"},
		{"at DATA", memoryQueue{openErr: errDisk}, "220, 250, 250 2.1.0, 250 2.1.5, 451 4.3.0"},
		{"within the message", memoryQueue{write: reply.Temporary("4.3.1", "no room", nil)}, "220, 250, 250 2.1.0, 250 2.1.5, 354, 451 4.3.1, 250 2.0.0"},
		{"at the end", memoryQueue{commit: errDisk}, "220, 250, 250 2.1.0, 250 2.1.5, 354, 451 4.3.0, 250 2.0.0"},
		{"for good", memoryQueue{commit: reply.Permanent("5.3.0", "no\r\n250 ok", nil)}, "220, 250, 250 2.1.0, 250 2.1.5, 354, 554 5.3.0, 250 2.0.0"},
		{"with a code that is none", memoryQueue{commit: &reply.Error{Code: 250, Status: "x", Text: strings.Repeat("y", 1000)}}, "220, 250, 250 2.1.0, 250 2.1.5, 354, 451 4.3.0, 250 2.0.0"},
	}
	for i := range tests {
		tt := &tests[i]
		t.Run(tt.name, func(t *testing.T) {
			got := codes(t, play(t, newServer(&tt.q), whole))
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if len(tt.q.messages) > 0 {
				t.Error("it was queued")
			}
		})
	}
}

func TestLimits(t *testing.T) {
	tests := []struct {
		name, send, end string
		replies         int
	}{
		{"the twenty-first error ends the session", strings.Repeat("FOO\r\n", 1000), "421 4.7.0", 22},
		{"so do recipients unknown to us", ehlo + from + strings.Repeat("RCPT TO:<nouser@test.example>\r\n", 500), "421 4.7.0", 24},
		{"an accepted message makes up for errors", ehlo + strings.Repeat("FOO\r\n", 15) + from + to + "DATA\r\n" + text + strings.Repeat("FOO\r\n", 15), "502 5.5.1", 36},
		{"a thousand idle commands end the session", strings.Repeat("NOOP\r\nRSET\r\n", 1000), "421 4.7.0", 1002},
		{"recipients beyond the limit", ehlo + from + strings.Repeat(to, 150), "452 4.5.3", 153},
		{"which pardons no other error", ehlo + from + strings.Repeat(to, 101) + strings.Repeat("FOO\r\n", 100), "421 4.7.0", 3 + 101 + 21},
		{"and far beyond it", ehlo + from + strings.Repeat(to, 100000), "421 4.7.0", 3 + 100 + maxOvershoot + 21},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Split(codes(t, play(t, newServer(&memoryQueue{}), tt.send)), ", ")
			if len(got) != tt.replies || got[len(got)-1] != tt.end {
				t.Errorf("%d replies, the last %s; want %d, %s", len(got), got[len(got)-1], tt.replies, tt.end)
			}
		})
	}
}

func TestRecipientsOfAllSessionsShareABound(t *testing.T) {
	held, most := 0, 0
	v := newServer(&memoryQueue{})
	v.Hold = func(n int) bool {
		if held+n > 32<<10 {
			return false
		}
		held += n
		most = max(most, held)
		return true
	}
	route := "@" + strings.Repeat("r.", 100) + "example"
	long := "RCPT TO:<" + route + "," + route + "," + route + ":u@test.example>\r\n" // a route takes memory too
	got := codes(t, play(t, v, ehlo+from+strings.Repeat(to, 5)+"RSET\r\n"))
	if held != 0 || most != 0 {
		t.Errorf("a few recipients hold %d, %s", most, got)
	}
	got = codes(t, play(t, v, ehlo+from+strings.Repeat(long, 100)+"RSET\r\n"+from+long+"QUIT\r\n"))
	if accepted := strings.Count(got, "250 2.1.5"); accepted >= 100 || held != 0 || most != 32<<10 {
		t.Errorf("%d accepted, %d held, %d at most", accepted, held, most)
	}
	got = codes(t, play(t, v, ehlo+from+strings.Repeat(long, 30))) // and gone
	if held != 0 || strings.Count(got, "250 2.1.5") != 30 {
		t.Errorf("%d held, %s", held, got)
	}
}

func TestRecipientsBeyondTheLimitGetNothing(t *testing.T) {
	q := &memoryQueue{}
	play(t, newServer(q), ehlo+from+strings.Repeat(to, 150)+"DATA\r\n"+text)
	if len(q.messages) != 1 || len(q.messages[0].recipients) != 100 {
		t.Errorf("%d messages", len(q.messages))
	}
}

func TestEachRefusalIsTold(t *testing.T) {
	var told []string
	v := newServer(&memoryQueue{})
	v.Refused = func(p *Peer, command, reply string) { told = append(told, p.IP+" "+command+" "+reply[:3]) }
	play(t, v, ehlo+to+from+"RCPT TO:<x@elsewhere.example>\r\nRCPT TO:<nouser@test.example>\r\n"+to+"DATA\r\na\nb\r\n.\r\n")
	want := "192.0.2.7 RCPT TO:<u@test.example> 503|192.0.2.7 RCPT TO:<x@elsewhere.example> 553|192.0.2.7 RCPT TO:<nouser@test.example> 550|192.0.2.7 DATA 550"
	if got := strings.Join(told, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRepliesTravelTogether(t *testing.T) {
	s := &script{chunks: [][]byte{[]byte(ehlo), []byte(from + to + to + to + "DATA\r\n"), []byte(text + from + to + "DATA\r\n"), []byte(text + "QUIT\r\n")}}
	newServer(&memoryQueue{}).Serve(t.Context(), s, testPeer())
	if s.writes != 5 { // the banner, and once for each chunk
		t.Errorf("%d writes", s.writes)
	}
}

// Whatever the line, the session does not panic and replies in well-formed lines; a transaction never gets
// an empty recipient or, without SMTPUTF8, one with bytes above 127.
func FuzzStep(f *testing.F) {
	for _, s := range []string{ehlo + from + to + "DATA\r\n", "MAIL FROM:<a@b> SIZE=1 BODY=7BIT\r\n", "RCPT TO:<>\r\nRSET\r\n", "\r\n\r\n", "BDAT 1\r\n",
		ehlo + from + to + "BDAT 3\r\nNOOP\r\nBDAT 0 LAST\r\n", ehlo + "AUTH PLAIN\r\nAGEAYg==\r\n", ehlo + "AUTH LOGIN YQ==\r\n*\r\nXCLIENT ADDR=192.0.2.9 NAME=a+2Bb\r\n",
		ehlo + "XFORWARD ADDR=IPV6:2001:db8::1 HELO=[UNAVAILABLE]\r\n"} {
		f.Add(s)
	}
	config := testConfig()
	config.Mechanisms = func(*Peer) ([]string, bool) { return []string{"PLAIN", "LOGIN"}, true }
	f.Fuzz(func(t *testing.T, in string) {
		p := testPeer()
		p.Trust = Trust{XClient: true, XForward: true}
		s := New(func() *Config { return config }, p)
		for line := range strings.SplitSeq(in, "\r\n") {
			if l, _, bad := cutLine([]byte(line+"\r\n"), maxLine); bad || string(l) != line {
				continue
			}
			out, next := s.Step(nil, []byte(line))
			if next == Verify {
				out, next = s.Verified(out, nil)
			}
			if next == Authenticate {
				out, next = s.Authenticated(out, Answer{Outcome: Outcome(len(line) % 5), Challenge: s.login.response, Login: "alice"})
			}
			if next == Open {
				out, next = s.Opened(out, nil)
			}
			if next == Chunk {
				for left, end := s.chunk.left, false; !end; {
					var n int
					if _, n, end = s.FeedChunk([]byte("x\r\n")); n == 0 && !end || left < 0 {
						t.Fatalf("%q: a chunk of %d that does not end", line, left)
					}
					if left > 1<<12 { // as if cut short
						return
					}
				}
				if out, next = s.Chunked(out, now()); next == Commit {
					out, next = s.Ended(out, 1, nil, now())
				}
			}
			for _, r := range s.Envelope().Recipients {
				if r == "" || !s.tx.utf8 && strings.ContainsFunc(r, func(c rune) bool { return c > 126 }) {
					t.Fatalf("recipient %q", r)
				}
			}
			if next == Body {
				if _, _, end := s.Feed([]byte("x\r\n.\r\n")); !end {
					t.Fatal("the message did not end")
				}
				out, next = s.Ended(out, 1, nil, now())
			}
			if p.Login != "" && !s.login.tried {
				t.Fatal("somebody is logged in who never tried")
			}
			if !strings.HasSuffix(string(out), "\r\n") {
				t.Fatalf("%q: reply %q", line, out)
			}
			codes(t, string(out))
			if next == Close {
				return
			}
		}
	})
}
