package vectors

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// inPrivate says that a test runs in a mount namespace of its own.
const inPrivate = "QMAIL_TEST_PRIVATE"

// TestTheWholeDaemon replays recordings of all programs together, started by qmail-start as root, with qmail's users in
// an /etc that is this test's own. Once bounces are reports, once they are qmail-send's own, to the byte.
func TestTheWholeDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become others")
	}
	if os.Getenv(inPrivate) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Args[0], cmd.Env = os.Args[0], append(os.Environ(), inPrivate+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, syscall.EPERM) {
			t.Skip("this root may not have a mount namespace")
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	bin := programs(t)
	ownUsers(t, bin)
	cases, err := Load("testdata/send/bounce.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	played := 0
	for _, format := range []string{"dsn", "qsbmf"} {
		r := &Runner{Bin: bin, ReadQueue: Dropped, Loose: format == "dsn"}
		for _, c := range cases {
			if c.Wart {
				continue
			}
			played++
			control := maps.Clone(c.Control)
			t.Run(format+"/"+c.Name, func(t *testing.T) {
				t.Parallel()
				c.Control = control
				c.Control["bounceformat"] = ControlFile{Data: Value(format + "\n")}
				if err := r.Run(&c); err != nil {
					t.Errorf("%s: %v", c.Desc, err)
				}
			})
		}
	}
	if played < 40 {
		t.Errorf("%d cases", played)
	}
	families(t, bin)
}

// families plays the recordings of single programs that want qmail's users.
func families(t *testing.T, bin string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	r := &Runner{Bin: bin, ReadQueue: Dropped}
	played := 0
	for _, file := range files {
		cases, err := Load(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			if slices.Contains(c.Needs, "qmail-users") && c.Family != "queue" {
				played++
				t.Run(c.Name, func(t *testing.T) {
					t.Cleanup(func() {
						if _, differs := Exception(c.Name); t.Skipped() && !differs && different[c.Name] == "" {
							t.Error("not played, though there is all it needs")
						}
					})
					play(t, r, &c)
				})
			}
		}
	}
	if played < 10 {
		t.Errorf("%d cases of single programs", played)
	}
}

// ownUsers puts a layer over /etc that only this process and its children see, and makes qmail's users in it.
func ownUsers(t *testing.T, bin string) {
	t.Helper()
	if err := OwnUsers(bin, bin); err != nil { // others may go there
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := DisownUsers(bin); err != nil {
			t.Error(err)
		}
	})
}

func TestTraceOfALog(t *testing.T) {
	log := "status: local 0/1 remote 0/1\nnew msg 7\ninfo msg 7: bytes 9 from <a@b> qp 3 uid 5\n" +
		"starting delivery 1: msg 7 to remote z@x\nstarting delivery 2: msg 7 to local c@d\nstatus: local 1/1 remote 1/1\n" +
		"delivery 2: success: did_1+0+0/\ndelivery 1: failure: no_(#5.1.1)/\nbounce msg 7 qp 8\nend msg 7\n" +
		"new msg 8\ninfo msg 8: bytes 9 from <#@[]> qp 3 uid 5\ntriple bounce: discarding bounce/8\nend msg 8\nstatus: exiting\n"
	got := traceOf([]byte(log))
	if len(got) != 2 || string(got[0].From) != "<a@b>" || string(got[0].UID) != "5" || !got[0].Bounced || got[0].Discarded || !got[0].Ended ||
		!got[1].Discarded || got[1].Bounced || len(got[0].Deliveries) != 2 {
		t.Fatalf("%+v", got)
	}
	one, two := got[0].Deliveries[0], got[0].Deliveries[1]
	if one.Channel != "local" || string(one.To) != "c@d" || one.Result != "success" || string(one.Text) != "did_1+0+0/" ||
		two.Result != "failure" || string(two.Text) != "no_(#5.1.1)/" {
		t.Errorf("%+v", got[0].Deliveries)
	}
	x := &run{c: &Case{Expect: Expect{Trace: []Traced{*got[0], *got[1]}}}}
	if diff := x.compareTrace(got); diff != "" {
		t.Error(diff)
	}
	for name, spoil := range map[string]func(m *Traced){
		"another sender":  func(m *Traced) { m.From = Value("<x>") },
		"no bounce":       func(m *Traced) { m.Bounced = false },
		"not ended":       func(m *Traced) { m.Ended = false },
		"another result":  func(m *Traced) { m.Deliveries[1].Result = "deferral" },
		"another status":  func(m *Traced) { m.Deliveries[1].Text = Value("no_(#5.2.1)/") },
		"other words":     func(m *Traced) { m.Deliveries[0].Text = Value("did_0+1+0/") },
		"a delivery less": func(m *Traced) { m.Deliveries = m.Deliveries[:1] },
	} {
		again := traceOf([]byte(log))
		spoil(again[0])
		if x.compareTrace(again) == "" {
			t.Errorf("%s is not seen", name)
		}
	}
}

func TestBouncesOfAnotherForm(t *testing.T) {
	want := []byte("To: a\n\nHi. This is the qmail-send program at x.\nI'm afraid.\n\n<u@x>:\nno (#5.1.1)\n\n--- Below this line is a copy of the message.\n\n" +
		"Return-Path: <a>\nReceived: (qmail {{PID}})\nSubject: s\n\nbody {{PID}}\n")
	good := "To: a\nMIME-Version: 1.0\n\nHi. This is the qmail-send program at x.\nSorry.\n\n<u@x>:\nno (#5.1.1)\n\n--- Below\n\nand\n\nbody 17\n\n--end"
	if !likeBounce(want, []byte(good)) {
		t.Error("one that says the same is another")
	}
	for name, bad := range map[string]string{
		"another recipient": strings.Replace(good, "<u@x>", "<v@x>", 1),
		"one more":          strings.Replace(good, "\n\n---", "\n\n<v@x>:\nno\n\n---", 1),
		"another status":    strings.Replace(good, "5.1.1", "5.1.2", 1),
		"another message":   strings.Replace(good, "body 17", "nobody", 1),
	} {
		if likeBounce(want, []byte(bad)) {
			t.Errorf("%s is not seen", name)
		}
	}
}
