// Command bench runs the same work through this server and through Postfix, in turn, and prints the ratios.
//
//	bench [flags]            the comparison; bench -help lists the flags
//	bench load [flags]       the load generator alone
//	bench sink [flags]       the counting SMTP sink alone
//	bench nest COMMAND ...   run a server as the parent of all it leaves behind; the comparison uses this
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	command, args := compareMain, os.Args[1:]
	if len(args) > 0 {
		switch args[0] {
		case "load":
			command, args = loadMain, args[1:]
		case "sink":
			command, args = sinkMain, args[1:]
		case "nest":
			command, args = nestMain, args[1:]
		}
	}
	err := command(ctx, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
