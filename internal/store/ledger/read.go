package ledger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// list returns the numbers of the files, in order.
func list(d disk.FS) ([]uint64, error) {
	names, err := d.ReadDir(Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []uint64
	for _, name := range names {
		if n, ok := numberOf(name); ok {
			files = append(files, n)
		}
	}
	return files, nil
}

func readHeader(d disk.FS, number uint64) (header, error) {
	f, err := d.Open(fileName(number))
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	h, _, err := headerOf(f, number)
	return h, err
}

// headerOf reads the header of an open file, and its place in the chain.
func headerOf(f disk.File, number uint64) (header, hash, error) {
	b := make([]byte, headerSize)
	n, err := f.ReadAt(b, 0)
	if n < len(b) && err != nil && err != io.EOF {
		return header{}, hash{}, err
	}
	h, err := parseHeader(b[:n])
	if err == nil && h.number != number {
		err = errHeader
	}
	if err != nil {
		return header{}, hash{}, fmt.Errorf("%s: %w", fileName(number), err)
	}
	return h, sumOf(b), nil
}

// source reads a file in large pieces.
type source struct {
	f    disk.File
	at   int64 // of buf
	buf  []byte
	have int
}

const readAhead = 4 << 20

// bytes returns n bytes at off, or fewer where the file ends. They are good until the next call.
func (s *source) bytes(off int64, n int) ([]byte, error) {
	if off < s.at || off+int64(n) > s.at+int64(s.have) {
		if size := max(n, readAhead); len(s.buf) < size {
			s.buf = make([]byte, size)
		}
		got, err := s.f.ReadAt(s.buf, off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		s.at, s.have = off, got
	}
	from := int(off - s.at)
	return s.buf[from:min(from+n, s.have)], nil
}

// tail is the end of a file as far as it is whole.
type tail struct {
	at      queue.Position
	chain   hash
	serial  uint64
	durable uint64 // the last block that is known to be
	seen    queue.ID
	end     int64
	more    bool // something that looks like a block is behind it
	whole   bool // and there the file ends, as it does after an orderly end
}

// blocks calls f with the blocks of a file, in order, up to limit if that is positive, as long as each belongs to the one
// before it. With checked false nobody looks at the hashes.
func blocks(d disk.FS, number uint64, limit int64, checked bool, f func(*block) error) (header, tail, error) {
	file, err := d.Open(fileName(number))
	if err != nil {
		return header{}, tail{}, err
	}
	defer file.Close()
	h, chain, err := headerOf(file, number)
	if err != nil {
		return h, tail{}, err
	}
	t := tail{chain: chain, serial: h.serial, seen: h.seen, end: headerSize}
	in := &source{f: file}
	for limit <= 0 || t.end < limit {
		k, whole, size, err := in.block(t.end)
		if err != nil {
			return h, t, err
		}
		if !whole {
			break
		}
		if k.serial != t.serial+1 || checked && !k.follows(t.chain, in, t.end) {
			length, err := file.Size()
			t.more, t.whole = true, err == nil && length == t.end+size
			break
		}
		t.chain, t.serial, t.durable, t.at = k.sum, k.serial, k.durable, k.at
		t.end += size
		if err := f(&k); err != nil {
			return h, t, err
		}
	}
	return h, t, nil
}

// block reads the block at off.
func (s *source) block(off int64) (k block, whole bool, size int64, err error) {
	head, err := s.bytes(off, blockHeader)
	if err != nil {
		return k, false, 0, err
	}
	k, length, ok := parseBlock(head)
	if !ok {
		return k, false, 0, nil
	}
	all, err := s.bytes(off, blockHeader+length)
	if err != nil || len(all) < blockHeader+length {
		return k, false, 0, err
	}
	k.entries = all[blockHeader:]
	return k, true, int64(len(all)), nil
}

// follows checks a block's hash.
func (b *block) follows(chain hash, in *source, off int64) bool {
	head, err := in.bytes(off, blockHeader)
	return err == nil && chainSum(chain, head[:blockHeader-len(hash{})], b.entries) == b.sum
}

// readTail finds the end of a file.
func readTail(d disk.FS, number uint64) (tail, error) {
	seen := queue.ID(0)
	h, t, err := blocks(d, number, 0, true, func(b *block) error {
		return b.each(func(e *Entry) error {
			if e.Accept {
				seen = max(seen, e.ID)
			}
			return nil
		})
	})
	t.seen = max(seen, h.seen)
	return t, err
}

// each calls f with the entries of a block; the entry is f's for that call.
func (b *block) each(f func(*Entry) error) error {
	var e Entry
	for rest := b.entries; len(rest) > 0; {
		var err error
		if rest, err = e.next(rest, b.time); err != nil {
			return err
		}
		if err := f(&e); err != nil {
			return err
		}
	}
	return nil
}

// scanFile calls f with the entries of a file.
func scanFile(d disk.FS, number uint64, f func(*block, *Entry) error) error {
	_, _, err := blocks(d, number, 0, false, func(b *block) error {
		return b.each(func(e *Entry) error { return f(b, e) })
	})
	return err
}

// Files tells how many files there are and how many bytes.
func Files(d disk.FS) (count int, size int64, err error) {
	files, err := list(d)
	for _, n := range files {
		info, err := d.Stat(fileName(n))
		if err != nil {
			return 0, 0, err
		}
		size += info.Size
	}
	return len(files), size, err
}
