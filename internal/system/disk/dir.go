package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Dir is a directory of the machine. Names are looked up from the open directory, so that it may be opened
// before the process loses the right to walk there, and no last component is followed if it is a symbolic link.
type Dir struct {
	root  *os.File
	temps atomic.Uint64 // names for Temp where O_TMPFILE is missing
	once  sync.Once
	whole bool // SyncAll can be relied on; of once
}

// OpenDir opens a directory as a disk.
func OpenDir(name string) (*Dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &Dir{root: os.NewFile(uintptr(fd), name)}, nil
}

// Close closes the directory; files opened below it stay open.
func (d *Dir) Close() error { return d.root.Close() }

// Device is the number of the file system that the directory is in.
func (d *Dir) Device() (number uint64, ok bool) {
	var st unix.Stat_t
	err := unix.Fstat(d.fd(), &st)
	return uint64(st.Dev), err == nil
}

func (d *Dir) fd() int { return int(d.root.Fd()) }

func (d *Dir) fail(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: path.Join(d.root.Name(), name), Err: err}
}

func (d *Dir) open(name string, flags int, perm fs.FileMode) (File, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd(), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, uint32(perm.Perm()))
	})
	runtime.KeepAlive(d)
	if err != nil {
		return nil, d.fail("open", name, err)
	}
	return &file{f: os.NewFile(uintptr(fd), path.Join(d.root.Name(), name))}, nil
}

// Open implements FS.
func (d *Dir) Open(name string) (File, error) { return d.open(name, unix.O_RDONLY, 0) }

// OpenWrite implements FS.
func (d *Dir) OpenWrite(name string) (File, error) { return d.open(name, unix.O_RDWR, 0) }

// Create implements FS.
func (d *Dir) Create(name string, perm fs.FileMode) (File, error) {
	return d.open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, perm)
}

// Temp implements FS.
func (d *Dir) Temp(dir string, perm fs.FileMode) (File, error) {
	f, err := d.open(dir, unix.O_RDWR|unix.O_TMPFILE, perm)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	for {
		name := path.Join(dir, TempPrefix+strconv.Itoa(os.Getpid())+"."+strconv.FormatUint(d.temps.Add(1), 10))
		f, err := d.Create(name, perm)
		if errors.Is(err, fs.ErrExist) {
			continue // left by a dead process that had our number
		}
		if err != nil {
			return nil, err
		}
		f.(*file).named = func() error { return d.Remove(name) }
		f.(*file).name = name
		return f, nil
	}
}

// Link implements FS.
func (d *Dir) Link(f File, name string) error {
	x, ok := f.(*file)
	if !ok {
		return d.fail("link", name, errors.New("not a file of this disk"))
	}
	if x.named != nil {
		return d.linkNamed(x, name)
	}
	// By way of /proc, since AT_EMPTY_PATH wants CAP_DAC_READ_SEARCH.
	err := d.do("link", name, func() error {
		return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(x.f.Fd())), d.fd(), name, unix.AT_SYMLINK_FOLLOW)
	})
	if errors.Is(err, fs.ErrNotExist) { // no /proc, or no such directory: the other way tells
		return d.do("link", name, func() error { return unix.Linkat(int(x.f.Fd()), "", d.fd(), name, unix.AT_EMPTY_PATH) })
	}
	return err
}

func (d *Dir) linkNamed(x *file, name string) error {
	err := d.do("link", name, func() error { return unix.Linkat(d.fd(), x.name, d.fd(), name, 0) })
	if err == nil {
		x.named()
		x.named = nil
	}
	return err
}

func (d *Dir) do(op, name string, f func() error) error {
	if err := check(name); err != nil {
		return err
	}
	_, err := retry(func() (int, error) { return 0, f() })
	runtime.KeepAlive(d)
	if err != nil {
		return d.fail(op, name, err)
	}
	return nil
}

// Rename implements FS.
func (d *Dir) Rename(old, new string) error {
	if err := check(new); err != nil {
		return err
	}
	return d.do("rename", old, func() error { return unix.Renameat(d.fd(), old, d.fd(), new) })
}

// Remove implements FS, for files.
func (d *Dir) Remove(name string) error {
	return d.do("remove", name, func() error { return unix.Unlinkat(d.fd(), name, 0) })
}

// Mkdir implements FS.
func (d *Dir) Mkdir(name string, perm fs.FileMode) error {
	return d.do("mkdir", name, func() error { return unix.Mkdirat(d.fd(), name, uint32(perm.Perm())) })
}

