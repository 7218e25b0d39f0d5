package send

import (
	"context"
	"slices"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/bounce"
	"qmail/internal/format/dsn"
	"qmail/internal/format/envelope"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/queue"
)

// wanted reports whether somebody is to be told of what becomes of a recipient. The wishes of RFC 3461 are the
// sender's; what comes from nobody and fails is told to our own postmaster, who has no wishes.
func wanted(e *envelope.Envelope, recipient uint32, what dsn.Notify) bool {
	if e.Sender == "" || e.Sender == bounce.DoubleSender {
		return what == dsn.Failure
	}
	if e.RecipientOptions == nil {
		return what != dsn.Success
	}
	return dsn.OfRecipient(e.RecipientOptions[int(recipient)]).Notify.Wants(what)
}

// hasOption looks for an option of a message.
func hasOption(options []string, option string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return address.EqualFold(o, option) })
}

// delivered closes a recipient, or keeps it for the end of the job if its sender wants to hear of it from us. Who
// took the message may have taken the wish over, too.
func (c *core) delivered(d *delivery, i int, text string) {
	recipient := d.job.Recipients[i]
	asked := !slices.Contains(d.passedOn, i) && wanted(d.envelope, recipient, dsn.Success)
	if asked && !c.mayTell(d.envelope.Sender) {
		c.slog.Info("the sender has been told of many successes, and not of this one", "msg", d.job.Message)
		asked = false
	}
	if !asked {
		c.close(queue.ID(d.job.Message), recipient, queue.Delivered)
		return
	}
	d.told = append(d.told, recipient)
	d.news = append(d.news, c.outcome(d.envelope, recipient, deliveryAction(d.job.Channel, text), text))
}

// deliveryAction is what a success means for who waits to hear of it (RFC 3461 5.2.2, 5.2.3 and 5.2.7).
func deliveryAction(channel schedule.Channel, text string) dsn.Action {
	if channel == schedule.Remote {
		return dsn.Relayed // to a server that does not offer to report
	}
	for line := range strings.Lines(text) {
		counts, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "did 0+")
		forwards, ok2 := strings.CutSuffix(counts, "+0")
		if ok && ok2 && forwards != "0" && forwards != "1" {
			return dsn.Expanded
		}
	}
	return dsn.Delivered
}

// outcome is what a notice says of a recipient.
func (c *core) outcome(e *envelope.Envelope, recipient uint32, action dsn.Action, text string) dsn.Outcome {
	to := c.config.Routes.Rewrite(e.Recipients[recipient])
	return dsn.Outcome{
		Recipient: c.config.Routes.Strip(to.Address),
		Original:  dsn.OfRecipient(e.RecipientOptions[int(recipient)]).Original,
		Action:    action, Report: text, Tried: c.now(),
	}
}

// tell sends what a job has to tell of successes. The notice and the end of the recipients are one record.
func (c *core) tell(ctx context.Context, d *delivery) {
	if len(d.told) == 0 {
		return
	}
	id := queue.ID(d.job.Message)
	n := &notice{
		kind: bounce.Delivered, of: id, original: d.envelope, outcomes: d.news,
		closes: []queue.Close{{ID: id, Recipients: d.told, Outcome: queue.Delivered}},
	}
	c.untold[n] = true
	c.notify(ctx, n) // there is a sender: delivered has asked
}

// told goes on when news of a success are in the queue. Those that could not be put there are tried again for as
// long as we run.
func (c *core) told(ctx context.Context, e queued) {
	if e.err == nil {
		delete(c.untold, e.notice)
		c.log.Notice("delivery", uint64(e.of), int64(e.accept.ID))
		return
	}
	c.log.Warning("trouble injecting bounce message, will try later")
	c.slog.Warn("unable to queue a delivery notice", "msg", e.of, "err", e.err)
	c.later(systemTrouble, func() {
		if c.untold[e.notice] {
			c.notify(ctx, e.notice)
		}
	})
}

// giveUpTelling closes what was delivered, so that it is not delivered again after a restart.
func (c *core) giveUpTelling() {
	for n := range c.untold {
		for i := range n.closes {
			n.closes[i].As = 0
		}
		c.batch.Closes = append(c.batch.Closes, n.closes...)
		delete(c.untold, n)
	}
	c.flush()
}

// warn tells the sender of a message that it is late, once: after the first attempt that was made at the age of
// warnlifetime or later and left something to be done. All that is open then is named.
//
// Which messages have been warned of is not written down: after a restart the plan says when the attempt before it
// was made, and that says whether there was a warning.
func (c *core) warn(ctx context.Context, d *delivery) {
	id := queue.ID(d.job.Message)
	if len(d.late) == 0 || d.lost || c.config.Warn == 0 || c.warned[id] || !c.lateAt(d.envelope, d.job.Channel, d.job) {
		return
	}
	c.warned[id] = true
	n := &notice{kind: bounce.Delayed, of: id, original: d.envelope, until: d.envelope.Birth.Add(c.config.Schedule.Lifetime)}
	for _, p := range c.sched.Plans(uint64(id)) {
		for _, r := range p.Recipients {
			if !wanted(d.envelope, r, dsn.Delay) {
				continue
			}
			o := c.outcome(d.envelope, r, dsn.Delayed, d.late[r])
			o.Until = n.until
			n.outcomes = append(n.outcomes, o)
		}
	}
	if len(n.outcomes) == 0 {
		return
	}
	// The notes of this attempt say that there was a warning, so they enter the queue with it.
	c.batch.Notes = slices.DeleteFunc(c.batch.Notes, func(note queue.Note) bool {
		if note.ID == id {
			n.notes = append(n.notes, note)
		}
		return note.ID == id
	})
	c.notify(ctx, n)
}

// lateAt reports whether an attempt was made at the age of warnlifetime or later.
func (c *core) lateAt(e *envelope.Envelope, channel schedule.Channel, job schedule.Job) bool {
	return schedule.Step(job.Next, e.Birth, channel) >= schedule.StepAt(c.config.Warn)
}

// restoreWarning finds out whether there was a warning before a restart.
func (c *core) restoreWarning(entry *queue.Entry, m *schedule.Message) {
	if c.config.Warn == 0 {
		return
	}
	for _, r := range m.Recipients {
		if !r.Next.IsZero() && schedule.Step(r.Next, m.Birth, r.Channel) >= schedule.StepAt(c.config.Warn) {
			c.warned[entry.ID] = true
			return
		}
	}
}

// warnedOf goes on when a warning is in the queue, or could not be put there: then the next attempt makes another.
func (c *core) warnedOf(e queued) {
	if e.err == nil {
		c.log.Notice("delay", uint64(e.of), int64(e.accept.ID))
		return
	}
	c.slog.Warn("unable to queue a delay notice", "msg", e.of, "err", e.err)
	delete(c.warned, e.of)
	c.batch.Notes = append(c.batch.Notes, e.notes...)
}
