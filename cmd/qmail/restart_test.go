package main

import (
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestARestartRefusesNobody replaces a server while clients come and go: each connection is taken, sooner or later, by
// the old one or by the new one.
func TestARestartRefusesNobody(t *testing.T) {
	h := newHouse(t)
	h.binary = h.home + "/program"
	copyProgram(t, h.binary)
	h.start()
	defer h.stop()
	var stop atomic.Bool
	var refused, greeted, cut atomic.Int64
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop.Store(true)
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				c, err := net.DialTimeout("tcp", h.address, 20*time.Second)
				if err != nil {
					refused.Add(1)
					t.Log(err)
					continue
				}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				b := make([]byte, 3)
				if _, err := io.ReadFull(c, b); err == nil && string(b) == "220" {
					greeted.Add(1)
				} else {
					cut.Add(1)
				}
				c.Close()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for n := 2; n <= 3; n++ {
		fresh := h.binary + ".new"
		copyProgram(t, fresh)
		if err := os.Rename(fresh, h.binary); err != nil { // the program that runs is not there any more
			t.Fatal(err)
		}
		if out, err := h.command("qmail-restart").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		h.until("the next one is ready", func() bool { return strings.Count(h.read(), "qmail-start: ready\n") == n })
		was := greeted.Load()
		h.until("it greets clients", func() bool { return greeted.Load() > was+10 })
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d greeted, %d cut off in the greeting", greeted.Load(), cut.Load())
	if refused.Load() > 0 {
		t.Errorf("%d refused", refused.Load())
	}
}

// TestNoRestartWithoutAProgram: where nothing can be put in its place, a server goes on as it is.
func TestNoRestartWithoutAProgram(t *testing.T) {
	h := newHouse(t)
	h.binary = h.home + "/program"
	copyProgram(t, h.binary)
	h.start()
	defer h.stop()
	if err := os.Chmod(h.binary, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	h.until("it says so", func() bool { return strings.Contains(h.read(), "alert: will not restart") })
	c, err := net.DialTimeout("tcp", h.address, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 3)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "220" {
		t.Errorf("%q, %v", b, err)
	}
}
