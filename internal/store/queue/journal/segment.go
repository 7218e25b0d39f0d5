package journal

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"qmail/internal/system/disk"
)

// segment is one file of the journal. Its counters are guarded by Journal.mu, its read handle by
// Journal.handles; what is set once at its making or sealing needs neither.
type segment struct {
	seq, stamp uint64
	name       string
	cuts       *segment     // whose true end only this one's header tells: it must go first
	end        atomic.Int64 // of the last record that counts
	footer     atomic.Pointer[trailer]

	live      int // messages whose newest accept is here and may still be needed
	liveBytes int64
	accepts   []uint64 // ids of all accepts here, sorted once the segment is written
	deps      map[*segment]struct{}
	last      *segment // the newest of deps, which is mostly asked for again
	gone      bool
	broken    bool  // a write or sync failed: never to be written again, nor used for another segment
	pinned    bool  // holds live messages that cannot be read
	weighed   int64 // when the collector last found it not worth its while, in bytes written by then

	file disk.File
	refs int
}

// needs remembers that s holds records which must not go while the accepts in t are on disk.
func (s *segment) needs(t *segment) {
	if t == s || t == s.last {
		return
	}
	if s.deps == nil {
		s.deps = map[*segment]struct{}{}
	}
	s.deps[t] = struct{}{}
	s.last = t
}

// sort ends the list of accepts; no more come.
func (s *segment) sort() {
	slices.Sort(s.accepts)
	s.accepts = slices.Clip(slices.Compact(s.accepts))
}

// has tells whether an accept of the message lies here.
func (s *segment) has(id uint64) bool {
	_, found := slices.BinarySearch(s.accepts, id)
	return found
}

func (s *segment) header(prev *segment, nextID uint64) header {
	h := header{seq: s.seq, stamp: s.stamp, nextID: nextID}
	if prev != nil {
		h.prevSeq, h.prevEnd = prev.seq, prev.end.Load()
	}
	return h
}

var errGone = errors.New("journal: segment is gone")

// The names below the queue's directory.
const (
	segmentDir    = "segments"
	bodyDir       = "bodies"
	quarantineDir = "quarantine"
	lockName      = "lock"
	idsName       = "ids"

	segmentSuffix = ".seg"
	spareSuffix   = ".spare"
	shards        = 64
)

func segmentName(seq uint64) string { return fmt.Sprintf("%s/%016x%s", segmentDir, seq, segmentSuffix) }
func spareName(n uint64) string     { return fmt.Sprintf("%s/%016x%s", segmentDir, n, spareSuffix) }

// numberOf reads the number in a file name with this suffix.
func numberOf(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil
}

func shardName(id uint64) string { return fmt.Sprintf("%s/%02x", bodyDir, id%shards) }
func bodyName(id uint64) string  { return shardName(id) + "/" + strconv.FormatUint(id, 10) }

// acquire returns an open file to read s from, until release. The caller holds mu, so that s is not gone.
func (j *Journal) acquire(s *segment) (disk.File, error) {
	j.handles.Lock()
	defer j.handles.Unlock()
	if s.gone {
		return nil, errGone
	}
	if s.file == nil {
		f, err := j.disk.Open(s.name)
		if err != nil {
			return nil, err
		}
		s.file = f
		j.openFiles = append(j.openFiles, s)
		j.closeIdle()
	}
	s.refs++
	return s.file, nil
}

func (j *Journal) release(s *segment) {
	j.handles.Lock()
	defer j.handles.Unlock()
	s.refs--
	if s.gone && s.refs == 0 {
		j.closeFile(s)
	}
}

// closeIdle keeps no more than maxOpen files open, but for those being read. j.handles is held.
func (j *Journal) closeIdle() {
	for i := 0; len(j.openFiles) > maxOpen && i < len(j.openFiles)-1; {
		if s := j.openFiles[i]; s.refs == 0 {
			j.closeFile(s)
		} else {
			i++
		}
	}
}

func (j *Journal) closeFile(s *segment) {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
	j.openFiles = slices.DeleteFunc(j.openFiles, func(o *segment) bool { return o == s })
}
