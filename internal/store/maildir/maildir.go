// Package maildir delivers messages into maildirs, maildir(5).
//
// A delivery makes a file without a name, writes it, syncs it, links it into new/ and syncs new/; only then
// it has happened. A crash at any point leaves no file in new/ that is not whole. Where the file system has no
// unnamed files the same is done by way of a name in tmp/. Deliveries that wait together, into one maildir or into
// several of one file system, are finished together: one sync for all files, all links, one sync of each new/.
//
// All errors are temporary, and none creates a maildir.
package maildir

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/system/disk"
)

// Disk is one maildir. One that also has a method Device() (number uint64, ok bool) shares syncs of files with the others
// of its device.
type Disk interface {
	disk.FS
	Close() error
}

// Config is what a Deliverer needs of the world.
type Config struct {
	Open   func(path string) (Disk, error) // opens a maildir
	Now    func() time.Time
	Random func() uint64
	Host   string // this machine's name, for the names of files
	PID    int
}

// Deliverer delivers messages; any number of goroutines may use it.
type Deliverer struct {
	config Config
	host   string
	count  atomic.Uint64
	each   atomic.Int64 // until then files are synced one by one; nanoseconds since 1970

	mu     sync.Mutex
	open   map[string]*shared
	groups map[uint64]*group // by device
}

// New makes a Deliverer.
func New(c Config) *Deliverer {
	return &Deliverer{config: c, host: escape(c.Host), open: map[string]*shared{}, groups: map[uint64]*group{}}
}

// escape makes a host name fit into a file name, which ends at a colon and has no slash.
func escape(host string) string {
	const longest = 64
	host = strings.NewReplacer("/", `\057`, ":", `\072`, "\x00", "").Replace(host)
	if host == "" {
		host = "localhost"
	}
	return host[:min(len(host), longest)]
}

// Message is what shall be in the file: Head, then Body, or where Body is nil what Reader gives, which must
// be Size bytes.
type Message struct {
	Head   []byte
	Body   []byte
	Reader io.Reader
	Size   int64
}

var (
	errOpen = reply.Temporary("4.2.1", "Unable to chdir to maildir.", nil)
	errRead = reply.Temporary("4.3.0", "Unable to read message.", nil)
	errTime = reply.Temporary("4.3.0", "Timeout on maildir delivery.", nil)
	errDisk = reply.Temporary("4.3.0", "Temporary error on maildir delivery.", nil)
)

// because is a refusal with its cause.
func because(e *reply.Error, err error) *reply.Error {
	with := *e
	with.Err = err
	return &with
}

// Deliver puts m into the maildir at path; nil means that it is there to stay. An error is a *reply.Error,
// and the message is not there. After ctx has ended nothing new is begun.
func (d *Deliverer) Deliver(ctx context.Context, path string, m Message) error {
	if ctx.Err() != nil {
		return because(errTime, context.Cause(ctx))
	}
	s, err := d.acquire(path)
	if err != nil {
		return err
	}
	defer d.release(s)
	f, err := s.disk.Temp("tmp", 0o600)
	if err != nil {
		return because(errDisk, err)
	}
	defer f.Close() // without a name the file goes with it; after the sync an error here says nothing
	if err := write(ctx, f, m); err != nil {
		return err
	}
	return s.group.join(&delivery{ctx: ctx, where: s, file: f}, d.finish)
}

const piece = 64 << 10

var pieces = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}

func write(ctx context.Context, f disk.File, m Message) error {
	if m.Body != nil || m.Reader == nil {
		_, err := f.WriteVec([][]byte{m.Head, m.Body}, 0)
		if err != nil {
			return because(errDisk, err)
		}
		return nil
	}
	at, err := f.WriteVec([][]byte{m.Head}, 0)
	if err != nil {
		return because(errDisk, err)
	}
	space := pieces.Get().(*[]byte)
	defer pieces.Put(space)
	for left := m.Size; left > 0; {
		if ctx.Err() != nil {
			return because(errTime, context.Cause(ctx))
		}
		n, err := io.ReadFull(m.Reader, (*space)[:min(left, piece)])
		if err != nil {
			return because(errRead, err)
		}
		if _, err := f.WriteVec([][]byte{(*space)[:n]}, at); err != nil {
			return because(errDisk, err)
		}
		at += int64(n)
		left -= int64(n)
	}
	return nil
}

// finish syncs, links and syncs for deliveries that wait together; each gets its error.
func (d *Deliverer) finish(batch []*delivery) {
	d.syncFiles(batch)
	linked := map[*shared]bool{}
	for _, x := range batch {
		if x.err == nil {
			x.name, x.err = d.link(x.ctx, x.where.disk, x.file)
		}
		if x.err == nil {
			linked[x.where] = true
		}
	}
	var mu sync.Mutex
	failed := map[*shared]error{}
	var all sync.WaitGroup
	for s := range linked {
		sync := func() {
			if err := s.disk.SyncDir("new"); err != nil {
				mu.Lock()
				failed[s] = err
				mu.Unlock()
			}
		}
		if len(linked) == 1 {
			sync()
		} else {
			all.Go(sync)
		}
	}
	all.Wait()
	for _, x := range batch {
		if err := failed[x.where]; err != nil && x.err == nil {
			_ = x.where.disk.Remove(x.name) // it will come again; if it stays too, twice is better than never
			x.err = because(errDisk, err)
		}
	}
}

const (
	// few is how many files are dearer to sync one by one than all at once: measured on ext4 with 16 and 64 files
	// of 4 KiB, 0.13 ms of processor time each by fdatasync, 0.06 by syncfs, at the same rate or a better one.
	few = 4
	// slow is how long a syncfs may take. One that takes longer has written what strangers left, and for a while
	// we leave that to them.
	slow  = 200 * time.Millisecond
	avoid = time.Minute
)

