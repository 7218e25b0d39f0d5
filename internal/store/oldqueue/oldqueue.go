// Package oldqueue reads the queue of qmail 1.03, netqmail and notqmail, which nothing runs on, and changes nothing in it.
//
// A message n is a file mess/S/n with its text. One that was not looked at yet has todo/n with its envelope; one that was
// has info/S/n with its sender, whose modification time is the message's birth, and local/S/n and remote/S/n with its
// recipients, those that are done marked. bounce/n has what its sender is still to be told of. S is n modulo the
// directories there are (conf-split); with todo split, too (big-todo), it stands there as well.
package oldqueue

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/format/text0"
)

// maxEnvelope is the largest envelope file that is read, in bytes: a million recipients and more.
const maxEnvelope = 256 << 20

// maxBounce is the largest file of failures.
const maxBounce = 16 << 20

// ErrBusy is a queue that a qmail-send works on.
var ErrBusy = errors.New("a qmail-send is running there; stop it first")

// Queue is an old queue.
type Queue struct {
	dir  string
	lock *os.File
}

// Open takes the lock by which a qmail-send keeps others out.
func Open(dir string) (*Queue, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock", "sendmutex"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("%s: %w", lock.Name(), err)
	}
	return &Queue{dir: dir, lock: lock}, nil
}

// Close lets the queue go.
func (q *Queue) Close() error { return q.lock.Close() }

// Message is one that is still to be delivered to somebody, or whose sender is still to be told of a failure.
type Message struct {
	Number        uint64
	Birth         time.Time
	Sender        string
	Todo          bool     // not looked at by a qmail-send: Remote has all recipients, as they came
	Local, Remote []string // recipients that are left, as qmail-send had rewritten them
	Done          int      // recipients that are not left
	Failures      []byte   // paragraphs of a bounce
	path          string
}

// Body opens the text.
func (m *Message) Body() (*os.File, error) { return open(m.path) }

// Messages lists all, by number. What cannot be read comes with an error, and does not end the list.
func (q *Queue) Messages(f func(*Message, error) error) error {
	paths, err := q.files("mess")
	if err != nil {
		return err
	}
	numbers := make([]uint64, 0, len(paths))
	for n := range paths {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	rest := map[string]map[uint64]string{}
	for _, kind := range []string{"todo", "info", "local", "remote", "bounce"} {
		if rest[kind], err = q.files(kind); err != nil {
			return err
		}
	}
	for _, n := range numbers {
		m, err := message(n, paths[n], rest)
		if err != nil {
			err = fmt.Errorf("message %d: %w", n, err)
		} else if m == nil {
			continue // it was being written, or removed
		}
		if err := f(m, err); err != nil {
			return err
		}
	}
	return nil
}

// files finds the files of one kind, in the directory or in directories below it.
func (q *Queue) files(kind string) (map[uint64]string, error) {
	found := map[uint64]string{}
	entries, err := os.ReadDir(filepath.Join(q.dir, kind))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		n, ok := number(e.Name())
		switch {
		case !ok:
		case !e.IsDir():
			found[n] = filepath.Join(q.dir, kind, e.Name())
		default:
			below, err := os.ReadDir(filepath.Join(q.dir, kind, e.Name()))
			if err != nil {
				return nil, err
			}
			for _, b := range below {
				if n, ok := number(b.Name()); ok {
					found[n] = filepath.Join(q.dir, kind, e.Name(), b.Name())
				}
			}
		}
	}
	return found, nil
}

func number(name string) (uint64, bool) {
	n, err := strconv.ParseUint(name, 10, 64)
	return n, err == nil && strconv.FormatUint(n, 10) == name
}

// message reads one; nil if it is not in the queue.
func message(n uint64, path string, files map[string]map[uint64]string) (*Message, error) {
	m := &Message{Number: n, path: path}
	if name, ok := files["todo"][n]; ok { // the other files do not count yet
		m.Todo = true
		return m, m.todo(name)
	}
	name, ok := files["info"][n]
	if !ok {
		return nil, nil
	}
	if err := m.info(name); err != nil {
		return m, err
	}
	for kind, list := range map[string]*[]string{"local": &m.Local, "remote": &m.Remote} {
		if name, ok := files[kind][n]; ok {
			if err := m.recipients(name, list); err != nil {
				return m, err
			}
		}
	}
	if name, ok := files["bounce"][n]; ok {
		var err error
		if m.Failures, _, err = read(name, maxBounce); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m *Message) todo(name string) error {
	b, at, err := read(name, maxEnvelope)
	if err != nil {
		return err
	}
	m.Birth = at
	sender := false
	return records(name, b, func(letter byte, value string) error {
		switch letter {
		case 'u', 'p':
		case 'F':
			m.Sender, sender = value, true
		case 'T':
			if !sender {
				return errors.New("a recipient before the sender")
			}
			m.Remote = append(m.Remote, value)
		default:
			return fmt.Errorf("unknown record type %q", letter)
		}
		return nil
	})
}

func (m *Message) info(name string) error {
	b, at, err := read(name, maxEnvelope)
	if err != nil {
		return err
	}
	m.Birth = at
	count := 0
	err = records(name, b, func(letter byte, value string) error {
		if count++; letter != 'F' || count > 1 {
			return errors.New("something else than one sender")
		}
		m.Sender = value
		return nil
	})
	if err == nil && count == 0 {
		err = fmt.Errorf("%s: no sender", name)
	}
	return err
}

func (m *Message) recipients(name string, list *[]string) error {
	b, _, err := read(name, maxEnvelope)
	if err != nil {
		return err
	}
	return records(name, b, func(letter byte, value string) error {
		switch letter {
		case 'T':
			*list = append(*list, value)
		case 'D':
			m.Done++
		default:
			return fmt.Errorf("unknown record type %q", letter)
		}
		return nil
	})
}

func records(name string, b []byte, f func(letter byte, value string) error) error {
	for len(b) > 0 {
		letter, value, rest, err := text0.Cut(b)
		if err == nil {
			err = f(letter, string(value))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b = rest
	}
	return nil
}

// open opens a file of the queue for reading, and nothing but a file.
func open(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// read returns the content of a file, and when it was last changed.
func read(name string, limit int64) (b []byte, at time.Time, err error) {
	f, err := open(name)
	if err != nil {
		return nil, at, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, at, err
	}
	b, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: too large", name)
	}
	return b, info.ModTime(), err
}
