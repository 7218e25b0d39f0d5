package send

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/store/queue"
	"qmail/internal/system/ipc"
)

const (
	// maxInjectors bounds the connections to the enqueue socket, all users together and each of them.
	maxInjectors        = 2000
	maxInjectorsPerUser = 1000
	// injectorIdle ends a connection on which nothing comes: the 24 hours that qmail-queue gave itself.
	injectorIdle = 24 * time.Hour
)

// door lets messages in: it is the queue as enqueue servers see it, and the socket in front of it.
type door struct {
	store  queue.Store
	now    func() time.Time
	events func(any)
	verify func(address string, done func(error))
	id     identity
	log    *slog.Logger

	mu      sync.Mutex
	closing bool
	conns   map[*ipc.Conn]int // open injectors and their uids
	perUID  map[int]int
	serving sync.WaitGroup
}

// arrived is the event of a message that is on disk.
type arrived struct {
	message *enqueue.Arrival
	birth   time.Time
	size    int64
	held    bool
}

var (
	errStopping = reply.Temporary("4.3.2", "the mail system is stopping", nil)
	errDisk     = reply.Temporary("4.3.0", "qq write error or disk full", nil)
)

func (d *door) NewID() uint64  { return uint64(d.store.NewID()) }
func (d *door) Now() time.Time { return d.now() }

func (d *door) Spool() (enqueue.Spool, error) {
	s, err := d.store.Spool()
	if err != nil {
		return nil, err // not s: a nil queue.Spool would be a Spool that is not nil
	}
	return s, nil
}

func (d *door) Verify(address string, done func(error)) { d.verify(address, done) }

// Accept makes a message durable, tells the core, and answers.
func (d *door) Accept(a *enqueue.Arrival, done func(error)) {
	d.mu.Lock()
	closing := d.closing
	d.mu.Unlock()
	if closing {
		if a.Spool != nil {
			a.Spool.Close()
		}
		done(errStopping)
		return
	}
	batch := queue.Batch{}
	held := takeHold(a.Envelope)
	if held {
		batch.Holds = []queue.Hold{{ID: queue.ID(a.ID), On: true}}
	}
	accept := queue.Accept{ID: queue.ID(a.ID), Envelope: a.Envelope}
	a.Envelope.Birth = takeBirth(a.Envelope, d.now())
	size := int64(len(a.Body))
	if a.Spool == nil {
		accept.Body = [][]byte{a.Body}
	} else {
		spool := a.Spool.(queue.Spool)
		accept.Spool, size = spool, spool.Size()
	}
	commit := func() {
		batch.Accepts = []queue.Accept{accept}
		d.store.Commit(batch, func(err error) {
			if a.Spool != nil {
				a.Spool.Close()
			}
			if err != nil {
				d.log.Warn("unable to accept a message", "err", err)
				done(refusal(err))
				return
			}
			d.events(arrived{a, a.Envelope.Birth, size, held})
			done(nil)
		})
	}
	if a.Spool != nil {
		go commit() // its data is synced on the way, which may take long
		return
	}
	commit()
}

// takeHold takes the wish that a message be held, which is for us alone, off its options: it is accepted, and nobody of
// it is tried before it is released (qmail queue).
func takeHold(e *envelope.Envelope) bool {
	n := len(e.Options)
	e.Options = slices.DeleteFunc(e.Options, func(o string) bool { return o == enqueue.HoldOption })
	return len(e.Options) < n
}

// takeBirth takes the time at which another queue accepted a message off its options, and says what counts: that, if
// root or we ourselves say so and it is past, else now.
func takeBirth(e *envelope.Envelope, now time.Time) time.Time {
	birth := now
	e.Options = slices.DeleteFunc(e.Options, func(o string) bool {
		at, ok := enqueue.BirthOf(o)
		if ok && at.Before(now) && (e.UID == 0 || e.UID == os.Geteuid()) {
			birth = at
		}
		return ok
	})
	return birth
}

func refusal(err error) error {
	if errors.Is(err, queue.ErrTooLarge) {
		return reply.Permanent("5.3.4", "message too large for the queue", err)
	}
	if errors.Is(err, queue.ErrInDoubt) {
		err = reply.ErrInDoubt
	}
	return &reply.Error{Code: errDisk.Code, Status: errDisk.Status, Text: errDisk.Text, Err: err}
}

// serve answers one connection until it ends.
func (d *door) serve(conn *ipc.Conn, peer enqueue.Peer) {
	d.mu.Lock()
	if d.closing || len(d.conns) >= maxInjectors || d.perUID[peer.UID] >= maxInjectorsPerUser {
		d.mu.Unlock()
		conn.Close()
		return
	}
	d.conns[conn] = peer.UID
	d.perUID[peer.UID]++
	d.serving.Add(1)
	d.mu.Unlock()
	defer d.serving.Done()
	err := enqueue.Serve(conn, peer, d)
	d.mu.Lock()
	delete(d.conns, conn)
	if d.perUID[peer.UID]--; d.perUID[peer.UID] == 0 {
		delete(d.perUID, peer.UID)
	}
	d.mu.Unlock()
	if errors.Is(err, ipc.ErrFrame) {
		d.log.Warn("an injector broke the protocol", "uid", peer.UID, "pid", peer.PID)
	}
}

// network is the peer at the end of a link to a role that speaks for strangers.
func (d *door) network() enqueue.Peer {
	return enqueue.Peer{UID: d.id.network(), How: "from network", Network: true}
}

// listen serves the enqueue socket until ln is closed.
func (d *door) listen(ctx context.Context, ln net.Listener) {
	accept(ctx, ln, d.log, func(u *net.UnixConn) {
		peer, err := ipc.PeerOf(u)
		if err != nil {
			u.Close()
			return
		}
		conn := ipc.New(ipc.Unix(u))
		conn.SetReadDeadline(time.Now().Add(injectorIdle))
		go d.serve(conn, enqueue.Peer{UID: peer.UID, PID: peer.PID, How: d.id.how(peer.UID)})
	})
}

// accept gives every connection to serve, which must not wait, until ln is closed.
func accept(ctx context.Context, ln net.Listener, log *slog.Logger, serve func(*net.UnixConn)) {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	pause := 5 * time.Millisecond
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely
			log.Warn("unable to accept a connection", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		u, ok := c.(*net.UnixConn)
		if !ok {
			c.Close()
			continue
		}
		serve(u)
	}
}

// close refuses what has not been accepted yet and ends all connections.
func (d *door) close() {
	d.mu.Lock()
	d.closing = true
	for conn := range d.conns {
		conn.Close()
	}
	d.mu.Unlock()
	d.serving.Wait()
}

func newDoor(ctx context.Context, c *core, store queue.Store, now func() time.Time, log *slog.Logger) *door {
	return &door{
		store: store, now: now, events: c.post, id: lookupIdentity(), log: log,
		verify: func(address string, done func(error)) {
			c.post(func() { c.verify(ctx, address, done) })
		},
		conns: map[*ipc.Conn]int{}, perUID: map[int]int{},
	}
}
