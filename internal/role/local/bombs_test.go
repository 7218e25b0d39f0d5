package local

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAMillionLines(t *testing.T) {
	w := newWorld(t)
	const million = 1_000_000
	var forwards strings.Builder
	for i := range million {
		fmt.Fprintf(&forwards, "a%d\n", i%10)
	}
	for name, tt := range map[string]struct{ text, want string }{
		"comments":       {strings.Repeat("#\n", million) + "./Maildir/\n", "Kdid 1+0+0\n"},
		"forwards":       {forwards.String(), "ZUh-oh: .qmail file has more than 100000 forwards. (#4.3.5)\n"},
		"long forwards":  {strings.Repeat("somebody@far.example\n", million), "ZUnable to read .qmail: file too big. (#4.3.0)\n"},
		"one great line": {"./" + strings.Repeat("x", million) + "/\n", "Z"},
	} {
		t.Run(name, func(t *testing.T) {
			w.write(t, ".qmail", tt.text, 0o600)
			began := time.Now()
			if got := w.deliver(t, "", "", "x\n"); !strings.HasPrefix(got, tt.want) || tt.want == "Z" && len(got) > 4000 {
				t.Errorf("%.200q, want %q", got, tt.want)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it takes %v", took)
			}
		})
	}
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	if got := len(w.queue.arrived); got != 0 {
		t.Errorf("%d messages were forwarded", got)
	}
}

// TestAFanOutBombEnds: a chain of addresses, each of which forwards to the next one twice, comes to an end before it has
// used up the machine, as each message says through how many it has come.
func TestAFanOutBombEnds(t *testing.T) {
	w := newWorld(t)
	w.write(t, ".qmail-default", "&alice-next@test.example\n&alice-next@test.example\n", 0o600)
	var passed strings.Builder
	for i := range maxPassed - 1 {
		fmt.Fprintf(&passed, "Delivered-To: alice-%d@test.example\n", i)
	}
	if got := w.deliver(t, "-", "x", passed.String()+"\nbody\n"); !strings.HasPrefix(got, "Kdid 0+2+0\n") {
		t.Errorf("through %d addresses: %q", maxPassed-1, got)
	}
	passed.WriteString("Delivered-To: alice-last@test.example\n")
	if got := w.deliver(t, "-", "x", passed.String()+"\nbody\n"); got != "DThis message is looping: it has too many Delivered-To lines. (#5.4.6)\n" {
		t.Errorf("through %d addresses: %q", maxPassed, got)
	}
	if got := w.deliver(t, "-", "x", "Subject: x\n\n"+passed.String()); !strings.HasPrefix(got, "Kdid 0+2+0\n") {
		t.Errorf("in the body they do not count: %q", got)
	}
}

// TestADotQmailFileThatIsSwapped: what another user has written is never taken for instructions, however often the file
// is replaced by a link to it and back.
func TestADotQmailFileThatIsSwapped(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make the files of another user")
	}
	w := newWorld(t)
	canary := filepath.Join(w.user, "canary")
	victim := filepath.Join(w.home, "victim")
	must(t, os.WriteFile(victim, []byte("|touch "+canary+"\n"), 0o644))
	must(t, os.Chown(victim, nobody+1, nobody+1))
	w.write(t, "mine", "./Maildir/\n", 0o600)
	stop := make(chan struct{})
	swapped := make(chan int)
	go func() {
		n := 0
		defer func() { swapped <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, target := range []string{victim, w.user + "/mine"} {
				link := filepath.Join(w.user, ".new")
				if os.Symlink(target, link) == nil && os.Rename(link, filepath.Join(w.user, ".qmail")) == nil {
					n++
				}
			}
		}
	}()
	delivered, refused := 0, 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		switch got := w.deliver(t, "", "", "x\n"); got {
		case "Kdid 1+0+0\n":
			delivered++
		case "ZUh-oh: .qmail file leads to a file of another user. (#4.7.0)\n":
			refused++
		default:
			t.Fatalf("%q", got)
		}
	}
	close(stop)
	if n := <-swapped; n < 10 || delivered+refused < 10 {
		t.Errorf("swapped %d times, %d delivered, %d refused", n, delivered, refused)
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("another user's file was carried out")
	}
	if got := len(w.mailbox(t, "Maildir")); got != delivered {
		t.Errorf("%d messages, %d delivered", got, delivered)
	}
}
