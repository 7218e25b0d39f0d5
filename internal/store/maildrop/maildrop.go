// Package maildrop reads maildirs, maildir(5): it lists their messages, opens and removes them, and moves them
// from new to cur. Delivery is store/maildir's.
//
// Other programs may do the same at the same time, so a message that has gone from where it was is looked for
// under its new name: the part before the colon is the same, and so is the inode. Nothing that is not a regular
// file is a message, no symbolic link is followed, and no rename ever replaces a file.
package maildrop

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxMessages bounds a list. What is beyond it is seen when others are gone.
	maxMessages = 1 << 20
	// staleAfter is how long a file in tmp may lie unread before nobody is writing it any more (maildir(5)).
	staleAfter = 36 * time.Hour
	// certain is how many times the directories are read before a message that is not there is gone: reading a
	// directory in which files are renamed may miss some.
	certain = 3
	// patience is how often a message is followed that is renamed each time.
	patience = 20
	batch    = 1024
)

// Message is a message of a list.
type Message struct {
	Dir  string // "new" or "cur"
	Name string // in there
	Size int64
	Time time.Time // of the delivery
	ino  uint64
}

// Key is the part of the name that stays when flags change.
func (m Message) Key() string { return key(m.Name) }

func key(name string) string {
	k, _, _ := strings.Cut(name, ":")
	return k
}

// ErrBusy is a message that somebody else renames faster than we can follow.
var ErrBusy = errors.New("maildrop: the message is renamed all the time")

// Drop is an open maildir. It is for one goroutine.
type Drop struct {
	dir   *os.File
	parts map[string]*os.File
	scans []scan // the last ones, oldest first, certain of them at most
}

// scan is where messages were, by key.
type scan map[string]place

type place struct{ part, name string }

// Open opens the maildir at path. new and cur are opened when they are first needed.
func Open(path string) (*Drop, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Drop{dir: os.NewFile(uintptr(fd), path), parts: map[string]*os.File{}}, nil
}

// Close closes the maildir.
func (d *Drop) Close() error {
	var failed error
	for _, f := range d.parts {
		failed = errors.Join(failed, f.Close())
	}
	return errors.Join(failed, d.dir.Close())
}

