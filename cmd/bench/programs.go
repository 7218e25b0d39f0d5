package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"qmail/cmd/bench/internal/load"
	"qmail/cmd/bench/internal/peer"
)

// injections is how often a program is run for one measurement.
const injections = 2000

// inject runs a program again and again, as sites do that have no connection to keep: each call hands over one message
// and ends. So many run at once as keep all processors busy. What the callers took of the processors stands in the
// column of the load: it is the program's own, from its start to its end.
func inject(ctx context.Context, s *step) error {
	if err := s.calls(ctx, injections/10); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	time.Sleep(settle)
	before, err := s.costs()
	if err != nil {
		return err
	}
	used, start := childrenCPU(), time.Now()
	if err := s.calls(ctx, injections); err != nil {
		return err
	}
	s.sample.Count, s.sample.Seconds = injections, time.Since(start).Seconds()
	s.sample.LoadCPU = (childrenCPU() - used).Seconds()
	return s.account(before)
}

// calls runs the program n times.
func (s *step) calls(ctx context.Context, n int) error {
	text := load.Message("sender@load.example", peer.Recipient, s.size)
	var left atomic.Int64
	left.Store(int64(n))
	errs := make(chan error, 2*runtime.NumCPU())
	var callers sync.WaitGroup
	for range cap(errs) {
		callers.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				if err := s.call(text); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	callers.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return context.Cause(ctx)
	}
}

// call runs it once.
func (s *step) call(text []byte) error {
	args := []string{"-i", "-f", "sender@load.example", peer.Recipient}
	if s.mode.calls == "qmail-queue" {
		args = nil
	}
	cmd := s.server.Program(s.mode.calls, args...)
	in, err := file(text)
	if err != nil {
		return err
	}
	defer in.Close()
	var out bytes.Buffer
	cmd.Stdin, cmd.Stderr = in, &out
	if s.mode.calls == "qmail-queue" {
		envelope, err := file([]byte("Fsender@load.example\x00T" + peer.Recipient + "\x00\x00"))
		if err != nil {
			return err
		}
		defer envelope.Close()
		cmd.Stdout = envelope
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", s.mode.calls, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// file is a file with that text and no name, at its beginning.
func file(text []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "bench-")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// childrenCPU is what the children of this process that have ended took of the processors.
func childrenCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
