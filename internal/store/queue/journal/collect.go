package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"qmail/internal/store/queue"
)

const (
	tidyAfter  = 5 * time.Second // between tries of what failed
	moveBytes  = 1 << 20         // copied at a time, between commits of others
	moveStates = 512             // states of messages in one record
)

// errLater is a segment that is not free yet, though nothing in it is needed.
var errLater = errors.New("journal: not durable yet")

// housekeep is the goroutine that makes room: it promises ids, prepares spares, removes bodies, drops
// segments of which nothing is needed, and moves what is needed out of those of which little is.
func (j *Journal) housekeep() {
	defer close(j.tidied)
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		select {
		case <-j.stop:
			return
		case <-j.tidy:
		case <-retry.C:
		}
		retry.Reset(time.Hour)
		if err := j.clean(); err != nil {
			if !errors.Is(err, errLater) && !errors.Is(err, queue.ErrClosed) {
				j.opt.Warn("journal: cleaning up: " + err.Error())
			}
			retry.Reset(tidyAfter)
		}
	}
}

func (j *Journal) clean() error {
	var errs []error
	if next := j.nextID.Load(); next+idBlock/2 >= j.idLimit.Load() {
		errs = append(errs, j.promise(next+idBlock))
	}
	return errors.Join(append(errs, j.removeBodies(), j.collect(), j.stock())...)
}

// stock keeps spares ready.
func (j *Journal) stock() error {
	for j.count() < j.opt.Spares {
		if err := j.makeSpare(); err != nil {
			return err
		}
	}
	return nil
}

// removeBodies removes the files of large bodies no longer needed. A file that stays is found at opening.
func (j *Journal) removeBodies() error {
	j.mu.Lock()
	files := j.index.files
	j.index.files = nil
	j.mu.Unlock()
	for i, id := range files {
		if err := j.disk.Remove(bodyName(uint64(id))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			j.mu.Lock()
			j.index.files = append(j.index.files, files[i:]...)
			j.mu.Unlock()
			return err
		}
	}
	return nil
}

// collect frees segments until none is worth it.
func (j *Journal) collect() error {
	if err := j.settleDrops(); err != nil {
		return err
	}
	for !j.stopping() {
		s, free := j.choose()
		if s == nil {
			break
		}
		if !free {
			moved, err := j.move(s)
			if err != nil {
				return err
			}
			if !moved {
				continue
			}
		}
		if err := j.drop(s); err != nil {
			return err
		}
	}
	return nil
}

func (j *Journal) stopping() bool {
	select {
	case <-j.stop:
		return true
	default:
		return false
	}
}

// choose picks a segment that is free to go, or else the one with the least in it of those that have little.
func (j *Journal) choose() (best *segment, free bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	limit := j.opt.SegmentSize / 5
	if j.wasteful() {
		limit = j.opt.SegmentSize / 2
	}
	for i, s := range j.segs {
		head := i == len(j.segs)-1 && s.footer.Load() == nil && !s.broken
		if head || s.pinned || s.gone || s.cuts != nil && !s.cuts.gone {
			continue
		}
		if s.live == 0 && len(s.deps) == 0 {
			return s, true
		}
		tired := s.weighed != 0 && j.log-s.weighed < j.opt.SegmentSize
		if s.liveBytes <= limit && !tired && (best == nil || s.liveBytes < best.liveBytes) {
			best = s
		}
	}
	return best, false
}

// wasteful tells whether the journal holds much more than it must. mu is held.
func (j *Journal) wasteful() bool {
	var all, live int64
	for _, s := range j.segs {
		all += s.end.Load()
		live += s.liveBytes
	}
	return len(j.segs) > 8 && all > 2*live
}

// needed is what must not be lost with a segment.
type needed struct {
	accepts []queue.ID // live messages whose accept is here
	states  []queue.ID // others, of which something here must be said again
	bytes   int64
}