// ReadDir implements FS.
func (d *Dir) ReadDir(name string) ([]string, error) {
	f, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.OS().Readdirnames(-1)
	if err != nil {
		return nil, err // a half-read directory is not a directory with fewer names
	}
	slices.Sort(names)
	return names, nil
}

// Stat implements FS.
func (d *Dir) Stat(name string) (Info, error) {
	var st unix.Stat_t
	err := d.do("stat", name, func() error { return unix.Fstatat(d.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return Info{}, err
	}
	return Info{Size: st.Size, Mode: mode(st.Mode), UID: int(st.Uid)}, nil
}

func mode(m uint32) fs.FileMode {
	perm := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFREG:
		return perm
	case unix.S_IFDIR:
		return perm | fs.ModeDir
	case unix.S_IFLNK:
		return perm | fs.ModeSymlink
	}
	return perm | fs.ModeIrregular
}

// SyncDir implements FS.
func (d *Dir) SyncDir(name string) error {
	f, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = f.OS().Sync()
	return errors.Join(err, f.Close())
}

// SyncAll implements FS by syncfs, where the kernel reports failed writes by it (Linux 5.8) and on the file systems
// that are known to do as it says.
func (d *Dir) SyncAll() error {
	d.once.Do(func() { d.whole = syncfsWorks(d.fd()) })
	if !d.whole {
		return errors.ErrUnsupported
	}
	return d.do("syncfs", ".", func() error { return unix.Syncfs(d.fd()) })
}

func syncfsWorks(fd int) bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	var major, minor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); n != 2 || major < 5 || major == 5 && minor < 8 {
		return false
	}
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true
	}
	return false
}

// file is a File of Dir.
type file struct {
	f     *os.File
	name  string       // of a Temp that had to be named
	named func() error // removes that name; nil once it has another
}

func (x *file) ReadAt(b []byte, off int64) (int, error)  { return x.f.ReadAt(b, off) }
func (x *file) WriteAt(b []byte, off int64) (int, error) { return x.f.WriteAt(b, off) }
func (x *file) OS() *os.File                             { return x.f }
func (x *file) Truncate(size int64) error                { return x.f.Truncate(size) }

// maxPieces is IOV_MAX of Linux.
const maxPieces = 1024

func (x *file) WriteVec(pieces [][]byte, off int64) (int64, error) {
	var total int64
	for len(pieces) > 0 {
		n, err := retry(func() (int, error) {
			return unix.Pwritev(int(x.f.Fd()), pieces[:min(len(pieces), maxPieces)], off)
		})
		runtime.KeepAlive(x)
		if err == nil && n == 0 && holds(pieces) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, &fs.PathError{Op: "write", Path: x.f.Name(), Err: err}
		}
		total += int64(n)
		off += int64(n)
		pieces = after(pieces, n)
	}
	return total, nil
}

func holds(pieces [][]byte) bool {
	return slices.ContainsFunc(pieces, func(p []byte) bool { return len(p) > 0 })
}

// after drops n bytes, and empty pieces, off the front.
func after(pieces [][]byte, n int) [][]byte {
	for len(pieces) > 0 && n >= len(pieces[0]) {
		n -= len(pieces[0])
		pieces[0] = nil
		pieces = pieces[1:]
	}
	if n > 0 {
		pieces[0] = pieces[0][n:]
	}
	return pieces
}

func (x *file) call(op string, f func(fd int) error) error {
	_, err := retry(func() (int, error) { return 0, f(int(x.f.Fd())) })
	runtime.KeepAlive(x)
	if err != nil {
		return &fs.PathError{Op: op, Path: x.f.Name(), Err: err}
	}
	return nil
}

func (x *file) Sync() error { return x.call("fdatasync", unix.Fdatasync) }

// Allocate falls back to a longer file with holes where the file system cannot reserve room.
func (x *file) Allocate(size int64) error {
	err := x.call("allocate", func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	now, err := x.Size()
	if err != nil || now >= size {
		return err
	}
	return x.Truncate(size)
}

func (x *file) Size() (int64, error) {
	st, err := x.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (x *file) Lock() error {
	return x.call("lock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

func (x *file) Close() error {
	err := x.f.Close()
	if x.named != nil {
		err = errors.Join(err, x.named())
		x.named = nil
	}
	return err
}

// retry repeats a call that a signal interrupted.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// check refuses names that leave the root, so that both kinds of disk agree on what a name is.
func check(name string) error {
	if !fs.ValidPath(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: %q is not a name below the root", fs.ErrInvalid, name)
	}
	return nil
}