// part is the directory new, cur or tmp.
func (d *Drop) part(name string) (*os.File, error) {
	if f := d.parts[name]; f != nil {
		return f, nil
	}
	fd, err := unix.Openat(int(d.dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	d.parts[name] = f
	return f, nil
}

// each calls do for every name in new, cur or tmp that does not begin with a dot, until do returns false.
func (d *Drop) each(part string, do func(dir int, name string) bool) error {
	f, err := d.part(part)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		names, err := f.Readdirnames(batch)
		for _, name := range names {
			if name[0] != '.' && !do(int(f.Fd()), name) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// List returns the messages that were delivered before now's second, oldest first. A directory that cannot be
// read is an error, never an empty one.
func (d *Drop) List(now time.Time) ([]Message, error) { return d.list(now, unix.Fstatat) }

// stat is unix.Fstatat, or what a test has instead.
type stat func(dir int, name string, st *unix.Stat_t, flags int) error

// list reads the directories again while there are names that went between being read and being looked at: whoever
// renamed such a message has not removed it. Who never stops renaming gets what was seen by then.
func (d *Drop) list(now time.Time, stat stat) ([]Message, error) {
	var list []Message
	for try := 0; ; try++ {
		more, vanished, err := d.seen(now, stat)
		if err != nil {
			return nil, err
		}
		list = once(append(list, more...))
		if !vanished || try == patience {
			break
		}
	}
	list = list[:min(len(list), maxMessages)]
	slices.SortFunc(list, func(a, b Message) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// seen reads the directories once, and tells whether a name had gone when it was looked at.
func (d *Drop) seen(now time.Time, stat stat) (list []Message, vanished bool, failed error) {
	for _, part := range []string{"new", "cur"} {
		err := d.each(part, func(dir int, name string) bool {
			var st unix.Stat_t
			err := stat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
			switch {
			case errors.Is(err, unix.ENOENT):
				vanished = true
			case err != nil:
				failed = &fs.PathError{Op: "stat", Path: part + "/" + name, Err: err}
				return false
			case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mtim.Sec < now.Unix():
				list = append(list, Message{part, name, st.Size, time.Unix(st.Mtim.Unix()), st.Ino})
			}
			return len(list) < maxMessages
		})
		if err = errors.Join(err, failed); err != nil {
			return nil, false, err
		}
	}
	return list, vanished, nil
}

// once leaves out what was seen in new, and again in cur, since it was moved between the two looks.
func once(list []Message) []Message {
	type identity struct {
		key string
		ino uint64
	}
	last := make(map[identity]int, len(list))
	for i, m := range list {
		last[identity{m.Key(), m.ino}] = i
	}
	kept := list[:0]
	for i, m := range list {
		if last[identity{m.Key(), m.ino}] == i {
			kept = append(kept, m)
		}
	}
	return kept
}

// at does something to a message where it is, or, should it have moved, where it is by now. m follows it.
func (d *Drop) at(m *Message, do func(dir int, name string) error) error {
	f, err := d.part(m.Dir)
	if err != nil {
		return err
	}
	err = do(int(f.Fd()), m.Name)
	for try := 0; errors.Is(err, fs.ErrNotExist); try++ {
		if try == patience {
			return ErrBusy
		}
		now, found, failed := d.find(m, try > 0)
		if failed != nil {
			return failed
		}
		if !found {
			return err
		}
		if f, failed = d.part(now.part); failed != nil {
			return failed
		}
		if err = do(int(f.Fd()), now.name); err == nil {
			m.Dir, m.Name = now.part, now.name
		}
	}
	return err
}

// find looks for a message that is not where it was, in the last scan or, if that is no good, a new one. What
// several scans in a row have not seen is gone: its name does not come back.
func (d *Drop) find(lost *Message, anew bool) (place, bool, error) {
	if anew || len(d.scans) == 0 {
		if err := d.look(); err != nil {
			return place{}, false, err
		}
	}
	for {
		missing := 0
		for i := len(d.scans) - 1; i >= 0; i-- {
			where, ok := d.scans[i][lost.Key()]
			if ok && d.same(where, lost) {
				if i == len(d.scans)-1 {
					return where, true, nil
				}
				break
			}
			missing++
		}
		if missing >= certain {
			return place{}, false, nil
		}
		if err := d.look(); err != nil {
			return place{}, false, err
		}
	}
}

// same tells a message from a different one of its name. What is not there any more may have been it.
func (d *Drop) same(where place, lost *Message) bool {
	f, err := d.part(where.part)
	if err != nil {
		return false
	}
	var st unix.Stat_t
	err = unix.Fstatat(int(f.Fd()), where.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return errors.Is(err, unix.ENOENT) || err == nil && st.Ino == lost.ino
}

// look reads the directories.
func (d *Drop) look() error {
	s := scan{}
	for _, part := range []string{"new", "cur"} {
		err := d.each(part, func(_ int, name string) bool {
			s[key(name)] = place{part, name}
			return len(s) < maxMessages
		})
		if err != nil {
			return err
		}
	}
	if len(d.scans) == certain {
		d.scans = append(d.scans[:0], d.scans[1:]...)
	}
	d.scans = append(d.scans, s)
	return nil
}

// Read opens a message.
func (d *Drop) Read(m *Message) (*os.File, error) {
	var f *os.File
	err := d.at(m, func(dir int, name string) error {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: name, Err: err}
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() { // it was, when it was listed
		err = &fs.PathError{Op: "open", Path: m.Name, Err: fs.ErrInvalid}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Remove removes a message. One that somebody else has removed already is removed.
func (d *Drop) Remove(m *Message) error {
	err := d.at(m, func(dir int, name string) error {
		if err := unix.Unlinkat(dir, name, 0); err != nil {
			return &fs.PathError{Op: "remove", Path: name, Err: err}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Settle moves a message from new to cur, without flags. One that is no longer in new has been moved already.
func (d *Drop) Settle(m *Message) error {
	if m.Dir != "new" {
		return nil
	}
	from, err := d.part("new")
	if err != nil {
		return err
	}
	to, err := d.part("cur")
	if err != nil {
		return err
	}
	name := m.Key() + ":2,"
	err = unix.Renameat2(int(from.Fd()), m.Name, int(to.Fd()), name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system that cannot promise it
		if err = unix.Faccessat(int(to.Fd()), name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			err = unix.EEXIST
		} else if errors.Is(err, unix.ENOENT) {
			err = unix.Renameat(int(from.Fd()), m.Name, int(to.Fd()), name)
		}
	}
	switch {
	case err == nil:
		m.Dir, m.Name = "cur", name
		return nil
	case errors.Is(err, unix.ENOENT):
		return nil
	}
	return &fs.PathError{Op: "rename", Path: m.Name, Err: err}
}

// Sweep removes files from tmp that nobody is writing any more. That may fail; the next one has another chance.
func (d *Drop) Sweep(now time.Time) {
	_ = d.each("tmp", func(dir int, name string) bool {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && now.Sub(time.Unix(st.Atim.Unix())) > staleAfter {
			_ = unix.Unlinkat(dir, name, 0)
		}
		return true
	})
}
