package disk

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// ErrPower is what every operation says once the power is off.
var ErrPower = errors.New("disk: power is off")

// Kind names an operation for fault injection.
type Kind string

// The operations.
const (
	OpOpen     Kind = "open"
	OpCreate   Kind = "create"
	OpTemp     Kind = "temp"
	OpLink     Kind = "link"
	OpRename   Kind = "rename"
	OpRemove   Kind = "remove"
	OpMkdir    Kind = "mkdir"
	OpReadDir  Kind = "readdir"
	OpStat     Kind = "stat"
	OpSyncDir  Kind = "syncdir"
	OpRead     Kind = "read"
	OpWrite    Kind = "write"
	OpSync     Kind = "sync"
	OpSyncAll  Kind = "syncall"
	OpAllocate Kind = "allocate"
	OpTruncate Kind = "truncate"
	OpLock     Kind = "lock"
	OpClose    Kind = "close"
)

// Mutates tells the operations that can change what a crash leaves behind.
func (k Kind) Mutates() bool {
	switch k {
	case OpOpen, OpReadDir, OpStat, OpRead, OpLock, OpClose:
		return false
	}
	return true
}

// Op is an operation about to be done.
type Op struct {
	N    int // how many went before it
	Kind Kind
	Name string
	Size int // bytes to read or write
}

// Memory is a disk in memory that is volatile where a real one is, fails when told, and can crash.
type Memory struct {
	t      *tree
	mu     *sync.Mutex // of t; shared by all that use the tree
	inject func(Op) error
	lies   []Kind
	ops    int
	dead   bool
}

// tree is what survives the death of a process.
type tree struct {
	root    *node
	changes []change       // of names, not yet durable, oldest first
	dirty   map[*node]bool // files with pending edits
	space   int64          // free bytes; negative is unlimited
}

// node is a file or directory.
type node struct {
	dir      bool
	mode     fs.FileMode
	names    map[string]*node // as seen now
	durable  map[string]*node // as after a power cut
	data     []byte           // as seen now
	platter  []byte           // as after a power cut
	pending  []edit           // between the two
	locked   *memFile
	links    int
	handles  int
	reserved int64 // bytes taken from the tree's space
}

// edit is an unsynced change of a file: bytes at an offset, or with nil bytes a new size.
type edit struct {
	off   int64
	bytes []byte
}

// change is one indivisible change of names.
type change []entry

type entry struct {
	dir  *node
	name string
	to   *node // nil: removed
}

// NewMemory returns an empty disk without limit.
func NewMemory() *Memory {
	return &Memory{t: &tree{root: newDir(0o700), dirty: map[*node]bool{}, space: -1}, mu: &sync.Mutex{}}
}

func newDir(perm fs.FileMode) *node {
	return &node{dir: true, mode: perm | fs.ModeDir, names: map[string]*node{}, durable: map[string]*node{}}
}

// Inject has f decide before each operation whether it fails, nil for none. A write that fails has written half of its
// bytes; after a failed sync the unsynced bytes can still be read but will never be durable, and the next sync says success.
func (m *Memory) Inject(f func(Op) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inject = f
}

// Lie has operations of these kinds, OpSync, OpSyncAll or OpSyncDir, say success and do nothing: a test that does not notice is
// not worth much.
func (m *Memory) Lie(kinds ...Kind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lies = kinds
}

// FailNth fails operation n (counted from 0, as Ops does), and that one only.
func FailNth(n int, err error) func(Op) error {
	return func(o Op) error {
		if o.N == n {
			return err
		}
		return nil
	}
}

// FailKind fails every operation of these kinds.
func FailKind(err error, kinds ...Kind) func(Op) error {
	return func(o Op) error {
		if slices.Contains(kinds, o.Kind) {
			return err
		}
		return nil
	}
}

// DieAt cuts the power before the nth operation (from 0) that could change what is left behind: that one
// and all later ones fail with ErrPower.
func DieAt(n int) func(Op) error {
	seen := 0
	return func(o Op) error {
		if !o.Kind.Mutates() {
			return nil
		}
		seen++
		if seen > n {
			return ErrPower
		}
		return nil
	}
}

