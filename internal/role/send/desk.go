package send

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/enqueue"
	"qmail/internal/store/queue"
	"qmail/internal/store/users"
	"qmail/internal/system/ipc"
)

const (
	// maxAskers bounds the connections to the admin socket: of those who own the queue, of all others together, and
	// of each of the others.
	maxOwners        = 64
	maxAskers        = 64
	maxAskersPerUser = 4
)

// desk answers administrators, and users who look for their own mail. It has no state of the queue: it asks the core
// for a little at a time, and the store for the rest.
type desk struct {
	home   string
	core   *core
	store  queue.Store
	now    func() time.Time
	log    *slog.Logger
	owners ownership
	order  func(c *core, o *admin.Order, e *envelope.Envelope, uid int) (admin.Effect, error)
	local  func(c *core, local string, a users.Account) *worker
	asking [2]chan struct{} // tokens for explanations: others', owners'
	search [2]chan struct{} // tokens for looking through the journal: others', owners'

	mu      sync.Mutex
	closing bool
	conns   map[*ipc.Conn]admin.Peer
	serving sync.WaitGroup
}

func newDesk(ctx context.Context, c *core, store queue.Store, home string, now func() time.Time, log *slog.Logger) *desk {
	return &desk{
		home: home, core: c, store: store, now: now, log: log, owners: findOwners(home),
		order: func(c *core, o *admin.Order, e *envelope.Envelope, uid int) (admin.Effect, error) {
			return c.order(ctx, o, e, uid)
		},
		local:  func(c *core, local string, a users.Account) *worker { return c.localWorker(ctx, local, a) },
		asking: [2]chan struct{}{make(chan struct{}, 2), make(chan struct{}, 8)},
		search: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 2)},
		conns:  map[*ipc.Conn]admin.Peer{},
	}
}

// ownership says who may do everything.
type ownership struct {
	uids  []int
	group int   // -1 for none
	never []int // system users that do not count as members of the group
}

// findOwners: root, the user we run as, and the owner of the queue directory; and, where the queue is the machine's and
// not some user's own, group qmail. Our own users are in that group, too, for reasons of old: none of them but
// qmail-send's has a say here, since some of them talk to strangers.
func findOwners(home string) ownership {
	o := ownership{uids: []int{0, os.Getuid()}, group: -1}
	info, err := os.Stat(filepath.Join(home, "queue"))
	if err != nil {
		return o
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return o
	}
	o.uids = append(o.uids, int(st.Uid))
	if st.Uid != 0 || os.Getuid() == 0 {
		return o
	}
	for _, name := range [...]string{"alias", "qmaild", "qmailk", "qmaill", "qmailn", "qmailp", "qmailq", "qmailr"} {
		if uid := uidOf(name); uid >= 0 {
			o.never = append(o.never, uid)
		}
	}
	if g, err := user.LookupGroup("qmail"); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil {
			o.group = gid
		}
	}
	return o
}

func (o *ownership) has(peer ipc.Peer, groups []int) bool {
	if slices.Contains(o.uids, peer.UID) {
		return true
	}
	if o.group < 0 || slices.Contains(o.never, peer.UID) {
		return false
	}
	return peer.GID == o.group || slices.Contains(groups, o.group)
}

// listen serves the admin socket until ln is closed.
func (d *desk) listen(ctx context.Context, ln net.Listener) {
	accept(ctx, ln, d.log, func(u *net.UnixConn) {
		peer, err := ipc.PeerOf(u)
		if err != nil {
			u.Close()
			return
		}
		groups, err := ipc.PeerGroups(u)
		if err != nil {
			groups = nil // an old kernel; the group of the process counts
		}
		go d.serve(ctx, ipc.New(ipc.Unix(u)), admin.Peer{UID: peer.UID, PID: peer.PID, Owner: d.owners.has(peer, groups)})
	})
}

// serve answers one connection until it ends.
func (d *desk) serve(ctx context.Context, conn *ipc.Conn, peer admin.Peer) {
	if !d.enter(conn, peer) {
		conn.Close()
		return
	}
	defer d.serving.Done()
	err := admin.Serve(ctx, conn, peer, d)
	d.mu.Lock()
	delete(d.conns, conn)
	d.mu.Unlock()
	if errors.Is(err, ipc.ErrFrame) {
		d.log.Warn("somebody at queue/admin broke the protocol", "uid", peer.UID, "pid", peer.PID)
	}
}

func (d *desk) enter(conn *ipc.Conn, peer admin.Peer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	owners, others, same := 0, 0, 0
	for _, p := range d.conns {
		switch {
		case p.Owner:
			owners++
		case p.UID == peer.UID:
			same++
			others++
		default:
			others++
		}
	}
	if d.closing || peer.Owner && owners >= maxOwners || !peer.Owner && (others >= maxAskers || same >= maxAskersPerUser) {
		return false
	}
	d.conns[conn] = peer
	d.serving.Add(1)
	return true
}

// close ends all connections.
func (d *desk) close() {
	d.mu.Lock()
	d.closing = true
	for conn := range d.conns {
		conn.Close()
	}
	d.mu.Unlock()
	d.serving.Wait()
}

// ask has the core do something and waits until it is done.
func (d *desk) ask(ctx context.Context, do func(c *core)) error {
	done := make(chan struct{})
	d.core.post(func() {
		do(d.core)
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errBusy
	}
}

var (
	errBusy   = reply.Temporary("4.3.0", "qmail-send has no time to answer", nil)
	errOwners = reply.Permanent("5.7.1", "only root and the owners of the queue may do that", nil)
	errNoMail = reply.Permanent("5.1.1", "no such message", nil)
	errNoSay  = reply.Temporary("4.3.0", "unable to read the queue", nil)
)

// entry is a message that peer may see. What is not his is not there.
func (d *desk) entry(ctx context.Context, peer admin.Peer, id uint64) (*queue.Entry, error) {
	e, err := d.store.Entry(ctx, queue.ID(id))
	switch {
	case errors.Is(err, queue.ErrNotFound):
		return nil, errNoMail
	case err != nil:
		d.log.Warn("unable to read a message", "msg", id, "err", err)
		return nil, errNoSay
	case !visible(peer, e):
		return nil, errNoMail
	}
	return e, nil
}

func visible(peer admin.Peer, e *queue.Entry) bool {
	return peer.Owner || e.Envelope != nil && e.Envelope.UID == peer.UID
}

// Body is admin.Backend.
func (d *desk) Body(ctx context.Context, peer admin.Peer, id uint64) (admin.Body, error) {
	if _, err := d.entry(ctx, peer, id); err != nil {
		return nil, err
	}
	body, err := d.store.Body(ctx, queue.ID(id))
	if errors.Is(err, queue.ErrNotFound) {
		return nil, errNoMail
	}
	if errors.Is(err, queue.ErrDamaged) {
		return nil, reply.Permanent("5.3.0", "the message is damaged", err)
	}
	if err != nil {
		return nil, errNoSay
	}
	return body, nil
}

// Size is admin.Backend.
func (d *desk) Size(_ context.Context, peer admin.Peer) (admin.Size, error) {
	if !peer.Owner {
		return admin.Size{}, errOwners
	}
	s := d.store.Stats()
	dropped, err := enqueue.ListDropped(d.home)
	if err != nil {
		d.log.Warn("unable to read queue/drop", "err", err)
	}
	return admin.Size{
		Messages: int64(s.Messages), Recipients: int64(s.Recipients), OnHold: int64(s.Held),
		Dropped: int64(len(dropped)), Bytes: s.Bytes, LiveBytes: s.LiveBytes, Full: s.Full,
	}, nil
}
