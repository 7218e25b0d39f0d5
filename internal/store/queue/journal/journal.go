// Package journal is a queue on the local disk: a log of segment files, written by one goroutine, which gathers all
// batches that wait, writes them with one call, syncs once, and tells all who wait. docs/queue.md has the
// format to the byte, what each state is as files, and what each failure does.
//
// Two rules carry everything. Nothing is acknowledged before it is on the disk, and no record is dropped
// while a record that it answers is on the disk: a close outlives its accept.
package journal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// Options change how a journal works; the zero value is good for a server.
type Options struct {
	SegmentSize int64            // of files, 64 MiB by default
	CacheBytes  int64            // of bodies just accepted, 64 MiB by default; negative for none
	Spares      int              // segment files kept ready, 2 by default; the last is reserved for closes
	Backlog     int64            // bytes of notes kept while the disk does not work, 16 MiB by default
	Node        int              // in the ids given
	Now         func() time.Time // time.Now by default
	Rand        io.Reader        // for stamps; crypto/rand by default
	Warn        func(string)     // is told of damage and failures, a line each, from any goroutine
	Observe     queue.Observer
	Account     queue.Account // of all mail; nil for none. It is closed with the journal
}

const (
	maxOpen       = 64          // segment files open for reading, but for those being read
	idBlock       = 1 << 16     // ids promised at a time
	flushAfter    = time.Second // the longest that a Write may be volatile
	flushOps      = 16384       // and how many of them
	retryAfter    = time.Second // between tries of what the disk refused
	minSegment    = 16 << 10
	maxSegment    = 1 << 30
	maxQuarantine = 1000 // names remembered
)

