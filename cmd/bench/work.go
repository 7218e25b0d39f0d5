package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"qmail/cmd/bench/internal/load"
	"qmail/cmd/bench/internal/meter"
	"qmail/cmd/bench/internal/peer"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
)

// flow sends messages from many sessions and waits until they have arrived.
func flow(ctx context.Context, s *step) error {
	to, dest, err := s.destination()
	if err != nil {
		return err
	}
	if m, ok := dest.(*maildirArrivals); ok {
		defer m.close()
	}
	s.watchForks()
	defer s.forks.close()
	// Processes are started, caches filled, heaps grown: that is not what is measured.
	if _, _, err := s.pass(ctx, dest, to, max(min(s.messages, 200), s.messages/10), false); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	time.Sleep(settle)
	before, err := s.costs()
	if err != nil {
		return err
	}
	s.forks.mark()
	took, loadCPU, err := s.pass(ctx, dest, to, s.messages, s.mode.accept)
	if err != nil {
		return err
	}
	s.sample.Forks = s.forks.perThousand(s.messages)
	s.sample.Count, s.sample.Seconds, s.sample.LoadCPU = s.messages, took.Seconds(), loadCPU.Seconds()
	if s.mode.accept {
		return s.account(before) // what is still to be delivered is not what is measured
	}
	time.Sleep(settle)
	if err := s.account(before); err != nil {
		return err
	}
	return dest.check()
}

// destination is where the mode's mail goes.
func (s *step) destination() (to string, dest arrivals, err error) {
	switch {
	case s.mode.hold:
		return peer.Recipient, nowhere{}, nil
	case s.mode.relay:
		return "r@d0.example", s.sink, nil
	case s.mode.program:
		return peer.Recipient, &countedBytes{name: s.server.Count}, nil
	}
	dest, err = watchMaildirs(s.server.Maildirs)
	return peer.Recipient, dest, err
}

// pass sends n messages, and waits for them unless only their acceptance counts.
func (s *step) pass(ctx context.Context, dest arrivals, to string, n int, accept bool) (took, loadCPU time.Duration, err error) {
	if err := dest.expect(n); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	loadCPU, err = s.generate(ctx, to, n)
	if err != nil {
		return 0, 0, err
	}
	if accept {
		return time.Since(start), loadCPU, nil
	}
	end, err := dest.wait(ctx)
	return end.Sub(start), loadCPU, err
}

