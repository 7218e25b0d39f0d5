package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"qmail/cmd/bench/internal/sink"
)

// order is a line of JSON that `bench sink -driven` reads: count anew and say when so many recipients have come, or,
// with Recipients 0, say now what has come.
type order struct {
	Recipients int64
	Distinct   bool
}

// counted is the answer.
type counted struct {
	sink.Counts
	Addr netip.AddrPort
	CPU  time.Duration // of the sink so far
}

// sinkMain is the sink as a process of its own.
func sinkMain(ctx context.Context, args []string) error {
	runtime.GOMAXPROCS(1)
	fs := flag.NewFlagSet("bench sink", flag.ContinueOnError)
	at := netip.MustParseAddrPort("127.0.0.1:0")
	fs.TextVar(&at, "addr", at, "where to listen")
	hosts := fs.Int("hosts", 0, "listen also on so many addresses from 127.1.0.1 on, on the same port")
	driven := fs.Bool("driven", false, "take orders as JSON on standard input instead of printing counts each second")
	if err := fs.Parse(args); err != nil {
		return err
	}
	addrs := []netip.AddrPort{at}
	for i := range *hosts {
		addrs = append(addrs, netip.AddrPortFrom(hostAddr(i), 0))
	}
	s, err := sink.Open(addrs...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *driven {
		go obey(s, cancel)
	} else {
		fmt.Println("listening on", s)
		go watch(ctx, s)
	}
	return s.Run(ctx)
}

// hostAddr is the address of the i-th host on the loopback network.
func hostAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 1, byte(i / 250), byte(1 + i%250)})
}

// obey answers the orders on standard input, and ends the sink at its end.
func obey(s *sink.Sink, end func()) {
	defer end()
	out := json.NewEncoder(os.Stdout)
	say := func(c sink.Counts) { out.Encode(counted{c, s.Addr(), ownCPU()}) }
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			fmt.Fprintln(os.Stderr, "bench sink:", err)
			return
		}
		if o.Recipients == 0 {
			say(s.Counts())
			continue
		}
		done := s.Expect(o.Recipients, o.Distinct)
		say(sink.Counts{})
		go func() { say(<-done) }()
	}
}

// watch prints the counts as they grow.
func watch(ctx context.Context, s *sink.Sink) {
	var before sink.Counts
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c := s.Counts(); c != before {
			fmt.Printf("%d sessions, %d messages (%d/s), %d recipients, %d bytes, %v CPU\n", c.Sessions, c.Messages,
				c.Messages-before.Messages, c.Recipients, c.Bytes, ownCPU().Round(time.Millisecond))
			before = c
		}
	}
}
