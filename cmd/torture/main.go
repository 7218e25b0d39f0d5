// Command torture runs the real programs on a real disk under load and lets things go wrong: roles and the whole server
// are killed with signal 9, stopped for seconds, and run out of descriptors; the disk is full, and the machine that mail
// goes to does not answer. Load comes by SMTP, QMTP, QMQP and qmail-queue; mail goes to a Maildir, to a program, and to
// another machine's server, which keeps an account of its own.
//
// In the end everything that was answered with 250 (K, or exit code 0) must have arrived, nothing that was refused may
// have, no byte may be wrong, and the server's own account must come out even (qmail ledger verify). The number of
// duplicates is printed. Any loss makes the exit code 1.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// plan is what is asked for.
type plan struct {
	program string
	time    time.Duration
	every   time.Duration // a fault, about
	seed    uint64
	senders int // of each kind
	full    bool
	out     io.Writer
}

func main() {
	p := plan{out: os.Stdout}
	flag.StringVar(&p.program, "qmail", "", "the qmail `PROGRAM`; without it, the one beside this")
	flag.DurationVar(&p.time, "time", 10*time.Minute, "how long there are load and faults")
	flag.DurationVar(&p.every, "every", 2*time.Second, "how long from fault to fault, about")
	flag.Uint64Var(&p.seed, "seed", uint64(time.Now().UnixNano()), "of the faults")
	flag.IntVar(&p.senders, "senders", 4, "generators of each kind")
	flag.BoolVar(&p.full, "full", os.Geteuid() == 0, "put the queue on a small file system of its own, and fill that now and then; needs root")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := torture(ctx, p); err != nil {
		fmt.Fprintf(os.Stderr, "torture: %v\n", err)
		os.Exit(1)
	}
}

func torture(ctx context.Context, p plan) error {
	sink, err := newSink()
	if err != nil {
		return err
	}
	defer sink.close()
	s, err := newServer(p, sink.port())
	if err != nil {
		return err
	}
	defer s.remove()
	if err := s.start(); err != nil {
		return err
	}
	fmt.Fprintf(p.out, "seed %d, %v, in %s\n", p.seed, p.time, s.dir)
	a := newAccount()
	sink.account = a
	load, cease := context.WithTimeout(ctx, p.time)
	defer cease()
	var senders sync.WaitGroup
	for kind := range ways {
		for n := range p.senders {
			senders.Go(func() { (&generator{server: s, account: a, way: kind, n: n}).run(load) })
		}
	}
	faults := newFaults(s, sink, rand.New(rand.NewPCG(p.seed, 1)), p)
	faults.run(load)
	senders.Wait()
	if err := s.drain(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, s.tail())
	}
	sink.close()
	if err := a.collect(s); err != nil {
		return err
	}
	text, wrong := a.judge()
	fmt.Fprintf(p.out, "%s\nfaults: %s\n", text, faults)
	balance, err := s.verify()
	fmt.Fprint(p.out, balance)
	if err != nil {
		return err
	}
	if len(wrong) > 0 {
		for _, line := range wrong[:min(len(wrong), 20)] {
			fmt.Fprintln(p.out, line)
		}
		return fmt.Errorf("%d recipients came to harm\n%s", len(wrong), s.tail())
	}
	return nil
}