// Ops is the number of operations so far.
func (m *Memory) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Dead tells whether the power is off.
func (m *Memory) Dead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// SetSpace says how many more bytes fit; negative is no limit. Removed files give their room back.
func (m *Memory) SetSpace(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.t.space = n
}

// Kill ends the process that uses m, not the machine: the next one finds what reads would have shown, no
// lock held, and what was not durable still is not.
func (m *Memory) Kill() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	unlock(m.t.root)
	return &Memory{t: m.t, mu: m.mu}
}

func unlock(n *node) {
	n.locked = nil
	for _, c := range n.names {
		unlock(c)
	}
}

// begin counts an operation and asks whether it fails. m.mu is held.
func (m *Memory) begin(kind Kind, name string, size int) error {
	if m.dead {
		return &fs.PathError{Op: string(kind), Path: name, Err: ErrPower}
	}
	op := Op{m.ops, kind, name, size}
	m.ops++
	if m.inject == nil {
		return nil
	}
	err := m.inject(op)
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrPower) {
		m.dead = true
	}
	return &fs.PathError{Op: string(kind), Path: name, Err: err}
}

// find walks to a name.
func (m *Memory) find(name string) (*node, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	n := m.t.root
	if name == "." {
		return n, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		if n = n.names[part]; n == nil {
			return nil, fs.ErrNotExist
		}
	}
	return n, nil
}

// place finds the directory that a name is to be in.
func (m *Memory) place(name string) (dir *node, base string, err error) {
	if err := check(name); err != nil {
		return nil, "", err
	}
	if dir, err = m.find(path.Dir(name)); err == nil && !dir.dir {
		err = syscall.ENOTDIR
	}
	return dir, path.Base(name), err
}

func wrap(kind Kind, name string, err error) error {
	return &fs.PathError{Op: string(kind), Path: name, Err: err}
}

// change does a change of names, for now without durability.
func (m *Memory) change(c change) {
	for _, e := range c {
		if was := e.dir.names[e.name]; was != nil && !was.dir {
			was.links--
			m.free(was)
		}
		if e.to == nil {
			delete(e.dir.names, e.name)
			continue
		}
		e.dir.names[e.name] = e.to
		e.to.links++
	}
	m.t.changes = append(m.t.changes, c)
}

// free gives back the room of a file that nobody can reach.
func (m *Memory) free(n *node) {
	if n.links == 0 && n.handles == 0 && m.t.space >= 0 {
		m.t.space += n.reserved
		n.reserved = 0
	}
}

// reserve takes room for a file of size bytes.
func (m *Memory) reserve(n *node, size int64) error {
	more := size - n.reserved
	if more <= 0 {
		return nil
	}
	if m.t.space >= 0 {
		if more > m.t.space {
			return syscall.ENOSPC
		}
		m.t.space -= more
	}
	n.reserved = size
	return nil
}

func (m *Memory) handle(n *node, name string, write bool) *memFile {
	n.handles++
	return &memFile{m: m, n: n, name: name, write: write}
}

func (m *Memory) open(name string, write bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(OpOpen, name, 0); err != nil {
		return nil, err
	}
	n, err := m.find(name)
	if err == nil && n.dir {
		err = syscall.EISDIR
	}
	if err != nil {
		return nil, wrap(OpOpen, name, err)
	}
	return m.handle(n, name, write), nil
}

// Open implements FS.
func (m *Memory) Open(name string) (File, error) { return m.open(name, false) }

// OpenWrite implements FS.
func (m *Memory) OpenWrite(name string) (File, error) { return m.open(name, true) }

// Create implements FS.
func (m *Memory) Create(name string, perm fs.FileMode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := &node{mode: perm}
	if err := m.add(OpCreate, name, n); err != nil {
		return nil, err
	}
	return m.handle(n, name, true), nil
}

func (m *Memory) add(kind Kind, name string, n *node) error {
	if err := m.begin(kind, name, 0); err != nil {
		return err
	}
	dir, base, err := m.place(name)
	if err == nil && dir.names[base] != nil {
		err = fs.ErrExist
	}
	if err != nil {
		return wrap(kind, name, err)
	}
	m.change(change{{dir, base, n}})
	return nil
}

