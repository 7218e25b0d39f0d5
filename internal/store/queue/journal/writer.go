package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"time"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

func crcUpdate(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli(), b) }

// writer is what only the writing goroutine touches.
type writer struct {
	head     *segment // nil when there is none that can be written
	file     disk.File
	foot     []byte // the footer so far
	end      int64  // of the last record written
	synced   int64  // and of the last that is durable
	unsynced []*op  // of Write: in the file, in the index, not yet durable
	backlog  []*op  // of Write: to be written when the disk works again
	bytes    int64  // of backlog
	cut      *segment
	seq      uint64
	iov      [][]byte
	item     item      // being folded
	fails    int       // since the last success
	failed   time.Time // the last of them
	full     time.Time // when there was last no room; zero when there is
	scarce   bool      // no spare is left: only what makes room is written
}

// run is the writing goroutine.
func (j *Journal) run() {
	defer close(j.written)
	tick := time.NewTimer(time.Hour)
	tick.Stop()
	defer tick.Stop()
	armed := false
	for {
		due := false
		select {
		case <-j.wake:
		case <-tick.C:
			due, armed = true, false
		}
		runtime.Gosched() // let those just told bring their next: 20 callers share 17 a sync, not 10, a third more a second
		ops, closing := j.take()
		j.group(ops, due || closing)
		if closing {
			j.broken = j.finish()
			return
		}
		w := &j.writer
		if waits := len(w.unsynced)+len(w.backlog) > 0; waits && !armed {
			tick.Reset(flushAfter)
			armed = true
		}
	}
}

// take returns all that waits, and whether nothing more will come.
func (j *Journal) take() ([]*op, bool) {
	j.enter.Lock()
	defer j.enter.Unlock()
	ops := j.waiting
	j.waiting = nil
	return ops, j.closing
}

// group writes batches, in order, and tells who waits. With force everything written is durable afterwards.
func (j *Journal) group(ops []*op, force bool) {
	w := &j.writer
	todo := j.arrange(ops, force)
	for len(todo) > 0 {
		if err := j.ready(todo[0]); err != nil {
			if errors.Is(err, queue.ErrFull) && !todo[0].frees() {
				j.putOff(todo[:1], err)
				todo = todo[1:]
				continue
			}
			j.putOff(todo, err)
			break
		}
		n := j.place(todo)
		if n == 0 { // not even an empty segment holds it
			j.refuse(todo[0], queue.ErrTooLarge)
			todo = todo[1:]
			continue
		}
		j.write(todo[:n])
		todo = todo[n:]
	}
	if len(w.unsynced) > 0 && (force || len(w.unsynced) > flushOps) {
		j.flush()
	}
}

// arrange puts what comes from the collector first, since it was decided by the index as it is now; then what an
// earlier failure left; then the new. What was refused already is told so.
func (j *Journal) arrange(ops []*op, retry bool) []*op {
	w := &j.writer
	todo := make([]*op, 0, len(ops)+len(w.backlog))
	for _, o := range ops {
		if o.carry == nil {
			continue
		}
		o.start()
		j.mu.RLock()
		o.carry(o)
		j.mu.RUnlock()
		o.finish()
		if len(o.meta()) == 0 {
			o.done(nil) // nothing to move any more
			continue
		}
		todo = append(todo, o)
	}
	if len(w.backlog) > 0 && (retry || len(ops) > 0) {
		todo = append(todo, w.backlog...)
		w.backlog, w.bytes = nil, 0
		j.mu.Lock()
		j.stats.Backlog = 0
		j.mu.Unlock()
	}
	for _, o := range ops {
		switch {
		case o.carry != nil:
		case o.err != nil:
			j.refuse(o, o.err)
		default:
			todo = append(todo, o)
		}
	}
	return todo
}

// fits tells whether o can follow what is in the head, with room for the footer. at is where records end by then.
func (j *Journal) fits(o *op, at int64, foot int) bool {
	return aligned(aligned(at)+int64(o.length))+int64(foot+o.page)+trailerSize <= j.opt.SegmentSize
}

