package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// arrivals is where messages end up. It says when as many as expected are there.
type arrivals interface {
	// expect begins to wait for n more.
	expect(n int) error

	// wait returns when the last of them arrived.
	wait(ctx context.Context) (time.Time, error)

	// check says so if more arrived than were expected in all, or the last ones were no different mail.
	check() error
}

// nowhere is for modes that end at the server's 250.
type nowhere struct{}

func (nowhere) expect(int) error                            { return nil }
func (nowhere) wait(ctx context.Context) (time.Time, error) { return time.Now(), nil }
func (nowhere) check() error                                { return nil }

// glance is how often the Maildir is looked at. It does not blur the figures: the time of the last arrival is the
// directory's own.
const glance = 20 * time.Millisecond

// maildirArrivals counts the new mail of Maildirs by inotify(7), which costs less than reading the directories.
type maildirArrivals struct {
	dirs    []string
	fd      int
	want    int
	arrived int
	buf     []byte
}

func watchMaildirs(maildirs []string) (*maildirArrivals, error) {
	m := &maildirArrivals{buf: make([]byte, 64<<10)}
	var err error
	if m.fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	for _, maildir := range maildirs {
		dir := filepath.Join(maildir, "new")
		if _, err = unix.InotifyAddWatch(m.fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
			unix.Close(m.fd)
			return nil, fmt.Errorf("inotify %s: %w", dir, err)
		}
		m.dirs = append(m.dirs, dir)
	}
	return m, nil
}

func (m *maildirArrivals) close() { unix.Close(m.fd) }

func (m *maildirArrivals) expect(n int) error {
	m.want += n
	return nil
}

func (m *maildirArrivals) wait(ctx context.Context) (time.Time, error) {
	for {
		if err := m.drain(); err != nil {
			return time.Time{}, err
		}
		if m.arrived >= m.want {
			return m.last()
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%d of %d messages have arrived: %w", m.arrived, m.want, context.Cause(ctx))
		case <-time.After(glance):
		}
	}
}

// drain counts the events that wait, or the files if the kernel had to drop events.
func (m *maildirArrivals) drain() error {
	for {
		n, err := unix.Read(m.fd, m.buf)
		if err == unix.EAGAIN || err == unix.EINTR {
			return nil
		}
		if err != nil {
			return fmt.Errorf("inotify: %w", err)
		}
		events, lost := countEvents(m.buf[:n])
		m.arrived += events
		if lost {
			if m.arrived, err = m.files(); err != nil {
				return err
			}
		}
	}
}

// countEvents walks the records of inotify(7): wd, mask, cookie, len, each 4 bytes, and a name of len bytes.
func countEvents(b []byte) (n int, lost bool) {
	for len(b) >= unix.SizeofInotifyEvent {
		mask, name := native(b[4:]), native(b[12:])
		if mask&unix.IN_Q_OVERFLOW != 0 {
			lost = true
		} else {
			n++
		}
		b = b[min(len(b), unix.SizeofInotifyEvent+int(name)):]
	}
	return n, lost
}

// last is when the last one arrived.
func (m *maildirArrivals) last() (at time.Time, err error) {
	for _, dir := range m.dirs {
		info, err := os.Stat(dir)
		if err != nil {
			return at, err
		}
		if info.ModTime().After(at) {
			at = info.ModTime()
		}
	}
	return at, nil
}

func (m *maildirArrivals) files() (n int, err error) {
	for _, dir := range m.dirs {
		names, err := os.ReadDir(dir)
		if err != nil {
			return 0, err
		}
		n += len(names)
	}
	return n, nil
}

func (m *maildirArrivals) check() error {
	n, err := m.files()
	if err == nil && n != m.want {
		err = fmt.Errorf("%d messages have arrived, %d were sent", n, m.want)
	}
	return err
}

// countedBytes is a file to which a program appends a byte for each message.
type countedBytes struct {
	name string
	want int64
}

