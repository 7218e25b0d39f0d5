package send

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/queue"
	"qmail/internal/system/env"
)

// send hands over a message with options.
func (h *house) send(e *envelope.Envelope, body string) uint64 {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, err := h.client.Submit(ctx, e, []byte(body))
	if err != nil {
		h.t.Fatal(err)
	}
	return a.ID
}

// fakeClock runs like the real one, but can be set forward.
type fakeClock struct{ ahead atomic.Int64 }

func (c *fakeClock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *fakeClock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// notices are the messages that came from nobody.
func (h *house) notices() (bodies []string) {
	for _, d := range h.got() {
		if d.sender == "" {
			bodies = append(bodies, d.body)
		}
	}
	return bodies
}

// pythonLists prints, of a report, each recipient with its fields, and what of the message came back.
const pythonLists = `
import sys, email
m = email.message_from_binary_file(sys.stdin.buffer)
assert m.get_content_type() == 'multipart/report' and not m.defects, m.defects
text, status, original = m.get_payload()
print(m['Subject'], '|', m['Auto-Submitted'], '|', m['MIME-Version'], '|', original.get_content_type())
blocks = status.get_payload()
print(blocks[0]['Original-Envelope-Id'])
for b in blocks[1:]:
    print(b['Original-Recipient'], '|', b['Final-Recipient'], '|', b['Action'], '|', b['Status'])
`

func pythonReads(t *testing.T, message string) string {
	t.Helper()
	if err := exec.Command("python3", "-c", "import email").Run(); err != nil {
		t.Skip("python3 is not here:", err)
	}
	cmd := exec.Command("python3", "-c", pythonLists)
	cmd.Stdin = strings.NewReader(message)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, message)
	}
	return string(out)
}

// fates answers by the beginning of the local part.
func fates(r string, attempt int) string {
	switch {
	case strings.Contains(r, "bad"):
		return "D192.0.2.1 does not like recipient.\nRemote host said: 550 5.1.1 who is that\nGiving up on 192.0.2.1.\n"
	case strings.Contains(r, "late"):
		return "Znot now (#4.3.0)\n"
	case strings.Contains(r, "many"):
		return "Kdid 0+2+0\nqp 7\n"
	}
	return "Kdid 1+0+0\n"
}

func TestABounceIsAReportForPrograms(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(fates)
	h.start()
	h.send(&envelope.Envelope{
		Sender: "alice@test.example", Options: []string{"ENVID=QQ+2B1"},
		Recipients:       []string{"bad1@remote.example", "bad2@virt.example", "badü@other.example", "good@remote.example"},
		RecipientOptions: map[int][]string{0: {"ORCPT=rfc822;Bad+2B1@remote.example"}},
	}, "Subject: hi\n\nhello\n")
	h.log.await(t, "end msg", 2)
	bounces := h.notices()
	if len(bounces) != 1 {
		t.Fatalf("%d bounces", len(bounces))
	}
	lines := strings.Split(pythonReads(t, bounces[0]), "\n")
	slices.Sort(lines[2:])
	want := []string{
		"failure notice | auto-replied | 1.0 | message/rfc822", "QQ+1", "",
		`None | rfc822; bad2@virt.example | failed | 5.1.1`, `None | utf-8; bad\x{FC}@other.example | failed | 5.1.1`,
		"rfc822; Bad+1@remote.example | rfc822; bad1@remote.example | failed | 5.1.1",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got  %q\nwant %q", lines, want)
	}
	if !strings.Contains(bounces[0], "Subject: hi\n\nhello\n\n--=_") {
		t.Error(bounces[0])
	}
	h.empty()
	h.end()
}

// TestOldProgramsReadReports plays the part of ezmlm-return (0.53, and the newer ones that pass over MIME boundaries),
// which reads a bounce paragraph by paragraph.
func TestOldProgramsReadReports(t *testing.T) {
	for _, format := range []string{"dsn", "qsbmf"} {
		h := newHouse(t, map[string]string{"bounceformat": format + "\n"})
		h.setDeliver(fates)
		h.start()
		h.submit("alice-list-return-1-@test.example-@[]", "x\n", "bad1@remote.example", "bad2@other.example")
		h.log.await(t, "end msg", 2)
		paragraphs := strings.Split(h.notices()[0], "\n\n")
		if !strings.HasPrefix(paragraphs[1], "Hi. This is the qmail-send program at ") {
			t.Fatalf("%s: no introduction in %q", format, paragraphs[1])
		}
		var failed []string
		for _, p := range paragraphs[2:] {
			if p[0] == '-' {
				break
			}
			addr, _, ok := strings.Cut(p, ">:\n")
			if !ok || addr[0] != '<' {
				t.Fatalf("%s: %q", format, p)
			}
			failed = append(failed, addr[1:])
		}
		slices.Sort(failed)
		if !slices.Equal(failed, []string{"bad1@remote.example", "bad2@other.example"}) {
			t.Errorf("%s: %q", format, failed)
		}
		h.end()
	}
}

