package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"qmail/cmd/bench/internal/load"
	"qmail/cmd/bench/internal/peer"
)

// loaded is what `bench load` prints as JSON.
type loaded struct {
	load.Result
	CPU time.Duration // user and system time of this process
}

// loadMain is the load generator as a process of its own, so that what it costs can be told from the server's.
func loadMain(ctx context.Context, args []string) error {
	// The loop is one thread; more would only wake each other.
	runtime.GOMAXPROCS(1)
	var cfg load.Config
	var to string
	var recipients, domains, boxes int
	fs := flag.NewFlagSet("bench load", flag.ContinueOnError)
	fs.TextVar(&cfg.Addr, "addr", netip.MustParseAddrPort("127.0.0.1:2525"), "server")
	fs.IntVar(&cfg.Sessions, "s", 20, "sessions at once")
	fs.IntVar(&cfg.Messages, "m", 1000, "messages in all")
	fs.IntVar(&cfg.Size, "l", 4096, "bytes of each body")
	fs.BoolVar(&cfg.Keep, "keep", false, "send message after message on a connection instead of one")
	fs.BoolVar(&cfg.Pipeline, "pipeline", false, "send groups of commands (RFC 2920)")
	fs.StringVar(&cfg.Protocol, "protocol", "", "qmtp or qmqp instead of SMTP")
	fs.StringVar(&cfg.From, "f", "sender@load.example", "reverse path")
	fs.StringVar(&cfg.Params, "params", "", "what to write after MAIL FROM:<...>")
	fs.StringVar(&to, "t", "bench@local.example", "recipient")
	fs.IntVar(&recipients, "r", 0, "instead of -t, this many recipients r0@d0.example, r1@d1.example, ...")
	fs.IntVar(&domains, "d", 100, "domains of -r")
	fs.IntVar(&boxes, "boxes", 0, "instead of -t, so many mailboxes box0@local.example, ..., each message to one of them in turn")
	fs.DurationVar(&cfg.Timeout, "timeout", time.Minute, "how long one reply may take")
	if err := fs.Parse(args); err != nil {
		return err
	}
	cfg.To = []string{to}
	if recipients > 0 {
		cfg.To = listRecipients(recipients, domains)
	}
	if boxes > 0 {
		cfg.To, cfg.InTurn = peer.BoxAddresses(boxes), true
	}
	res, err := load.Run(ctx, cfg)
	if jerr := json.NewEncoder(os.Stdout).Encode(loaded{res, ownCPU()}); jerr != nil {
		return jerr
	}
	return err
}

// listRecipients are n recipients spread over domains in turn.
func listRecipients(n, domains int) []string {
	to := make([]string, n)
	for i := range to {
		to[i] = fmt.Sprintf("r%d@d%d.example", i, i%max(domains, 1))
	}
	return to
}

// ownCPU is what this process has used.
func ownCPU() time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
