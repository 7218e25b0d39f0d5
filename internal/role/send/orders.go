package send

import (
	"context"
	"fmt"
	"strings"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/queue"
)

const (
	// ordered begins the note of an attempt that somebody asked for.
	ordered = "retry ordered by uid "
	// givenUp is what the sender is told of a message that was bounced by an order without a reason.
	givenUp = "The administrator of this system has removed this message from the queue. (#5.7.0)\n"
)

// doom is an order for those recipients of a message that were being delivered to when it came: whoever of them is not
// delivered to by that attempt is dropped, or failed with this text.
type doom struct {
	drop bool
	text string
}

// office is what the core keeps for those who give orders.
type office struct {
	doomed  map[queue.ID]doom
	damaged map[queue.ID]bool // nothing of the envelope can be read: only to be deleted
}

func newOffice() office {
	return office{doomed: map[queue.ID]doom{}, damaged: map[queue.ID]bool{}}
}

// Order is admin.Backend. It answers when what it did is on the disk.
func (d *desk) Order(ctx context.Context, peer admin.Peer, o *admin.Order) (admin.Effect, error) {
	if !peer.Owner {
		return admin.Effect{}, errOwners
	}
	e, err := d.entry(ctx, peer, o.ID)
	if err != nil {
		return admin.Effect{}, err
	}
	var effect admin.Effect
	done := make(chan error, 1)
	if err := d.ask(ctx, func(c *core) {
		if effect, err = d.order(c, o, e.Envelope, peer.UID); err != nil {
			return
		}
		c.flush()
		c.store.Commit(queue.Batch{}, func(err error) { done <- err }) // by then what was written before is durable
	}); err != nil {
		return admin.Effect{}, err
	}
	if err != nil {
		return admin.Effect{}, err
	}
	select {
	case err := <-done:
		if err != nil {
			d.log.Warn("an order is not on the disk yet", "msg", o.ID, "err", err)
			return effect, reply.Temporary("4.3.0", "it is done, but not on the disk yet", nil)
		}
		return effect, nil
	case <-ctx.Done():
		return effect, errBusy
	}
}

// order carries out an order. e is nil for a damaged message.
func (c *core) order(ctx context.Context, o *admin.Order, e *envelope.Envelope, uid int) (admin.Effect, error) {
	id := queue.ID(o.ID)
	var effect admin.Effect
	var waiting []uint32
	held := false
	for _, p := range c.sched.Plans(o.ID) {
		switch p.State {
		case schedule.Running:
			effect.Running += int64(len(p.Recipients))
		case schedule.Waiting:
			waiting = append(waiting, p.Recipients...)
		case schedule.Held:
			held = true
		}
		effect.Recipients += int64(len(p.Recipients))
	}
	f := c.failures[id]
	if f != nil && f.writing {
		return effect, reply.Temporary("4.5.0", "its bounce is being written", nil)
	}
	if f != nil && (o.Verb == admin.Bounce || o.Verb == admin.Delete) {
		effect.Recipients += int64(len(f.recipients()))
	}
	var what string
	var err error
	switch o.Verb {
	case admin.Retry:
		what = "retried"
		effect.Recipients = int64(len(waiting))
		if err = c.retry(ctx, id, e, waiting, uid); held && len(waiting) == 0 {
			err = errHeld
		}
	case admin.Hold, admin.Release:
		what, err = c.hold(id, o.Verb == admin.Hold)
	case admin.Bounce:
		what = "bounced"
		err = c.giveUp(ctx, id, e, o.Reason, effect.Running > 0)
	case admin.Delete:
		what = "deleted"
		err = c.remove(id, effect.Running > 0)
	default:
		err = reply.Permanent("5.5.1", "unknown order", nil)
	}
	if err != nil {
		return admin.Effect{}, err
	}
	line := fmt.Sprintf("msg %d: %s by uid %d", o.ID, what, uid)
	if o.Verb == admin.Bounce && o.Reason != "" {
		line += ": " + strings.ReplaceAll(o.Reason, "\n", "/")
	}
	c.slog.Info(line, "recipients", effect.Recipients, "running", effect.Running)
	return effect, nil
}

