package main

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestARestartRefusesNobody replaces a server while clients come and go: each connection is taken, sooner or later, by
// the old one or by the new one.
func TestARestartRefusesNobody(t *testing.T) {
	h := newHouse(t)
	h.start()
	defer h.stop()
	var stop atomic.Bool
	var refused, greeted, cut atomic.Int64
	var clients sync.WaitGroup
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
