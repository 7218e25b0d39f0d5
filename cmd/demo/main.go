// Command demo shows qmail at work: it makes a scratch home, starts every role in it without any rights, sends
// messages in by SMTP, and shows the way of each to a Maildir, through a virtual domain, by a forward, out to
// another machine, and back as a bounce. With -run it leaves the same home running until it is interrupted.
//
// It ends with a summary and exit code 0, or with an error, the tail of the log, and exit code 1.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	stay := flag.Bool("run", false, "leave it running until interrupted")
	program := flag.String("qmail", "", "the qmail `PROGRAM`; without it, the one beside this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, *program, *stay); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

// demo shows everything, or with stay runs until ctx ends.
func demo(ctx context.Context, program string, stay bool) (err error) {
	began := time.Now()
	sink, err := newSink()
	if err != nil {
		return err
	}
	defer sink.close()
	s, err := newServer(program, sink.port(), stay)
	if err != nil {
		return err
	}
	defer s.remove()
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, s.tail())
	}
	fmt.Printf("qmail runs in %s with these processes, all as uid %d:\n", s.home, s.uid())
	for _, role := range s.roles() {
		fmt.Println("    " + role)
	}
	if stay {
		s.explain(os.Stdout)
		<-ctx.Done()
		fmt.Println()
		return s.stop()
	}
	shown, err := showAll(ctx, s, sink)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.tail())
	}
	if err := s.stop(); err != nil {
		return fmt.Errorf("%w\n%s", err, s.tail())
	}
	fmt.Printf("\nAll %d went the way they should; all roles stopped in order. %.1f seconds.\n", shown, time.Since(began).Seconds())
	return nil
}
