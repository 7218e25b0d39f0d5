// Package ledger is the account of all mail: what entered the queue and what left it, without bodies, in files that
// outlive the queue. In goes what the queue tells (queue.Account), out come a balance (Verify) and what became of some
// message (Find). docs/queue.md has the format to the byte.
//
// Nothing waits for it. Entries are gathered into blocks and written a second later, synced now and then; what a crash
// takes is told again by the queue, which forgets nothing before the account has it (Settle). Each block carries a hash
// of itself and of all before it, so that nothing in the middle can be left out or changed without a trace.
package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// Dir is where the account is, below the queue's own directory.
const Dir = "ledger"

// Options change how an account is kept; the zero value is good for a server.
type Options struct {
	FileSize int64            // of files, about: 64 MiB by default
	FileTime time.Duration    // how long one is written to: a day by default
	Keep     func() int       // for how many days files are kept, 0 for ever; asked now and then
	Now      func() time.Time // time.Now by default
	Warn     func(string)     // is told of failures, a line each
}

const (
	blockSize  = 256 << 10       // of entries, at which a block is written at once
	flushAfter = time.Second     // the longest that an entry waits for it
	syncAfter  = 5 * time.Second // and for its sync, if the queue does not ask before
	retryAfter = 5 * time.Second
	lookAfter  = time.Hour // between looks for files that are too old
	maxWaiting = 64 << 20  // bytes of entries that wait while the disk does not work
	reserve    = 4 << 20   // room taken ahead, so that a full disk does not stop the account
)

// Ledger is an account that is being kept. It implements queue.Account.
type Ledger struct {
	disk disk.FS
	opt  Options
	wake chan struct{}
	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex
	block  block // being gathered
	open   bool  // in the middle of a record
	ready  []block
	bytes  int  // of ready
	behind bool // entries were given up: only the next Begin can tell them again
	asked  bool // the goroutine has been woken for the block at hand

	io       chan struct{} // holds a token for who has what follows; taken before mu. No mutex: it is held while a disk works
	live     func(queue.ID) bool
	files    []uint64 // by number; the last is the newest
	file     disk.File
	number   uint64    // of file
	made     time.Time // file
	end      int64     // where its blocks end
	room     int64     // taken
	synced   int64     // where those end that are durable
	chain    hash      // of the last block
	kept     hash      // of the last that is durable
	serial   uint64    // of the last block
	keptUpTo uint64    // of the last that is durable
	seen     queue.ID  // the highest id accepted
	unsynced []block
	last     mark // of the file before: where it ends
	looked   time.Time
	failed   bool // the last try
}

// mark is a place in the account.
type mark struct {
	number uint64
	end    int64
}

var _ queue.Account = (*Ledger)(nil)

// New makes an account in the directory Dir of d. Nothing is read or written before Begin.
func New(d disk.FS, opt Options) *Ledger {
	if opt.FileSize == 0 {
		opt.FileSize = 64 << 20
	}
	if opt.FileTime == 0 {
		opt.FileTime = 24 * time.Hour
	}
	if opt.Keep == nil {
		opt.Keep = func() int { return 0 }
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Warn == nil {
		opt.Warn = func(string) {}
	}
	return &Ledger{disk: d, opt: opt, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), io: make(chan struct{}, 1)}
}

// Begin implements queue.Account.
func (l *Ledger) Begin(live func(queue.ID) bool) (queue.Position, error) {
	l.live = live
	files, err := list(l.disk)
	if err != nil {
		return queue.Position{}, err
	}
	l.files = files
	var at queue.Position
	for i := len(files) - 1; i >= 0 && at == (queue.Position{}); i-- {
		tail, err := readTail(l.disk, files[i])
		if errors.Is(err, errHeader) { // it was never written to
			continue
		}
		if err != nil {
			return at, err
		}
		at = tail.at
		if l.last.number == 0 { // the newest, which may have no block yet
			if err := l.resume(files[i], tail); err != nil {
				return at, err
			}
		}
	}
	if len(l.unsynced) > 0 {
		l.wake <- struct{}{}
	}
	l.looked = l.opt.Now()
	go l.run()
	return at, nil
}

// resume goes on after the file of another life. Of its last blocks nobody knows whether they are durable, and a sync now
// might say so although an earlier one has failed: they are written again, into the next file.
func (l *Ledger) resume(number uint64, t tail) error {
	l.seen = t.seen
	l.last = mark{number, headerSize}
	h, err := readHeader(l.disk, number)
	if err != nil {
		return err
	}
	durable := max(t.durable, h.serial)
	l.chain, l.serial = sumOf(h.append(nil)), h.serial
	_, _, err = blocks(l.disk, number, 0, true, func(b *block) error {
		if b.serial > durable {
			again := *b
			again.entries = slices.Clone(b.entries)
			again.written = l.opt.Now()
			l.unsynced = append(l.unsynced, again)
			return nil
		}
		l.chain, l.serial = b.sum, b.serial
		l.last.end += blockHeader + int64(len(b.entries))
		return nil
	})
	l.kept, l.keptUpTo = l.chain, l.serial
	return err
}

