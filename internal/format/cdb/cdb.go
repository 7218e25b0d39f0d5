// Package cdb reads and writes Bernstein's constant databases: users/cdb, control/morercpthosts.cdb.
//
// A file is 256 pointers (table position and slot count, all numbers 32 bits, little endian), then the
// records in the order they were added (key length, data length, key, data), then the 256 hash tables that
// the pointers name (hash and record position per slot; position 0 ends a probe). Where a key was added more
// than once the first record is the one found.
//
// The reader takes any bytes: each position and length is checked against the file's size before use and a
// probe looks at no slot twice, so a damaged file gives ErrDamaged, never a hang, a panic or a read outside.
// Damage is never "not found": callers treat the error as temporary. Files are replaced by rename only.
package cdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	headerSize = 2048 // 256 pointers of 8 bytes
	seed       = 5381
)

// ErrDamaged is a file that is no cdb, or no longer one.
var ErrDamaged = errors.New("cdb: damaged file")

// Hash is the hash function of the format.
func Hash(key []byte) uint32 {
	h := uint32(seed)
	for _, c := range key {
		h = h<<5 + h ^ uint32(c)
	}
	return h
}

// source gives n bytes at off; the caller has checked that they lie inside the file.
type source interface {
	at(off uint64, n int) ([]byte, error)
}

// DB is an open database. It may be used by several goroutines at once.
type DB struct {
	src  source
	size uint64
}

// New opens a database that is in memory, which must not change while the DB is in use.
func New(data []byte) (*DB, error) { return open(memory(data), int64(len(data))) }

// NewReaderAt opens a database of size bytes behind r, of which only what a lookup needs is read.
func NewReaderAt(r io.ReaderAt, size int64) (*DB, error) { return open(file{r}, size) }

func open(src source, size int64) (*DB, error) {
	if size < headerSize {
		return nil, fmt.Errorf("%w: %d bytes are less than its header", ErrDamaged, size)
	}
	return &DB{src, uint64(size)}, nil
}

// read is the only way to the bytes: it refuses what lies outside the file.
func (db *DB) read(off, n uint64) ([]byte, error) {
	if off > db.size || n > db.size-off {
		return nil, ErrDamaged
	}
	return db.src.at(off, int(n))
}

// pair reads two numbers.
func (db *DB) pair(off uint64) (a, b uint32, err error) {
	p, err := db.read(off, 8)
	if err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:]), nil
}

// Find returns the data of the first record with this key. In a database from New it is a part of its
// memory, not to be changed.
func (db *DB) Find(key []byte) (data []byte, found bool, err error) {
	h := Hash(key)
	pos, slots, err := db.pair(uint64(h&255) * 8)
	if err != nil || slots == 0 {
		return nil, false, err
	}
	table, length := uint64(pos), uint64(slots)*8
	if table < headerSize || table > db.size || length > db.size-table {
		return nil, false, ErrDamaged
	}
	at := uint64(h>>8%slots) * 8
	for range slots {
		hash, record, err := db.pair(table + at)
		if err != nil || record == 0 {
			return nil, false, err
		}
		if hash == h {
			data, found, err := db.match(uint64(record), key)
			if found || err != nil {
				return data, found, err
			}
		}
		if at += 8; at == length {
			at = 0
		}
	}
	return nil, false, nil
}

// match returns the data of the record at off if it has this key.
func (db *DB) match(off uint64, key []byte) (data []byte, found bool, err error) {
	if off < headerSize {
		return nil, false, ErrDamaged
	}
	klen, dlen, err := db.pair(off)
	if err != nil || uint64(klen) != uint64(len(key)) {
		return nil, false, err
	}
	got, err := db.read(off+8, uint64(klen))
	if err != nil || !bytes.Equal(got, key) {
		return nil, false, err
	}
	data, err = db.read(off+8+uint64(klen), uint64(dlen))
	return data, err == nil, err
}

// Each calls fn with every record in the order they were added, until fn returns an error, which it returns.
func (db *DB) Each(fn func(key, data []byte) error) error {
	end, _, err := db.pair(0) // the first table follows the last record
	if err != nil {
		return err
	}
	for off := uint64(headerSize); off < uint64(end); {
		klen, dlen, err := db.pair(off)
		if err != nil {
			return err
		}
		key, err := db.read(off+8, uint64(klen))
		if err != nil {
			return err
		}
		data, err := db.read(off+8+uint64(klen), uint64(dlen))
		if err != nil {
			return err
		}
		if off += 8 + uint64(klen) + uint64(dlen); off > uint64(end) {
			return ErrDamaged
		}
		if err := fn(key, data); err != nil {
			return err
		}
	}
	return nil
}

type memory []byte

func (m memory) at(off uint64, n int) ([]byte, error) {
	return m[off : off+uint64(n) : off+uint64(n)], nil
}

type file struct{ r io.ReaderAt }

func (f file) at(off uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := f.r.ReadAt(b, int64(off))
	if got == n {
		return b, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it became shorter while it was read", ErrDamaged)
	}
	return nil, err
}
