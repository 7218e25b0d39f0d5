package journal

import (
	"errors"
	"hash/crc32"
	"io/fs"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

var errSpool = errors.New("journal: spool already used")

// spool is a large body on its way to a file of its own.
type spool struct {
	j    *Journal
	f    disk.File
	size int64
	sum  uint32
	err  error // the first; all later calls say it too
}

// Spool implements queue.Store.
func (j *Journal) Spool() (queue.Spool, error) {
	f, err := j.disk.Temp(bodyDir, 0o600)
	if err != nil {
		return nil, err
	}
	return &spool{j: j, f: f}, nil
}

func (s *spool) Write(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.f.WriteAt(b, s.size)
	s.size += int64(n)
	s.sum = crc32.Update(s.sum, castagnoli(), b[:n])
	s.err = err
	return n, err
}

func (s *spool) Size() int64 { return s.size }

func (s *spool) Close() error {
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	if s.err == nil {
		s.err = fs.ErrClosed
	}
	return err
}

// settle makes the body durable under the message's name, before any record speaks of it.
func (s *spool) settle(id queue.ID) error {
	if s.err != nil {
		return s.err
	}
	s.err = errSpool
	if err := s.f.Sync(); err != nil {
		return err
	}
	if err := s.j.disk.Link(s.f, bodyName(uint64(id))); err != nil {
		return err
	}
	if err := s.j.disk.SyncDir(shardName(uint64(id))); err != nil {
		s.j.discard(id)
		return err
	}
	return nil
}
