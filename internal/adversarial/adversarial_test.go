package adversarial

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// copies are the recorded cases of this tree, each beside the package that it is about.
func copies(t *testing.T) (list []Case) {
	t.Helper()
	seen := map[string]bool{}
	for _, name := range []string{
		"adversarial/testdata/address.jsonl", "adversarial/testdata/header.jsonl", "adversarial/testdata/starttls.jsonl", "format/cdb/testdata/adversarial.jsonl",
		"proto/smtp/client/testdata/outbound.jsonl", "role/local/testdata/adversarial.jsonl", "role/popup/testdata/adversarial.jsonl", "role/qmqpd/testdata/hostile.jsonl",
		"role/qmtpd/testdata/hostile.jsonl", "role/smtpd/testdata/relay.jsonl", "role/smtpd/testdata/smtp-misc.jsonl", "role/smtpd/testdata/smuggling.jsonl",
		"system/dns/testdata/dns.jsonl",
	} {
		cases, err := Load(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			if !seen[c.Name] {
				seen[c.Name] = true
				list = append(list, c)
			}
		}
	}
	return list
}

func programs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "programs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "qmail"), "qmail/cmd/qmail")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(filepath.Join(dir, "qmail"), "programs").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		if err := os.Symlink("qmail", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users run them
		t.Fatal(err)
	}
	return dir
}

// TestHostileInput plays a part of the cases through real processes, so that the runner stays what it is: `make
// adversarial` plays all of them, and the packages that a case is about play it in virtual time. One of five is enough
// here, and those that wait or weigh much are left to the others.
func TestHostileInput(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	r, err := New(programs(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	var passed atomic.Int32
	t.Run("cases", func(t *testing.T) {
		for i, c := range copies(t) {
			silent := c.Name == "outbound/reply-code-changes-mid-multiline" // until the client gives up
			if c.Waits() > 2*time.Second || silent || c.forbids("rss") || c.forbids("time") || i%5 != 0 {
				continue
			}
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				switch err := r.Run(&c); {
				case errors.Is(err, ErrSkip):
					t.Skip(err)
				case err != nil:
					t.Error(err)
				default:
					passed.Add(1)
				}
			})
		}
	})
	if n := passed.Load(); n < 60 {
		t.Errorf("only %d cases passed", n)
	}
}

// Each line of the list of what is left out is about something, and gives a reason.
func TestWhatIsLeftOutExists(t *testing.T) {
	cases := copies(t)
	elsewhere := []string{"protocol dkim", "protocol spf", "condition dkim_signed"} // there are no copies of those
	for _, r := range rules() {
		used := false
		for _, c := range cases {
			used = used || r.matches("case", c.Name) || r.matches("protocol", c.Protocol)
			for _, word := range c.Expect.MustNot {
				name, _, _ := strings.Cut(word, ":")
				name, _, _ = strings.Cut(name, ">")
				used = used || r.matches("condition", name)
			}
		}
		for _, e := range elsewhere {
			used = used || e == r.kind+" "+r.pattern
		}
		if !used || len(r.reason) < 10 {
			t.Errorf("%+v", r)
		}
	}
}

