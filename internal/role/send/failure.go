package send

import (
	"context"
	"strings"

	"qmail/internal/format/bounce"
	"qmail/internal/store/queue"
)

const (
	// maxParagraphs bounds the failure texts kept for one message, in bytes; beyond it only the beginning of each
	// is, and beyond four times as much nothing but addresses.
	maxParagraphs = 4 << 20
	// maxBeginning is that beginning, in bytes.
	maxBeginning = 200
)

// failure collects what the sender of a message will have to be told.
type failure struct {
	paragraphs []byte
	bounced    []uint32
	expired    []uint32
	writing    bool // the bounce is on its way into the queue
}

// fail remembers a failed recipient for the bounce, here and in the queue, where it stays open until the bounce is
// there.
func (c *core) fail(id queue.ID, recipient uint32, target, text string, outcome queue.Outcome) {
	f := c.failures[id]
	if f == nil {
		f = &failure{}
		c.failures[id] = f
	}
	text = f.cut(text)
	f.add(recipient, c.config.Routes.Strip(target), text, outcome)
	if n := len(c.batch.Fails); n > 0 { // recipients that failed in the same words share a record
		if last := &c.batch.Fails[n-1]; last.ID == id && last.Outcome == outcome && last.Text == text {
			last.Recipients = append(last.Recipients, recipient)
			return
		}
	}
	c.batch.Fails = append(c.batch.Fails, queue.Fail{ID: id, Recipients: []uint32{recipient}, Outcome: outcome, Text: text})
}

// restoreFailures takes over what failed before a restart. If all others are done the bounce is written now.
func (c *core) restoreFailures(ctx context.Context, entry *queue.Entry) {
	if len(entry.Failed) == 0 {
		return
	}
	f := &failure{}
	for _, failed := range entry.Failed {
		to := c.config.Routes.Rewrite(entry.Envelope.Recipients[failed.Recipient])
		f.add(failed.Recipient, c.config.Routes.Strip(to.Address), failed.Text, failed.Outcome)
	}
	c.failures[entry.ID] = f
	if len(entry.Open) == 0 {
		id, e := entry.ID, entry.Envelope
		c.post(func() { c.finish(ctx, id, e) })
	}
}

func (f *failure) add(recipient uint32, address, text string, outcome queue.Outcome) {
	if outcome == queue.Expired {
		f.expired = append(f.expired, recipient)
	} else {
		f.bounced = append(f.bounced, recipient)
	}
	f.paragraphs = bounce.AppendFailure(f.paragraphs, address, text)
}

// cut is what is kept of a report.
func (f *failure) cut(text string) string {
	switch n := len(f.paragraphs); {
	case n > 4*maxParagraphs:
		return ""
	case n > maxParagraphs:
		line, _, _ := strings.Cut(text, "\n")
		return line[:min(len(line), maxBeginning)] + "\n"
	}
	return text
}

// recipients are all that failed.
func (f *failure) recipients() []uint32 {
	all := make([]uint32, 0, len(f.bounced)+len(f.expired))
	return append(append(all, f.bounced...), f.expired...)
}
