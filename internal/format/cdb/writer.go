package cdb

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
)

// ErrTooLarge is a database that would pass the format's 4 GiB.
var ErrTooLarge = errors.New("cdb: larger than 4 GiB")

// Writer makes a database. The header is written last, so that what was begun and not closed is not a cdb.
type Writer struct {
	w       io.WriterAt
	buf     []byte
	flushed uint64 // bytes of the file before buf
	slots   [256][]slot
	err     error
}

type slot struct{ hash, pos uint32 }

const bufferSize = 1 << 16

// NewWriter begins a database in w, which is written from its start on.
func NewWriter(w io.WriterAt) *Writer {
	return &Writer{w: w, buf: make([]byte, 0, bufferSize), flushed: headerSize}
}

// Add appends a record. A key may be added again; only the first record will be found.
func (w *Writer) Add(key, data []byte) error {
	if w.err != nil {
		return w.err
	}
	pos := w.pos()
	if pos+8+uint64(len(key))+uint64(len(data)) > math.MaxUint32 {
		w.err = ErrTooLarge
		return w.err
	}
	h := Hash(key)
	w.slots[h&255] = append(w.slots[h&255], slot{h, uint32(pos)})
	w.pair(uint32(len(key)), uint32(len(data)))
	w.write(key)
	w.write(data)
	return w.err
}

// Close writes the hash tables and the header. It neither syncs nor closes the file below.
func (w *Writer) Close() error {
	header := make([]byte, 0, headerSize)
	for _, list := range w.slots {
		pos, size := w.pos(), uint64(len(list))*2
		if w.err == nil && pos+size*8 > math.MaxUint32 {
			w.err = ErrTooLarge
		}
		if w.err != nil {
			return w.err
		}
		header = binary.LittleEndian.AppendUint32(header, uint32(pos))
		header = binary.LittleEndian.AppendUint32(header, uint32(size))
		for _, s := range spread(list) {
			w.pair(s.hash, s.pos)
		}
	}
	w.flush()
	if w.err == nil {
		_, w.err = w.w.WriteAt(header, 0)
	}
	return w.err
}

// spread places the slots of one table: each at its hash, or in the next free place after it.
func spread(list []slot) []slot {
	table := make([]slot, len(list)*2)
	for _, s := range list {
		i := int(s.hash>>8) % len(table)
		for table[i].pos != 0 {
			i = (i + 1) % len(table)
		}
		table[i] = s
	}
	return table
}

func (w *Writer) pos() uint64 { return w.flushed + uint64(len(w.buf)) }

func (w *Writer) pair(a, b uint32) {
	var p [8]byte
	binary.LittleEndian.PutUint32(p[:], a)
	binary.LittleEndian.PutUint32(p[4:], b)
	w.write(p[:])
}

func (w *Writer) write(b []byte) {
	for len(b) > 0 && w.err == nil {
		n := copy(w.buf[len(w.buf):cap(w.buf)], b)
		w.buf, b = w.buf[:len(w.buf)+n], b[n:]
		if len(w.buf) == cap(w.buf) {
			w.flush()
		}
	}
}

func (w *Writer) flush() {
	if w.err != nil || len(w.buf) == 0 {
		return
	}
	_, w.err = w.w.WriteAt(w.buf, int64(w.flushed))
	w.flushed += uint64(len(w.buf))
	w.buf = w.buf[:0]
}