// Accepted implements queue.Account.
func (l *Ledger) Accepted(at time.Time, id queue.ID, e *envelope.Envelope, size int64, carried bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin(at)
	l.block.entries = appendAccept(l.block.entries, at.UnixMilli()-l.block.time, id, e, size, carried)
	l.block.seen = max(l.block.seen, id)
}

// Closed implements queue.Account.
func (l *Ledger) Closed(at time.Time, c *queue.Close) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin(at)
	l.block.entries = appendClose(l.block.entries, at.UnixMilli()-l.block.time, c)
}

// begin makes ready for an entry.
func (l *Ledger) begin(at time.Time) {
	if l.block.count == 0 {
		l.block.time = at.UnixMilli()
	}
	l.block.count++
	l.open = true
}

// Reached implements queue.Account.
func (l *Ledger) Reached(at queue.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = false
	if l.behind {
		l.block.entries, l.block.count = l.block.entries[:0], 0
		return
	}
	l.block.at = at
	full := len(l.block.entries) >= blockSize
	if full {
		l.cut()
	}
	if full || !l.asked {
		l.asked = true
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// cut ends the block at hand. l.mu is held.
func (l *Ledger) cut() {
	if l.open || l.block.count == 0 {
		return
	}
	if l.bytes > maxWaiting {
		l.behind = true
		l.opt.Warn("ledger: the disk has not worked for long; what comes now is told after the next start")
		l.block = block{}
		return
	}
	l.ready = append(l.ready, l.block)
	l.bytes += len(l.block.entries)
	l.block = block{entries: make([]byte, 0, min(cap(l.block.entries), 2*blockSize))}
	l.asked = false
}

// run writes what waits, a second after it came, and looks after the files.
func (l *Ledger) run() {
	defer close(l.done)
	for {
		select {
		case <-l.stop:
			return
		case <-l.wake:
		case <-time.After(lookAfter):
		}
		select {
		case <-l.stop:
			return
		case <-time.After(flushAfter):
		}
		for l.work() != nil {
			select {
			case <-l.stop:
				return
			case <-time.After(retryAfter):
			}
		}
	}
}

// work writes what waits, and syncs what has waited for that.
func (l *Ledger) work() error {
	l.io <- struct{}{}
	defer func() { <-l.io }()
	err := l.write()
	now := l.opt.Now()
	if err == nil && len(l.unsynced) > 0 && now.Sub(l.unsynced[0].written).Abs() >= syncAfter {
		err = l.sync()
	}
	if err == nil && now.Sub(l.looked).Abs() >= lookAfter {
		l.looked = now
		err = l.dropOld(now)
	}
	if err != nil && !l.failed {
		l.opt.Warn("ledger: " + err.Error())
	}
	l.failed = err != nil
	if err == nil && len(l.unsynced) > 0 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return err
}

// write writes the blocks that wait. l.io is held.
func (l *Ledger) write() error {
	l.mu.Lock()
	l.cut()
	ready := l.ready
	l.mu.Unlock()
	for _, b := range ready {
		if l.file != nil && (l.end > l.opt.FileSize || l.opt.Now().Sub(l.made).Abs() > l.opt.FileTime) {
			if err := l.finish(); err != nil {
				return err
			}
		}
		if err := l.put(b); err != nil {
			return err
		}
		l.mu.Lock()
		l.ready = l.ready[1:]
		l.bytes -= len(b.entries)
		l.mu.Unlock()
	}
	return nil
}

// put appends a block to the file, which it begins if there is none.
func (l *Ledger) put(b block) error {
	if l.file == nil {
		if err := l.create(); err != nil {
			return err
		}
	}
	b.written = l.opt.Now()
	if err := l.append(b); err != nil {
		l.abandon()
		return err
	}
	l.unsynced = append(l.unsynced, b)
	return nil
}

// append writes one block at the end of the file.
func (l *Ledger) append(b block) error {
	head, sum := b.header(l.serial+1, l.keptUpTo, l.chain)
	size := int64(len(head) + len(b.entries))
	if l.end+size > l.room {
		if err := l.file.Allocate(l.end + size + reserve); err == nil {
			l.room = l.end + size + reserve
		} // else there may still be room for this
	}
	n, err := l.file.WriteVec([][]byte{head, b.entries}, l.end)
	if err == nil && n != size {
		err = errors.New("short write")
	}
	if err != nil {
		return err
	}
	l.end += size
	l.serial++
	l.chain = sum
	l.seen = max(l.seen, b.seen)
	return nil
}

// create begins a new file and says again in it what the one before may have lost.
func (l *Ledger) create() error {
	number := uint64(1)
	if n := len(l.files); n > 0 {
		number = l.files[n-1] + 1
	} else if err := l.disk.Mkdir(Dir, 0o700); err == nil {
		if err := l.disk.SyncDir("."); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	now := l.opt.Now()
	f, err := l.begun(number, now)
	if err != nil {
		l.file, l.serial, l.chain = nil, l.keptUpTo, l.kept
		if f != nil {
			f.Close()
		}
		l.disk.Remove(newName) // else the next try does
		return err
	}
	err = l.disk.Rename(newName, fileName(number))
	if err == nil {
		err = l.disk.SyncDir(Dir)
	}
	if err != nil {
		l.file, l.serial, l.chain = nil, l.keptUpTo, l.kept
		f.Close()
		l.disk.Remove(newName) // whichever it is called
		l.disk.Remove(fileName(number))
		return err
	}
	l.files = append(l.files, number)
	l.number, l.made = number, now
	l.synced, l.kept, l.keptUpTo, l.unsynced = l.end, l.chain, l.serial, nil
	l.last = mark{number, l.end}
	return nil
}

// newName is a file that has no number yet.
const newName = Dir + "/new"

// begun writes the beginning of a file, with all that has to be said again, and syncs it: before it has its name, the file
// before it has not ended.
func (l *Ledger) begun(number uint64, now time.Time) (disk.File, error) {
	f, err := l.disk.Create(newName, 0o600)
	if errors.Is(err, fs.ErrExist) { // left by a crash
		if err = l.disk.Remove(newName); err == nil {
			f, err = l.disk.Create(newName, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	h := header{number: number, made: now.UnixNano(), previous: l.last, chain: l.kept, serial: l.keptUpTo, seen: l.seen}
	b := h.append(nil)
	if _, err := f.WriteAt(b, 0); err != nil {
		return f, err
	}
	l.file, l.end, l.room = f, headerSize, headerSize
	l.serial, l.chain = l.keptUpTo, sumOf(b)
	for _, b := range l.unsynced {
		if err := l.append(b); err != nil {
			return f, err
		}
	}
	return f, f.Sync()
}

// abandon gives up a file after a failure: it ends where the last good sync left it.
func (l *Ledger) abandon() {
	l.file.Close()
	l.file = nil
	l.last = mark{l.number, l.synced}
}

// sync makes what was written durable. l.io is held.
func (l *Ledger) sync() error {
	if len(l.unsynced) == 0 {
		return nil
	}
	if l.file == nil {
		return l.create() // which syncs
	}
	if err := l.file.Sync(); err != nil {
		l.abandon()
		return err
	}
	l.synced, l.kept, l.keptUpTo, l.unsynced = l.end, l.chain, l.serial, nil
	l.last = mark{l.number, l.end}
	return nil
}

// finish ends a file in peace.
func (l *Ledger) finish() error {
	err := l.sync()
	if err != nil || l.file == nil {
		return err
	}
	_ = l.file.Truncate(l.end) // what was only taken ahead; else it stays, and does no harm
	err = l.file.Sync()
	l.file.Close()
	l.file = nil
	return err
}

// Settle implements queue.Account.
func (l *Ledger) Settle() error {
	l.io <- struct{}{}
	defer func() { <-l.io }()
	l.mu.Lock()
	behind := l.behind
	l.mu.Unlock()
	if behind {
		return errBehind
	}
	if err := l.write(); err != nil {
		return err
	}
	return l.sync()
}

var errBehind = errors.New("ledger: entries were given up; they are told again after the next start")

// Close implements queue.Account.
func (l *Ledger) Close() error {
	close(l.stop)
	<-l.done
	l.io <- struct{}{}
	defer func() { <-l.io }()
	err := l.write()
	if err == nil {
		err = l.finish()
	}
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}

// dropOld removes files that are too old, the oldest first, but none with a message that is still in the queue.
func (l *Ledger) dropOld(now time.Time) error {
	days := l.opt.Keep()
	for days > 0 && len(l.files) > 1 && l.files[0] != l.number {
		next, err := readHeader(l.disk, l.files[1])
		if err == nil && now.Sub(time.Unix(0, next.made)) < time.Duration(days)*24*time.Hour {
			return nil
		}
		if err != nil && !errors.Is(err, errHeader) {
			return err
		}
		needed, err := l.needed(l.files[0])
		if err != nil || needed {
			return err
		}
		if err := l.disk.Remove(fileName(l.files[0])); err != nil {
			return err
		}
		l.files = slices.Clone(l.files[1:])
		if err := l.disk.SyncDir(Dir); err != nil {
			return err
		}
	}
	return nil
}

// needed tells whether a message of which a file tells that it was accepted is still in the queue.
func (l *Ledger) needed(number uint64) (bool, error) {
	found := false
	err := scanFile(l.disk, number, func(_ *block, e *Entry) error {
		if e.Accept && l.live(e.ID) {
			found = true
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) || errors.Is(err, errHeader) {
		err = nil
	}
	return found, err
}

var errEnough = errors.New("enough")
