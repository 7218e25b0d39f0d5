package local

import (
	"bytes"
	"context"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/qq"
)

// submitTime bounds the wait for the queue.
const submitTime = 10 * time.Minute

var (
	errDoor = reply.Temporary("4.3.0", "unable to reach the queue", nil)
	errRead = reply.Temporary("4.3.0", "qq read error", nil)
)

// because is a refusal with its cause.
func because(e *reply.Error, err error) *reply.Error {
	with := *e
	with.Err = err
	return &with
}

// door puts messages into the queue of a home, over one connection for as long as that lasts.
type door struct {
	home string
	dial func() (*enqueue.Client, error) // instead of the socket of home, if not nil

	mu     sync.Mutex
	client *enqueue.Client
}

func (d *door) submit(ctx context.Context, e *envelope.Envelope, head []byte, m *jobs.Body) (qp string, err error) {
	client, err := d.open()
	if err != nil {
		return "", because(errDoor, err)
	}
	ctx, cancel := context.WithTimeout(ctx, submitTime)
	defer cancel()
	if all := m.Bytes(); all != nil || m.Size() == 0 {
		_, err = client.Submit(ctx, e, head, all)
	} else {
		err = stream(ctx, client, e, head, m)
	}
	return ownQP(), err
}

// ownQP is the "qp" under which qmail-send logs what comes through the door: the number of our process.
func ownQP() string { return strconv.Itoa(os.Getpid()) }

// stream sends a message that is not at hand as a whole.
func stream(ctx context.Context, client *enqueue.Client, e *envelope.Envelope, head []byte, m *jobs.Body) error {
	out, err := client.Begin(e)
	if err != nil {
		return err
	}
	defer out.Abort() // does nothing after Commit
	in := whole(m)
	if _, err := out.Write(head); err == nil {
		_, _ = io.Copy(out, in) // Commit knows of a failed write
	}
	if in.err != nil {
		return because(errRead, in.err)
	}
	_, err = out.Commit(ctx)
	return err
}

// open returns the connection, a new one if it has ended.
func (d *door) open() (*enqueue.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		select {
		case <-d.client.Done():
			d.client.Close()
		default:
			return d.client, nil
		}
	}
	dial := d.dial
	if dial == nil {
		dial = func() (*enqueue.Client, error) { return enqueue.Dial(d.home) }
	}
	var err error
	if d.client, err = dial(); err != nil {
		d.client = nil
	}
	return d.client, err
}

func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		d.client.Close()
		d.client = nil
	}
}

// classicQueue is the queue of the classic program: what QMAILQUEUE names, else the door, else queue/drop.
type classicQueue struct{ *qq.Queue }

func (q classicQueue) submit(ctx context.Context, e *envelope.Envelope, head []byte, m *jobs.Body) (qp string, err error) {
	out, err := q.Open(ctx, e)
	if err != nil {
		return "", err
	}
	defer out.Abort() // does nothing after Commit
	in := whole(m)
	_, _ = io.Copy(out, io.MultiReader(bytes.NewReader(head), in)) // Commit knows of a failed write
	if in.err != nil {
		return "", because(errRead, in.err)
	}
	a, err := out.Commit(e)
	return strconv.FormatUint(a.QP, 10), err
}

// sized reads a message and makes one that ends early an error, which it remembers.
type sized struct {
	in   io.Reader
	left int64
	err  error
}

func whole(m *jobs.Body) *sized { return &sized{in: m.Reader(), left: m.Size()} }

func (s *sized) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	s.left -= int64(n)
	if err == io.EOF && s.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
