package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"qmail/cmd/bench/internal/meter"
)

// smtpSink is Postfix's smtp-sink, to compare our own with. It counts messages, so it serves where each has one recipient.
type smtpSink struct {
	cmd   *exec.Cmd
	at    netip.AddrPort
	base  int // messages before those expected
	want  int
	ended chan struct{}

	mu     sync.Mutex
	count  int
	last   time.Time
	change chan struct{} // has room for one: the count has changed
}

func startSMTPSink() (*smtpSink, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	l.Close()
	args := []string{"-c", at.String(), "1000"}
	if os.Getuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...)
	}
	s := &smtpSink{cmd: exec.Command("smtp-sink", args...), at: at, ended: make(chan struct{}), change: make(chan struct{}, 1)}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.ended)
		s.read(bufio.NewReader(out))
	}()
	return s, nil
}

// read follows the counters that smtp-sink writes over each other: "sess=    3 quit=    2 mesg=    2" and a CR.
func (s *smtpSink) read(in *bufio.Reader) {
	for {
		line, err := in.ReadSlice('\r')
		if err != nil {
			return
		}
		n, ok := messages(line)
		if !ok {
			continue
		}
		s.mu.Lock()
		if n != s.count {
			s.count, s.last = n, time.Now()
		}
		s.mu.Unlock()
		select {
		case s.change <- struct{}{}:
		default:
		}
	}
}

// messages finds the count of messages in a line of counters.
func messages(line []byte) (n int, ok bool) {
	_, text, found := bytes.Cut(line, []byte("mesg="))
	if !found {
		return 0, false
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	return n, err == nil
}

func (s *smtpSink) state() (count int, last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count, s.last
}

func (s *smtpSink) expect(n int) error {
	s.base, _ = s.state()
	s.want = n
	return nil
}

func (s *smtpSink) wait(ctx context.Context) (time.Time, error) {
	for {
		n, last := s.state()
		if n >= s.base+s.want {
			return last, nil
		}
		select {
		case <-s.change:
		case <-s.ended:
			return time.Time{}, errors.New("smtp-sink has ended")
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%d of %d messages have arrived: %w", n-s.base, s.want, context.Cause(ctx))
		}
	}
}

func (s *smtpSink) check() error {
	if n, _ := s.state(); n != s.base+s.want {
		return fmt.Errorf("%d messages have arrived, %d were sent", n-s.base, s.want)
	}
	return nil
}

func (s *smtpSink) addr() netip.AddrPort { return s.at }

func (s *smtpSink) cpu() time.Duration { return meter.Process(s.cmd.Process.Pid) }

func (s *smtpSink) close() {
	s.cmd.Process.Kill()
	<-s.ended
	s.cmd.Wait()
}
