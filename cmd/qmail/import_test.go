package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// oldHome makes the home of an original qmail, stopped, with mail in its queue.
func oldHome(t *testing.T, h *house, files map[string]string) string {
	t.Helper()
	old := filepath.Join(filepath.Dir(h.home), "old")
	files["queue/lock/sendmutex"] = ""
	for _, dir := range []string{"queue/mess", "queue/info", "queue/local", "queue/remote", "queue/todo", "queue/bounce"} {
		if err := os.MkdirAll(filepath.Join(old, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		path := filepath.Join(old, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644), h.give(path)); err != nil {
			t.Fatal(err)
		}
	}
	return old
}

// TestAnOldQueueIsTakenOver: what is left of each message, once, as old as it was.
func TestAnOldQueueIsTakenOver(t *testing.T) {
	h := newHouse(t)
	h.write("control/concurrencyremote", "0\n")
	h.write("control/virtualdomains", "virt.example:alice-v\n")
	files := map[string]string{
		"control/me":             "old.example\n",
		"control/virtualdomains": "virt.example:alice-v\n",
		// Looked at: one recipient here is left and one is done, one is left elsewhere, and one has failed.
		"queue/mess/7/7": "Received: old\nSubject: seven\n\nbody 7\n", "queue/info/7/7": "Fsender@far.example\x00",
		"queue/local/7/7": "Tbob@test.example\x00Dalice@test.example\x00Talice-v-box@virt.example\x00", "queue/remote/7/7": "Tr@remote.example\x00Dq@remote.example\x00",
		"queue/bounce/7": "<q@remote.example>:\nNo such user.\n\n",
		// Not looked at, and from nobody.
		"queue/mess/8/31": "Received: old\nSubject: thirty-one\n\nbody 31\n", "queue/todo/31": "u1000\x00p99\x00F\x00Tbob@test.example\x00", "queue/intd/31": "x",
		// Half removed, half written, and damaged.
		"queue/mess/9/9": "gone\n", "queue/mess/10/10": "written\n", "queue/intd/10": "u1\x00",
		"queue/mess/11/11": "damaged\n", "queue/info/11/11": "Fno end",
	}
	old := oldHome(t, h, files)
	birth := time.Now().Add(-48 * time.Hour).Truncate(time.Second)
	if err := os.Chtimes(filepath.Join(old, "queue/info/7/7"), birth, birth); err != nil {
		t.Fatal(err)
	}
	h.write("mail/alice/.qmail-v-box", "./Maildir/\n")
	h.start()
	run := func(args ...string) string {
		t.Helper()
		out, err := h.command(append([]string{"qmail-import"}, args...)...).CombinedOutput()
		if err == nil {
			t.Errorf("a damaged message is not a failure:\n%s", out)
		}
		return string(out)
	}
	if out := run("-n", old); !strings.Contains(out, "2 messages, 1 bounces; 0 had been taken before, 1 failed") {
		t.Errorf("dry run:\n%s", out)
	}
	if out := run(old); !strings.Contains(out, "2 messages, 1 bounces; 0 had been taken before, 1 failed") || !strings.Contains(out, "message 11: ") {
		t.Errorf("first run:\n%s", out)
	}
	if out := run(old); !strings.Contains(out, "0 messages, 0 bounces; 3 had been taken before, 1 failed") {
		t.Errorf("second run:\n%s", out)
	}
	h.until("all that is for here has arrived", func() bool {
		return len(h.mail("bob")) == 2 && len(h.mail("alice")) == 1
	})
	if got := h.mail("alice")[0]; !strings.Contains(got, "Delivered-To: alice-v-box@virt.example\n") || !strings.Contains(got, "Return-Path: <sender@far.example>\n") || !strings.HasSuffix(got, "Received: old\nSubject: seven\n\nbody 7\n") {
		t.Errorf("alice has %q", got)
	}
	out, err := h.command("qmail-qread").CombinedOutput()
	if err != nil {
		t.Errorf("qread: %v", err)
	}
	list := string(out)
	if !strings.Contains(list, birth.UTC().Format("2 Jan 2006 15:04:05")+" GMT") || !strings.Contains(list, "\tremote\tr@remote.example\n") ||
		!strings.Contains(list, "<>") || !strings.Contains(list, "\tremote\tsender@far.example\n") || strings.Contains(list, "q@remote.example") {
		t.Errorf("the queue is\n%s", list)
	}
	h.stop()
	for name, text := range files { // all is as it was
		if b, err := os.ReadFile(filepath.Join(old, name)); err != nil || string(b) != text {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if out := run(old); !strings.Contains(out, "qmail-send, which has to run") {
		t.Errorf("without qmail-send:\n%s", out)
	}
}

func TestTheQueueOfARunningQmailIsNotTaken(t *testing.T) {
	h := newHouse(t)
	old := oldHome(t, h, map[string]string{"control/me": "old.example\n"})
	holder := h.command("setlock", filepath.Join(old, "queue/lock/sendmutex"), "sh", "-c", "echo locked; cat")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if n, err := said.Read(make([]byte, 10)); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	out, err := h.command("qmail-import", "-n", old).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "a qmail-send is running there") {
		t.Errorf("%v: %s", err, out)
	}
	in.Close()
	if err := holder.Wait(); err != nil {
		t.Error(err)
	}
}
