package send

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/admin"
	"qmail/internal/store/queue"
)

const (
	// maxEvents bounds what is told of one message's life: the newest count.
	maxEvents = 20_000
	// maxReason bounds a text that is kept while it is told, in bytes.
	maxReason = 500
	// searchTime is how long a search through the journal may take.
	searchTime = time.Minute
)

// history reads what the journal has on a message. Only a few may do so at a time, and others do not take the places of
// owners.
func (d *desk) history(ctx context.Context, peer admin.Peer, id queue.ID, f func(*queue.Event) error) error {
	tokens := d.search[0]
	if peer.Owner {
		tokens = d.search[1]
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	select {
	case tokens <- struct{}{}:
		defer func() { <-tokens }()
	case <-ctx.Done():
		return errBusy
	}
	return d.store.History(ctx, id, f)
}

// reasons are the texts of the last deferrals of a message's open recipients.
func (d *desk) reasons(ctx context.Context, peer admin.Peer, e *queue.Entry) (map[uint32]string, error) {
	open := map[uint32]bool{}
	for _, o := range e.Open {
		if !o.Next.IsZero() {
			open[o.Recipient] = true
		}
	}
	texts := map[uint32]string{}
	if len(open) == 0 {
		return texts, nil
	}
	err := d.history(ctx, peer, e.ID, func(event *queue.Event) error {
		if n := event.Note; n != nil && n.Text != "" && !strings.HasPrefix(n.Text, ordered) {
			text := short(n.Text)
			for _, r := range all(n.Recipients, e.Recipients) {
				if open[r] {
					texts[r] = text
				}
			}
		}
		return nil
	})
	return texts, err
}

func short(text string) string { return strings.TrimRight(text[:min(len(text), maxReason)], "\n") }

// all are the recipients that a record is for.
func all(set []uint32, recipients int) []uint32 {
	if set != nil {
		return set
	}
	set = make([]uint32, recipients)
	for i := range set {
		set[i] = uint32(i)
	}
	return set
}

var errEnough = errors.New("enough")

// Life is admin.Backend: what the journal still has of a message, whether it is in the queue or not.
func (d *desk) Life(ctx context.Context, peer admin.Peer, id uint64, out func(*admin.Event) error) error {
	e, err := d.envelopeOf(ctx, peer, queue.ID(id))
	if err != nil {
		return err
	}
	var events []admin.Event
	cut, accepted := false, false
	err = d.history(ctx, peer, queue.ID(id), func(event *queue.Event) error {
		told, ok := lifeEvent(event, e)
		if !ok || told.What == "accepted" && accepted {
			return nil
		}
		if told.What == "accepted" { // which the collector may have moved behind the rest
			accepted = true
			events = slices.Insert(events, 0, told)
			return nil
		}
		if len(events) >= maxEvents {
			events, cut = events[maxEvents/2:], true
		}
		events = append(events, told)
		return nil
	})
	if err != nil {
		return err
	}
	if cut {
		if err := out(&admin.Event{What: "cut", Text: "there is more, and older"}); err != nil {
			return err
		}
	}
	for i := range events { // the journal is not kept waiting
		if err := out(&events[i]); err != nil {
			return err
		}
	}
	return nil
}

// envelopeOf finds the envelope of a message that peer may see, dead or alive. It is nil for one that only owners may
// see because it is damaged.
func (d *desk) envelopeOf(ctx context.Context, peer admin.Peer, id queue.ID) (*envelope.Envelope, error) {
	found := false
	var e *envelope.Envelope
	err := d.history(ctx, peer, id, func(event *queue.Event) error {
		if found = true; event.Accept != nil && event.Accept.Envelope != nil {
			e = event.Accept.Envelope
			return errEnough
		}
		return nil
	})
	if err != nil && err != errEnough {
		return nil, err
	}
	if !found || !peer.Owner && (e == nil || e.UID != peer.UID) {
		return nil, errNoMail
	}
	return e, nil
}

// lifeEvent puts a record into words. What the collector says again is no news, unless it is all that is left.
func lifeEvent(event *queue.Event, e *envelope.Envelope) (told admin.Event, ok bool) {
	told = admin.Event{Time: event.Time}
	var who []uint32
	switch {
	case event.Accept != nil:
		if event.Copy {
			told.Time = time.Time{}
		}
		told.What = "accepted"
		told.Text = strconv.FormatInt(event.Accept.Size, 10) + " bytes, " + strconv.Itoa(event.Accept.Recipients) + " recipients"
		if e != nil {
			told.Time = e.Birth
			told.Text += " from <" + e.Sender + ">, by uid " + strconv.Itoa(e.UID)
		}
		return told, true
	case event.Copy:
		return told, false
	case event.Note != nil:
		told.What, told.Next, told.Text, who = "deferred", event.Note.Next, short(event.Note.Text), event.Note.Recipients
		if strings.HasPrefix(event.Note.Text, ordered) {
			told.What = "retried"
		}
	case event.Fail != nil:
		told.What, told.Text, who = "failed", short(event.Fail.Text), event.Fail.Recipients
	case event.Close != nil:
		told.What, told.As, who = event.Close.Outcome.String(), uint64(event.Close.As), event.Close.Recipients
	case event.Hold != nil && event.Hold.On:
		told.What = "held"
	case event.Hold != nil:
		told.What = "released"
	}
	told.Recipients = ranges(who)
	if len(who) == 1 && e != nil && int(who[0]) < len(e.Recipients) {
		told.Addresses = e.Recipients[who[0]]
	}
	return told, true
}

// ranges writes a sorted set as "0-3,7"; a very long one is cut.
func ranges(set []uint32) string {
	var b strings.Builder
	for i := 0; i < len(set); {
		from := i
		for i++; i < len(set) && set[i] == set[i-1]+1; i++ {
		}
		if b.Len() > maxReason {
			return b.String() + ",..."
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(uint64(set[from]), 10))
		if i-from > 1 {
			b.WriteString("-" + strconv.FormatUint(uint64(set[i-1]), 10))
		}
	}
	return b.String()
}