func TestWhatGoesBack(t *testing.T) {
	small, large, huge := "Subject: s\n\n"+strings.Repeat("x", 500)+"\n", "Subject: s\n\n"+strings.Repeat("y\n", 50000), "Subject: s\n\n"+strings.Repeat("z\n", 300000)
	tests := []struct {
		name, format, max, option, body string
		has, lacks                      string
		below                           int
	}{
		{"a small message goes back whole", "dsn", "", "", small, strings.Repeat("x", 500) + "\n\n--=_", "text/rfc822-headers", 5000},
		{"of a large one only the header", "dsn", "", "", large, "text/rfc822-headers\n\nReturn-Path: <alice@test.example>\nReceived: (qmail ", "y\n", 5000},
		{"unless there is no limit", "dsn", "0", "", large, "message/rfc822\n", "rfc822-headers", 110000},
		{"or of one too large for memory", "dsn", "0", "", huge, strings.Repeat("z\n", 1000) + "\n--=_", "rfc822-headers", 610000},
		{"the sender may want less", "dsn", "", "RET=HDRS", small, "text/rfc822-headers\n\nReturn-Path", "xxx", 5000},
		{"but not more", "dsn", "100", "RET=FULL", small, "text/rfc822-headers", "xxx", 5000},
		{"the classic bounce is cut", "qsbmf", "", "", large, "y\ny\ny\n\n--- End of message stripped.\n", "MIME-Version", 52000},
		{"or not", "qsbmf", "0", "", large, "y\ny\n", "stripped", 110000},
		{"the classic bounce of a small message is what it was", "qsbmf", "", "", small, "copy of the message.\n\nReturn-Path: <alice@test.example>\nReceived:", "Message-ID", 5000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"bounceformat": tt.format + "\n"}
			if tt.max != "" {
				files["bouncemaxbytes"] = tt.max + "\n"
			}
			h := newHouse(t, files)
			h.setDeliver(fates)
			h.start()
			e := &envelope.Envelope{Sender: "alice@test.example", Recipients: []string{"bad@remote.example"}}
			if tt.option != "" {
				e.Options = []string{tt.option}
			}
			h.send(e, tt.body)
			h.log.await(t, "end msg", 2)
			got := h.notices()[0]
			if !strings.Contains(got, tt.has) || strings.Contains(got, tt.lacks) || len(got) > tt.below {
				t.Errorf("%d bytes: %q", len(got), got[:min(len(got), 3000)])
			}
			h.end()
		})
	}
}

