package passwd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/replace"
)

const (
	maxFile = 256 << 20
	// lockTime is how long a change waits for another one.
	lockTime = 30 * time.Second
	// keeper is whose file it is, where there are different users.
	keeper = "qmailk"
)

// Path is the file below a home.
func Path(home string) string { return filepath.Join(home, "users", "passwd") }

// Read reads the file of a home. Without one nobody is in the book, and stamp is zero; otherwise it changes with the file.
func Read(home string) (book *Book, stamp Stamp, err error) {
	f, err := os.OpenFile(Path(home), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		book, err = Parse(nil)
		return book, Stamp{}, err
	}
	if err != nil {
		return nil, Stamp{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, Stamp{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, Stamp{}, fmt.Errorf("%s: not a file of at most %d bytes", Path(home), maxFile)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, Stamp{}, fmt.Errorf("%s: others than its owner may read it (chmod 600)", Path(home))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, Stamp{}, err
	}
	if book, err = Parse(b); err != nil {
		return nil, Stamp{}, fmt.Errorf("%s: %w", Path(home), err)
	}
	return book, stampOf(info), nil
}

// Stamp tells one version of the file from another.
type Stamp struct {
	inode    uint64
	size     int64
	modified time.Time
}

func stampOf(info fs.FileInfo) Stamp {
	s := Stamp{size: info.Size(), modified: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}

// Look returns the stamp of the file as it is now, without reading it.
func Look(home string) (Stamp, error) {
	info, err := os.Lstat(Path(home))
	if errors.Is(err, fs.ErrNotExist) {
		return Stamp{}, nil
	}
	if err != nil {
		return Stamp{}, err
	}
	return stampOf(info), nil
}

// Change lets change work on the book, and if it returns nil puts the result in the place of the file. Only one does so
// at a time.
func Change(home string, change func(*Book) error) error {
	unlock, err := lock(Path(home) + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	book, _, err := Read(home)
	if err != nil {
		return err
	}
	if err := change(book); err != nil {
		return err
	}
	if len(book.Secret) == 0 {
		book.Secret = make([]byte, 32)
		rand.Read(book.Secret)
	}
	uid, gid, err := owner(Path(home))
	if err != nil {
		return err
	}
	return replace.File(Path(home), Path(home)+".new", 0o600, func(f *os.File) error {
		if err := f.Chmod(0o600); err != nil { // one left over from before may have come with another mode
			return err
		}
		if uid >= 0 {
			if err := f.Chown(uid, gid); err != nil {
				return err
			}
		}
		_, err := f.Write(book.Append(nil))
		return err
	})
}

// lock waits its turn.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockTime); ; time.Sleep(20 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("%s: somebody else is changing it: %w", path, err)
		}
	}
}

// owner is whose the new file has to be: the old one's owner, else as root that of qmail-authd; -1 is whoever we are.
func owner(path string) (uid, gid int, err error) {
	if os.Geteuid() != 0 {
		return -1, -1, nil
	}
	if info, err := os.Lstat(path); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return int(st.Uid), int(st.Gid), nil
		}
	}
	u, err := user.Lookup(keeper)
	if err != nil {
		return 0, 0, fmt.Errorf("the file has to belong to %s: %w", keeper, err)
	}
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	return uid, gid, err
}