// ready sees to it that there is a head with room for o.
func (j *Journal) ready(o *op) error {
	w := &j.writer
	if w.fails > 1 && j.recent(w.failed) {
		return errors.New("journal: the disk failed a moment ago")
	}
	if w.scarce = j.count() == 0; w.scarce && !o.frees() {
		if err := j.tryMake(); err != nil {
			return err
		}
		w.scarce = false
	}
	if w.head != nil && j.fits(o, w.end, len(w.foot)) {
		return nil
	}
	spare, err := j.takeSpare(!o.frees())
	if err != nil {
		return err
	}
	if w.head != nil {
		j.seal()
	}
	if err := j.roll(spare); err != nil {
		return err
	}
	w.scarce = j.count() == 0
	return nil
}

// recent tells whether t is less than retryAfter ago; a clock set back is no reason to wait.
func (j *Journal) recent(t time.Time) bool {
	d := j.opt.Now().Sub(t)
	return !t.IsZero() && d >= 0 && d < retryAfter
}

// place gives as many batches their places as the head has room for, at least one.
func (j *Journal) place(ops []*op) (n int) {
	w := &j.writer
	at, foot := w.end, len(w.foot)
	for _, o := range ops {
		if !j.fits(o, at, foot) || w.scarce && !o.frees() {
			break
		}
		o.off = aligned(at)
		at, foot = o.off+int64(o.length), foot+o.page
		n++
	}
	return n
}

// write puts batches that have their places into the head and syncs if one of them wants it.
func (j *Journal) write(ops []*op) {
	w := &j.writer
	iov := w.iov[:0]
	at, durable := w.end, false
	now := j.opt.Now()
	for _, o := range ops {
		o.time = now
		putHead(o.rec[align:], w.head.seq, w.head.stamp, head{o.length, len(o.meta()), checksum(o.meta()), now.UnixNano()})
		pad := int(o.off - at)
		iov = append(iov, o.rec[align-pad:]) // zeros
		iov = append(iov, o.bodies...)
		at = o.off + int64(o.length)
		durable = durable || o.done != nil
	}
	w.iov = iov
	n, err := w.file.WriteVec(iov, w.end)
	clear(w.iov[:len(iov)])
	if err == nil && n != at-w.end {
		err = io.ErrShortWrite
	}
	if err == nil && durable {
		err = w.file.Sync()
	}
	if err != nil {
		j.fail(ops, err)
		return
	}
	written := at - w.end
	w.end, w.fails = at, 0
	w.head.end.Store(at)
	for _, o := range ops {
		w.foot = appendPage(w.foot, o.off, o.meta())
	}
	if durable { // before anything is taken for dead
		j.account(w.unsynced)
		j.account(ops)
	}
	j.apply(ops, durable, written)
	if !durable {
		w.unsynced = append(w.unsynced, ops...)
		return
	}
	w.synced = at
	j.tell(ops)
}

// apply takes written batches into the index; if they were synced, what was closed by them or before is dead.
func (j *Journal) apply(ops []*op, durable bool, written int64) {
	w := &j.writer
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, o := range ops {
		p := place{o.off, len(o.meta())}
		dead := len(j.index.dead)
		itemsIn(&w.item, o.meta(), func(it *item) error {
			j.index.fold(w.head, p, it)
			return nil
		})
		if o.from != nil { // closes of the dead: the index cannot tell what they answer
			for d := range o.from.deps {
				w.head.needs(d)
			}
		}
		for _, d := range j.index.dead[dead:] {
			j.cache.drop(d.id)
		}
		for i := range o.batch.Accepts {
			j.remember(&o.batch.Accepts[i])
		}
		if o.accepts {
			j.stats.Full = false
		}
	}
	j.log += written
	j.stats.Commits += int64(len(ops))
	if durable {
		j.stats.Syncs++
		j.bury()
	}
}

// remember keeps a message just accepted at hand.
func (j *Journal) remember(a *queue.Accept) {
	e := j.index.live[a.ID]
	if e == nil {
		return
	}
	if e.flags&inFile != 0 {
		e.flags |= verified
		return
	}
	j.cache.put(a.ID, a.Envelope, a.Body, e.size)
}

// bury ends what is durably dead, and has the housekeeper look if that made a segment worth its while.
func (j *Journal) bury() {
	if j.index.bury(func(s *segment) bool { return s.live == 0 || s.liveBytes < j.opt.SegmentSize/4 }, j.writer.head) {
		nudge(j.tidy)
	}
}

// tell says that batches, and those unsynced before them, are durable.
func (j *Journal) tell(ops []*op) {
	w := &j.writer
	for _, group := range [2][]*op{w.unsynced, ops} {
		for _, o := range group {
			if o.carry == nil {
				j.opt.Observe(queue.Position{Segment: w.head.seq, Offset: o.off}, o.batch)
			}
			if o.done != nil {
				o.done(nil)
			}
			j.recycle(o)
		}
	}
	clear(w.unsynced)
	w.unsynced = w.unsynced[:0]
}

