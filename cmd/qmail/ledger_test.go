package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// fate is what a client was told about a message.
type fate byte

const (
	refused  fate = iota // so it must not be delivered
	accepted             // so it must be
	inDoubt              // the connection was lost while the answer was due: it may be
)

// tally is the account of a load: what was sent, and what became of it at the door.
type tally struct {
	accepted atomic.Int64

	mu    sync.Mutex
	fates map[string]fate
}

// body is the message with a given id: its text says all of it again, so that a change cannot hide.
func body(id string) string {
	lines := fmt.Sprintf("the message %s and nothing else\r\n..with a line that begins with dots\r\n", id)
	return fmt.Sprintf("Subject: %s\r\nMessage-ID: <%s@client.example>\r\n\r\n%s", id, id, strings.Repeat(lines, 20))
}

// stored is how it reads where it arrives.
func stored(id string) string {
	return strings.ReplaceAll(strings.ReplaceAll(body(id), "\r\n..", "\r\n."), "\r\n", "\n")
}

// load sends messages until stop is closed, each client one after the other and by turns to a user here and
// to another machine. A client whose connection is lost comes again.
func (l *tally) load(h *house, clients int, stop <-chan struct{}) (done func()) {
	l.fates = map[string]fate{}
	var wg sync.WaitGroup
	for k := range clients {
		wg.Go(func() {
			var c *client
			defer func() {
				if c != nil {
					c.Close()
				}
			}()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if c == nil {
					var err error
					if c, err = dial(h.address); err != nil {
						c = nil
						continue
					}
				}
				id := fmt.Sprintf("id-%d-%d-", k, n)
				recipient := "alice@test.example"
				if n%2 == 1 {
					recipient = "someone@far.example"
				}
				code, doubt, err := c.send("bob@test.example", recipient, body(id))
				l.note(id, code, doubt)
				if err != nil || code == 421 {
					c.Close()
					c = nil
				} else if code != 250 {
					if _, err := c.say("RSET\r\n"); err != nil {
						c.Close()
						c = nil
					}
				}
			}
		})
	}
	return wg.Wait
}

func (l *tally) note(id string, code int, doubt bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case code == 250:
		l.fates[id] = accepted
		l.accepted.Add(1)
	case doubt:
		l.fates[id] = inDoubt
	default:
		l.fates[id] = refused
	}
}

// settle counts what arrived against what was promised. most is the greatest number of copies of one message.
func (l *tally) settle(messages []string) (lost, invented, broken []string, twice, most int) {
	seen := map[string]int{}
	for _, m := range messages {
		_, rest, _ := strings.Cut(m, "\nSubject: ")
		id, _, _ := strings.Cut(rest, "\n")
		seen[id]++
		if seen[id] > 1 {
			twice++
		}
		most = max(most, seen[id])
		if !strings.HasSuffix(m, stored(id)) {
			broken = append(broken, id)
		}
		if f, ok := l.fates[id]; !ok || f == refused {
			invented = append(invented, id)
		}
	}
	for id, f := range l.fates {
		if f == accepted && seen[id] == 0 {
			lost = append(lost, id)
		}
	}
	slices.Sort(lost)
	return lost, invented, broken, twice, most
}

// TestNothingAcceptedIsLostWhenRolesAreKilled kills each role by its pid under load, then the workers, then all
// at once with the supervisor, and accounts for every message.
func TestNothingAcceptedIsLostWhenRolesAreKilled(t *testing.T) {
	h := newHouse(t)
	far := newFarHost(t)
	h.write("control/smtproutes", "far.example:"+far.route()+"\n")
	h.write("control/concurrencylocal", "100\n")
	h.write("control/concurrencyremote", "100\n")
	h.start()

	var l tally
	stop := make(chan struct{})
	done := l.load(h, 6, stop)
	more := func(n int64) { // waits until so many more were accepted
		t.Helper()
		goal := l.accepted.Load() + n
		h.until("mail is accepted again", func() bool { return l.accepted.Load() >= goal })
	}
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	kills := 0
	kill := func(pid int) {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			kills++
		}
	}
	more(50)
	for range rounds {
		for _, role := range []string{"send", "lspawn", "resolve", "rspawn", "smtpd", "local"} {
			if role == "local" {
				for _, pid := range children(h.pid("lspawn")) {
					kill(pid)
				}
			} else {
				kill(h.pid(role))
			}
			more(40)
		}
	}
	for _, role := range []string{"send", "lspawn", "resolve", "rspawn", "smtpd"} { // all at once
		kill(h.pid(role))
	}
	more(40)
	if err := h.cmd.Process.Kill(); err != nil { // and the supervisor, which takes them with it
		t.Fatal(err)
	}
	<-h.ended
	kills++
	h.start()
	more(40)
	close(stop)
	done()

	// What a dead role had in hand is tried again by qmail's timetable; an alarm is the way not to wait for it.
	h.until("everything has arrived", func() bool {
		_ = syscall.Kill(h.pid("send"), syscall.SIGALRM)
		lost, _, _, _, _ := l.settle(append(h.mail("alice"), far.mail()...))
		return len(lost) == 0
	})
	h.stop()
	lost, invented, broken, twice, most := l.settle(append(h.mail("alice"), far.mail()...))
	t.Logf("%d accepted, %d more tried; %d kills; %d lost, %d twice", l.accepted.Load(), len(l.fates)-int(l.accepted.Load()), kills, len(lost), twice)
	if len(lost)+len(invented)+len(broken) > 0 {
		t.Errorf("lost %v\nrefused and yet delivered %v\nchanged %v", lost, invented, broken)
	}
	if most > 1+kills {
		t.Errorf("%d copies of one message after %d kills", most, kills)
	}
	if int64(kills) < 4 || l.accepted.Load() < 50 {
		t.Errorf("this proved nothing: %d kills, %d messages", kills, l.accepted.Load())
	}
}

// TestAnOrderlyStopUnderLoadLosesAndRepeatsNothing stops everything in the middle of a load and starts it again.
func TestAnOrderlyStopUnderLoadLosesAndRepeatsNothing(t *testing.T) {
	h := newHouse(t)
	far := newFarHost(t)
	h.write("control/smtproutes", "far.example:"+far.route()+"\n")
	h.start()
	var l tally
	stop := make(chan struct{})
	done := l.load(h, 6, stop)
	for range 3 {
		goal := l.accepted.Load() + 100
		h.until("mail is accepted", func() bool { return l.accepted.Load() >= goal })
		h.stop()
		h.start()
	}
	close(stop)
	done()
	h.until("everything has arrived", func() bool {
		_ = syscall.Kill(h.pid("send"), syscall.SIGALRM)
		lost, _, _, _, _ := l.settle(append(h.mail("alice"), far.mail()...))
		return len(lost) == 0
	})
	h.stop()
	lost, invented, broken, twice, _ := l.settle(append(h.mail("alice"), far.mail()...))
	t.Logf("%d accepted; %d lost, %d twice", l.accepted.Load(), len(lost), twice)
	if len(lost)+len(invented)+len(broken)+twice > 0 {
		t.Errorf("lost %v\nrefused and yet delivered %v\nchanged %v\n%d twice", lost, invented, broken, twice)
	}
}

// children are the processes that a process has started.
func children(pid int) (list []int) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // that thread is gone
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}
