package enqueue

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
)

// A drop file is the envelope records in their untrusted form, one NUL, and the message to the end of the
// file. Its owner is the injector; it is written under a name that begins with a dot, synced, and renamed to
// its name without the dot, so that whoever sees that name sees the whole message.

// Drop leaves a message in the drop directory of a home. It returns when the message is on disk.
func Drop(home string, e *envelope.Envelope, body io.Reader) error {
	if err := e.Check(); err != nil {
		return refuse(err)
	}
	// An injector may not list the directory, so it cannot open it for reading either.
	dir, err := unix.Open(DropDir(home), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return dropTrouble(err)
	}
	defer unix.Close(dir)
	name, err := dropName()
	if err != nil {
		return dropTrouble(err)
	}
	hidden := "." + name
	fd, err := unix.Openat(dir, hidden, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return dropTrouble(err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(DropDir(home), hidden))
	defer f.Close()
	if err := fillDrop(f, e, body); err != nil {
		unix.Unlinkat(dir, hidden, 0)
		return err
	}
	if err := unix.Renameat2(dir, hidden, dir, name, unix.RENAME_NOREPLACE); err != nil {
		unix.Unlinkat(dir, hidden, 0)
		return dropTrouble(err)
	}
	// The directory cannot be synced through a descriptor that may not read it; the file system can. It is
	// dear, but happens only while no qmail-send is running.
	if err := unix.Syncfs(fd); err != nil {
		unix.Unlinkat(dir, name, 0)
		return dropTrouble(err)
	}
	return nil
}

func dropTrouble(err error) error {
	return reply.Temporary("4.3.0", "qq trouble creating files in queue", err)
}

func dropName() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

func fillDrop(f *os.File, e *envelope.Envelope, body io.Reader) error {
	// Reading is for qmail-send's user, which owns the directory and not the file; the umask must not
	// take that away. Nobody else can list the directory, and the name cannot be guessed.
	if err := f.Chmod(0o644); err != nil {
		return dropTrouble(err)
	}
	if _, err := f.Write(append(e.Append(nil, false), 0)); err != nil {
		return reply.Temporary("4.3.0", "qq write error or disk full", err)
	}
	if _, err := io.Copy(dropWriter{f}, body); err != nil {
		var w *dropError
		if errors.As(err, &w) {
			return reply.Temporary("4.3.0", "qq write error or disk full", w.err)
		}
		return reply.Temporary("4.3.0", "qq read error", err)
	}
	if err := f.Sync(); err != nil {
		return reply.Temporary("4.3.0", "qq write error or disk full", err)
	}
	return nil
}

// dropWriter tells a failed write from a failed read in io.Copy.
type dropWriter struct{ f *os.File }

type dropError struct{ err error }

func (e *dropError) Error() string { return e.err.Error() }

func (w dropWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		return n, &dropError{err}
	}
	return n, nil
}

// Dropped is a message found in the drop directory.
type Dropped struct {
	UID      int // of the owner, who is the injector
	Envelope *envelope.Envelope
	Body     io.Reader
	Path     string
	file     *os.File
}

// Close closes the file. Done also removes it: call it when the message is safely in the queue.
func (d *Dropped) Close() error { return d.file.Close() }

// Done removes the drop file and closes it.
func (d *Dropped) Done() error {
	defer d.file.Close()
	return os.Remove(d.Path)
}

// OpenDropped opens one drop file and takes its envelope. What is not a regular file with one link is an
// error: it may be somebody else's file under a borrowed name.
func OpenDropped(path string) (*Dropped, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	d, err := readDropped(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.Path = path
	return d, nil
}

func readDropped(f *os.File) (*Dropped, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || st.Nlink != 1 {
		return nil, errors.New("not a regular file with one link")
	}
	r := bufio.NewReaderSize(f, 64<<10)
	var records []byte
	for {
		record, err := r.ReadSlice(0)
		if err != nil {
			return nil, errors.New("envelope cut short or record too long")
		}
		if len(record) == 1 {
			break
		}
		if len(records)+len(record) > MaxEnvelope {
			return nil, errors.New("envelope too large")
		}
		records = append(records, record...)
	}
	e, err := envelope.Parse(bytes.Clone(records), false, 0)
	if err != nil {
		return nil, err
	}
	return &Dropped{UID: int(st.Uid), Envelope: e, Body: r, file: f}, nil
}

// ListDropped returns the paths of complete drop files. A directory that cannot be read is an error, never
// an empty one.
func ListDropped(home string) ([]string, error) {
	entries, err := os.ReadDir(DropDir(home))
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") {
			paths = append(paths, filepath.Join(DropDir(home), entry.Name()))
		}
	}
	return paths, nil
}