// syncFiles makes the bytes of a batch durable.
func (d *Deliverer) syncFiles(batch []*delivery) {
	began := d.config.Now()
	if len(batch) >= few && began.UnixNano() >= d.each.Load() {
		err := batch[0].where.disk.SyncAll()
		if !errors.Is(err, errors.ErrUnsupported) {
			for _, x := range batch {
				if err != nil {
					x.err = because(errDisk, err)
				}
			}
			if d.config.Now().Sub(began) > slow {
				d.each.Store(began.Add(avoid).UnixNano())
			}
			return
		}
	}
	var all sync.WaitGroup
	for _, x := range batch[1:] {
		all.Go(x.sync)
	}
	batch[0].sync()
	all.Wait()
}

// sync makes one file durable.
func (x *delivery) sync() {
	if err := x.file.Sync(); err != nil {
		x.err = because(errDisk, err)
	}
}

// link gives f a name in new/ that nobody has.
func (d *Deliverer) link(ctx context.Context, where disk.FS, f disk.File) (name string, err error) {
	if ctx.Err() != nil {
		return "", because(errTime, context.Cause(ctx))
	}
	for range 3 {
		name = path.Join("new", d.unique())
		if err = where.Link(f, name); !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return "", because(errDisk, err)
	}
	return name, nil
}

// unique makes a name as maildir(5) wants it: seconds, then microseconds (M), process (P), number of the
// delivery in this process (Q) and something random (R), then the host.
func (d *Deliverer) unique() string {
	now := d.config.Now()
	b := make([]byte, 0, 96)
	b = strconv.AppendInt(b, now.Unix(), 10)
	b = append(b, ".M"...)
	b = strconv.AppendInt(b, int64(now.Nanosecond()/1000), 10)
	b = append(b, 'P')
	b = strconv.AppendInt(b, int64(d.config.PID), 10)
	b = append(b, 'Q')
	b = strconv.AppendUint(b, d.count.Add(1), 10)
	b = append(b, 'R')
	b = strconv.AppendUint(b, d.config.Random(), 16)
	b = append(b, '.')
	return string(append(b, d.host...))
}

// shared is an open maildir and what its deliveries have in common.
type shared struct {
	path   string
	disk   Disk
	opened time.Time
	uses   int // guarded by Deliverer.mu
	group  *group
}

// fresh is how long an open maildir takes new deliveries, so that one that was moved away does not keep them.
const fresh = time.Second

// acquire opens a maildir, or joins the deliveries that have just opened it.
func (d *Deliverer) acquire(path string) (*shared, error) {
	now := d.config.Now()
	if s := d.enter(path, now, nil); s != nil {
		return s, nil
	}
	opened, err := d.config.Open(path)
	if err != nil {
		return nil, refusal(err)
	}
	mine := &shared{path: path, disk: opened, opened: now, group: d.groupOf(opened)}
	s := d.enter(path, now, mine)
	if s != mine { // another delivery opened it at the same time, and was first
		opened.Close()
	}
	return s, nil
}

// groupOf is the group of a maildir: that of its device, if it has one.
func (d *Deliverer) groupOf(opened Disk) *group {
	on, ok := opened.(interface{ Device() (uint64, bool) })
	if !ok {
		return &group{}
	}
	device, ok := on.Device()
	if !ok {
		return &group{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.groups[device]
	if g == nil {
		g = &group{}
		d.groups[device] = g
	}
	return g
}

// enter counts one more delivery in the open maildir at path if that is fresh, or else in mine, which takes its
// place; the deliveries of one that is replaced go on with it.
func (d *Deliverer) enter(path string, now time.Time, mine *shared) *shared {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.open[path]
	if s == nil || now.Sub(s.opened).Abs() >= fresh {
		if mine == nil {
			return nil
		}
		s = mine
		d.open[path] = s
	}
	s.uses++
	return s
}

func (d *Deliverer) release(s *shared) {
	d.mu.Lock()
	s.uses--
	last := s.uses == 0
	if last && d.open[s.path] == s {
		delete(d.open, s.path)
	}
	d.mu.Unlock()
	if last {
		s.disk.Close()
	}
}

// refusal tells a maildir that cannot be entered from trouble that has nothing to do with it.
func refusal(err error) error {
	for _, cause := range []error{fs.ErrNotExist, fs.ErrPermission, syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG} {
		if errors.Is(err, cause) {
			return because(errOpen, err)
		}
	}
	return because(errDisk, err)
}

// group lets deliveries that wait together be finished together.
type group struct {
	turn sync.Mutex // held while a batch is being finished
	mu   sync.Mutex
	next *batch
}

// batch is deliveries whose files are written; the first of them sees to all.
type batch struct {
	all  []*delivery
	done chan struct{}
}

// delivery is one file on its way.
type delivery struct {
	ctx   context.Context
	where *shared
	file  disk.File
	name  string // in new/, once it has one
	err   error
}

// join returns what became of x after a call of finish with it and those that came meanwhile.
func (g *group) join(x *delivery, finish func([]*delivery)) error {
	g.mu.Lock()
	b := g.next
	if b != nil {
		b.all = append(b.all, x)
		g.mu.Unlock()
		<-b.done
		return x.err
	}
	b = &batch{all: []*delivery{x}, done: make(chan struct{})}
	g.next = b
	g.mu.Unlock()
	g.turn.Lock()
	defer g.turn.Unlock()
	runtime.Gosched() // let those who are about to join do so
	g.mu.Lock()
	g.next = nil // who comes from now on is too late for this one
	g.mu.Unlock()
	finish(b.all)
	close(b.done)
	return x.err
}
