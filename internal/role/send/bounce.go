package send

import (
	"context"

	"qmail/internal/format/bounce"
	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
)

// bounce tells the sender of a finished message about its failed recipients. The bounce and the end of those
// recipients are one record of the queue: neither is ever there without the other.
func (c *core) bounce(ctx context.Context, id queue.ID, e *envelope.Envelope, f *failure) {
	n := &notice{kind: bounce.Failed, of: id, original: e, outcomes: f.outcomes(e), closes: f.closes(id)}
	if !c.notify(ctx, n) {
		c.log.TripleBounce(uint64(id))
		c.batch.Closes = append(c.batch.Closes, queue.Close{ID: id, Recipients: f.recipients(), Outcome: queue.Dropped})
		c.end(id)
		return
	}
	f.writing = true
}

// bounced ends the message of a bounce that is in the queue; one that could not be put there is tried again later.
func (c *core) bounced(ctx context.Context, e queued) {
	if f := c.failures[e.of]; f != nil {
		f.writing = false
	}
	if e.err != nil {
		c.log.Warning("trouble injecting bounce message, will try later")
		c.slog.Warn("unable to queue a bounce", "msg", e.of, "err", e.err)
		c.later(systemTrouble, func() {
			if f := c.failures[e.of]; f != nil && !f.writing { // an order may have come before
				c.bounce(ctx, e.of, e.original, f)
			}
		})
		return
	}
	c.log.Bounce(uint64(e.of), int64(e.accept.ID))
	c.end(e.of)
}
