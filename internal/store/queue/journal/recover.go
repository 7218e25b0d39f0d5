package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// Open opens the queue in d, or begins one there. It refuses a queue that is in use (ErrLocked) or was
// written in a newer format, and touches nothing of either.
func Open(d disk.FS, opt Options) (*Journal, error) {
	if err := opt.fill(); err != nil {
		return nil, err
	}
	j := &Journal{
		disk: d, opt: opt, wake: make(chan struct{}, 1), tidy: make(chan struct{}, 1), stop: make(chan struct{}),
		written: make(chan struct{}), tidied: make(chan struct{}),
		index: index{live: map[queue.ID]*entry{}},
		cache: cache{limit: opt.CacheBytes, byID: map[queue.ID]cached{}},
	}
	if err := j.takeLock(); err != nil {
		return nil, err
	}
	if err := j.recover(); err != nil {
		j.lock.Close()
		return nil, err
	}
	if err := j.feed(); err != nil {
		j.lock.Close()
		j.writer.file.Close()
		return nil, err
	}
	go j.run()
	go j.housekeep()
	nudge(j.tidy)
	return j, nil
}

func (j *Journal) takeLock() error {
	f, err := j.disk.Create(lockName, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f, err = j.disk.OpenWrite(lockName)
	}
	if err != nil {
		return err
	}
	if err := f.Lock(); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = queue.ErrLocked
		}
		return err
	}
	j.lock = f
	return nil
}

// recovery is what opening learns on its way.
type recovery struct {
	*Journal
	nextID   uint64
	spareIDs uint64 // to be passed over
	lastSeq  uint64
	unfit    []string // spares of the wrong size
	harmed   bool     // something was set aside: keep what would else be rubbish
	buf      []byte
}

func (j *Journal) recover() error {
	r := &recovery{Journal: j, nextID: 1}
	found, err := r.look()
	if err != nil {
		return err
	}
	if err := r.makeDirs(); err != nil {
		return err
	}
	if err := r.readIDs(len(found) > 0); err != nil {
		return err
	}
	if err := r.readSegments(found); err != nil {
		return err
	}
	j.writer.seq = r.lastSeq
	if err := r.orphans(); err != nil { // may know of later ids
		return err
	}
	r.nextID += r.spareIDs
	j.nextID.Store(r.nextID)
	if err := j.promise(r.nextID + idBlock); err != nil {
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		j.opt.Warn("journal: no room to promise ids") // the housekeeper tries again
	}
	j.index.bury(func(*segment) bool { return false }, nil)
	spare, err := j.takeSpare(false)
	if err != nil {
		return err
	}
	return j.roll(spare)
}

// found is a segment as found.
type found struct {
	*segment
	header header
	lost   bool // no header could be read
}

