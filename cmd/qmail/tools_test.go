package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// tool runs one of the tools in a house.
func (h *house) tool(input string, argv ...string) (out, errs string, code int) {
	h.t.Helper()
	cmd := h.command(argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	var status *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &status) {
		h.t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// good runs a tool that is to succeed.
func (h *house) good(argv ...string) string {
	h.t.Helper()
	out, errs, code := h.tool("", argv...)
	if code != 0 || errs != "" {
		h.t.Fatalf("%q: exit %d\n%s%s", argv, code, out, errs)
	}
	return out
}

// inject puts a message into the queue by qmail-inject and returns when it is there.
func (h *house) inject(sender string, recipients ...string) {
	h.t.Helper()
	argv := append([]string{"qmail-inject", "-f" + sender, "--"}, recipients...)
	if out, errs, code := h.tool("Subject: a test\n\nhello\n", argv...); code != 0 {
		h.t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
}

func TestTheQueueTools(t *testing.T) {
	h := newHouse(t)
	h.write("control/smtproutes", "far.example:127.0.0.1:1\n") // where nobody listens
	for _, argv := range [][]string{{"qmail-qread"}, {"qmail-qstat"}, {"qmail-tcpto"}, {"qmail-tcpok"}, {"qmail", "queue", "list"}, {"mailq"}} {
		if _, errs, code := h.tool("", argv...); code != 111 || !strings.Contains(errs, "qmail-send is not running") {
			t.Errorf("%q without a server: exit %d, %s", argv, code, errs)
		}
	}
	h.start()
	if got := h.good("qmail-qread"); got != "" {
		t.Errorf("an empty queue is %q", got)
	}
	h.inject("alice@test.example", "one@far.example", "bob@test.example", "nobody-here@test.example")
	h.logged("deferral:")
	h.logged("failure:")
	h.logged("success:")
	read := h.good("qmail-qread")
	want := regexp.MustCompile(`^\d+ [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d GMT  #(\d+)  \d+  <alice@test.example>  bouncing
  done	local	bob@test.example
  done	local	nobody-here@test.example
	remote	one@far.example
$`)
	m := want.FindStringSubmatch(read)
	if m == nil {
		t.Fatalf("qmail-qread says\n%s", read)
	}
	id := m[1]
	if got := h.good("mailq"); got != read {
		t.Errorf("mailq says\n%s", got)
	}
	if got := h.good("qmail-qstat"); got != "messages in queue: 1\nmessages in queue but not yet preprocessed: 0\n" {
		t.Errorf("qmail-qstat says\n%s", got)
	}
	if got := h.good("qmail", "queue", "list", "-state", "failed"); !strings.HasPrefix(got, id+"  ") || !strings.Contains(got, "<alice@test.example>  1 waiting, 1 failed, 1 done\n") {
		t.Errorf("list says %s", got)
	}
	if got := h.good("qmail", "queue", "list", "-domain", "elsewhere.example"); got != "" {
		t.Errorf("list says %s", got)
	}
	var message struct {
		ID, Size, Waiting, Failed int
		Sender                    string
		Recipients                []struct{ Address, Channel, State, Text string }
	}
	if err := json.Unmarshal([]byte(h.good("qmail", "queue", "show", "-json", id)), &message); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(message.ID) != id || message.Waiting != 1 || message.Failed != 1 || len(message.Recipients) != 3 ||
		!strings.Contains(message.Recipients[0].Text, "I wasn't able to establish an SMTP connection. (#4.4.1)") ||
		message.Recipients[2].State != "failed" || !strings.Contains(message.Recipients[2].Text, "no mailbox here by that name") {
		t.Errorf("%+v", message)
	}
	if got := h.good("qmail", "queue", "show", id); !strings.Contains(got, "    waiting  remote  one@far.example  next ") || !strings.Contains(got, "    failed   local   nobody-here@test.example\n        Sorry, no mailbox here") {
		t.Errorf("show says\n%s", got)
	}
	if got := h.good("qmail", "queue", "cat", id); !strings.HasPrefix(got, "Received: (qmail ") || !strings.HasSuffix(got, "\n\nhello\n") {
		t.Errorf("cat says\n%s", got)
	}
	if got := h.good("qmail", "queue", "count"); !strings.HasPrefix(got, "1 messages, 2 recipients to be done, of them 1 failed, 0 messages on hold, ") {
		t.Errorf("count says %s", got)
	}
	if got := h.good("qmail", "queue", "hold", id); got != "message "+id+": held, 1 recipients\n" {
		t.Errorf("hold says %s", got)
	}
	if got := h.good("qmail", "queue", "list"); !strings.Contains(got, "1 held") {
		t.Errorf("list says %s", got)
	}
	h.good("qmail", "queue", "release", id)
	if got := h.good("qmail", "queue", "retry", "-all"); got != "message "+id+": retried, 1 recipients\n1 messages retried\n" {
		t.Errorf("retry says %s", got)
	}
	h.until("it was tried again", func() bool { return strings.Count(h.read(), "deferral:") > 1 })
	if got := h.good("qmail", "queue", "bounce", "-reason", "enough of this", "-sender", "*@test.example"); !strings.HasSuffix(got, "\n1 messages bounced\n") {
		t.Errorf("bounce says %s", got)
	}
	h.until("alice knows", func() bool { return len(h.mail("alice")) == 1 })
	if got := h.mail("alice")[0]; !strings.Contains(got, "<one@far.example>:\nenough of this\n") || !strings.Contains(got, "<nobody-here@test.example>:\nSorry, no mailbox") {
		t.Errorf("alice has\n%s", got)
	}
	h.inject("alice@test.example", "two@far.example")
	h.until("it was put off", func() bool { return strings.Count(h.read(), "deferral:") > 2 })
	if got := h.good("qmail", "queue", "delete", "-older", "1h"); got != "0 messages deleted\n" {
		t.Errorf("delete says %s", got)
	}
	if got := h.good("qmail", "queue", "delete", "-recipient", "two@*"); !strings.HasSuffix(got, "\n1 messages deleted\n") {
		t.Errorf("delete says %s", got)
	}
	h.until("the queue is empty", func() bool { return h.good("qmail-qread") == "" })
	if _, errs, code := h.tool("", "qmail", "queue", "show", id); code != 100 || errs != "qmail-queuetool: message "+id+": no such message\n" {
		t.Errorf("exit %d, %s", code, errs)
	}
	h.stop()
	if len(h.mail("alice")) != 1 {
		t.Error("a deleted message was told of")
	}
}

func TestQueueToolUsage(t *testing.T) {
	tests := []struct{ args, want string }{
		{"wash", `unknown command "wash"`},
		{"list 5", "list takes a filter"},
		{"cat", "cat takes one message"},
		{"show", "show takes messages"},
		{"show x", `"x" is not the number of a message`},
		{"delete", "which messages?"},
		{"delete -all 5", "either messages or a filter"},
		{"hold -older soon", "not an age"},
		{"list -state dead", "no such state"},
		{"delete -reason x 5", "flag provided but not defined: -reason"},
	}
	for _, tt := range tests {
		out, errs, code := call(t, append([]string{"qmail", "queue"}, strings.Fields(tt.args)...)...)
		if code != 100 || out != "" || !strings.Contains(errs, tt.want) || !strings.Contains(errs, "usage: qmail queue list") {
			t.Errorf("%s: exit %d\n%s%s", tt.args, code, out, errs)
		}
	}
}

// TestAPagerThatSleepsHoldsNobodyUp: the list waits, the mail does not.
func TestAPagerThatSleepsHoldsNobodyUp(t *testing.T) {
	h := newHouse(t)
	h.write("control/concurrencyremote", "0\n")
	h.start()
	for range 40 {
		h.inject("alice@test.example", "x@far.example", "y@far.example", "z@far.example")
	}
	list := h.command("qmail", "queue", "list", "-recipients")
	out, err := list.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := list.Start(); err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := out.Read(one); err != nil { // and no more
		t.Fatal(err)
	}
	began := time.Now()
	h.inject("alice@test.example", "bob@test.example")
	h.until("bob has it", func() bool { return len(h.mail("bob")) == 1 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	out.Close()
	_ = list.Wait()
	h.stop()
}