// flush makes the unsynced durable.
func (j *Journal) flush() {
	w := &j.writer
	if err := w.file.Sync(); err != nil {
		j.fail(nil, err)
		return
	}
	j.durable()
}

func (j *Journal) durable() {
	w := &j.writer
	w.synced, w.fails = w.end, 0
	j.account(w.unsynced)
	j.mu.Lock()
	j.stats.Syncs++
	j.bury()
	j.mu.Unlock()
	j.tell(nil)
}

// fail ends the head, which is never touched again, and the batches that did not make it. Before their owners
// hear of it, the header of the next segment says where this one ends, so that what may yet turn out to be on
// the disk is never delivered. If that header cannot be written either, what became of the batches is in doubt.
func (j *Journal) fail(ops []*op, err error) {
	w := &j.writer
	j.abandon(err)
	var failed []*op
	for _, o := range ops {
		if o.done == nil {
			j.keep(o)
		} else {
			failed = append(failed, o)
		}
	}
	spare, lost := j.takeSpare(false)
	if lost == nil {
		lost = j.roll(spare)
	}
	w.failed = j.opt.Now()
	err = fmt.Errorf("journal: %w", err)
	if lost != nil {
		err = fmt.Errorf("%w: %w", queue.ErrInDoubt, err)
	}
	for _, o := range failed {
		j.refuse(o, err)
	}
}

// abandon gives up the head after a failure.
func (j *Journal) abandon(err error) {
	w := &j.writer
	w.fails++
	j.opt.Warn(fmt.Sprintf("journal: segment %016x is given up at %d: %v", w.head.seq, w.synced, err))
	j.mu.Lock()
	j.stats.Failures++
	w.head.end.Store(w.synced)
	w.head.broken = true
	w.head.sort()
	j.mu.Unlock()
	w.file.Close()
	w.cut, w.head, w.file = w.head, nil, nil
	for _, o := range w.unsynced {
		j.keep(o)
	}
	w.unsynced = nil
}

// keep saves a batch of Write for later. Closes are kept always: there can be no more of them than open
// recipients. Notes and fails alone are given up beyond a bound.
func (j *Journal) keep(o *op) {
	w := &j.writer
	if len(o.batch.Closes)+len(o.batch.Holds) == 0 && w.bytes+int64(len(o.rec)) > j.opt.Backlog {
		j.mu.Lock()
		j.stats.LostNotes++
		j.mu.Unlock()
		j.recycle(o)
		return
	}
	w.backlog = append(w.backlog, o)
	w.bytes += int64(len(o.rec))
	j.mu.Lock()
	j.stats.Backlog = len(w.backlog)
	j.mu.Unlock()
}

// putOff ends batches for which there is no head: those waited for fail, the others are kept.
func (j *Journal) putOff(ops []*op, err error) {
	for _, o := range ops {
		if o.done != nil {
			j.refuse(o, err)
		} else {
			j.keep(o)
		}
	}
}

// seal ends the head in peace: footer, trailer, sync.
func (j *Journal) seal() {
	w := &j.writer
	t := trailer{seq: w.head.seq, stamp: w.head.stamp, at: aligned(w.end), length: int64(len(w.foot)), end: w.end, sum: checksum(w.foot)}
	if err := writeFooter(w.file, t, w.foot, j.opt.SegmentSize); err != nil {
		j.abandon(err)
		return
	}
	j.durable()
	w.file.Close()
	j.mu.Lock()
	w.head.footer.Store(&t)
	w.head.sort()
	j.mu.Unlock()
	w.cut, w.head, w.file = nil, nil, nil
}

// writeFooter seals a file of size bytes.
func writeFooter(f disk.File, t trailer, foot []byte, size int64) error {
	if _, err := f.WriteVec([][]byte{foot}, t.at); err != nil {
		return err
	}
	if _, err := f.WriteAt(t.append(nil), size-trailerSize); err != nil {
		return err
	}
	return f.Sync()
}

// frees tells whether a batch may use the last spare: closes make room, accepts take it, notes and
// fails can wait.
func (o *op) frees() bool {
	return !o.accepts && (len(o.batch.Notes)+len(o.batch.Fails) == 0 || len(o.batch.Closes)+len(o.batch.Holds) > 0)
}