// look reads the headers of all segments and changes nothing.
func (r *recovery) look() ([]found, error) {
	names, err := r.disk.ReadDir(segmentDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []found
	for _, name := range names {
		if n, ok := numberOf(name, spareSuffix); ok {
			r.nextSpare = max(r.nextSpare, n+1)
			if err := r.keepSpare(path.Join(segmentDir, name)); err != nil {
				return nil, err
			}
		}
		seq, ok := numberOf(name, segmentSuffix)
		if !ok {
			continue
		}
		r.lastSeq = max(r.lastSeq, seq)
		f, err := r.readHeader(seq)
		if err != nil {
			return nil, fmt.Errorf("segment %016x: %w", seq, err)
		}
		all = append(all, f)
	}
	return all, nil
}

// keepSpare takes a spare file of the right size; the others were never finished, and go.
func (r *recovery) keepSpare(name string) error {
	info, err := r.disk.Stat(name)
	if err != nil {
		return err
	}
	if info.Size == r.opt.SegmentSize {
		r.spares = append(r.spares, name)
	} else {
		r.unfit = append(r.unfit, name)
	}
	return nil
}

func (r *recovery) readHeader(seq uint64) (found, error) {
	f := found{segment: &segment{seq: seq, name: segmentName(seq)}}
	file, err := r.disk.Open(f.name)
	if err != nil {
		return f, err
	}
	defer file.Close()
	room := make([]byte, headerRoom)
	n, err := file.ReadAt(room, 0)
	if err != nil && err != io.EOF {
		return f, err
	}
	f.header, err = parseHeader(room[:n])
	switch {
	case errors.Is(err, errHeader), err == nil && f.header.seq != seq:
		f.lost = true
	case err != nil:
		return f, err
	}
	f.stamp = f.header.stamp
	return f, nil
}

func (r *recovery) makeDirs() error {
	dirs := []string{segmentDir, bodyDir, quarantineDir}
	made := false
	for i := range shards {
		dirs = append(dirs, shardName(uint64(i)))
	}
	for _, dir := range dirs {
		err := r.disk.Mkdir(dir, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		made = made || err == nil
	}
	if !made {
		return nil
	}
	return errors.Join(r.disk.SyncDir(bodyDir), r.disk.SyncDir("."))
}

// readIDs learns from the ids file which ids may have been given.
func (r *recovery) readIDs(used bool) error {
	f, err := r.disk.Open(idsName)
	if errors.Is(err, fs.ErrNotExist) {
		if used {
			r.doubtIDs("missing")
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 32)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	line, ok := strings.CutSuffix(string(b[:n]), "\n")
	id, err := strconv.ParseUint(line, 10, queue.NodeShift)
	if !ok || err != nil {
		r.doubtIDs("damaged")
		return nil
	}
	r.nextID = max(r.nextID, id)
	return nil
}

// doubtIDs leaves room for ids that only the ids file knew of.
func (r *recovery) doubtIDs(why string) {
	r.opt.Warn("journal: the ids file is " + why + "; ids go on from what the segments know")
	r.spareIDs = idBlock
}

// promise makes durable that ids below limit may be given.
func (j *Journal) promise(limit uint64) error {
	f, err := j.disk.Temp(".", 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(strconv.AppendUint(nil, limit, 10), '\n'), 0)
	if err == nil {
		err = f.Sync()
	}
	const fresh = idsName + ".new"
	if err == nil {
		if err = j.disk.Link(f, fresh); errors.Is(err, fs.ErrExist) { // left by a crash
			if err = j.disk.Remove(fresh); err == nil {
				err = j.disk.Link(f, fresh)
			}
		}
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = j.disk.Rename(fresh, idsName)
	}
	if err == nil {
		err = j.disk.SyncDir(".")
	}
	if err == nil {
		j.idLimit.Store(limit)
	}
	return err
}

// readSegments folds all segments, oldest first.
func (r *recovery) readSegments(all []found) error {
	bySeq := map[uint64]*segment{}
	cuts := map[uint64]int64{}
	for _, f := range all {
		bySeq[f.seq] = f.segment
		if f.header.prevSeq != 0 {
			cuts[f.header.prevSeq] = f.header.prevEnd
		}
	}
	for i, f := range all {
		limit, cut := cuts[f.seq]
		if !cut {
			limit = -1
		}
		if prev := bySeq[f.header.prevSeq]; prev != nil {
			f.cuts = prev
		}
		r.noteID(f.header.nextID)
		if err := r.read(f, limit, i == len(all)-1); err != nil {
			return fmt.Errorf("segment %016x: %w", f.seq, err)
		}
	}
	return nil
}

func (r *recovery) noteID(id uint64) {
	r.nextID = max(r.nextID, id&(1<<queue.NodeShift-1))
}

// read folds one segment up to limit, if that is not negative, and seals the newest if it needs it.
func (r *recovery) read(f found, limit int64, newest bool) error {
	file, err := r.disk.OpenWrite(f.name)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil {
		return err
	}
	t, foot, err := readFooter(file, f, size)
	if err == nil {
		f.stamp = t.stamp
		f.footer.Store(&t)
		f.end.Store(t.end)
		r.foldFooter(f.segment, foot, limit)
		return nil
	}
	if !errors.Is(err, errTrailer) && !errors.Is(err, errItem) {
		return err
	}
	if newest { // whether it was written by a process that died or one that failed, from here on it counts
		if err := file.Sync(); err != nil {
			return err
		}
	}
	return r.readRecords(f, file, size, limit, newest)
}

// readFooter reads and checks a segment's footer; errTrailer means there is none.
func readFooter(f io.ReaderAt, s found, size int64) (t trailer, foot []byte, err error) {
	if size < headerRoom+trailerSize {
		return t, nil, errTrailer
	}
	var b [trailerSize]byte
	if _, err := f.ReadAt(b[:], size-trailerSize); err != nil {
		return t, nil, err
	}
	h := header{seq: s.seq, stamp: s.stamp}
	if s.lost { // then the trailer must know
		h.stamp = le.Uint64(b[24:])
	}
	if t, err = parseTrailer(b[:], h, size); err != nil {
		return t, nil, err
	}
	foot = make([]byte, t.length)
	if _, err := f.ReadAt(foot, t.at); err != nil && !(err == io.EOF && len(foot) == 0) {
		return t, nil, err
	}
	if checksum(foot) != t.sum {
		return t, nil, errTrailer
	}
	return t, foot, pages(foot, t.end, func(place, *item) error { return nil })
}

func (r *recovery) foldFooter(s *segment, foot []byte, limit int64) {
	pages(foot, s.end.Load(), func(p place, it *item) error {
		if limit < 0 || p.off < limit {
			r.fold(s, p, it)
		}
		return nil
	})
	if limit >= 0 {
		s.end.Store(min(limit, s.end.Load()))
	}
	s.sort()
	r.segs = append(r.segs, s)
}

func (r *recovery) fold(s *segment, p place, it *item) {
	if it.kind == kindAccept && it.id.Node() == r.opt.Node {
		r.noteID(uint64(it.id) + 1)
	}
	r.index.fold(s, p, it)
}

// readRecords folds a segment without footer by reading all of it.
func (r *recovery) readRecords(f found, file disk.File, size, limit int64, newest bool) error {
	if limit >= 0 {
		size = min(size, limit)
	}
	if int64(cap(r.buf)) < size {
		r.buf = make([]byte, size)
	}
	b := r.buf[:size]
	if n, err := file.ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	} else if n < len(b) {
		b = b[:n]
	}
	if f.lost {
		stamp, ok := findStamp(b, f.seq)
		if !ok {
			return r.setAside(f.segment, b)
		}
		f.stamp = stamp
		r.warn(f.segment, "its header is damaged")
	}
	var foot []byte
	end, damaged := scan(b, f.seq, f.stamp, func(p place, meta []byte) {
		foot = appendPage(foot, p.off, meta)
		items(meta, func(it *item) error {
			r.fold(f.segment, p, it)
			return nil
		})
	})
	f.end.Store(end)
	f.sort()
	r.segs = append(r.segs, f.segment)
	for _, d := range damaged {
		r.harmed = true
		r.quarantine(f.segment, d, "a record")
	}
	if newest && !f.lost {
		r.seal(f.segment, file, foot)
	}
	return nil
}

// seal gives the newest segment the footer that its process did not live to write. If that fails, it is read in
// full next time, up to the end that the next header tells.
func (r *recovery) seal(s *segment, file disk.File, foot []byte) {
	end := s.end.Load()
	t := trailer{seq: s.seq, stamp: s.stamp, at: aligned(end), length: int64(len(foot)), end: end, sum: checksum(foot)}
	size := t.at + t.length + trailerSize
	err := file.Truncate(size)
	if err == nil {
		err = writeFooter(file, t, foot, size)
	}
	if err != nil {
		s.broken = true
		r.writer.cut = s
		r.warn(s, "cannot be sealed: "+err.Error())
		return
	}
	s.footer.Store(&t)
}

func (j *Journal) warn(s *segment, text string) {
	j.opt.Warn(fmt.Sprintf("journal: segment %016x: %s", s.seq, text))
}

// setAside moves a segment of which nothing can be read out of the way. One that never held anything goes.
func (r *recovery) setAside(s *segment, b []byte) error {
	if len(bytes.Trim(b, "\x00")) == 0 {
		return r.disk.Remove(s.name)
	}
	to := path.Join(quarantineDir, path.Base(s.name))
	if err := r.disk.Rename(s.name, to); err != nil {
		return err
	}
	r.harmed = true
	r.quarantined(to, "neither header nor record can be read")
	return errors.Join(r.disk.SyncDir(quarantineDir), r.disk.SyncDir(segmentDir))
}

// orphans removes files that nothing speaks of, and names messages whose file is missing. When something
// was found damaged, bodies without message are set aside, not removed: what spoke of them may be what is lost.
func (r *recovery) orphans() error {
	for i := range shards {
		dir := shardName(uint64(i))
		names, err := r.disk.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if id, err := queue.ParseID(name); err == nil {
				if e := r.index.live[id]; e != nil && e.flags&inFile != 0 {
					continue
				}
				r.noteFile(id)
			}
			if err := r.orphan(path.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	if err := r.rubbish(bodyDir); err != nil {
		return err
	}
	if err := r.rubbish("."); err != nil {
		return err
	}
	for _, name := range r.unfit {
		if err := r.disk.Remove(name); err != nil {
			return err
		}
	}
	r.index.files = nil // all gone with the orphans
	return r.missing()
}

// noteFile: an id with a file was given, even if its accept never came to be.
func (r *recovery) noteFile(id queue.ID) {
	if n := uint64(id) & (1<<queue.NodeShift - 1); id.Node() == r.opt.Node && n >= r.nextID {
		r.nextID = n + 1
	}
}

func (r *recovery) orphan(name string) error {
	if !r.harmed {
		return r.disk.Remove(name)
	}
	to := path.Join(quarantineDir, path.Base(name))
	if err := r.disk.Rename(name, to); err != nil {
		return err
	}
	r.quarantined(to, "a body without message")
	return nil
}

// rubbish removes unnamed files that had to be named.
func (r *recovery) rubbish(dir string) error {
	names, err := r.disk.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, disk.TempPrefix) {
			if err := r.disk.Remove(path.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing names the messages whose body's file is not there.
func (r *recovery) missing() error {
	for id, e := range r.index.live {
		if e.flags&inFile == 0 {
			continue
		}
		_, err := r.disk.Stat(bodyName(uint64(id)))
		if errors.Is(err, fs.ErrNotExist) {
			r.quarantined(bodyName(uint64(id)), "the body of a message is missing")
		} else if err != nil {
			return err
		}
	}
	return nil
}

// quarantine copies damaged bytes aside, under a name that says where they were.
func (j *Journal) quarantine(s *segment, d span, what string) {
	name := fmt.Sprintf("%s/%016x-%d", quarantineDir, s.seq, d.from)
	j.mu.RLock()
	known := slices.ContainsFunc(j.stats.Quarantined, func(q string) bool { return strings.HasPrefix(q, name+":") })
	j.mu.RUnlock()
	if known {
		return
	}
	if err := j.copyAside(s, d, name); err != nil && !errors.Is(err, fs.ErrExist) {
		j.warn(s, "cannot set damage aside: "+err.Error())
	}
	j.quarantined(name, what+" is damaged")
}

func (j *Journal) copyAside(s *segment, d span, name string) error {
	from, err := j.disk.Open(s.name)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := j.disk.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	buf := make([]byte, 64<<10)
	for at := d.from; at < d.to; {
		n, err := from.ReadAt(buf[:min(int64(len(buf)), d.to-at)], at)
		if n == 0 {
			return err
		}
		if _, err := to.WriteAt(buf[:n], at-d.from); err != nil {
			return err
		}
		at += int64(n)
	}
	return errors.Join(to.Sync(), j.disk.SyncDir(quarantineDir))
}

// quarantined tells of something set aside.
func (j *Journal) quarantined(name, why string) {
	text := name + ": " + why
	j.mu.Lock()
	if len(j.stats.Quarantined) < maxQuarantine {
		j.stats.Quarantined = append(j.stats.Quarantined, text)
	}
	j.mu.Unlock()
	j.opt.Warn("journal: " + text)
}

// sumOf reads a whole file for its checksum.
func sumOf(f io.ReaderAt, size int64) (uint32, error) {
	h := crc32.New(castagnoli())
	_, err := io.Copy(h, io.NewSectionReader(f, 0, size))
	return h.Sum32(), err
}