// Temp implements FS.
func (m *Memory) Temp(dir string, perm fs.FileMode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(OpTemp, dir, 0); err != nil {
		return nil, err
	}
	if d, err := m.find(dir); err != nil || !d.dir {
		return nil, wrap(OpTemp, dir, errors.Join(err, syscall.ENOTDIR))
	}
	f := m.handle(&node{mode: perm}, path.Join(dir, "#"), true)
	f.temp = true
	return f, nil
}

// Link implements FS.
func (m *Memory) Link(f File, name string) error {
	x, ok := f.(*memFile)
	if !ok || !x.temp {
		return wrap(OpLink, name, fs.ErrInvalid)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add(OpLink, name, x.n)
}

// Rename implements FS.
func (m *Memory) Rename(old, new string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(OpRename, old, 0); err != nil {
		return err
	}
	n, err := m.find(old)
	if err != nil {
		return wrap(OpRename, old, err)
	}
	from, fromBase, err := m.place(old)
	if err != nil {
		return wrap(OpRename, old, err)
	}
	to, toBase, err := m.place(new)
	if err != nil {
		return wrap(OpRename, new, err)
	}
	if was := to.names[toBase]; was == n {
		return nil
	} else if was != nil && was.dir {
		return wrap(OpRename, new, syscall.EISDIR)
	}
	m.change(change{{to, toBase, n}, {from, fromBase, nil}})
	return nil
}

// Remove implements FS.
func (m *Memory) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(OpRemove, name, 0); err != nil {
		return err
	}
	n, err := m.find(name)
	if err == nil && n.dir {
		err = syscall.EISDIR
	}
	if err != nil {
		return wrap(OpRemove, name, err)
	}
	dir, base, _ := m.place(name)
	m.change(change{{dir, base, nil}})
	return nil
}

// Mkdir implements FS.
func (m *Memory) Mkdir(name string, perm fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add(OpMkdir, name, newDir(perm))
}

// ReadDir implements FS.
func (m *Memory) ReadDir(name string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(OpReadDir, name, 0); err != nil {
		return nil, err
	}
	n, err := m.find(name)
	if err == nil && !n.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, wrap(OpReadDir, name, err)
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

// Stat implements FS.
func (m *Memory) Stat(name string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(OpStat, name, 0); err != nil {
		return Info{}, err
	}
	n, err := m.find(name)
	if err != nil {
		return Info{}, wrap(OpStat, name, err)
	}
	return Info{Size: int64(len(n.data)), Mode: n.mode, UID: os.Getuid()}, nil
}

// SyncDir implements FS. After a failed one the changes stay volatile: file systems journal names, and a
// later sync that succeeds has written them.
func (m *Memory) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(OpSyncDir, name, 0); err != nil {
		return err
	}
	n, err := m.find(name)
	if err == nil && !n.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return wrap(OpSyncDir, name, err)
	}
	if slices.Contains(m.lies, OpSyncDir) {
		return nil
	}
	m.t.changes = slices.DeleteFunc(m.t.changes, func(c change) bool {
		if !slices.ContainsFunc(c, func(e entry) bool { return e.dir == n }) {
			return false
		}
		for _, e := range c {
			e.apply(e.dir.durable)
		}
		return true
	})
	return nil
}

// SyncAll implements FS. Names are left as volatile as they were, which is less than real systems do.
func (m *Memory) SyncAll() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.begin(OpSyncAll, ".", 0)
	if errors.Is(err, ErrPower) || err == nil && slices.Contains(m.lies, OpSyncAll) {
		return err
	}
	for n := range m.t.dirty {
		if err == nil {
			n.settle()
		}
		n.pending = nil // written, or lost for good
	}
	clear(m.t.dirty)
	return err
}

func (e entry) apply(names map[string]*node) {
	if e.to == nil {
		delete(names, e.name)
	} else {
		names[e.name] = e.to
	}
}

// memFile is an open file of Memory.
type memFile struct {
	m      *Memory
	n      *node
	name   string
	write  bool
	temp   bool
	closed bool
}

func (x *memFile) begin(kind Kind, size int) error {
	if x.closed {
		return wrap(kind, x.name, fs.ErrClosed)
	}
	return x.m.begin(kind, x.name, size)
}

func (x *memFile) OS() *os.File { return nil }

