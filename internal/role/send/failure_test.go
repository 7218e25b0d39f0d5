package send

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"qmail/internal/format/bounce"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/admin"
	"qmail/internal/store/queue"
	"qmail/internal/system/env"
)

// TestAFailureOutlivesARestart: who failed for good is not asked again, and the bounce says what was said then.
func TestAFailureOutlivesARestart(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(r string, attempt int) string {
		switch {
		case strings.HasPrefix(r, "bad"):
			return fmt.Sprintf("Dno such box, attempt %d (#5.1.1)\n", attempt)
		case strings.HasPrefix(r, "later"):
			return "Znot now (#4.3.0)\n"
		}
		return "Kok\n"
	})
	h.start()
	h.submit("alice@test.example", "x\n", "bad1@remote.example", "later@remote.example", "bad2@virt.example", "good@remote.example")
	h.log.await(t, "failure:", 1)
	h.log.await(t, "deferral:", 1)
	h.log.await(t, "success:", 2) // bad2 is alice's by virtualdomains
	h.end()
	h.setDeliver(func(r string, attempt int) string { return "Kok\n" })
	h.start()
	h.orders <- env.Order{Kind: alarm}
	h.log.await(t, "end msg", 2)
	h.end()
	h.mu.Lock()
	if n := h.attempts["bad1@remote.example"]; n != 1 {
		t.Errorf("tried %d times", n)
	}
	h.mu.Unlock()
	i := slices.IndexFunc(h.got(), func(d delivered) bool { return d.sender == "" })
	if i < 0 {
		t.Fatal("no bounce")
	}
	if body := h.got()[i].body; !strings.Contains(body, "<bad1@remote.example>:\nno such box, attempt 1 (#5.1.1)\n\n--- Below") {
		t.Error(body)
	}
}

// TestABounceThatCouldNotBeQueuedIsWrittenAfterARestart, although nobody is left to be tried.
func TestABounceThatCouldNotBeQueuedIsWrittenAfterARestart(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(r string, _ int) string {
		if strings.HasPrefix(r, "alice") {
			return "Kok\n"
		}
		return "Dnever " + r + " (#5.0.0)\n"
	})
	h.start()
	h.store.fail(errors.New("no disk"), func(b queue.Batch) bool { return len(b.Accepts) > 0 && len(b.Closes) > 0 })
	id := h.submit("alice@test.example", "x\n", "box@virt.example", "r@remote.example")
	h.log.await(t, "trouble injecting bounce message", 1)
	h.end()
	h.start()
	h.log.await(t, "end msg", 2)
	if !strings.Contains(h.log.String(), fmt.Sprintf("bounce msg %d qp", id)) {
		t.Error(h.log.String())
	}
	h.empty()
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.attempts["r@remote.example"]; n != 1 {
		t.Errorf("tried %d times", n)
	}
}

// TestFailureTextsAreBounded: many failures with long reports do not fill the memory, and a restart finds the same.
func TestFailureTextsAreBounded(t *testing.T) {
	f := &failure{}
	long := strings.Repeat("x", 5000) + "\nsecond line\n"
	var kept []string
	for i := range uint32(30_000) {
		text := f.cut(long)
		kept = append(kept, text)
		f.add(failedRecipient{index: i, address: fmt.Sprintf("r%d@far.example", i), text: text, outcome: queue.Bounced})
	}
	var paragraphs []byte
	for _, o := range f.outcomes(&envelope.Envelope{}) {
		paragraphs = bounce.AppendFailure(paragraphs, o.Recipient, o.Report)
	}
	if n := len(paragraphs); n > 6*maxParagraphs {
		t.Errorf("%d bytes", n)
	}
	if kept[0] != long || kept[2000] != long[:maxBeginning]+"\n" {
		t.Errorf("kept %d and %d bytes", len(kept[0]), len(kept[2000]))
	}
	var again []byte
	for i, text := range kept {
		again = bounce.AppendFailure(again, fmt.Sprintf("r%d@far.example", i), text)
	}
	if string(again) != string(paragraphs) {
		t.Error("a restart would say something else")
	}
}

// TestARetryWritesABounceThatCouldNotBeQueued, and does so once.
func TestARetryWritesABounceThatCouldNotBeQueued(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(r string, _ int) string {
		if strings.HasPrefix(r, "alice") {
			return "Kok\n"
		}
		return "Dnever (#5.0.0)\n"
	})
	h.start()
	c := h.openDesk()
	h.store.fail(errors.New("no disk"), func(b queue.Batch) bool { return len(b.Accepts) > 0 && len(b.Closes) > 0 })
	id := h.submit("alice@test.example", "x\n", "r@remote.example")
	h.log.await(t, "trouble injecting bounce message", 1)
	is(t, listOf(t, c, admin.Filter{}), []string{fmt.Sprintf("%d <alice@test.example> r@remote.example:failed", id)})
	h.store.fail(nil, nil)
	orderOf(t, c, admin.Retry, id)
	h.log.await(t, "end msg", 2)
	if n := strings.Count(h.log.String(), "bounce msg"); n != 1 {
		t.Errorf("%d bounces", n)
	}
	h.empty()
	h.end()
}
