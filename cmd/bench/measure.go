package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"qmail/cmd/bench/internal/meter"
	"qmail/cmd/bench/internal/peer"
	"qmail/cmd/bench/internal/report"
)

// step is one measurement in progress.
type step struct {
	*comparison
	mode   mode
	server *peer.Running
	sink   drain
	sample report.Sample
	forks  forks
}

// measure starts a server in a fresh directory, lets the mode do its work, and removes everything.
func (c *comparison) measure(ctx context.Context, m mode, p peer.Peer, round int) (report.Sample, error) {
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
	setup := peer.Setup{Dir: dir, Hold: m.hold, Relay: s.sink.addr(), Sessions: s.clients(), Self: c.self, Protocol: m.protocol}
	setup.Routes = routes(hosts, s.sink.addr().Port())
	setup.Boxes, setup.Users, setup.Program = m.boxes, m.users, m.program
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

// attended does the work by its deadline, and gives up at once when the server ends under it.
func (s *step) attended(ctx context.Context) error {
	ctx, stop := context.WithTimeoutCause(ctx, s.deadline, fmt.Errorf("not done after %v", s.deadline))
	defer stop()
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

// forks is a count of processes; nothing is counted where the kernel does not tell.
type forks struct {
	*meter.Forks
	before int
}

// watchForks begins to count the processes that the server starts.
func (s *step) watchForks() {
	if os.Geteuid() != 0 {
		return
	}
	counter, err := s.server.Tree.Watch()
	if err == nil {
		s.forks.Forks = counter
	} else if !s.untold {
		s.untold = true
		s.note(fmt.Sprintf("processes cannot be counted: %v", err))
	}
}

func (f *forks) mark() {
	if f.Forks != nil {
		f.before, _ = f.Count()
	}
}

// perThousand is how many there were for each thousand of n since the mark; nil if that is not known.
func (f *forks) perThousand(n int) *float64 {
	if f.Forks == nil {
		return nil
	}
	after, ok := f.Count()
	if !ok {
		return nil
	}
	x := 1000 * float64(after-f.before) / float64(n)
	return &x
}

func (f *forks) close() {
	if f.Forks != nil {
		f.Close()
	}
}
