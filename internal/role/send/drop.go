package send

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"qmail/internal/proto/enqueue"
)

const (
	// dropInterval is how often the drop directory is looked at while we run; messages come there only when
	// an injector could not reach us.
	dropInterval = 15 * time.Second
	// dropInMemory is the largest dropped message that is not spooled, in bytes.
	dropInMemory = 256 << 10
	// abandoned is the age at which an unfinished drop file is removed: qmail's 36 hours.
	abandoned = 36 * time.Hour
)

// pickUp brings what injectors have dropped into the queue, until ctx ends.
func (d *door) pickUp(ctx context.Context, home string) {
	tick := time.NewTicker(dropInterval)
	defer tick.Stop()
	refused := map[string]bool{} // named once in the log
	for {
		paths, err := enqueue.ListDropped(home)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.log.Warn("unable to read queue/drop", "err", err)
		}
		for _, path := range paths {
			if ctx.Err() != nil {
				return
			}
			if err := d.pickUpOne(ctx, path); err != nil && !refused[path] {
				if len(refused) > 1000 {
					clear(refused)
				}
				refused[path] = true
				d.log.Warn("unable to take a dropped message", "file", path, "err", err)
			}
		}
		d.sweep(home)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// pickUpOne queues one drop file and removes it. A crash in between queues it twice: at most one duplicate.
func (d *door) pickUpOne(ctx context.Context, path string) error {
	m, err := enqueue.OpenDropped(path)
	if err != nil {
		return err
	}
	a := &enqueue.Arrival{ID: d.NewID(), Envelope: m.Envelope}
	a.Envelope.UID, a.Envelope.QP = m.UID, int64(a.ID)
	if err := d.readDropped(m, a); err != nil {
		m.Close()
		return err
	}
	accepted := make(chan error, 1)
	d.Accept(a, func(err error) { accepted <- err })
	if err := <-accepted; err != nil {
		m.Close()
		return err
	}
	return m.Done()
}

// readDropped takes the body, behind our Received line.
func (d *door) readDropped(m *enqueue.Dropped, a *enqueue.Arrival) error {
	body := enqueue.AppendReceived(nil, a.Envelope.QP, d.id.how(m.UID), d.now())
	trace := len(body)
	body = append(body, make([]byte, dropInMemory)...)
	n, err := io.ReadFull(m.Body, body[trace:])
	body = body[:trace+n]
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		a.Body = body
		return nil
	}
	if err != nil {
		return err
	}
	spool, err := d.store.Spool()
	if err != nil {
		return err
	}
	if _, err = spool.Write(body); err == nil {
		_, err = io.Copy(struct{ io.Writer }{spool}, m.Body)
	}
	if err != nil {
		spool.Close()
		return err
	}
	a.Spool = spool
	return nil
}

// sweep removes what injectors began and never finished.
func (d *door) sweep(home string) {
	entries, err := os.ReadDir(enqueue.DropDir(home))
	if err != nil {
		return // pickUp has said so
	}
	for _, entry := range entries {
		if entry.Name()[0] != '.' {
			continue
		}
		info, err := entry.Info()
		if err == nil && d.now().Sub(info.ModTime()) > abandoned {
			path := filepath.Join(enqueue.DropDir(home), entry.Name())
			if err := os.Remove(path); err == nil {
				d.log.Info("removed an unfinished drop file", slog.String("file", path))
			}
		}
	}
}
