package serve

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// pair is a link and the other's end of it.
func pair(t *testing.T) (link, other *ipc.Conn) {
	t.Helper()
	link, other, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { link.Close(); other.Close() })
	return link, other
}

// ended waits until the other side has let go of a link.
func ended(t *testing.T, other *ipc.Conn) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); other.Read() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("the link is still open")
	}
}

func TestAKeeperServesWhomItAdmits(t *testing.T) {
	var log bytes.Buffer
	began, helped := make(chan string, 10), make(chan *ipc.Conn, 1)
	reloads := 0
	k := Keeper{
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		Admit: func(role string) func(context.Context, *ipc.Conn) {
			if role != "smtpd" {
				return nil
			}
			return func(_ context.Context, link *ipc.Conn) {
				began <- role
				link.Read() // until it is closed
			}
		},
		Helpers: map[string]func(*ipc.Conn){"checkpw": func(link *ipc.Conn) { helped <- link }},
		Reload:  func() { reloads++ },
	}
	first, other1 := pair(t)
	second, other2 := pair(t)
	stranger, other3 := pair(t)
	helper, _ := pair(t)
	orders := make(chan env.Order)
	var obeying sync.WaitGroup
	obeying.Go(func() { k.Obey(t.Context(), orders) })
	orders <- env.Order{Kind: env.Link, Name: "smtpd", Link: first}
	<-began
	orders <- env.Order{Kind: env.Link, Name: "rspawn", Link: stranger}
	ended(t, other3)
	orders <- env.Order{Kind: env.Link, Name: "checkpw", Link: helper}
	if got := <-helped; got != helper {
		t.Error("the helper's link is another")
	}
	orders <- env.Order{Kind: env.Link, Name: "smtpd", Link: second}
	<-began
	ended(t, other1)
	orders <- env.Order{Kind: env.Reload}
	orders <- env.Order{Kind: env.Stop}
	obeying.Wait()
	other2.Close()
	k.Wait()
	if reloads != 1 || !strings.Contains(log.String(), "no rights here") || !strings.Contains(log.String(), "role=rspawn") {
		t.Errorf("%d reloads; log: %s", reloads, log.String())
	}
}

func TestAKeeperTicksAndEndsWithItsOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ticks := 0
		k := Keeper{Tick: func() { ticks++ }, Every: time.Second}
		orders := make(chan env.Order)
		done := make(chan struct{})
		go func() { defer close(done); k.Obey(t.Context(), orders) }()
		time.Sleep(3500 * time.Millisecond)
		close(orders)
		<-done
		if ticks != 3 {
			t.Errorf("%d ticks", ticks)
		}
	})
}