// takeSpare takes a file for a new head, and leaves another behind if the last one is to be spared.
func (j *Journal) takeSpare(leave bool) (string, error) {
	want := 1
	if leave {
		want = 2
	}
	for {
		j.mu.Lock()
		if n := len(j.spares); n >= want {
			name := j.spares[n-1]
			j.spares = j.spares[:n-1]
			j.mu.Unlock()
			nudge(j.tidy) // make another
			return name, nil
		}
		j.mu.Unlock()
		if err := j.tryMake(); err != nil {
			return "", err
		}
	}
}

func (j *Journal) count() int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return len(j.spares)
}

// tryMake makes a spare, unless that failed a moment ago.
func (j *Journal) tryMake() error {
	w := &j.writer
	if j.recent(w.full) {
		return j.noRoom(errors.New("none a moment ago"))
	}
	w.full = time.Time{}
	if err := j.makeSpare(); err != nil {
		w.full = j.opt.Now()
		return j.noRoom(err)
	}
	return nil
}

func (j *Journal) noRoom(err error) error {
	j.mu.Lock()
	j.stats.Full = true
	j.mu.Unlock()
	return fmt.Errorf("%w: %w", queue.ErrFull, err)
}

// makeSpare adds a new file to the spares.
func (j *Journal) makeSpare() error {
	j.mu.Lock()
	n := j.nextSpare
	j.nextSpare++
	j.mu.Unlock()
	name := spareName(n)
	f, err := j.disk.Create(name, 0o600)
	if err != nil {
		return err
	}
	err = f.Allocate(j.opt.SegmentSize)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, j.disk.Remove(name))
	}
	j.mu.Lock()
	j.spares = append(j.spares, name)
	j.mu.Unlock()
	return nil
}

// roll makes a spare the head: header, sync, name, sync of the names.
func (j *Journal) roll(spare string) error {
	w := &j.writer
	w.seq++
	s := &segment{seq: w.seq, name: segmentName(w.seq), cuts: w.cut}
	f, err := j.activate(s, spare)
	if err != nil {
		w.fails++
		w.failed = j.opt.Now()
		j.mu.Lock()
		j.stats.Failures++
		j.mu.Unlock()
		j.opt.Warn(fmt.Sprintf("journal: cannot begin segment %016x: %v", s.seq, err))
		return err
	}
	s.end.Store(headerRoom)
	w.head, w.file, w.foot = s, f, w.foot[:0]
	w.end, w.synced, w.cut = headerRoom, headerRoom, nil
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.index.dead { // their closes will be written again, here
		s.needs(d.seg)
	}
	j.segs = append(j.segs, s)
	return nil
}

func (j *Journal) activate(s *segment, spare string) (disk.File, error) {
	var random [8]byte
	if _, err := io.ReadFull(j.opt.Rand, random[:]); err != nil {
		return nil, err
	}
	s.stamp = binary.LittleEndian.Uint64(random[:])
	f, err := j.disk.OpenWrite(spare)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(s.header(s.cuts, j.nextID.Load()).room(), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = j.disk.Rename(spare, s.name)
	}
	if err == nil {
		err = j.disk.SyncDir(segmentDir)
	}
	if err != nil {
		f.Close()
		j.disk.Remove(spare) // whichever it is called; if neither goes, it is an empty segment
		j.disk.Remove(s.name)
		return nil, err
	}
	return f, nil
}

// finish ends the journal in order: everything durable, the head sealed and no longer than it must be.
func (j *Journal) finish() error {
	w := &j.writer
	var errs []error
	if len(w.backlog) > 0 {
		errs = append(errs, fmt.Errorf("journal: %d closes and notes could not be written", len(w.backlog)))
	}
	if w.head != nil {
		size := aligned(w.end) + int64(len(w.foot)) + trailerSize
		t := trailer{seq: w.head.seq, stamp: w.head.stamp, at: aligned(w.end), length: int64(len(w.foot)), end: w.end, sum: checksum(w.foot)}
		err := w.file.Truncate(size)
		if err == nil {
			err = writeFooter(w.file, t, w.foot, size)
		}
		errs = append(errs, err, w.file.Close())
		if err == nil {
			w.head.footer.Store(&t)
		}
	}
	errs = append(errs, j.promise(j.nextID.Load()))
	return errors.Join(errs...)
}