// TestABounceOfAHugeMessageIsSmall, by default.
func TestABounceOfAHugeMessageIsSmall(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(fates)
	h.start()
	h.submit("alice@test.example", "Subject: s\n\n"+strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n", 800_000), "bad@remote.example")
	h.log.await(t, "end msg", 2)
	if n := len(h.notices()[0]); n > 1<<20 {
		t.Errorf("%d bytes", n)
	}
	h.end()
}

func TestNotifyDecides(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(fates)
	h.start()
	h.send(&envelope.Envelope{
		Sender: "alice@test.example", Recipients: []string{"bad1@remote.example", "bad2@remote.example", "bad3@remote.example"},
		RecipientOptions: map[int][]string{0: {"NOTIFY=NEVER"}, 1: {"NOTIFY=SUCCESS,DELAY"}, 2: {"NOTIFY=FAILURE"}},
	}, "x\n")
	h.log.await(t, "end msg", 2)
	if got := h.notices(); len(got) != 1 || strings.Contains(got[0], "bad1") || strings.Contains(got[0], "bad2") || !strings.Contains(got[0], "<bad3@remote.example>:\n") {
		t.Errorf("%q", got)
	}
	h.send(&envelope.Envelope{
		Sender: "alice@test.example", Recipients: []string{"bad1@remote.example"},
		RecipientOptions: map[int][]string{0: {"NOTIFY=NEVER"}},
	}, "x\n")
	h.log.await(t, "end msg", 3)
	if got := h.notices(); len(got) != 1 {
		t.Errorf("%q", got)
	}
	// What comes from nobody is our postmaster's affair, whatever its sender wants.
	h.send(&envelope.Envelope{Recipients: []string{"bad1@remote.example"}, RecipientOptions: map[int][]string{0: {"NOTIFY=NEVER"}}}, "x\n")
	h.log.await(t, "from <#@[]>", 1)
	h.log.await(t, "end msg", 5)
	h.empty()
	h.end()
}

func TestSuccessIsToldToWhoAsked(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(fates)
	h.accounts["many"] = h.accounts["alice"]
	h.takes = "other.example"
	h.start()
	wish := []string{"NOTIFY=SUCCESS", "ORCPT=rfc822;x@y"}
	h.send(&envelope.Envelope{
		Sender: "alice@test.example", Options: []string{"RET=FULL"},
		Recipients:       []string{"box@virt.example", "r@remote.example", "passed@other.example", "silent@third.example", "many@test.example"},
		RecipientOptions: map[int][]string{0: wish, 1: wish, 2: wish, 4: wish},
	}, "Subject: s\n\nbody\n")
	h.log.await(t, "delivery notice msg", 3)
	h.log.await(t, "end msg", 4)
	var all []string
	for _, n := range h.notices() {
		lines := strings.Split(pythonReads(t, n), "\n")
		if lines[0] != "delivery notice | auto-replied | 1.0 | text/rfc822-headers" || strings.Contains(n, "body\n") || strings.Contains(n, "Hi. This is the") {
			t.Errorf("%q: %s", lines[0], n)
		}
		all = append(all, lines[2])
	}
	slices.Sort(all)
	want := []string{
		"rfc822; x@y | rfc822; box@virt.example | delivered | 2.0.0",
		"rfc822; x@y | rfc822; many@test.example | expanded | 2.0.0",
		"rfc822; x@y | rfc822; r@remote.example | relayed | 2.1.9",
	}
	if !slices.Equal(all, want) {
		t.Errorf("got  %q\nwant %q", all, want)
	}
	h.empty()
	h.end()
}

// TestSuccessAndItsNewsAreOneRecord: news that cannot be queued leave the recipient open until we stop; then it is
// closed, and not delivered again.
func TestSuccessAndItsNewsAreOneRecord(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	h.store.fail(errors.New("no disk"), func(b queue.Batch) bool { return len(b.Accepts) > 0 && len(b.Closes) > 0 })
	h.send(&envelope.Envelope{
		Sender: "alice@test.example", Recipients: []string{"r@remote.example"}, RecipientOptions: map[int][]string{0: {"NOTIFY=SUCCESS"}},
	}, "x\n")
	h.log.await(t, "trouble injecting bounce message", 1)
	if n := h.store.Stats().Recipients; n != 1 {
		t.Errorf("%d recipients are open", n)
	}
	h.end()
	h.start()
	h.empty()
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.attempts["r@remote.example"]; n != 1 {
		t.Errorf("tried %d times", n)
	}
}

func TestOneWarningPerMessage(t *testing.T) {
	h := newHouse(t, map[string]string{"warnlifetime": "1\n", "queuelifetime": "86400\n"})
	h.setDeliver(fates)
	clock := &fakeClock{}
	h.now = clock.now
	h.start()
	never := []string{"NOTIFY=FAILURE"}
	h.send(&envelope.Envelope{
		Sender: "alice@test.example", Recipients: []string{"late1@remote.example", "late2@virt.example", "late3@remote.example", "good@remote.example"},
		RecipientOptions: map[int][]string{2: never},
	}, "Subject: s\n\nbody\n")
	h.send(&envelope.Envelope{Recipients: []string{"late4@remote.example"}}, "x\n")                                                                             // from nobody
	h.send(&envelope.Envelope{Sender: "alice@test.example", Recipients: []string{"late5@remote.example"}, RecipientOptions: map[int][]string{0: never}}, "x\n") // not wanted
	h.log.await(t, ": deferral:", 5)
	again := func(want int) {
		t.Helper()
		clock.advance(time.Hour)
		h.orders <- env.Order{Kind: alarm}
		h.log.await(t, ": deferral:", want)
	}
	again(10)
	h.log.await(t, "delay notice msg", 1)
	again(15)
	h.end()
	h.start() // who was warned before a restart is not warned again after it
	again(5)
	h.end()
	if n := strings.Count(h.log.String(), "delay notice"); n != 0 {
		t.Errorf("%d warnings after a restart", n)
	}
	got := h.notices()
	if len(got) != 1 {
		t.Fatalf("%d warnings", len(got))
	}
	lines := strings.Split(pythonReads(t, got[0]), "\n")
	slices.Sort(lines[2:])
	want := []string{
		"delay notice | auto-replied | 1.0 | text/rfc822-headers", "None", "",
		"None | rfc822; late1@remote.example | delayed | 4.3.0", "None | rfc822; late2@virt.example | delayed | 4.0.0",
	}
	want2 := slices.Clone(want) // the attempt at the other recipient may come first
	want2[3], want2[4] = "None | rfc822; late1@remote.example | delayed | 4.0.0", "None | rfc822; late2@virt.example | delayed | 4.3.0"
	if !slices.Equal(lines, want) && !slices.Equal(lines, want2) {
		t.Errorf("got  %q\nwant %q", lines, want)
	}
	if strings.Contains(got[0], "Hi. This is the") || !strings.Contains(got[0], "Will-Retry-Until: ") {
		t.Error(got[0])
	}
}

func TestNobodyIsWarnedByDefault(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(fates)
	clock := &fakeClock{}
	h.now = clock.now
	h.start()
	h.submit("alice@test.example", "x\n", "late@remote.example")
	h.log.await(t, ": deferral:", 1)
	clock.advance(100 * time.Hour)
	h.orders <- env.Order{Kind: alarm}
	h.log.await(t, ": deferral:", 2)
	h.end()
	if len(h.notices()) != 0 {
		t.Error(h.notices())
	}
}

// TestHostileTextsStayWhereTheyAre: what servers and senders say cannot end a part or begin a field.
func TestHostileTextsStayWhereTheyAre(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(r string, _ int) string {
		if strings.HasPrefix(r, "alice") {
			return "Kok\n"
		}
		return "D192.0.2.1 does not like recipient.\nRemote host said: 550-5.1.1 x\n550-\n550---boundary\n550 Content-Type: text/html\n\n--=_0\n\n--\n--=_0--\n"
	})
	h.start()
	h.send(&envelope.Envelope{
		Sender: "a\nBcc: victim@remote.example\nalice@test.example", Recipients: []string{"x\n\nAction: delivered\n@remote.example"},
	}, "Subject: s\nContent-Type: multipart/mixed; boundary=\"=_0\"\n\n--=_0\n\n\nx")
	h.log.await(t, "bounce msg", 1)
	h.log.await(t, "starting delivery 2", 1)
	h.log.await(t, "end msg", 2)
	for _, d := range h.got() {
		if d.sender != "" && d.sender != "#@[]" {
			continue
		}
		header, _, _ := strings.Cut(d.body, "\n\n")
		if strings.Contains(header, "\nBcc:") {
			t.Errorf("%q", header)
		}
		if got := pythonReads(t, d.body); strings.Count(got, "\n") != 3 || !strings.HasSuffix(got, "| failed | 5.1.1\n") {
			t.Errorf("%s\n%s", got, d.body)
		}
	}
	h.end()
}

