// Package orders serves the classic conversation between qmail-send and a spawner (format/spawn): orders come in on one
// stream, reports go out on another as deliveries end, and each delivery has the message's file below queue/mess.
//
// A stream that ends means that nothing more is wanted: what is under way is finished and reported. A peer that does
// not read its reports keeps nobody but itself waiting.
package orders

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"qmail/internal/format/spawn"
)

// Slots is how many deliveries there may be at once (conf-spawn).
const Slots = 120

// patience is how long one delivery may take.
const patience = 24 * time.Hour

// Reports about an order that cannot be carried out.
const (
	tooBig    = "ZInternal error: delnum too big. (#4.3.5)\n"
	inUse     = "ZInternal error: delnum in use. (#4.3.5)\n"
	unopened  = "Zqmail-spawn unable to open message. (#4.3.0)\n"
	unseen    = "Zqmail-spawn unable to fstat message. (#4.3.0)\n"
	wrongType = "ZSorry, message has wrong type. (#4.3.5)\n"
	wrongUser = "ZSorry, message has wrong owner. (#4.3.5)\n"
)

// Messages are the files below queue/mess.
type Messages struct {
	Dir    string
	Owners []int // whose files count
}

// queueUser owns the messages of a classic queue.
const queueUser = "qmailq"

// Queue are the messages of a home. Besides qmailq's, our own count.
func Queue(home string) Messages {
	m := Messages{Dir: filepath.Join(home, "queue", "mess"), Owners: []int{os.Geteuid()}}
	if u, err := user.Lookup(queueUser); err == nil {
		if uid, err := strconv.Atoi(u.Uid); err == nil {
			m.Owners = append(m.Owners, uid)
		}
	}
	return m
}

// Open opens one for reading. A refusal is a report.
func (m Messages) Open(name string) (f *os.File, report string) {
	fd, err := syscall.Open(filepath.Join(m.Dir, name), syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, unopened
	}
	f = os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	report = unseen
	if err == nil {
		report = m.check(info)
	}
	if report != "" {
		f.Close()
		return nil, report
	}
	return f, ""
}

func (m Messages) check(info os.FileInfo) (report string) {
	if !info.Mode().IsRegular() {
		return wrongType
	}
	if !slices.Contains(m.Owners, int(info.Sys().(*syscall.Stat_t).Uid)) {
		return wrongUser
	}
	return ""
}

// Deliver carries out one order and reports on it. The message stands at its start.
type Deliver func(ctx context.Context, o spawn.Order, message *os.File) (report string)

// Serve takes orders until in ends, or ctx, and returns when all deliveries have. Where in is not yet at its end then, a
// goroutine stays with it: who calls is at the end of its life.
func Serve(ctx context.Context, in io.Reader, out io.Writer, m Messages, deliver Deliver) error {
	s := &server{out: out, messages: m, deliver: deliver}
	if _, err := out.Write([]byte{Slots}); err != nil {
		return err
	}
	defer s.running.Wait()
	stop := make(chan struct{})
	defer close(stop)
	incoming, failed := s.read(in, stop)
	for {
		select {
		case <-ctx.Done():
			return nil
		case o, more := <-incoming:
			if !more {
				return <-failed
			}
			s.start(ctx, o)
		}
	}
}

type server struct {
	messages Messages
	deliver  Deliver
	running  sync.WaitGroup

	mu   sync.Mutex // of what follows
	busy [Slots]bool
	out  io.Writer
}

// asked is an order as it was read, and the report on one that makes no sense.
type asked struct {
	spawn.Order
	report string
}

// read takes orders off a stream. failed has a value once there are no more.
func (s *server) read(in io.Reader, stop <-chan struct{}) (_ <-chan asked, failed <-chan error) {
	incoming, end := make(chan asked), make(chan error, 1)
	go func() {
		defer close(incoming)
		for r := bufio.NewReader(in); ; {
			o, report, err := spawn.ReadOrder(r)
			if err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // half an order is none
					err = nil
				}
				end <- err
				return
			}
			select {
			case incoming <- asked{o, report}:
			case <-stop:
				return
			}
		}
	}()
	return incoming, end
}

// start begins a delivery, or reports at once.
func (s *server) start(ctx context.Context, o asked) {
	if report := s.take(o.Slot); report != "" {
		s.say(o.Slot, report)
		return
	}
	if o.report != "" {
		s.done(o.Slot, o.report)
		return
	}
	f, report := s.messages.Open(o.Message)
	if report != "" {
		s.done(o.Slot, report)
		return
	}
	s.running.Go(func() {
		defer f.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		s.done(o.Slot, s.deliver(ctx, o.Order, f))
	})
}

// take makes a slot busy, or says why not.
func (s *server) take(slot byte) (report string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case slot >= Slots:
		return tooBig
	case s.busy[slot]:
		return inUse
	}
	s.busy[slot] = true
	return ""
}

// done frees a slot and reports, in one step: who reads the report may use the slot again.
func (s *server) done(slot byte, report string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy[slot] = false
	s.write(slot, report)
}

func (s *server) say(slot byte, report string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(slot, report)
}

// write reports. Nobody is there to hear of a report that cannot be written.
func (s *server) write(slot byte, report string) {
	_, _ = s.out.Write(spawn.AppendReport(nil, slot, report))
}
