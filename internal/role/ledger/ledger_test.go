package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/ledger"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/disk"
	"qmail/internal/system/env"
)

// home makes one whose queue has seen some mail, and has it open until the end of the test if running.
func home(t *testing.T, running bool) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "queue", "journal")
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := disk.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(d, journal.Options{SegmentSize: 1 << 20, Account: ledger.New(d, ledger.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	commit := func(b queue.Batch) {
		done := make(chan error, 1)
		j.Commit(b, func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	a := queue.Accept{ID: j.NewID(), Envelope: &envelope.Envelope{UID: 5, Sender: "s@x\x1b[2J", Recipients: []string{"a@y", "b@z"}}, Body: [][]byte{[]byte("x")}}
	commit(queue.Batch{Accepts: []queue.Accept{a}})
	commit(queue.Batch{Closes: []queue.Close{{ID: a.ID, Recipients: []uint32{1}, Outcome: queue.Bounced, As: 77}}})
	if !running {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	} else {
		t.Cleanup(func() { j.Close() })
	}
	return dir
}

func call(home string, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = Main(context.Background(), &env.Env{Home: home, Stdout: &o, Stderr: &e, Now: time.Now}, args)
	return code, o.String(), e.String()
}

func TestVerify(t *testing.T) {
	for _, running := range []bool{true, false} {
		dir := home(t, running)
		code, out, errs := call(dir, "verify")
		if code != exitEven || !strings.Contains(out, "\naccepted 2 = delivered 0 + forwarded 0 + bounced 1 + expired 0 + dropped 0 + still queued 1\n") || errs != "" {
			t.Errorf("running %v: %d\n%s%s", running, code, out, errs)
		}
		if running {
			continue
		}
		segments, err := filepath.Glob(filepath.Join(dir, "queue/journal/segments/*.seg"))
		if err != nil || len(segments) == 0 {
			t.Fatal(segments, err)
		}
		for _, s := range segments {
			if err := os.Remove(s); err != nil {
				t.Fatal(err)
			}
		}
		code, out, _ = call(dir, "verify")
		if code != exitUneven || !strings.Contains(out, "\nmsg 1: lost: neither in the queue nor closed; from <s@x?[2J>, accepted ") || !strings.Contains(out, " to <a@y>\n") {
			t.Errorf("%d\n%s", code, out)
		}
		code, out, _ = call(dir, "verify", "-json")
		var b struct {
			Even        bool
			Accepted    int
			Differences []struct{ Recipients []string }
		}
		if err := json.Unmarshal([]byte(out), &b); err != nil || code != exitUneven || b.Even || b.Accepted != 2 || len(b.Differences) != 1 {
			t.Errorf("%d %v\n%s", code, err, out)
		}
	}
}

func TestFind(t *testing.T) {
	dir := home(t, false)
	tests := []struct {
		args string
		code int
		want []string
	}{
		{"find", 0, []string{"msg 1: from <s@x?[2J>", "<a@y> not done yet", "<b@z> bounced 2", ", see msg 77"}},
		{"find -to B@z -since 1h", 0, []string{"<b@z> bounced"}},
		{"find -to c@z", 1, nil},
		{"find -until 1h", 1, nil},
		{"find -id 1 -json", 0, []string{`"id":1`, `"outcome":"bounced"`}},
		{"find -id one", 100, nil},
		{"find -since then", 100, nil},
		{"find x", 100, nil},
		{"lose", 100, nil},
		{"", 100, nil},
	}
	for _, tt := range tests {
		code, out, _ := call(dir, strings.Fields(tt.args)...)
		if code != tt.code {
			t.Errorf("%s: %d\n%s", tt.args, code, out)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", tt.args, want, out)
			}
		}
	}
}

func TestNoHome(t *testing.T) {
	if code, _, errs := call(filepath.Join(t.TempDir(), "nowhere"), "verify"); code != exitLater || errs == "" {
		t.Error(code, errs)
	}
}
