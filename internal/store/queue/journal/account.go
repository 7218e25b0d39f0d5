package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// account tells the account of batches that are durable, in the order of the log.
func (j *Journal) account(ops []*op) {
	a := j.opt.Account
	if a == nil {
		return
	}
	for _, o := range ops {
		if o.carry != nil || len(o.batch.Accepts)+len(o.batch.Closes) == 0 {
			continue
		}
		for i := range o.batch.Accepts {
			m := &o.batch.Accepts[i]
			a.Accepted(o.time, m.ID, m.Envelope, sizeOf(m), false)
		}
		for i := range o.batch.Closes {
			if c := &o.batch.Closes[i]; c.Recipients == nil || len(c.Recipients) > 0 {
				a.Closed(o.time, c)
			}
		}
		a.Reached(queue.Position{Segment: j.writer.head.seq, Offset: o.off})
	}
}

func sizeOf(m *queue.Accept) (size int64) {
	if s, ok := m.Spool.(*spool); ok {
		return s.size
	}
	for _, piece := range m.Body {
		size += int64(len(piece))
	}
	return size
}

func (j *Journal) settleAccount() error {
	if j.opt.Account == nil {
		return nil
	}
	return j.opt.Account.Settle()
}

func (j *Journal) closeAccount() error {
	if j.opt.Account == nil {
		return nil
	}
	return j.opt.Account.Close()
}

// feed tells the account what came after all that it has: a process that dies may not have brought it that far. A new
// account hears of all that is on the disk.
func (j *Journal) feed() error {
	a := j.opt.Account
	if a == nil {
		return nil
	}
	last, err := a.Begin(func(id queue.ID) bool {
		j.mu.RLock()
		defer j.mu.RUnlock()
		return j.index.live[id] != nil
	})
	if err != nil {
		return fmt.Errorf("journal: the account: %w", err)
	}
	f := &feeder{j: j, to: a, last: last, known: map[queue.ID]bool{}}
	for _, s := range j.segs {
		if s.seq < last.Segment {
			continue
		}
		if err := f.segment(s); err != nil {
			return fmt.Errorf("segment %016x: %w", s.seq, err)
		}
	}
	return nil
}

// feeder tells an account of records on the disk.
type feeder struct {
	j     *Journal
	to    queue.Account
	last  queue.Position
	known map[queue.ID]bool // told of, where the account is new
}

func (f *feeder) segment(s *segment) error {
	at := int64(-1)
	return f.j.records(s, func(p place, _ *item) error {
		if p.off == at || s.seq == f.last.Segment && p.off <= f.last.Offset {
			return nil
		}
		at = p.off
		return f.record(s, p)
	})
}

// record reads one record in full. One that cannot be read tells nothing; reading at opening has named it.
func (f *feeder) record(s *segment, p place) error {
	f.j.mu.RLock()
	file, err := f.j.acquire(s)
	f.j.mu.RUnlock()
	if err != nil {
		return err
	}
	defer f.j.release(s)
	b := make([]byte, headSize+p.meta)
	if n, err := file.ReadAt(b, p.off); n < len(b) {
		if err == io.EOF {
			return nil
		}
		return err
	}
	r, err := parseHead(b, s.seq, s.stamp, maxSegment)
	if err != nil || r.meta != p.meta || checksum(b[headSize:]) != r.sum {
		return nil
	}
	var when time.Time
	if r.time != 0 {
		when = time.Unix(0, r.time)
	}
	told := false
	err = items(b[headSize:], func(it *item) error {
		told = f.item(when, it) || told
		return nil
	})
	if told {
		f.to.Reached(queue.Position{Segment: s.seq, Offset: p.off})
	}
	return err
}