func (o *Options) fill() error {
	if o.SegmentSize == 0 {
		o.SegmentSize = 64 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.Spares == 0 {
		o.Spares = 2
	}
	if o.Backlog == 0 {
		o.Backlog = 16 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.Observe == nil {
		o.Observe = func(queue.Position, queue.Batch) {}
	}
	if o.SegmentSize < minSegment || o.SegmentSize > maxSegment || o.SegmentSize%headerRoom != 0 ||
		o.Node < 0 || o.Node >= 1<<queue.NodeBits || o.Spares < 1 {
		return errors.New("journal: impossible options")
	}
	return nil
}

// Journal is the queue.Store on a disk.
type Journal struct {
	disk disk.FS
	opt  Options
	lock disk.File

	nextID, idLimit atomic.Uint64 // without node; ids below the limit are promised in the ids file

	enter   sync.Mutex // guards waiting and closing
	waiting []*op
	closing bool
	wake    chan struct{} // the writer has something to do
	tidy    chan struct{} // the housekeeper has
	ended   atomic.Bool   // Close was called
	stop    chan struct{} // the housekeeper ends
	written chan struct{} // closed when the writer has ended
	tidied  chan struct{} // closed when the housekeeper has
	broken  error         // what Close says; set before written is closed
	pool    sync.Pool     // of *op

	writer writer

	mu     sync.RWMutex // guards what follows
	index  index
	cache  cache
	segs   []*segment // by seq; the head is the last
	spares []string
	stats  queue.Stats
	log    int64 // bytes ever written by this process

	nextSpare uint64     // number of the next new spare
	limbo     []*segment // removed, but the removal is not yet durable

	handles   sync.Mutex // guards segment.file and refs; taken after mu
	openFiles []*segment
}

var _ queue.Store = (*Journal)(nil)

// op is a batch on its way.
type op struct {
	batch   queue.Batch
	done    func(error) // nil for Write
	err     error       // refused before it was written
	rec     []byte      // room for padding, head, items
	bodies  [][]byte
	length  int // of head, items and bodies
	page    int // what it adds to the footer
	off     int64
	accepts bool
	carry   func(*op) // makes rec when the writer has come to it
	from    *segment  // of the collector: rec has closes out of it
	time    time.Time // when it was written
}

func (o *op) meta() []byte { return o.rec[align+headSize:] }

func (j *Journal) newOp() *op {
	if o, ok := j.pool.Get().(*op); ok {
		return o
	}
	return &op{}
}

func (j *Journal) recycle(o *op) {
	rec, bodies := o.rec[:0], o.bodies[:0]
	clear(o.bodies)
	if cap(rec) > 64<<10 {
		rec = nil
	}
	*o = op{rec: rec, bodies: bodies}
	j.pool.Put(o)
}

// NewID implements queue.Store.
func (j *Journal) NewID() queue.ID {
	n := j.nextID.Add(1) - 1
	if n+idBlock/2 >= j.idLimit.Load() {
		nudge(j.tidy) // promise more, in good time
	}
	return queue.ID(n | uint64(j.opt.Node)<<queue.NodeShift)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Commit implements queue.Store.
func (j *Journal) Commit(b queue.Batch, done func(error)) {
	o := j.newOp()
	o.batch, o.done = b, done
	if err := j.encode(o); err != nil {
		o.err = err
	}
	if !j.push(o) {
		j.refuse(o, queue.ErrClosed)
	}
}

// Write implements queue.Store.
func (j *Journal) Write(b queue.Batch) {
	o := j.newOp()
	o.batch = b
	err := j.encode(o)
	if o.accepts {
		err = errors.New("journal: Write of an accept")
	}
	if err != nil {
		j.opt.Warn("journal: unusable batch: " + err.Error())
		return
	}
	j.push(o)
}

func (j *Journal) push(o *op) bool {
	j.enter.Lock()
	defer j.enter.Unlock()
	if j.closing {
		return false
	}
	j.waiting = append(j.waiting, o)
	nudge(j.wake)
	return true
}

// refuse ends a batch that will not be written.
func (j *Journal) refuse(o *op, err error) {
	for _, a := range o.batch.Accepts {
		if a.Spool != nil && o.err == nil { // its file has a name by now
			j.discard(a.ID)
		}
	}
	if o.err != nil {
		err = o.err
	}
	if o.done != nil {
		o.done(err)
	}
	j.recycle(o)
}

// discard has the housekeeper remove a body's file.
func (j *Journal) discard(id queue.ID) {
	j.mu.Lock()
	j.index.files = append(j.index.files, id)
	j.mu.Unlock()
	nudge(j.tidy)
}

// encode makes the record of o.batch, but for its head.
func (j *Journal) encode(o *op) error {
	o.accepts = len(o.batch.Accepts) > 0
	o.start()
	for i := range o.batch.Accepts {
		if err := j.checkAccept(&o.batch.Accepts[i]); err != nil {
			return err
		}
	}
	for i := range o.batch.Accepts {
		j.encodeAccept(o, &o.batch.Accepts[i])
	}
	for _, c := range o.batch.Closes {
		if c.Recipients == nil || len(c.Recipients) > 0 {
			it := item{kind: kindClose, id: c.ID, outcome: c.Outcome, as: c.As, who: makeRuns(nil, c.Recipients)}
			o.rec = it.append(o.rec)
		}
	}
	for _, n := range o.batch.Notes {
		if n.Recipients == nil || len(n.Recipients) > 0 {
			it := item{kind: kindNote, id: n.ID, next: n.Next.UnixNano(), who: makeRuns(nil, n.Recipients), text: []byte(n.Text)}
			o.rec = it.append(o.rec)
		}
	}
	for _, f := range o.batch.Fails {
		if f.Outcome != queue.Bounced && f.Outcome != queue.Expired {
			return fmt.Errorf("journal: a failure cannot be %v", f.Outcome)
		}
		if f.Recipients == nil || len(f.Recipients) > 0 {
			it := item{kind: kindFail, id: f.ID, outcome: f.Outcome, who: makeRuns(nil, f.Recipients), text: []byte(f.Text)}
			o.rec = it.append(o.rec)
		}
	}
	for _, h := range o.batch.Holds {
		it := item{kind: kindHold, id: h.ID}
		if h.On {
			it.flags = flagOn
		}
		o.rec = it.append(o.rec)
	}
	o.finish()
	if int64(o.length)+int64(o.page)+headerRoom+trailerSize+2*align > j.opt.SegmentSize {
		return queue.ErrTooLarge
	}
	return j.settle(o)
}

func (o *op) start() {
	o.rec = append(o.rec[:0], make([]byte, align+headSize)...)
}

// finish fills in what is known once all items are there.
func (o *op) finish() {
	meta := o.meta()
	o.length, o.page = headSize+len(meta), pageBytes(meta)
	for rest := meta; len(rest) > 0; {
		it := rest
		rest = rest[le.Uint32(rest):]
		if kind(it[4]) == kindAccept && it[5]&flagFile == 0 {
			le.PutUint32(it[itemSize+24:], uint32(o.length))
			o.length += int(le.Uint64(it[itemSize+12:]))
		}
	}
}

func (j *Journal) checkAccept(a *queue.Accept) error {
	switch {
	case a.Envelope == nil:
		return errors.New("journal: accept without envelope")
	case uint64(a.ID)&(1<<queue.NodeShift-1) >= j.nextID.Load() || a.ID == 0:
		return fmt.Errorf("journal: id %v was not given", a.ID)
	}
	j.mu.RLock()
	_, live := j.index.live[a.ID]
	j.mu.RUnlock()
	if live {
		return fmt.Errorf("journal: id %v is in use", a.ID)
	}
	return a.Envelope.Check()
}

func (j *Journal) encodeAccept(o *op, a *queue.Accept) {
	env := a.Envelope
	if env.Birth.IsZero() {
		stored := *env
		stored.Birth = j.opt.Now()
		env = &stored
		a.Envelope = env
	}
	it := item{kind: kindAccept, id: a.ID, birth: env.Birth.UnixNano(), recipients: uint32(len(env.Recipients))}
	if s, ok := a.Spool.(*spool); ok {
		it.flags, it.size, it.sum = flagFile, s.size, s.sum
	} else {
		for _, piece := range a.Body {
			it.size += int64(len(piece))
			it.sum = crcUpdate(it.sum, piece)
			o.bodies = append(o.bodies, piece)
		}
	}
	at := len(o.rec)
	o.rec = it.append(o.rec)
	o.rec = env.Append(o.rec, true)
	le.PutUint32(o.rec[at+itemSize+28:], uint32(len(o.rec)-at-acceptSize))
	o.rec = end(o.rec, at)
}

// settle gives spooled bodies their names. If one fails, those before it go.
func (j *Journal) settle(o *op) error {
	for i := range o.batch.Accepts {
		a := &o.batch.Accepts[i]
		if a.Spool == nil {
			continue
		}
		s, ok := a.Spool.(*spool)
		err := errSpool
		if ok && s.j == j {
			err = s.settle(a.ID)
		}
		if err != nil {
			for _, earlier := range o.batch.Accepts[:i] {
				if earlier.Spool != nil {
					j.discard(earlier.ID)
				}
			}
			return err
		}
	}
	return nil
}

// find looks a live message up and keeps its segment from going until release.
func (j *Journal) find(id queue.ID) (entry, disk.File, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	e := j.index.live[id]
	if e == nil {
		return entry{}, nil, queue.ErrNotFound
	}
	f, err := j.acquire(e.seg)
	return *e, f, err
}

// Envelope implements queue.Store.
func (j *Journal) Envelope(_ context.Context, id queue.ID) (*envelope.Envelope, error) {
	j.mu.RLock()
	got, ok := j.cache.byID[id]
	j.mu.RUnlock()
	if ok {
		return got.envelope, nil
	}
	e, f, err := j.find(id)
	if err != nil {
		return nil, err
	}
	defer j.release(e.seg)
	it, err := readAccept(f, id, &e)
	if err != nil {
		return nil, j.damage(id, &e, err)
	}
	env, err := envelope.Parse(it.envelope, true, 0)
	if err != nil {
		return nil, j.damage(id, &e, err)
	}
	return env, nil
}

// readAccept reads a message's accept item, without body.
func readAccept(f io.ReaderAt, id queue.ID, e *entry) (item, error) {
	b := make([]byte, headSize+int(e.meta))
	if _, err := f.ReadAt(b, int64(e.off)); err != nil {
		return item{}, err
	}
	r, err := parseHead(b, e.seg.seq, e.seg.stamp, maxSegment)
	if err != nil {
		return item{}, err
	}
	if r.meta != int(e.meta) || checksum(b[headSize:]) != r.sum {
		return item{}, errRecord
	}
	var found *item
	err = items(b[headSize:], func(it *item) error {
		if it.kind == kindAccept && it.id == id && found == nil {
			copied := *it
			found = &copied
		}
		return nil
	})
	if err != nil || found == nil {
		return item{}, errRecord
	}
	return *found, nil
}

// damage says what a failed read means: bytes that are there but wrong are set aside and named, once.
func (j *Journal) damage(id queue.ID, e *entry, err error) error {
	if _, gone := errors.AsType[*os.PathError](err); gone {
		return fmt.Errorf("message %v: %w", id, err) // the disk failed, which may pass
	}
	to := int64(e.off) + headSize + int64(e.meta)
	if e.flags&inFile == 0 {
		to = max(to, int64(e.off)+int64(e.body)+e.size)
	}
	j.quarantine(e.seg, span{int64(e.off), to}, fmt.Sprintf("message %v", id))
	return fmt.Errorf("%w: message %v: %w", queue.ErrDamaged, id, err)
}

// Body implements queue.Store.
func (j *Journal) Body(_ context.Context, id queue.ID) (queue.Body, error) {
	j.mu.RLock()
	got, ok := j.cache.byID[id]
	j.mu.RUnlock()
	if ok {
		return newPieces(got.body, got.size), nil
	}
	e, f, err := j.find(id)
	if err != nil {
		return nil, err
	}
	defer j.release(e.seg)
	if e.flags&inFile != 0 {
		return j.bodyFile(id, &e)
	}
	b, err := readBody(f, &e)
	if err != nil {
		return nil, j.damage(id, &e, err)
	}
	return newPieces([][]byte{b}, e.size), nil
}

func readBody(f io.ReaderAt, e *entry) ([]byte, error) {
	b := make([]byte, e.size)
	if _, err := f.ReadAt(b, int64(e.off)+int64(e.body)); err != nil && len(b) > 0 {
		return nil, err
	}
	if checksum(b) != e.sum {
		return nil, errRecord
	}
	return b, nil
}

// bodyFile opens a large body, and checks it when this process has not yet seen all of it.
func (j *Journal) bodyFile(id queue.ID, e *entry) (queue.Body, error) {
	f, err := j.disk.Open(bodyName(uint64(id)))
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: message %v: %w", queue.ErrDamaged, id, err)
	}
	if err != nil {
		return nil, err
	}
	b := &bodyFile{f, e.size}
	if e.flags&verified != 0 {
		return b, nil
	}
	size, err := f.Size()
	sum := uint32(0)
	if err == nil && size == e.size {
		sum, err = sumOf(f, size)
	}
	if err == nil && (size != e.size || sum != e.sum) {
		err = fmt.Errorf("%w: message %v: its body's file was changed", queue.ErrDamaged, id)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	j.mu.Lock()
	if now := j.index.live[id]; now != nil {
		now.flags |= verified
	}
	j.mu.Unlock()
	return b, nil
}

// Claim implements queue.Store.
func (j *Journal) Claim(_ context.Context, id queue.ID) error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if j.index.live[id] == nil {
		return queue.ErrNotFound
	}
	return nil
}

// Stats implements queue.Store.
func (j *Journal) Stats() queue.Stats {
	j.mu.RLock()
	defer j.mu.RUnlock()
	s := j.stats
	s.Messages, s.Recipients, s.Held = len(j.index.live), j.index.recipients, j.index.held
	s.Segments, s.Spares, s.Cached = len(j.segs), len(j.spares), j.cache.bytes
	for _, g := range j.segs {
		s.Bytes += g.end.Load()
		s.LiveBytes += g.liveBytes
	}
	s.Quarantined = slices.Clone(s.Quarantined)
	return s
}

// Close implements queue.Store.
func (j *Journal) Close() error {
	if !j.ended.CompareAndSwap(false, true) {
		<-j.written
		return queue.ErrClosed
	}
	close(j.stop)
	<-j.tidied // first, since it may wait for the writer
	j.enter.Lock()
	j.closing = true
	j.enter.Unlock()
	nudge(j.wake)
	<-j.written
	j.handles.Lock()
	for len(j.openFiles) > 0 {
		j.closeFile(j.openFiles[0])
	}
	j.handles.Unlock()
	return errors.Join(j.broken, j.closeAccount(), j.lock.Close())
}

// pieces is a Body in memory.
type pieces struct {
	parts [][]byte
	size  int64
	flat  *bytes.Reader // once it was read by offset
}

func newPieces(parts [][]byte, size int64) *pieces {
	p := &pieces{parts: parts, size: size}
	if len(parts) == 1 {
		p.flat = bytes.NewReader(parts[0])
	}
	return p
}

func (p *pieces) ReadAt(b []byte, off int64) (int, error) {
	if p.flat != nil {
		return p.flat.ReadAt(b, off)
	}
	if off < 0 {
		return 0, os.ErrInvalid
	}
	n := 0
	for _, part := range p.parts {
		if off >= int64(len(part)) {
			off -= int64(len(part))
			continue
		}
		n += copy(b[n:], part[off:])
		off = 0
		if n == len(b) {
			return n, nil
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (p *pieces) Size() int64      { return p.size }
func (p *pieces) Pieces() [][]byte { return p.parts }
func (p *pieces) File() *os.File   { return nil }
func (p *pieces) Close() error     { return nil }

// bodyFile is a Body with a file of its own.
type bodyFile struct {
	f    disk.File
	size int64
}

func (b *bodyFile) ReadAt(p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }
func (b *bodyFile) Size() int64                             { return b.size }
func (b *bodyFile) File() *os.File                          { return b.f.OS() }
func (b *bodyFile) Close() error                            { return b.f.Close() }