// generate runs a load generator as a process of its own.
func (s *step) generate(ctx context.Context, to string, n int) (cpu time.Duration, err error) {
	const from = "sender@load.example"
	common := []string{"-s", fmt.Sprint(s.sessions), "-l", fmt.Sprint(s.size), "-m", fmt.Sprint(n), "-f", from, "-t", to}
	var cmd *exec.Cmd
	if s.ownGenerator() {
		args := append([]string{"load", "-addr", s.server.Addr.String(), "-protocol", s.mode.protocol}, common...)
		args = append(args, fmt.Sprint("-pipeline=", s.mode.pipeline), fmt.Sprint("-keep=", !s.mode.single), fmt.Sprint("-boxes=", s.mode.boxes))
		cmd = exec.CommandContext(ctx, s.self, args...)
	} else {
		args := common
		if !s.mode.single {
			args = append(args, "-d")
		}
		cmd = exec.CommandContext(ctx, "smtp-source", append(args, s.server.Addr.String())...)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s%s", filepath.Base(cmd.Path), errors.Join(err, context.Cause(ctx)), strings.TrimSpace(errs.String()), out.Bytes())
	}
	if s.ownGenerator() {
		var res loaded
		if err := json.Unmarshal(out.Bytes(), &res); err != nil {
			return 0, fmt.Errorf("load generator: %w", err)
		}
		if res.Failed > 0 {
			return 0, fmt.Errorf("%d of %d messages were not accepted: %s", res.Failed, n, strings.Join(res.Reasons, "; "))
		}
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// ownGenerator reports whether the mode needs our own.
func (s *step) ownGenerator() bool {
	return s.mode.pipeline || s.mode.boxes > 0 || s.mode.protocol != "" || s.generator == "own"
}

// posts sends list posts one after the other, each when the one before has arrived everywhere.
func posts(ctx context.Context, s *step) error {
	cfg := load.Config{Addr: s.server.Addr, Sessions: 1, Messages: 1, Pipeline: true, From: "list@load.example",
		To: listRecipients(s.recipients, s.domains), Size: s.size}
	if s.mode.verp {
		cfg.Params = " XVERP===" // how Postfix is asked
	}
	if _, _, err := s.post(ctx, cfg); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	time.Sleep(settle)
	before, err := s.costs()
	if err != nil {
		return err
	}
	for range s.posts {
		took, own, err := s.post(ctx, cfg)
		if err != nil {
			return err
		}
		s.sample.Seconds += took.Seconds()
		s.sample.LoadCPU += own.Seconds()
	}
	s.sample.Count = s.posts * s.recipients
	time.Sleep(settle)
	if err := s.account(before); err != nil {
		return err
	}
	return s.sink.check()
}

// post sends one message to the whole list. It is sent from this process, since starting another takes as long as
// some hundred recipients.
func (s *step) post(ctx context.Context, cfg load.Config) (took, own time.Duration, err error) {
	if err := s.sink.expect(s.recipients); err != nil {
		return 0, 0, err
	}
	before, start := ownCPU(), time.Now()
	if s.mode.verp && s.sample.Peer == ours {
		err = s.inject(ctx, cfg)
	} else {
		err = sendOne(ctx, cfg)
	}
	if err != nil {
		return 0, 0, err
	}
	own = ownCPU() - before
	end, err := s.sink.wait(ctx)
	return end.Sub(start), own, err
}

func sendOne(ctx context.Context, cfg load.Config) error {
	res, err := load.Run(ctx, cfg)
	if err == nil && res.Failed > 0 {
		err = errors.New("the post was not accepted: " + strings.Join(res.Reasons, "; "))
	}
	return err
}

// inject sends a post as list software on the same machine does. Only so can our server be asked for VERP: a sender
// that ends in -@[] is qmail's own way (addresses(5)), and no address that SMTP knows.
func (s *step) inject(ctx context.Context, cfg load.Config) error {
	door, err := enqueue.Dial(s.server.Home)
	if err != nil {
		return err
	}
	defer door.Close()
	user, host, _ := strings.Cut(cfg.From, "@")
	e := &envelope.Envelope{Sender: user + "-@" + host + "-@[]", Recipients: cfg.To}
	_, err = door.Submit(ctx, e, load.Message(cfg.From, cfg.To[0], cfg.Size))
	return err
}

// hold opens idle sessions and looks how much memory they take.
func hold(ctx context.Context, s *step) error {
	// One session first, so that what every server needs for the very first is not divided among them.
	first, err := load.Hold(ctx, s.server.Addr, 1)
	if err != nil {
		return err
	}
	defer first.Close()
	time.Sleep(settle)
	var empty meter.Memory
	if empty, err = s.server.Tree.Memory(); err != nil {
		return err
	}
	before, err := s.costs()
	if err != nil {
		return err
	}
	n := s.clients()
	start := time.Now()
	held, err := load.Hold(ctx, s.server.Addr, n)
	if err != nil {
		return err
	}
	defer held.Close()
	s.sample.Seconds = time.Since(start).Seconds()
	time.Sleep(settle)
	if err := s.account(before); err != nil {
		return err
	}
	if alive := held.Alive(); alive != n {
		return fmt.Errorf("of %d sessions only %d were held", n, alive)
	}
	s.sample.Count = n
	s.sample.Each = float64(s.sample.PSS-empty.PSS) / float64(n)
	return nil
}
