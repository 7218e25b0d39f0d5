package journal

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
)

// spot is a live message where it was when a scan began.
type spot struct {
	id   queue.ID
	seg  *segment
	off  uint32
	told bool
}

// Scan implements queue.Store. It walks the footers, which have the small envelopes; what it does not find
// there it reads one by one.
func (j *Journal) Scan(f func(*queue.Entry) error) error {
	spots := j.spots()
	var entry queue.Entry
	var halt error
	for at := 0; at < len(spots); {
		s := spots[at].seg
		next := at
		for next < len(spots) && spots[next].seg == s {
			next++
		}
		here := spots[at:next]
		at = next
		err := j.records(s, func(p place, it *item) error {
			if it.kind != kindAccept || it.flags&flagCut != 0 {
				return nil
			}
			i, ok := slices.BinarySearchFunc(here, spot{id: it.id, off: uint32(p.off)}, bySpot)
			if !ok || here[i].told {
				return nil
			}
			env, err := envelope.Parse(it.envelope, true, 0)
			if err != nil {
				return nil // reading the record itself will name the damage
			}
			here[i].told = true
			halt = j.report(f, &entry, it.id, env)
			return halt
		})
		if halt != nil {
			return halt
		}
		if err != nil && !errors.Is(err, errGone) {
			j.warn(s, "scan: "+err.Error())
		}
	}
	for i := range spots {
		if spots[i].told {
			continue
		}
		env, err := j.Envelope(context.Background(), spots[i].id)
		if errors.Is(err, queue.ErrNotFound) {
			continue
		}
		if err := j.report(f, &entry, spots[i].id, env); err != nil {
			return err
		}
	}
	return nil
}

// Entry implements queue.Store.
func (j *Journal) Entry(ctx context.Context, id queue.ID) (*queue.Entry, error) {
	env, err := j.Envelope(ctx, id)
	if err != nil && !errors.Is(err, queue.ErrDamaged) {
		return nil, err
	}
	var found *queue.Entry
	err = j.report(func(e *queue.Entry) error { found = e; return nil }, &queue.Entry{}, id, env)
	if err == nil && found == nil {
		err = queue.ErrNotFound
	}
	return found, err
}

// spots lists all live messages in the order of the log.
func (j *Journal) spots() []spot {
	j.mu.RLock()
	spots := make([]spot, 0, len(j.index.live))
	for id, e := range j.index.live {
		spots = append(spots, spot{id: id, seg: e.seg, off: e.off})
	}
	j.mu.RUnlock()
	slices.SortFunc(spots, func(a, b spot) int {
		if a.seg != b.seg {
			return cmp.Compare(a.seg.seq, b.seg.seq)
		}
		return bySpot(a, b)
	})
	return spots
}

func bySpot(a, b spot) int {
	return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.id, b.id))
}

// report calls f for one message, if it is still there.
func (j *Journal) report(f func(*queue.Entry) error, entry *queue.Entry, id queue.ID, env *envelope.Envelope) error {
	j.mu.RLock()
	e := j.index.live[id]
	if e == nil {
		j.mu.RUnlock()
		return nil
	}
	*entry = queue.Entry{
		ID: id, Envelope: env, Size: e.size, Recipients: int(e.recipients), Open: entry.Open[:0], Failed: entry.Failed[:0], Held: e.flags&held != 0,
	}
	for i := range e.recipients {
		if e.closed(i) || e.failedAt(i) {
			continue
		}
		open := queue.Open{Recipient: i}
		if next := e.nextOf(i); next != 0 {
			open.Next = time.Unix(0, next)
		}
		entry.Open = append(entry.Open, open)
	}
	if e.more != nil {
		entry.Failed = e.more.failed.appendTo(entry.Failed)
	}
	j.mu.RUnlock()
	return f(entry)
}
