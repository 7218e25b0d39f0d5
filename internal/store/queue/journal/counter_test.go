package journal

import (
	"sync/atomic"

	"qmail/internal/system/disk"
)

// readCounter counts the bytes read.
type readCounter struct {
	disk.FS
	bytes atomic.Int64
}

func (c *readCounter) Open(name string) (disk.File, error) { return c.count(c.FS.Open(name)) }

func (c *readCounter) OpenWrite(name string) (disk.File, error) { return c.count(c.FS.OpenWrite(name)) }

func (c *readCounter) count(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return &countedFile{f, c}, nil
}

type countedFile struct {
	disk.File
	c *readCounter
}

func (f *countedFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(b, off)
	f.c.bytes.Add(int64(n))
	return n, err
}
