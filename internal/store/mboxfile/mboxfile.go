// Package mboxfile appends messages to mbox files (format/mbox): lock, append, sync, and on any trouble back
// to the old length.
//
// The lock is flock(2), waited for at most 30 seconds. All errors are temporary and use the words of
// qmail-local. Where the original went on without a lock if the system had none to give, the message waits.
// A symbolic link is followed to a file of the user's own, and never makes a file.
package mboxfile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/format/errstr"
	"qmail/internal/format/mbox"
	"qmail/internal/format/reply"
)

// lockTime is how long a lock is waited for, lockPause how long between two looks at it.
const (
	lockTime  = 30 * time.Second
	lockPause = 100 * time.Millisecond
)

// Message is what is appended: the From_ line, header fields of the delivery, the message.
type Message struct {
	From, Head []byte
	Body       io.Reader
}

// Append adds m to the file at path, which errors call name. nil means that it is there to stay. An error is a
// *reply.Error, and the file is as long as before.
func Append(ctx context.Context, path, name string, m Message) error {
	f, err := openLocked(ctx, path, name)
	if err != nil {
		return err
	}
	defer f.Close() // after the sync an error here says nothing
	info, err := f.Stat()
	if err != nil {
		return refusal("4.3.0", "Unable to write "+name, err)
	}
	if err := write(f, info.Size() == 0, m); err != nil {
		terr := f.Truncate(info.Size())
		if r, ok := errors.AsType[*mbox.ReadError](err); ok {
			return refusal("4.3.0", "Unable to read message", errors.Join(r.Err, terr))
		}
		return refusal("4.3.0", "Unable to write "+name, errors.Join(err, terr))
	}
	return nil
}

func refusal(status, what string, err error) error {
	return reply.Temporary(status, fmt.Sprintf("%s: %s.", what, errstr.Text(err)), err)
}

// openLocked opens and locks the file. While the lock was waited for another file may have taken its place, as
// maildir2mbox does it: what is written to the old one nobody would ever see.
func openLocked(ctx context.Context, path, name string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	for {
		f, err := open(path)
		if err != nil {
			return nil, refusal("4.2.1", "Unable to open "+name, err)
		}
		if err := lock(ctx, f, name); err != nil {
			f.Close()
			return nil, err
		}
		ours, err1 := f.Stat()
		now, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(ours, now) {
			return f, nil
		}
		f.Close()
		if ctx.Err() != nil { // somebody replaces it all the time
			return nil, refusal("4.3.0", "Unable to lock "+name, ctx.Err())
		}
	}
}

// open opens or makes the file. What is no regular file, or reached by a link and not the user's, is refused.
func open(path string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_APPEND | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	linked := errors.Is(err, syscall.ELOOP)
	if linked {
		f, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = syscall.EINVAL
	}
	if err == nil && linked {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			err = syscall.EPERM
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func lock(ctx context.Context, f *os.File, name string) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return refusal("4.3.0", "Unable to lock "+name, err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return reply.Temporary("4.3.0", "File has been locked for 30 seconds straight.", ctx.Err())
		}
	}
}

// write appends m and syncs it, and for a new file its name as well.
func write(f *os.File, isNew bool, m Message) error {
	w := bufio.NewWriterSize(f, 64<<10)
	w.Write(m.From) // an error stays with w until Flush
	w.Write(m.Head)
	if err := mbox.WriteBody(w, m.Body); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if isNew {
		return syncName(f)
	}
	return nil
}

// syncName syncs the directory of a file, or where we may not read it the whole file system.
func syncName(f *os.File) error {
	dir, err := os.Open(filepath.Dir(f.Name()))
	if err != nil {
		return unix.Syncfs(int(f.Fd()))
	}
	return errors.Join(dir.Sync(), dir.Close())
}
