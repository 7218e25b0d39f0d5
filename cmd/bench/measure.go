package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/cmd/bench/internal/limit"
	"qmail/cmd/bench/internal/load"
	"qmail/cmd/bench/internal/meter"
	"qmail/cmd/bench/internal/peer"
	"qmail/cmd/bench/internal/report"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
)

// step is one measurement in progress.
type step struct {
	*comparison
	mode   mode
	server *peer.Running
	sink   drain
	sample report.Sample
}

// measure starts a server in a fresh directory, lets the mode do its work, and removes everything.
func (c *comparison) measure(ctx context.Context, m mode, p peer.Peer, round int) (report.Sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.deadline, fmt.Errorf("not done after %v", c.deadline))
	defer cancel()
	s := &step{comparison: c, mode: m, sample: report.Sample{Mode: m.Key, Peer: p.Name(), Round: round}}
	dir, err := c.room(fmt.Sprintf("%d-%s-%s", round+1, m.Key, p.Name()))
	if err != nil {
		return s.sample, err
	}
	defer rest(dir)
	hosts := 0
	if m.list && !c.oneRelay {
		hosts = c.domains
	}
	if s.sink, err = c.openSink(m, hosts); err != nil {
		return s.sample, err
	}
	defer s.sink.close()
	setup := peer.Setup{Dir: dir, Hold: m.hold, Relay: s.sink.addr(), Sessions: s.clients(), Self: c.self}
	setup.Routes = routes(hosts, s.sink.addr().Port())
	if s.server, err = p.Start(ctx, setup); err != nil {
		return s.sample, err
	}
	err = s.server.Explain(s.attended(ctx))
	return s.sample, errors.Join(err, s.server.Stop())
}

// clients is how many sessions the mode has at once.
func (s *step) clients() int {
	switch {
	case !s.mode.held:
		return s.sessions
	case s.sample.Peer == theirs:
		return s.heldTheirs
	}
	return s.held
}

// attended does the work, and gives up at once when the server ends under it.
func (s *step) attended(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-s.server.Exited():
			cancel(errors.New("the server has ended"))
		case <-done:
		}
	}()
	return s.mode.run(ctx, s)
}

// openSink opens the sink that the mode can be measured with: only our own tells one recipient from another.
func (c *comparison) openSink(m mode, hosts int) (drain, error) {
	if m.relay && c.sinkKind == "smtp-sink" {
		return startSMTPSink()
	}
	return startSink(c.self, hosts, m.list)
}

// routes gives each domain of the list a host of its own.
func routes(hosts int, port uint16) map[string]netip.AddrPort {
	r := map[string]netip.AddrPort{}
	for i := range hosts {
		r[fmt.Sprintf("d%d.example", i)] = netip.AddrPortFrom(hostAddr(i), port)
	}
	return r
}

// rest lets the disk come to rest, so that the next step does not pay for this one. The step's files stay until the end
// of the run: ext4 looks at every recently deleted inode before it takes a new one (recently_deleted in
// fs/ext4/ialloc.c), and after the removal of some thousand files that was a third of all CPU time of the next step.
func rest(dir string) {
	if f, err := os.Open(dir); err == nil {
		unix.Syncfs(int(f.Fd()))
		f.Close()
	}
}

// spread asks ext4 to put each directory in dir into another part of the disk, for the same reason: what one server
// deletes shall not slow the other down. Other file systems need no such help, so that a failure does not matter.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// room makes a directory in the scratch directory. Its name differs from run to run, since ext4 finds the part of the
// disk by the name, and would lead each run to where the one before has just deleted everything.
func (c *comparison) room(name string) (dir string, err error) {
	dir = filepath.Join(c.scratch, name+strings.TrimPrefix(filepath.Base(c.scratch), "bench"))
	return dir, os.Mkdir(dir, 0o755)
}

// topDir is FS_TOPDIR_FL of linux/fs.h, chattr(1)'s letter T.
const topDir = 0x00020000

// settle is how long a server may finish what it does after the last arrival before its CPU is read; the memory it
// holds is read then too.
const settle = 200 * time.Millisecond

// costs is what has been spent up to a moment.
type costs struct {
	at                          time.Time
	server, sink, self, machine time.Duration
}