var errHeld = reply.Permanent("5.5.0", "it is on hold: release it first", nil)

var errNobody = reply.Permanent("5.5.0", "nobody of it is to be tried", nil)

// retry makes what waits due. The note of it makes that outlive a restart.
func (c *core) retry(ctx context.Context, id queue.ID, e *envelope.Envelope, waiting []uint32, uid int) error {
	if c.failures[id] != nil && e != nil && !c.sched.Has(uint64(id)) {
		c.finish(ctx, id, e) // all that is left to be done is its bounce
		return nil
	}
	if !c.sched.Due(uint64(id), c.now()) {
		return errNobody
	}
	if len(waiting) > 0 {
		c.batch.Notes = append(c.batch.Notes, queue.Note{ID: id, Recipients: waiting, Next: c.now(), Text: fmt.Sprint(ordered, uid)})
	}
	return nil
}

// hold stops attempts of a message, or lets them go on.
func (c *core) hold(id queue.ID, on bool) (what string, err error) {
	known := false
	if on {
		what, known = "held", c.sched.Hold(uint64(id))
	} else {
		what, known = "released", c.sched.Release(uint64(id), c.now())
	}
	if !known {
		return what, errNobody
	}
	c.batch.Holds = append(c.batch.Holds, queue.Hold{ID: id, On: on})
	return what, nil
}

// giveUp fails whoever is not done; the sender is told.
func (c *core) giveUp(ctx context.Context, id queue.ID, e *envelope.Envelope, reason string, running bool) error {
	if e == nil {
		return reply.Permanent("5.3.0", "the message is damaged: it can only be deleted", nil)
	}
	text := givenUp
	if reason != "" {
		text = strings.TrimRight(reason, "\n") + "\n"
	}
	removed, _ := c.sched.Remove(uint64(id), nil)
	for _, r := range removed {
		c.fail(id, e, r, c.config.Routes.Rewrite(e.Recipients[r]).Address, text, queue.Bounced)
	}
	if running {
		c.doomed[id] = doom{text: text}
		return nil
	}
	c.finish(ctx, id, e)
	return nil
}

// remove drops whoever is not done; nobody is told.
func (c *core) remove(id queue.ID, running bool) error {
	if c.damaged[id] {
		delete(c.damaged, id)
		c.batch.Closes = append(c.batch.Closes, queue.Close{ID: id, Outcome: queue.Dropped})
		c.end(id)
		return nil
	}
	removed, _ := c.sched.Remove(uint64(id), nil)
	if f := c.failures[id]; f != nil {
		removed = append(removed, f.recipients()...)
		delete(c.failures, id)
	}
	if len(removed) > 0 {
		c.batch.Closes = append(c.batch.Closes, queue.Close{ID: id, Recipients: removed, Outcome: queue.Dropped})
	}
	if running {
		c.doomed[id] = doom{drop: true}
		return nil
	}
	if len(removed) == 0 {
		return errNoMail // it has gone meanwhile
	}
	c.end(id)
	return nil
}

// judge is what an order makes of the report of a recipient that it found running. With drop the recipient is to be
// closed and nobody told.
func (c *core) judge(id queue.ID, text string) (judged string, drop bool) {
	doom, ok := c.doomed[id]
	switch {
	case !ok || text[0] == 'K':
		return text, false
	case doom.drop:
		return text, true
	case text[0] == 'D':
		return text, false
	}
	return "D" + text[1:] + doom.text, false
}

// drop closes a recipient that was to be deleted while it was being delivered to.
func (c *core) drop(d *delivery, i int, text string) {
	if text[0] == 'D' {
		c.log.Failure(d.first+uint64(i), text[1:])
	} else {
		c.log.Deferral(d.first+uint64(i), text[1:])
	}
	d.letters[i] = 'D'
	c.close(queue.ID(d.job.Message), d.job.Recipients[i], queue.Dropped)
}
