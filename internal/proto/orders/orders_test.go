package orders

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/spawn"
)

// queue makes a queue/mess with one message, "1/1".
func queue(t *testing.T) Messages {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "1", "1"), []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return Messages{Dir: dir, Owners: []int{os.Getuid()}}
}

func order(slot byte, message, recipient string) string {
	b, _ := spawn.AppendOrder(nil, spawn.Order{Slot: slot, Message: message, Sender: "s@a", Recipient: recipient})
	return string(b)
}

// echo reports the order and the message.
func echo(_ context.Context, o spawn.Order, message *os.File) string {
	b, _ := io.ReadAll(message)
	return "K" + o.Sender + " " + o.Recipient + " " + string(b)
}

func TestServe(t *testing.T) {
	m := queue(t)
	for _, err := range []error{
		os.Symlink("1", filepath.Join(m.Dir, "1", "2")),
		os.Mkdir(filepath.Join(m.Dir, "1", "3"), 0o755),
		syscall.Mkfifo(filepath.Join(m.Dir, "1", "4"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"one order", order(5, "1/1", "r@b"), "\x05Ks@a r@b text\n\x00"},
		{"an order that is cut", order(5, "1/1", "r@b")[:9], ""},
		{"a slot twice, after its report", order(0, "1/9", "r@b") + order(0, "1/9", "r@b"), strings.Repeat("\x00"+unopened+"\x00", 2)},
		{"a slot that there is not", order(Slots, "1/1", "r@b"), string(rune(Slots)) + tooBig + "\x00"},
		{"an order that makes no sense", order(1, "1/1", "r"), "\x01" + spawn.NoHost + "\x00"},
		{"no such message", order(1, "1/7", "r@b"), "\x01" + unopened + "\x00"},
		{"a link is none", order(1, "1/2", "r@b"), "\x01" + unopened + "\x00"},
		{"a directory is none", order(1, "1/3", "r@b"), "\x01" + wrongType + "\x00"},
		{"a pipe is none", order(1, "1/4", "r@b"), "\x01" + wrongType + "\x00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Serve(t.Context(), strings.NewReader(tt.in), &out, m, echo); err != nil {
				t.Error(err)
			}
			if got := out.String(); got != string(rune(Slots))+tt.want {
				t.Errorf("%q", got)
			}
		})
	}
	m.Owners = []int{os.Getuid() + 1}
	if _, report := m.Open("1/1"); report != wrongUser {
		t.Errorf("somebody else's message: %q", report)
	}
}

// lines is a writer that hands on what is written.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

func (l lines) want(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-l:
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing comes; want %q", want)
	}
}

func TestReportsComeAsDeliveriesEnd(t *testing.T) {
	in, send := io.Pipe()
	out := make(lines)
	release := map[string]chan string{"a@b": make(chan string), "c@d": make(chan string)}
	over := make(chan error)
	go func() {
		over <- Serve(t.Context(), in, out, queue(t), func(_ context.Context, o spawn.Order, _ *os.File) string { return <-release[o.Recipient] })
	}()
	out.want(t, string(rune(Slots)))
	io.WriteString(send, order(1, "1/1", "a@b")+order(2, "1/1", "c@d")+order(1, "1/1", "e@f"))
	out.want(t, "\x01"+inUse+"\x00")
	release["c@d"] <- "Dno\n"
	out.want(t, "\x02Dno\n\x00")
	send.Close() // the first one is finished all the same
	release["a@b"] <- "Kyes\n\x00Kforged"
	out.want(t, "\x01Kyes\n\x00")
	if err := <-over; err != nil {
		t.Error(err)
	}
}

func TestAStopFinishesWhatIsUnderWay(t *testing.T) {
	in, send := io.Pipe()
	defer send.Close()
	ctx, cancel := context.WithCancel(t.Context())
	out := make(lines)
	started, release, over := make(chan bool), make(chan string), make(chan error)
	go func() {
		over <- Serve(ctx, in, out, queue(t), func(ctx context.Context, _ spawn.Order, _ *os.File) string {
			started <- true
			report := <-release
			if ctx.Err() != nil {
				return "Zcut short\n"
			}
			return report
		})
	}()
	out.want(t, string(rune(Slots)))
	io.WriteString(send, order(1, "1/1", "a@b"))
	<-started
	cancel()
	release <- "Kyes\n"
	out.want(t, "\x01Kyes\n\x00")
	if err := <-over; err != nil {
		t.Error(err)
	}
}

func TestAllSlotsAtOnce(t *testing.T) {
	var in strings.Builder
	for slot := range byte(Slots) {
		in.WriteString(order(slot, "1/1", "r@b"))
	}
	var all sync.WaitGroup
	all.Add(Slots)
	var out bytes.Buffer
	err := Serve(t.Context(), strings.NewReader(in.String()), &out, queue(t), func(context.Context, spawn.Order, *os.File) string {
		all.Done()
		all.Wait() // each waits for all
		return "K"
	})
	if err != nil {
		t.Error(err)
	}
	var slots []byte
	for _, report := range bytes.SplitAfter(out.Bytes()[1:], []byte("K\x00")) {
		if len(report) > 0 {
			slots = append(slots, report[0])
		}
	}
	slices.Sort(slots)
	if len(slots) != Slots || len(slices.Compact(slots)) != Slots {
		t.Errorf("%d reports", len(slots))
	}
}
