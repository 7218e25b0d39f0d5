package qq

import (
	"context"
	"io"
	"os"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
)

// direct is a message on its way to qmail-send, or to the drop directory.
type direct struct {
	queue    *Queue
	ctx      context.Context
	envelope *envelope.Envelope // nil until it is known

	hold   *Hold // all of the message so far, unless it is large: then
	client *enqueue.Client
	stream *enqueue.Message // it goes to qmail-send as it comes
	drop   *dropping        // or, once its envelope is known, to a drop file
	err    error            // why it cannot go on
}

// dropping is a drop file in the making.
type dropping struct {
	w    *io.PipeWriter
	done chan error
}

func (q *Queue) direct(ctx context.Context, e *envelope.Envelope) *direct {
	return &direct{queue: q, ctx: ctx, envelope: e, hold: NewHold(q.Home)}
}

func (d *direct) Write(p []byte) (int, error) {
	if d.err != nil {
		return 0, errStopped
	}
	if d.hold != nil && d.hold.file == nil && d.hold.Size()+int64(len(p)) > inMemory {
		d.overflow()
	}
	d.pass(p)
	if d.err != nil {
		return 0, errStopped
	}
	return len(p), nil
}

// overflow sends what is held on its way, since there is too much of it to be held in memory. Without a
// qmail-send and without an envelope it stays, in a file.
func (d *direct) overflow() {
	client, err := enqueue.Dial(d.queue.Home)
	switch {
	case err == nil && d.envelope == nil:
		d.client = client
		d.stream, d.err = client.BeginBody()
	case err == nil:
		d.client = client
		d.stream, d.err = client.Begin(d.envelope)
	case d.envelope == nil:
		return
	default:
		d.drop = d.beginDrop()
	}
	held := d.hold.memory
	d.hold = nil
	d.pass(held)
}

// pass hands on bytes of the message.
func (d *direct) pass(p []byte) {
	if d.err != nil {
		return
	}
	switch {
	case d.hold != nil:
		_, d.err = d.hold.Write(p)
	case d.stream != nil:
		if _, err := d.stream.Write(p); err != nil {
			_, d.err = d.stream.Commit(d.ctx) // it knows why; nothing is accepted after a failed Write
			d.stream = nil
			if d.err == nil {
				d.err = because(CodeBug, err)
			}
		}
	case d.drop != nil:
		if _, err := d.drop.w.Write(p); err != nil {
			d.err = <-d.drop.done
			d.drop = nil
		}
	}
}

func (d *direct) beginDrop() *dropping {
	r, w := io.Pipe()
	drop := &dropping{w, make(chan error, 1)}
	go func() {
		err := enqueue.Drop(d.queue.Home, d.envelope, r)
		r.CloseWithError(errStopped) // should it have failed early
		drop.done <- err
	}()
	return drop
}

func (d *direct) commit(e *envelope.Envelope) (Accepted, error) {
	defer d.close()
	ctx, cancel := context.WithTimeout(d.ctx, answerTime)
	defer cancel()
	switch {
	case d.err != nil:
		return Accepted{}, d.err
	case d.stream != nil:
		if d.envelope == nil {
			if err := d.stream.Address(e); err != nil {
				d.stream.Abort()
				return Accepted{}, err
			}
		}
		return accepted(d.stream.Commit(ctx))
	case d.drop != nil:
		d.drop.w.Close()
		return d.dropped(<-d.drop.done)
	}
	a, err := d.submit(ctx, e)
	if !enqueue.Unreachable(err) {
		return a, err
	}
	// What was in doubt may be queued twice; not to queue it at all would be worse.
	body, err := d.hold.Reader()
	if err != nil {
		return Accepted{}, err
	}
	return d.dropped(enqueue.Drop(d.queue.Home, e, body))
}

// submit sends a message that is held to qmail-send.
func (d *direct) submit(ctx context.Context, e *envelope.Envelope) (Accepted, error) {
	client, err := enqueue.Dial(d.queue.Home)
	if err != nil {
		return Accepted{}, enqueue.ErrUnreachable
	}
	defer client.Close()
	if d.hold.file == nil {
		return accepted(client.Submit(ctx, e, d.hold.memory))
	}
	body, err := d.hold.Reader()
	if err != nil {
		return Accepted{}, err
	}
	m, err := client.Begin(e)
	if err != nil {
		return Accepted{}, err
	}
	defer m.Abort()
	source := &tracked{r: body}
	_, _ = m.ReadFrom(source)
	if source.err != nil {
		return Accepted{}, because(CodeRead, source.err)
	}
	return accepted(m.Commit(ctx)) // it knows why a Write failed
}

// tracked tells a failed read from a failed write.
type tracked struct {
	r   io.Reader
	err error
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

func accepted(a enqueue.Accepted, err error) (Accepted, error) {
	return Accepted{a.ID, a.Time}, err
}

// dropped is the answer to a message left for the next qmail-send: it has no number yet, so it gets ours.
func (d *direct) dropped(err error) (Accepted, error) {
	if err != nil {
		return Accepted{}, err
	}
	return Accepted{uint64(os.Getpid()), d.queue.Now()}, nil
}

func (d *direct) abort() {
	if d.stream != nil {
		d.stream.Abort()
	}
	if d.drop != nil {
		d.drop.w.CloseWithError(errStopped)
		<-d.drop.done
	}
	d.close()
}

func (d *direct) close() {
	if d.client != nil {
		d.client.Close()
	}
	if d.hold != nil {
		d.hold.Close()
	}
}
