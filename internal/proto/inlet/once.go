package inlet

import (
	"context"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/qq"
	"qmail/internal/system/env"
)

// Once is the queue of a program that serves one connection. Its methods are for one goroutine, but for those of
// messages.
type Once struct {
	queue *qq.Queue
	asked bool            // send is as good as it gets
	send  *enqueue.Client // nil if no qmail-send can be asked
	ctx   context.Context
	end   context.CancelFunc
}

// NewOnce makes one; ctx ends what is under way. Close comes after the session.
func NewOnce(ctx context.Context, e *env.Env) *Once {
	o := &Once{queue: qq.New(e)}
	o.ctx, o.end = context.WithCancel(ctx)
	return o
}

// Close ends the connection to qmail-send.
func (o *Once) Close() {
	o.end()
	if o.send != nil {
		o.send.Close()
	}
}

// Verify is Queue's. Where nobody can be asked every recipient is welcome, and found out about later, as it was
// before there was anybody to ask.
func (o *Once) Verify(recipient string) error {
	if !o.asked {
		o.asked = true
		if !o.queue.Replaced { // else who takes the message knows whom it is for
			o.send, _ = enqueue.Dial(o.queue.Home)
		}
	}
	if o.send == nil {
		return nil
	}
	if refusal := verify(o.send, recipient); refusal != nil && (refusal.Letter() == 'D' || !gone(o.send)) {
		return refusal
	}
	return nil
}

func gone(c *enqueue.Client) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// Open is Queue's.
func (o *Once) Open(e *envelope.Envelope) (Message, error) {
	ctx, cancel := context.WithTimeout(o.ctx, qq.Lifetime)
	m, err := o.queue.Open(ctx, e)
	if err != nil {
		cancel()
		return nil, spelled(err)
	}
	return &single{m, cancel}, nil
}

// single is a message on its way.
type single struct {
	*qq.Message
	cancel context.CancelFunc
}

// Write never fails: when nothing more is wanted, Commit says why.
func (m *single) Write(p []byte) error {
	_, _ = m.Message.Write(p)
	return nil
}

func (m *single) Commit(e *envelope.Envelope) (uint64, error) {
	defer m.cancel()
	accepted, err := m.Message.Commit(e)
	if err != nil {
		return 0, spelled(err)
	}
	return accepted.QP, nil
}

func (m *single) Abort() {
	// Whatever the program on the other side does now, nobody waits for long.
	defer time.AfterFunc(abortTime, m.cancel).Stop()
	m.Message.Abort()
	m.cancel()
}

// abortTime is how long a program may take to see that its message is not to be.
const abortTime = 10 * time.Second