// item tells of one item, if it is news. What the collector said again is news only to a new account.
func (f *feeder) item(when time.Time, it *item) bool {
	copied := it.flags&flagCopy != 0
	fresh := f.last == queue.Position{}
	switch {
	case it.kind == kindAccept && (!copied || fresh) && !f.known[it.id]:
		env, err := envelope.Parse(it.envelope, true, 0)
		if err != nil {
			return false
		}
		if fresh {
			f.known[it.id] = true
		}
		f.to.Accepted(when, it.id, env, it.size, copied)
		return true
	case it.kind == kindClose && (!copied || fresh && it.outcome == 0 && f.known[it.id]):
		f.to.Closed(when, &queue.Close{ID: it.id, Recipients: setOf(it.who), Outcome: it.outcome, As: it.as})
		return true
	}
	return false
}

func setOf(who runs) (set []uint32) {
	who.each(1<<32-1, func(i uint32) { set = append(set, i) })
	return set
}

// View is a queue that is only looked at, whether a process has it open or not: it shows what was there at some moment
// while it was read.
type View struct{ j *Journal }

// Look reads the queue in d and changes nothing. told, if not nil, hears of the records after those that it knows. A segment
// that went away meanwhile is fs.ErrNotExist: look again.
func Look(d disk.FS, told queue.Account) (*View, error) {
	opt := Options{Account: told, CacheBytes: -1}
	if err := opt.fill(); err != nil {
		return nil, err
	}
	j := &Journal{disk: readOnly{d}, opt: opt, index: index{live: map[queue.ID]*entry{}}}
	r := &recovery{Journal: j, nextID: 1}
	v := &View{j}
	found, err := r.look()
	if err == nil {
		err = r.readSegments(found)
	}
	if err == nil {
		err = j.feed()
	}
	if err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Scan is that of queue.Store.
func (v *View) Scan(f func(*queue.Entry) error) error { return v.j.Scan(f) }

// Body is that of queue.Store. What has left the queue since is fs.ErrNotExist.
func (v *View) Body(ctx context.Context, id queue.ID) (queue.Body, error) { return v.j.Body(ctx, id) }

// Close lets go of the files.
func (v *View) Close() {
	for len(v.j.openFiles) > 0 {
		v.j.closeFile(v.j.openFiles[0])
	}
}

// Inspect is a look at all messages.
func Inspect(d disk.FS, told queue.Account, each func(*queue.Entry) error) error {
	v, err := Look(d, told)
	if err != nil {
		return err
	}
	defer v.Close()
	return v.Scan(each)
}

// readOnly is a disk on which nothing changes.
type readOnly struct{ disk.FS }

var errReadOnly = fmt.Errorf("journal: only looking: %w", fs.ErrPermission)

func (r readOnly) OpenWrite(name string) (disk.File, error) { return r.Open(name) }

func (r readOnly) Open(name string) (disk.File, error) {
	f, err := r.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return readOnlyFile{f}, nil
}

func (readOnly) Create(string, fs.FileMode) (disk.File, error) { return nil, errReadOnly }
func (readOnly) Temp(string, fs.FileMode) (disk.File, error)   { return nil, errReadOnly }
func (readOnly) Link(disk.File, string) error                  { return errReadOnly }
func (readOnly) Rename(string, string) error                   { return nil } // out of the way, as far as we care
func (readOnly) Remove(string) error                           { return nil }
func (readOnly) Mkdir(string, fs.FileMode) error               { return errReadOnly }
func (readOnly) SyncDir(string) error                          { return nil }
func (readOnly) SyncAll() error                                { return errors.ErrUnsupported }

type readOnlyFile struct{ disk.File }

func (readOnlyFile) WriteAt([]byte, int64) (int, error)      { return 0, errReadOnly }
func (readOnlyFile) WriteVec([][]byte, int64) (int64, error) { return 0, errReadOnly }
func (readOnlyFile) Truncate(int64) error                    { return errReadOnly }
func (readOnlyFile) Allocate(int64) error                    { return errReadOnly }
func (readOnlyFile) Sync() error                             { return nil }