func (c *countedBytes) expect(n int) error {
	c.want += int64(n)
	return nil
}

func (c *countedBytes) wait(ctx context.Context) (time.Time, error) {
	for {
		info, err := os.Stat(c.name)
		if err != nil {
			return time.Time{}, err
		}
		if info.Size() >= c.want {
			return info.ModTime(), nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("the program was run for %d of %d messages: %w", info.Size(), c.want, context.Cause(ctx))
		case <-time.After(glance):
		}
	}
}

func (c *countedBytes) check() error {
	info, err := os.Stat(c.name)
	if err == nil && info.Size() != c.want {
		err = fmt.Errorf("the program was run %d times for %d messages", info.Size(), c.want)
	}
	return err
}

// drain is a sink for mail.
type drain interface {
	arrivals
	addr() netip.AddrPort

	// cpu is what the sink has used so far.
	cpu() time.Duration
	close()
}

// ownSink drives `bench sink`.
type ownSink struct {
	cmd      *exec.Cmd
	orders   *json.Encoder
	stdin    io.Closer
	answers  chan counted
	at       netip.AddrPort
	distinct bool // all recipients of one expect are different
	want     int
}

// startSink starts a sink on 127.0.0.1 and hosts more addresses.
func startSink(self string, hosts int, distinct bool) (*ownSink, error) {
	cmd := exec.Command(self, "sink", "-driven", fmt.Sprint("-hosts=", hosts))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &ownSink{cmd: cmd, distinct: distinct, orders: json.NewEncoder(in), stdin: in, answers: make(chan counted, 1)}
	go func() {
		defer close(s.answers)
		for d := json.NewDecoder(out); ; {
			var c counted
			if d.Decode(&c) != nil {
				return
			}
			s.answers <- c
		}
	}()
	c, err := s.ask(order{})
	if err != nil {
		s.close()
		return nil, err
	}
	s.at = c.Addr
	return s, nil
}

// ask gives an order and reads its first answer.
func (s *ownSink) ask(o order) (counted, error) {
	if err := s.orders.Encode(o); err != nil {
		return counted{}, fmt.Errorf("sink: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.answer(ctx)
}

func (s *ownSink) answer(ctx context.Context) (counted, error) {
	select {
	case c, ok := <-s.answers:
		if !ok {
			return c, fmt.Errorf("sink: it has ended")
		}
		return c, nil
	case <-ctx.Done():
		return counted{}, context.Cause(ctx)
	}
}

func (s *ownSink) expect(n int) error {
	s.want = n
	_, err := s.ask(order{Recipients: int64(n), Distinct: s.distinct})
	return err
}

func (s *ownSink) wait(ctx context.Context) (time.Time, error) {
	c, err := s.answer(ctx)
	if err != nil {
		if now, nerr := s.ask(order{}); nerr == nil {
			err = fmt.Errorf("%d of %d recipients have arrived: %w", now.Recipients, s.want, err)
		}
		return time.Time{}, err
	}
	return c.Last, nil
}

func (s *ownSink) check() error {
	c, err := s.ask(order{})
	if err != nil {
		return err
	}
	if c.Recipients != int64(s.want) {
		return fmt.Errorf("%d recipients have arrived, %d were sent", c.Recipients, s.want)
	}
	if s.distinct && c.Distinct != c.Recipients {
		return fmt.Errorf("%d recipients have arrived, but only %d different ones", c.Recipients, c.Distinct)
	}
	return nil
}

func (s *ownSink) addr() netip.AddrPort { return s.at }

func (s *ownSink) cpu() time.Duration {
	c, err := s.ask(order{})
	if err != nil {
		return 0
	}
	return c.CPU
}

func (s *ownSink) close() {
	s.stdin.Close()
	done := make(chan struct{})
	go func() { s.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		s.cmd.Process.Kill()
		<-done
	}
}

// native reads a number as the kernel wrote it.
func native(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