func (x *memFile) ReadAt(b []byte, off int64) (int, error) {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if err := x.begin(OpRead, len(b)); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, wrap(OpRead, x.name, fs.ErrInvalid)
	}
	if off >= int64(len(x.n.data)) && len(b) > 0 {
		return 0, io.EOF
	}
	n := copy(b, x.n.data[min(off, int64(len(x.n.data))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (x *memFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := x.WriteVec([][]byte{b}, off)
	return int(n), err
}

func (x *memFile) WriteVec(pieces [][]byte, off int64) (int64, error) {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	b := slices.Concat(pieces...)
	err := x.begin(OpWrite, len(b))
	if errors.Is(err, ErrPower) || errors.Is(err, fs.ErrClosed) {
		return 0, err
	}
	if !x.write || off < 0 {
		return 0, wrap(OpWrite, x.name, syscall.EBADF)
	}
	if err != nil {
		b = b[:len(b)/2]
	}
	if full := x.m.reserve(x.n, off+int64(len(b))); full != nil {
		return 0, wrap(OpWrite, x.name, full)
	}
	if len(b) > 0 {
		x.edit(edit{off, b})
	}
	return int64(len(b)), err
}

// edit does a change of bytes, for now without durability.
// edit changes a file, for now only as it is seen.
func (x *memFile) edit(e edit) {
	x.n.data = e.apply(x.n.data)
	x.n.pending = append(x.n.pending, e)
	x.m.t.dirty[x.n] = true
}

// settle makes what was changed durable.
func (n *node) settle() {
	for _, e := range n.pending {
		n.platter = e.apply(n.platter)
	}
}

func (e edit) apply(data []byte) []byte {
	if e.bytes == nil {
		return resize(data, e.off)
	}
	data = resize(data, max(int64(len(data)), e.off+int64(len(e.bytes))))
	copy(data[e.off:], e.bytes)
	return data
}

func resize(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		clear(data[size:])
		return data[:size]
	}
	if size <= int64(cap(data)) {
		return data[:size]
	}
	return append(slices.Grow(data, int(size)-len(data)), make([]byte, int(size)-len(data))...)
}

func (x *memFile) Sync() error {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	err := x.begin(OpSync, 0)
	if errors.Is(err, ErrPower) || errors.Is(err, fs.ErrClosed) {
		return err
	}
	if err == nil && slices.Contains(x.m.lies, OpSync) {
		return nil
	}
	if err == nil {
		x.n.settle()
	}
	x.n.pending = nil // written, or lost for good
	delete(x.m.t.dirty, x.n)
	return err
}

func (x *memFile) Allocate(size int64) error {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if err := x.begin(OpAllocate, 0); err != nil {
		return err
	}
	if err := x.m.reserve(x.n, size); err != nil {
		return wrap(OpAllocate, x.name, err)
	}
	if size > int64(len(x.n.data)) {
		x.edit(edit{off: size})
	}
	return nil
}

func (x *memFile) Truncate(size int64) error {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if err := x.begin(OpTruncate, 0); err != nil {
		return err
	}
	if !x.write || size < 0 {
		return wrap(OpTruncate, x.name, fs.ErrInvalid)
	}
	if give := x.n.reserved - size; give > 0 {
		x.n.reserved = size
		if x.m.t.space >= 0 {
			x.m.t.space += give
		}
	}
	x.edit(edit{off: size})
	return nil
}

func (x *memFile) Size() (int64, error) {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if err := x.begin(OpStat, 0); err != nil {
		return 0, err
	}
	return int64(len(x.n.data)), nil
}

func (x *memFile) Lock() error {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if err := x.begin(OpLock, 0); err != nil {
		return err
	}
	if x.n.locked != nil && x.n.locked != x {
		return wrap(OpLock, x.name, syscall.EWOULDBLOCK)
	}
	x.n.locked = x
	return nil
}

func (x *memFile) Close() error {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if x.closed {
		return wrap(OpClose, x.name, fs.ErrClosed)
	}
	err := x.m.begin(OpClose, x.name, 0)
	x.closed = true
	if x.n.locked == x {
		x.n.locked = nil
	}
	x.n.handles--
	x.m.free(x.n)
	return err
}
