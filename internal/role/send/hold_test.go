package send

import (
	"context"
	"fmt"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/enqueue"
	"qmail/internal/store/queue"
)

// A message that comes to be held is accepted for good, and waits for whoever releases it, over a restart too; and
// nobody further on hears of the wish.
func TestAMessageThatComesToBeHeld(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, err := h.client.Submit(ctx, &envelope.Envelope{
		Sender: "alice@test.example", Recipients: []string{"r@remote.example"}, Options: []string{"BODY=8BITMIME", enqueue.HoldOption},
	}, []byte("Subject: much\n\n"))
	if err != nil {
		t.Fatal(err)
	}
	other := h.submit("s@far.example", "x\n", "alice@test.example")
	h.log.await(t, fmt.Sprintf("end msg %d\n", other), 1) // one that came later has gone
	h.log.await(t, fmt.Sprintf("msg %d: held on arrival", a.ID), 1)
	h.end()
	h.start()
	c := h.openDesk()
	is(t, listOf(t, c, admin.Filter{State: admin.Held}), []string{fmt.Sprintf("%d <alice@test.example> r@remote.example:held", a.ID)})
	e, err := h.store.Entry(ctx, queue.ID(a.ID))
	if err != nil || fmt.Sprint(e.Envelope.Options) != "[BODY=8BITMIME]" {
		t.Errorf("%+v, %v", e, err)
	}
	if len(h.got()) != 1 {
		t.Errorf("it was tried: %+v", h.got())
	}
	orderOf(t, c, admin.Release, a.ID)
	h.log.await(t, fmt.Sprintf("end msg %d\n", a.ID), 1)
	if got := h.got(); len(got) != 2 || got[1].recipient != "r@remote.example" {
		t.Errorf("%+v", got)
	}
	h.empty()
	h.end()
}
