package send

import (
	"context"
	"io"
	"os"

	"qmail/internal/format/bounce"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
	"qmail/internal/store/queue"
)

// maxInjecting bounds the bounces that are written at once.
const maxInjecting = 16

// injected is the event of a bounce that is in the queue, or could not be put there.
type injected struct {
	of       queue.ID
	original *envelope.Envelope
	id       queue.ID
	bounce   *envelope.Envelope
	size     int64
	err      error
}

// bounce tells the sender of a finished message about its failed recipients. The bounce and the end of those
// recipients are one record of the queue: neither is ever there without the other.
func (c *core) bounce(ctx context.Context, id queue.ID, e *envelope.Envelope, f *failure) {
	sender, recipient, ok := bounce.Envelope(e.Sender, c.config.DoubleBounce)
	if !ok {
		c.log.TripleBounce(uint64(id))
		c.batch.Closes = append(c.batch.Closes, queue.Close{ID: id, Recipients: f.recipients(), Outcome: queue.Dropped})
		c.end(id)
		return
	}
	b := &envelope.Envelope{UID: os.Getuid(), Birth: c.now(), Sender: sender, Recipients: []string{recipient}}
	notice := queue.Accept{ID: c.store.NewID(), Envelope: b}
	b.QP = int64(notice.ID)
	head := enqueue.AppendReceived(nil, b.QP, "for bounce", c.now())
	head = bounce.Append(head, bounce.Notice{
		Date: c.now(), From: c.config.BounceFrom, Host: c.config.BounceHost,
		Sender: e.Sender, To: recipient, Failures: f.paragraphs,
	})
	c.flush() // what this message's last job closed goes first
	c.bouncing++
	f.writing = true
	go func() {
		c.injecting <- struct{}{}
		defer func() { <-c.injecting }()
		c.inject(ctx, id, e, f, notice, head)
	}()
}

// inject queues a bounce: head, then the original message.
func (c *core) inject(ctx context.Context, id queue.ID, original *envelope.Envelope, f *failure, notice queue.Accept, head []byte) {
	event := injected{of: id, original: original, id: notice.ID, bounce: notice.Envelope}
	err := c.attach(ctx, id, &notice, head, &event.size)
	if err != nil {
		event.err = err
		c.post(event)
		return
	}
	batch := queue.Batch{Accepts: []queue.Accept{notice}}
	for outcome, recipients := range map[queue.Outcome][]uint32{queue.Bounced: f.bounced, queue.Expired: f.expired} {
		if len(recipients) > 0 {
			batch.Closes = append(batch.Closes, queue.Close{ID: id, Recipients: recipients, Outcome: outcome, As: notice.ID})
		}
	}
	c.store.Commit(batch, func(err error) {
		if notice.Spool != nil {
			notice.Spool.Close()
		}
		event.err = err
		c.post(event)
	})
}

// attach gives a bounce its body: small originals in memory, large ones by a file.
func (c *core) attach(ctx context.Context, id queue.ID, notice *queue.Accept, head []byte, size *int64) error {
	body, err := c.store.Body(ctx, id)
	if err != nil {
		return err
	}
	defer body.Close()
	*size = int64(len(head)) + body.Size()
	if body.File() == nil && *size <= maxBounceInMemory {
		pieces, err := piecesOf(body)
		notice.Body = append([][]byte{head}, pieces...)
		return err
	}
	spool, err := c.store.Spool()
	if err != nil {
		return err
	}
	if _, err = spool.Write(head); err == nil {
		_, err = io.Copy(spool, io.NewSectionReader(body, 0, body.Size()))
	}
	if err != nil {
		spool.Close()
		return err
	}
	notice.Spool = spool
	return nil
}

// maxBounceInMemory is the largest bounce that is not spooled, in bytes.
const maxBounceInMemory = 256 << 10

// piecesOf is a small body as slices.
func piecesOf(body queue.Body) ([][]byte, error) {
	if b, ok := body.(queue.Bytes); ok {
		return b.Pieces(), nil
	}
	buf := make([]byte, body.Size())
	if n, err := body.ReadAt(buf, 0); n < len(buf) {
		return nil, err
	}
	return [][]byte{buf}, nil
}

// injectedBounce goes on when a bounce is in the queue; one that could not be put there is tried again later.
func (c *core) injectedBounce(ctx context.Context, e injected) {
	c.bouncing--
	if f := c.failures[e.of]; f != nil {
		f.writing = false
	}
	if e.err != nil {
		c.log.Warning("trouble injecting bounce message, will try later")
		c.slog.Warn("unable to queue a bounce", "msg", e.of, "err", e.err)
		c.later(systemTrouble, func() {
			if f := c.failures[e.of]; f != nil {
				c.bounce(ctx, e.of, e.original, f)
			}
		})
		return
	}
	c.log.Bounce(uint64(e.of), int64(e.id))
	c.end(e.of)
	c.log.New(uint64(e.id))
	c.log.Info(uint64(e.id), e.size, e.bounce.Sender, e.bounce.QP, e.bounce.UID)
	c.add(e.id, e.bounce, e.bounce.Birth)
}
