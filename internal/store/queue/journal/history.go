package journal

import (
	"context"
	"slices"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
)

// History implements queue.Store. It looks through all footers, and through the head from its beginning, so it
// costs what an opening costs; nothing waits for it meanwhile.
func (j *Journal) History(ctx context.Context, id queue.ID, f func(*queue.Event) error) error {
	j.mu.RLock()
	segs := slices.Clone(j.segs)
	j.mu.RUnlock()
	for _, s := range segs {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := int64(-1) // of the last record read, which may hold several items of the message
		var failed error
		err := j.records(s, func(p place, it *item) error {
			if it.id != id || p.off == at {
				return nil
			}
			at = p.off
			failed = j.recall(s, p, id, f)
			return failed
		})
		if failed != nil {
			return failed
		}
		if err != nil && err != errGone {
			return err
		}
	}
	return nil
}

// recall reads one record in full and tells what it says of a message. A record that was collected meanwhile, or can no
// longer be read, tells nothing: what counts of it was said again, or is named elsewhere.
func (j *Journal) recall(s *segment, p place, id queue.ID, f func(*queue.Event) error) error {
	j.mu.RLock()
	file, err := j.acquire(s)
	j.mu.RUnlock()
	if err != nil {
		return nil
	}
	defer j.release(s)
	b := make([]byte, headSize+p.meta)
	if _, err := file.ReadAt(b, p.off); err != nil {
		return nil
	}
	r, err := parseHead(b, s.seq, s.stamp, maxSegment)
	if err != nil || r.meta != p.meta || checksum(b[headSize:]) != r.sum {
		return nil
	}
	return items(b[headSize:], func(it *item) error {
		if it.id != id {
			return nil
		}
		e := event(it)
		if r.time != 0 {
			e.Time = time.Unix(0, r.time)
		}
		return f(e)
	})
}

func event(it *item) *queue.Event {
	e := &queue.Event{Copy: it.flags&flagCopy != 0}
	var who []uint32
	it.who.each(1<<32-1, func(i uint32) { who = append(who, i) })
	switch it.kind {
	case kindAccept:
		env, err := envelope.Parse(it.envelope, true, 0)
		if err != nil {
			env = nil
		}
		e.Accept = &queue.Entry{ID: it.id, Envelope: env, Size: it.size, Recipients: int(it.recipients)}
	case kindClose:
		e.Close = &queue.Close{ID: it.id, Recipients: who, Outcome: it.outcome, As: it.as}
	case kindNote:
		e.Note = &queue.Note{ID: it.id, Recipients: who, Next: time.Unix(0, it.next), Text: string(it.text)}
	case kindFail:
		e.Fail = &queue.Fail{ID: it.id, Recipients: who, Outcome: it.outcome, Text: string(it.text)}
	case kindHold:
		e.Hold = &queue.Hold{ID: it.id, On: it.flags&flagOn != 0}
	}
	return e
}
