package send

import (
	"context"
	"strings"
	"time"

	"qmail/internal/format/dsn"
	"qmail/internal/format/envelope"
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
	list    []failedRecipient // in the order in which they failed
	size    int               // of their texts
	writing bool              // the bounce is on its way into the queue
}

// failedRecipient is one of those that the sender has to be told of.
type failedRecipient struct {
	index         uint32
	address, text string // as the sender knows it, and why
	outcome       queue.Outcome
	tried         time.Time // zero if that is not known any more
}

// fail remembers a failed recipient for the bounce, here and in the queue, where it stays open until the bounce is
// there.
func (c *core) fail(id queue.ID, e *envelope.Envelope, recipient uint32, target, text string, outcome queue.Outcome) {
	if !wanted(e, recipient, dsn.Failure) {
		c.close(id, recipient, outcome)
		return
	}
	f := c.failures[id]
	if f == nil {
		f = &failure{}
		c.failures[id] = f
	}
	text = f.cut(text)
	f.add(failedRecipient{recipient, c.config.Routes.Strip(target), text, outcome, c.now()})
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
		f.add(failedRecipient{index: failed.Recipient, address: c.config.Routes.Strip(to.Address), text: failed.Text, outcome: failed.Outcome})
	}
	c.failures[entry.ID] = f
	if len(entry.Open) == 0 {
		id, e := entry.ID, entry.Envelope
		c.post(func() { c.finish(ctx, id, e) })
	}
}

func (f *failure) add(one failedRecipient) {
	f.list = append(f.list, one)
	f.size += len(one.address) + len(one.text)
}

// cut is what is kept of a report.
func (f *failure) cut(text string) string {
	switch n := f.size; {
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
	all := make([]uint32, len(f.list))
	for i, one := range f.list {
		all[i] = one.index
	}
	return all
}

// outcomes are the failures as a notice tells them.
func (f *failure) outcomes(e *envelope.Envelope) []dsn.Outcome {
	all := make([]dsn.Outcome, len(f.list))
	for i, one := range f.list {
		all[i] = dsn.Outcome{
			Recipient: one.address, Original: dsn.OfRecipient(e.RecipientOptions[int(one.index)]).Original,
			Action: dsn.Failed, Report: one.text, Tried: one.tried,
		}
	}
	return all
}

// closes end the failed recipients.
func (f *failure) closes(id queue.ID) (closes []queue.Close) {
	for _, outcome := range [...]queue.Outcome{queue.Bounced, queue.Expired} {
		var recipients []uint32
		for _, one := range f.list {
			if one.outcome == outcome {
				recipients = append(recipients, one.index)
			}
		}
		if recipients != nil {
			closes = append(closes, queue.Close{ID: id, Recipients: recipients, Outcome: outcome})
		}
	}
	return closes
}