func TestUTF8SendersGetUTF8Reports(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(fates)
	h.start()
	h.send(&envelope.Envelope{
		Sender: "alice@test.example", Options: []string{"SMTPUTF8", "BODY=8BITMIME"}, Recipients: []string{"badü@bücher.example"},
		RecipientOptions: map[int][]string{0: {"ORCPT=utf-8;badö@bücher.example"}},
	}, "Subject: grüezi\n\nhello\n")
	h.log.await(t, "end msg", 2)
	got := h.notices()[0]
	for _, text := range []string{
		"Content-Type: message/global-delivery-status\n", "Content-Type: message/global\nContent-Transfer-Encoding: 8bit\n",
		"Original-Recipient: utf-8; badö@bücher.example\nFinal-Recipient: utf-8; badü@bücher.example\n",
	} {
		if !strings.Contains(got, text) {
			t.Errorf("no %q in\n%s", text, got)
		}
	}
	if !bytes.Contains([]byte(got), []byte("Subject: grüezi\n\nhello\n")) {
		t.Error(got)
	}
	h.end()
}

func TestStepsTellWhetherThereWasAWarning(t *testing.T) {
	birth := time.Unix(1_700_000_000, 0)
	for _, tt := range []struct {
		age  int64
		warn time.Duration
		want bool
	}{{3599, time.Hour, false}, {3600, time.Hour, true}, {3601, time.Hour, true}, {0, time.Second, false}, {1, time.Second, true}, {14640, 14401 * time.Second, false}, {14641, 14401 * time.Second, true}} {
		for c, skip := range map[schedule.Channel]int64{schedule.Local: 10, schedule.Remote: 20} {
			root := int64(0)
			for (root+1)*(root+1) <= tt.age {
				root++
			}
			next := birth.Add(time.Duration((root+skip)*(root+skip)) * time.Second)
			if got := schedule.Step(next, birth, c) >= schedule.StepAt(tt.warn); got != tt.want {
				t.Error(fmt.Sprint(tt, c, got))
			}
		}
	}
}
