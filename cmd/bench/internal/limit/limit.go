// Package limit measures how fast the machine itself does what a mail server cannot do without, so that a server's
// rate can be told from the disk's.
package limit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Files makes n files of size bytes in dir, durably, by so many writers at once, and says how many were made in a
// second: each an unnamed file, written, synced, linked under its name, and the directory synced.
func Files(ctx context.Context, dir string, writers, n, size int) (rate float64, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	content := make([]byte, size)
	return timed(ctx, writers, n, func(_, i int) error { return makeFile(d, fmt.Sprint("limit.", i), content) })
}

// makeFile is what a delivery to a Maildir cannot be cheaper than, if it shares nothing with others.
func makeFile(dir *os.File, name string, content []byte) error {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("an unnamed file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	return dir.Sync()
}

// Copy moves n messages of size bytes from one socket into a file, syncs it, and on to another socket, by so many
// streams at once, and says how many went in a second. All streams append to one file, and share a sync where they wait together.
func Copy(ctx context.Context, dir string, streams, n, size int) (rate float64, err error) {
	f, err := os.Create(filepath.Join(dir, "journal"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	j := &journal{file: f}
	j.synced = sync.NewCond(&j.mu)
	links := make([]*link, streams)
	for i := range links {
		l, err := newLink(ctx, size)
		if err != nil {
			return 0, err
		}
		defer l.close()
		links[i] = l
	}
	return timed(ctx, streams, n, func(worker, _ int) error { return links[worker].pass(j) })
}

// timed lets workers do n pieces of work and gives the rate.
func timed(ctx context.Context, workers, n int, work func(worker, i int) error) (rate float64, err error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	start := time.Now()
	for w := range workers {
		wg.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1))
				if i > n {
					return
				}
				if errs[w] = context.Cause(ctx); errs[w] == nil {
					errs[w] = work(w, i)
				}
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(start).Seconds(), errors.Join(errs...)
}

// journal is a file that many append to. Whoever finds no sync running starts one for all that has been written by then.
type journal struct {
	file *os.File
	end  atomic.Int64

	mu      sync.Mutex
	synced  *sync.Cond
	syncing bool
	asked   int // syncs asked for
	done    int // of them, how many are covered
	err     error
}

// append writes b and returns when it is on the disk.
func (j *journal) append(b []byte) error {
	at := j.end.Add(int64(len(b))) - int64(len(b))
	if _, err := j.file.WriteAt(b, at); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked++
	for ticket := j.asked; j.done < ticket && j.err == nil; {
		if j.syncing {
			j.synced.Wait()
			continue
		}
		j.sync()
	}
	return j.err
}

// sync syncs for all who have asked so far. The lock is held, and given up meanwhile.
func (j *journal) sync() {
	covers := j.asked
	j.syncing = true
	j.mu.Unlock()
	err := unix.Fdatasync(int(j.file.Fd()))
	j.mu.Lock()
	j.syncing, j.done, j.err = false, covers, err
	j.synced.Broadcast()
}

// link is one stream: what is written to one end of in comes from a sender, what goes to out is thrown away.
type link struct {
	in, out  net.Conn // ours
	from, to net.Conn // the sender's and the receiver's
	buf      []byte
	message  []byte
	wg       sync.WaitGroup
	ask      chan struct{}
}

func newLink(ctx context.Context, size int) (*link, error) {
	l := &link{buf: make([]byte, size), message: make([]byte, size), ask: make(chan struct{}, 1)}
	var err error
	if l.from, l.in, err = pair(ctx); err != nil {
		return nil, err
	}
	if l.out, l.to, err = pair(ctx); err != nil {
		l.from.Close()
		l.in.Close()
		return nil, err
	}
	l.wg.Go(func() {
		for range l.ask {
			if _, err := l.from.Write(l.message); err != nil {
				return // the other end sees it too
			}
		}
	})
	l.wg.Go(func() { io.Copy(struct{ io.Writer }{io.Discard}, l.to) })
	return l, nil
}

// pass moves one message through.
func (l *link) pass(j *journal) error {
	l.ask <- struct{}{}
	if _, err := io.ReadFull(l.in, l.buf); err != nil {
		return err
	}
	if err := j.append(l.buf); err != nil {
		return err
	}
	_, err := l.out.Write(l.buf)
	return err
}

func (l *link) close() {
	close(l.ask)
	for _, c := range []net.Conn{l.in, l.out, l.from, l.to} {
		c.Close()
	}
	l.wg.Wait()
}

// patience bounds the life of a connection of ours.
const patience = 2 * time.Minute

// pair is a connection of this machine with itself.
func pair(ctx context.Context) (a, b net.Conn, err error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	var d net.Dialer
	if a, err = d.DialContext(ctx, "tcp4", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	if b, err = l.Accept(); err != nil {
		a.Close()
		return nil, nil, err
	}
	a.SetDeadline(time.Now().Add(patience))
	b.SetDeadline(time.Now().Add(patience))
	return a, b, nil
}
