package send

import (
	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
)

// envelopes keeps the envelopes of messages at work, up to a number of bytes; the oldest go first. What is
// not here is read from the queue again.
type envelopes struct {
	limit, size int
	byID        map[queue.ID]*keptEnvelope
	oldest      []queue.ID // in order of arrival; some are gone already
}

type keptEnvelope struct {
	envelope *envelope.Envelope
	size     int
}

func newEnvelopes(limit int) *envelopes {
	return &envelopes{limit: limit, byID: map[queue.ID]*keptEnvelope{}}
}

func (k *envelopes) get(id queue.ID) *envelope.Envelope {
	if e := k.byID[id]; e != nil {
		return e.envelope
	}
	return nil
}

func (k *envelopes) put(id queue.ID, e *envelope.Envelope) {
	if k.byID[id] != nil {
		return
	}
	size := 200 + len(e.Sender)
	for _, r := range e.Recipients {
		size += 16 + len(r)
	}
	for _, options := range e.RecipientOptions {
		size += 64
		for _, o := range options {
			size += 16 + len(o)
		}
	}
	k.byID[id] = &keptEnvelope{e, size}
	k.oldest = append(k.oldest, id)
	k.size += size
	for k.size > k.limit && len(k.oldest) > 1 {
		k.drop(k.oldest[0])
		k.oldest = k.oldest[1:]
	}
	if len(k.oldest) > 2*len(k.byID)+100 {
		k.compact()
	}
}

func (k *envelopes) drop(id queue.ID) {
	if e := k.byID[id]; e != nil {
		k.size -= e.size
		delete(k.byID, id)
	}
}

// compact forgets the ids of those that are gone.
func (k *envelopes) compact() {
	live := make([]queue.ID, 0, len(k.byID)+100)
	for _, id := range k.oldest {
		if k.byID[id] != nil {
			live = append(live, id)
		}
	}
	k.oldest = live
}