// A runner that lets everything pass is worse than none: each kind of trouble must be seen.
func TestTheJudgeSeesTrouble(t *testing.T) {
	zero, one := 0, 1
	good := func() (*Case, *outcome) {
		c := &Case{Protocol: "smtp", Expect: Expect{
			Class: "accept", Queued: &one, QueuedMax: &one, Final: "after-real-eod", Rcpts: []string{"alice@test.example"}, Suffix: []byte("body\n"),
			MustNot: []string{"queued>1", "sender:x@y", "rcpt:x@y", "relay", "reply:^9", "header_injected", "log_line_forged", "log_control_chars",
				"panic", "rss>1MiB", "time>1s", "replies>9", "exec", "sent_to:v@remote.example", "bounces>0", "bounce_to_remote", "reply_line>100"},
		}, Chunks: []Chunk{{B64: []byte("forged line\r\n")}}}
		text := "Received: (qmail 1 invoked from network); 1 Jan 2030 00:00:00 -0000\nReceived: from unknown (HELO c) (127.1.0.1)\n" +
			"  by mx.test.example with ESMTP; 1 Jan 2030 00:00:00 -0000\nSubject: s\n\nbody\n"
		o := &outcome{way: classic, ip: "127.1.0.1"}
		o.said = []byte("220 a\r\n250-a\r\n250 b\r\n250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n221 bye\r\n")
		o.queued = []message{{"s@client.example", []string{"alice@test.example"}, []byte(text)}}
		return c, o
	}
	if c, o := good(); c.judge(o).err() != nil {
		t.Fatal(c.judge(o).err())
	}
	for name, spoil := range map[string]func(*Case, *outcome){
		"class":        func(c *Case, _ *outcome) { c.Expect.Class = "reject" },
		"fewer":        func(_ *Case, o *outcome) { o.queued = nil },
		"more":         func(c *Case, _ *outcome) { c.Expect.Queued, c.Expect.QueuedMax = nil, &zero },
		"queued":       func(c *Case, _ *outcome) { c.Expect.MustNot[0] = "queued>0" },
		"two verdicts": func(_ *Case, o *outcome) { o.said = append(o.said, "250 ok\r\n"...) },
		"bare LF":      func(_ *Case, o *outcome) { o.said = append(o.said, "221 x\n"...) },
		"recipients":   func(_ *Case, o *outcome) { o.queued[0].rcpts = []string{"bob@test.example"} },
		"relay":        func(c *Case, o *outcome) { c.Expect.Rcpts = nil; o.queued[0].rcpts = []string{"v@far.example"} },
		"sender":       func(_ *Case, o *outcome) { o.queued[0].sender = "x@y" },
		"a bounce":     func(_ *Case, o *outcome) { o.queued[0].sender = "" },
		"suffix":       func(c *Case, _ *outcome) { c.Expect.Suffix = []byte("other\n") },
		"trace":        func(_ *Case, o *outcome) { o.queued[0].text = o.queued[0].text[10:] },
		"CR": func(_ *Case, o *outcome) {
			o.queued[0].text = append(o.queued[0].text[:len(o.queued[0].text)-5:len(o.queued[0].text)-5], "\rbody\n"...)
		},
		"a forged line":   func(_ *Case, o *outcome) { o.log = []byte("forged line\n") },
		"an odd log line": func(_ *Case, o *outcome) { o.log = []byte("hello\n") },
		"control bytes":   func(_ *Case, o *outcome) { o.way, o.log = longLived, []byte("qmail-smtpd: \x1b\n") },
		"panic":           func(_ *Case, o *outcome) { o.trouble = "panic: x" },
		"memory":          func(_ *Case, o *outcome) { o.grown = 2 << 20 },
		"time":            func(_ *Case, o *outcome) { o.took = 2 * time.Second },
		"unknown words":   func(c *Case, _ *outcome) { c.Expect.MustNot[0] = "sing" },
		"unknown limits":  func(c *Case, _ *outcome) { c.Expect.MustNot[0] = "songs>1" },
	} {
		c, o := good()
		if spoil(c, o); c.judge(o).err() == nil {
			t.Errorf("%s: nothing seen", name)
		}
	}
	if _, err := Load("testdata/unknown.jsonl"); err != nil {
		t.Error(err)
	}
}

// What a case says that is not understood fails that case, and is not passed over.
func TestNothingIsPassedOver(t *testing.T) {
	cases, err := Load("testdata/unknown.jsonl")
	if err != nil || len(cases) != 4 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	r, err := New(programs(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range cases {
		if err := r.Run(&c); err == nil || errors.Is(err, ErrSkip) {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}
