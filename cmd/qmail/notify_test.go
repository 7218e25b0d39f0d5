package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// neighbours are two houses that send each other's mail: test.example and far.example.
func neighbours(t *testing.T) (here, far *house) {
	t.Helper()
	here, far = newHouse(t), newHouse(t)
	for name, text := range map[string]string{"me": "far.example\n", "locals": "far.example\n", "rcpthosts": "far.example\n"} {
		far.write("control/"+name, text)
	}
	plain := newFarHost(t)
	here.write("control/smtproutes", "far.example:"+far.address+"\nplain.example:"+plain.route()+"\n")
	far.write("control/smtproutes", "test.example:"+here.address+"\n")
	here.start()
	far.start()
	return here, far
}

// pythonLists prints what Python's email package finds in a report.
const pythonLists = `
import sys, email
m = email.message_from_binary_file(sys.stdin.buffer)
assert m.get_content_type() == 'multipart/report' and not m.defects, m.defects
text, status, original = m.get_payload()
b = status.get_payload()
print(b[0]['Reporting-MTA'], '|', b[0]['Original-Envelope-Id'])
for r in b[1:]:
    print(r['Original-Recipient'], '|', r['Final-Recipient'], '|', r['Action'], '|', r['Status'])
`

// TestNotificationsFromTwoMachines: who asks is told, by the machine that knows, and in a form that programs read.
func TestNotificationsFromTwoMachines(t *testing.T) {
	if err := exec.Command("python3", "-c", "import email").Run(); err != nil {
		t.Skip("python3 is not here:", err)
	}
	here, far := neighbours(t)
	argv := []string{
		"sendmail", "-f", "alice@test.example", "-N", "success,failure", "-V", "id+1", "--",
		"bob@far.example", "nobody-here@far.example", "x@plain.example", "bob@test.example",
	}
	if out, errs, code := here.tool("Subject: hello\n\nbody\n", argv...); code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	here.until("alice has four notices", func() bool { return len(here.mail("alice")) == 4 })
	var got []string
	for _, m := range here.mail("alice") {
		cmd := exec.Command("python3", "-c", pythonLists)
		cmd.Stdin = strings.NewReader(m)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s\n%s", err, out, m)
		}
		got = append(got, strings.TrimSuffix(string(out), "\n"))
	}
	slices.Sort(got)
	want := []string{
		"dns; far.example | id+1\nNone | rfc822; bob@far.example | delivered | 2.0.0",
		"dns; test.example | id+1\nNone | rfc822; bob@test.example | delivered | 2.0.0",
		"dns; test.example | id+1\nNone | rfc822; nobody-here@far.example | failed | 5.1.1",
		"dns; test.example | id+1\nNone | rfc822; x@plain.example | relayed | 2.1.9",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	far.until("bob has his mail", func() bool { return len(far.mail("bob")) == 1 })
	here.stop()
	far.stop()
}

// TestTheRealProgramsInTheirOwnPlaces: qmail-remote and qmail-local as programs of their own, named by control files.
func TestTheRealProgramsInTheirOwnPlaces(t *testing.T) {
	h, other := newHouse(t), newFarHost(t)
	bin := filepath.Join(filepath.Dir(h.home), "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"remote", "local"} {
		path := filepath.Join(bin, "qmail-"+name)
		copyProgram(t, path)
		h.write("control/qmail"+name, path+"\n")
	}
	h.write("control/smtproutes", "far.example:"+other.route()+"\n")
	h.start()
	h.inject("alice@test.example", "x@far.example", "y@far.example", "bob@test.example", "bob-nothing@test.example")
	h.until("both have their mail", func() bool { return len(other.mail()) == 2 && len(h.mail("bob")) == 1 })
	h.until("alice knows what failed", func() bool { return len(h.mail("alice")) == 1 })
	for _, text := range []string{
		"success: 127.0.0.1_accepted_message./Remote_host_said:_250_ok/", "success: did_1+0+0/",
		"failure: Sorry,_no_mailbox_here_by_that_name._(#5.1.1)/",
	} {
		h.logged(text)
	}
	if !strings.Contains(other.mail()[0], "Subject: a test\n") || !strings.Contains(h.mail("bob")[0], "Delivered-To: bob@test.example\n") {
		t.Errorf("%q %q", other.mail(), h.mail("bob"))
	}
	h.stop()
}

// copyProgram makes a copy of this program that other users may run.
func copyProgram(t *testing.T, path string) {
	t.Helper()
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