func (s *step) costs() (c costs, err error) {
	var errs [2]error
	c.server, errs[0] = s.server.Tree.CPU()
	c.machine, errs[1] = meter.Machine()
	c.at, c.sink, c.self = time.Now(), s.sink.cpu(), ownCPU()
	return c, errors.Join(errs[:]...)
}

// account fills the sample with what has been spent since before, and with the memory held now.
func (s *step) account(before costs) error {
	after, err := s.costs()
	if err != nil {
		return err
	}
	s.sample.CPU = (after.server - before.server).Seconds()
	s.sample.SinkCPU = (after.sink - before.sink).Seconds()
	known := s.sample.CPU + s.sample.SinkCPU + (after.self - before.self).Seconds()
	if !s.mode.list {
		known += s.sample.LoadCPU // else it is ours
	}
	s.sample.Others = max(0, (after.machine-before.machine).Seconds()-known) / after.at.Sub(before.at).Seconds() / float64(runtime.NumCPU())
	return s.memory()
}

func (s *step) memory() error {
	m, err := s.server.Tree.Memory()
	if err != nil {
		return err
	}
	s.sample.Processes, s.sample.RSS, s.sample.PSS = m.Processes, m.RSS, m.PSS
	return nil
}

// flow sends messages from many sessions and waits until they have arrived.
func flow(ctx context.Context, s *step) error {
	to, dest, err := s.destination()
	if err != nil {
		return err
	}
	if m, ok := dest.(*maildirArrivals); ok {
		defer m.close()
	}
	// Processes are started, caches filled, heaps grown: that is not what is measured.
	if _, _, err := s.pass(ctx, dest, to, max(200, s.messages/10), false); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	time.Sleep(settle)
	before, err := s.costs()
	if err != nil {
		return err
	}
	took, loadCPU, err := s.pass(ctx, dest, to, s.messages, s.mode.accept)
	if err != nil {
		return err
	}
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
	}
	dest, err = watchMaildir(s.server.Maildir)
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
	if s.mode.pipeline || s.generator == "own" {
		args := append([]string{"load", "-addr", s.server.Addr.String()}, common...)
		args = append(args, fmt.Sprint("-pipeline=", s.mode.pipeline), fmt.Sprint("-keep=", !s.mode.single))
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
	if s.mode.pipeline || s.generator == "own" {
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

// What the machine's limits are measured with: enough to last a second or so.
const (
	limitFiles, limitWriters            = 4000, 16
	limitCopies, limitStreams, copySize = 2000, 20, 100 << 10
)

// machine measures the machine's limits once, on the file system that holds the queues.
func (c *comparison) machine(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.deadline, fmt.Errorf("not done after %v", c.deadline))
	defer cancel()
	if c.report.Limits == nil {
		c.report.Limits = []report.Limit{
			{Title: fmt.Sprintf("files of %d bytes made, synced and linked by %d writers", c.size, limitWriters), Mode: "b"},
			{Title: fmt.Sprintf("messages of %d bytes copied from socket to file, synced, to socket by %d streams", copySize, limitStreams)},
		}
	}
	if err := becalm(ctx, c.calm); err != nil {
		return err
	}
	for i, rate := range []func(dir string) (float64, error){
		func(dir string) (float64, error) { return limit.Files(ctx, dir, limitWriters, limitFiles, c.size) },
		func(dir string) (float64, error) { return limit.Copy(ctx, dir, limitStreams, limitCopies, copySize) },
	} {
		dir, err := c.room(fmt.Sprintf("%d-limit-%d", len(c.report.Limits[i].Rates)+1, i))
		if err != nil {
			return err
		}
		r, err := rate(dir)
		rest(dir)
		if err != nil {
			return err
		}
		c.report.Limits[i].Rates = append(c.report.Limits[i].Rates, r)
	}
	return nil
}

// tooBusy is the share of the CPUs that others may have before the figures are worth little.
const tooBusy = 0.1

// becalm waits until the machine is idle but for us, or for as long as it may.
func becalm(ctx context.Context, patience time.Duration) error {
	const look = time.Second
	for end := time.Now().Add(patience); time.Now().Before(end); {
		before, err := meter.Machine()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
		after, err := meter.Machine()
		if err != nil {
			return err
		}
		if (after - before).Seconds() < tooBusy*look.Seconds()*float64(runtime.NumCPU()) {
			return nil
		}
	}
	return nil
}