// weigh reads through a segment for what is still needed of it.
func (j *Journal) weigh(s *segment) (needed, error) {
	var n needed
	err := j.records(s, func(p place, it *item) error {
		j.mu.RLock()
		defer j.mu.RUnlock()
		e := j.index.live[it.id]
		switch {
		case it.kind == kindAccept && e != nil && e.seg == s && int64(e.off) == p.off:
			n.accepts = append(n.accepts, it.id)
			n.bytes += int64(e.bytes)
		case it.kind == kindAccept:
		case e != nil && e.seg != s && e.state <= s.seq:
			n.states = append(n.states, it.id)
		case e == nil && it.kind == kindClose && s.answers(uint64(it.id)):
			n.states = append(n.states, it.id)
		}
		return nil
	})
	slices.Sort(n.states)
	n.states = slices.Compact(n.states)
	n.bytes += int64(len(n.states)) * 2 * (closeSize + noteSize)
	return n, err
}

// answers tells whether an accept of a message closed here is still on the disk.
func (s *segment) answers(id uint64) bool {
	for t := range s.deps {
		if t.has(id) {
			return true
		}
	}
	return false
}

// move says again, at the head, all that is needed of s. It tells false if that is not worth it.
func (j *Journal) move(s *segment) (bool, error) {
	n, err := j.weigh(s)
	if err != nil {
		return false, err
	}
	end := s.end.Load()
	if small := end <= j.opt.SegmentSize/5; n.bytes > j.opt.SegmentSize/2 || n.bytes > end/2 && !small {
		j.mu.Lock()
		s.weighed = max(j.log, 1)
		j.mu.Unlock()
		return false, nil
	}
	if err := j.moveAccepts(s, n.accepts); err != nil {
		if errors.Is(err, queue.ErrDamaged) || errors.Is(err, queue.ErrTooLarge) {
			j.mu.Lock()
			s.pinned = true
			j.mu.Unlock()
			return false, nil
		}
		return false, err
	}
	for states := range slices.Chunk(n.states, moveStates) {
		if err := j.moveStates(s, states); errors.Is(err, queue.ErrTooLarge) {
			j.mu.Lock()
			s.pinned = true
			j.mu.Unlock()
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, nil
}

// moveStates says the state of messages again, in one record if it can hold them.
func (j *Journal) moveStates(s *segment, ids []queue.ID) error {
	err := <-j.submit(func(o *op) { j.carryStates(o, s, ids) })
	if !errors.Is(err, queue.ErrTooLarge) || len(ids) == 1 {
		return err
	}
	if err := j.moveStates(s, ids[:len(ids)/2]); err != nil {
		return err
	}
	return j.moveStates(s, ids[len(ids)/2:])
}

// carryStates writes the state of messages whose accept is not in s; of those no longer there, that they are closed.
func (j *Journal) carryStates(o *op, s *segment, ids []queue.ID) {
	o.from = s
	for _, id := range ids {
		switch e := j.index.live[id]; {
		case e == nil:
			it := item{kind: kindClose, flags: flagCopy, id: id}
			o.rec = it.append(o.rec)
		case e.seg != s:
			o.rec = e.appendState(o.rec, id)
		}
	}
}

// submit has the writer make and write a record of the collector.
func (j *Journal) submit(carry func(*op)) <-chan error {
	result := make(chan error, 1)
	o := j.newOp()
	o.carry, o.done = carry, func(err error) { result <- err }
	if !j.push(o) {
		j.refuse(o, queue.ErrClosed)
	}
	return result
}

func (j *Journal) moveAccepts(s *segment, ids []queue.ID) error {
	var waits []<-chan error
	var bytes int64
	var first error
	settle := func() {
		for _, w := range waits {
			if err := <-w; first == nil {
				first = err
			}
		}
		waits, bytes = waits[:0], 0
	}
	for _, id := range ids {
		w, n, err := j.moveAccept(s, id)
		if err != nil {
			first = err
			break
		}
		if w != nil {
			waits = append(waits, w)
		}
		if bytes += n; bytes >= moveBytes {
			settle()
		}
		if first != nil || j.stopping() {
			break
		}
	}
	settle()
	if first == nil && j.stopping() {
		first = queue.ErrClosed
	}
	return first
}

// moveAccept copies one message with its state, if it is still there when the writer comes to it.
func (j *Journal) moveAccept(s *segment, id queue.ID) (<-chan error, int64, error) {
	e, f, err := j.find(id)
	if errors.Is(err, queue.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer j.release(e.seg)
	if e.seg != s {
		return nil, 0, nil
	}
	it, err := readAccept(f, id, &e)
	var body []byte
	if err == nil && e.flags&inFile == 0 {
		body, err = readBody(f, &e)
	}
	if err != nil {
		return nil, 0, j.damage(id, &e, err)
	}
	it.flags |= flagCopy
	return j.submit(func(o *op) {
		now := j.index.live[id]
		if now == nil || now.seg != s {
			return
		}
		o.rec = it.append(o.rec)
		if len(body) > 0 {
			o.bodies = append(o.bodies, body)
		}
		o.rec = now.appendState(o.rec, id)
	}), int64(e.bytes), nil
}

// drop removes a segment of which nothing is needed any more, or makes a spare of it. What it tells is on the account
// by then.
func (j *Journal) drop(s *segment) error {
	if err := j.settleAccount(); err != nil {
		return fmt.Errorf("segment %016x: %w", s.seq, err)
	}
	j.mu.Lock()
	if s.live != 0 {
		j.mu.Unlock()
		return errLater // closes of its last messages are not durable
	}
	j.handles.Lock()
	s.gone = true
	reuse := s.refs == 0 && s.footer.Load() != nil && !s.broken && len(j.spares) < 2*j.opt.Spares
	if s.refs == 0 {
		j.closeFile(s)
	}
	j.handles.Unlock()
	j.mu.Unlock()
	if err := j.removeSegment(s, reuse); err != nil {
		j.mu.Lock()
		j.handles.Lock()
		s.gone = false
		j.handles.Unlock()
		j.mu.Unlock()
		return fmt.Errorf("segment %016x: %w", s.seq, err)
	}
	j.mu.Lock()
	j.limbo = append(j.limbo, s)
	j.mu.Unlock()
	return j.settleDrops()
}

func (j *Journal) removeSegment(s *segment, reuse bool) error {
	if reuse {
		info, err := j.disk.Stat(s.name)
		reuse = err == nil && info.Size == j.opt.SegmentSize
	}
	if !reuse {
		return j.disk.Remove(s.name)
	}
	j.mu.Lock()
	n := j.nextSpare
	j.nextSpare++
	j.mu.Unlock()
	name := spareName(n)
	if err := j.disk.Rename(s.name, name); err != nil {
		return err
	}
	s.name = name
	return nil
}

// settleDrops makes removals durable. Only then may records go that the removed segments needed: until then a
// power cut could bring the accepts back.
func (j *Journal) settleDrops() error {
	if len(j.limbo) == 0 {
		return nil
	}
	if err := j.disk.SyncDir(segmentDir); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.limbo {
		j.forget(s)
		if _, spare := numberOf(s.name[len(segmentDir)+1:], spareSuffix); spare {
			j.spares = append(j.spares, s.name)
		}
	}
	j.limbo = nil
	return nil
}

// forget takes a segment that is durably gone out of all lists. Who needed it now needs what it needed: a copy
// in it may have been closed by records whose older accept is still in another.
func (j *Journal) forget(s *segment) {
	j.segs = slices.DeleteFunc(j.segs, func(o *segment) bool { return o == s })
	for _, t := range j.segs {
		if t.cuts == s {
			t.cuts = nil
		}
		if t.last == s {
			t.last = nil
		}
		if _, ok := t.deps[s]; !ok {
			continue
		}
		delete(t.deps, s)
		for d := range s.deps {
			if !d.gone && d != t {
				t.needs(d)
			}
		}
	}
}

// records calls f for what lies in a segment: from its footer if it has one, else record by record.
func (j *Journal) records(s *segment, f func(place, *item) error) error {
	j.mu.RLock()
	file, err := j.acquire(s)
	j.mu.RUnlock()
	if err != nil {
		return err
	}
	defer j.release(s)
	end := s.end.Load()
	if t := s.footer.Load(); t != nil {
		foot := make([]byte, t.length)
		if _, err := file.ReadAt(foot, t.at); err != nil && !(err == io.EOF && len(foot) == 0) {
			return err
		}
		if checksum(foot) == t.sum {
			return pages(foot, t.end, func(p place, it *item) error {
				if p.off >= end {
					return nil
				}
				return f(p, it)
			})
		}
		j.warn(s, "its footer is damaged")
	}
	b := make([]byte, end)
	if _, err := file.ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	}
	var failed error
	scan(b, s.seq, s.stamp, func(p place, meta []byte) {
		if failed == nil {
			failed = items(meta, func(it *item) error { return f(p, it) })
		}
	})
	return failed
}
