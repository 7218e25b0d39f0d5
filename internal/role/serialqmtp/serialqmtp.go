// Package serialqmtp is serialqmtp(1): a client of maildirserial(1) that sends messages over one QMTP connection,
// the one that tcpclient has left on descriptors 6 and 7, or with -c one that it opens itself.
package serialqmtp

import (
	"context"
	"fmt"
	"time"

	"qmail/internal/format/getopt"
	"qmail/internal/proto/qmtp/client"
	"qmail/internal/proto/serial"
	"qmail/internal/system/env"
)

const (
	exitUsage = 100
	exitLater = 111
	timeout   = 1200 * time.Second
)

// Main runs the role and returns its exit code.
func Main(_ context.Context, e *env.Env, args []string) int {
	options, args, err := getopt.Parse(args, "c:")
	if err != nil || len(args) != 1 {
		fmt.Fprintln(e.Stderr, "serialqmtp: usage: serialqmtp [ -c host:port ] prefix")
		return exitUsage
	}
	address := ""
	for _, o := range options {
		address = o.Arg
	}
	conn, err := serial.Connect(address)
	if err != nil {
		fmt.Fprintf(e.Stderr, "serialqmtp: fatal: unable to connect: %v\n", err)
		return exitLater
	}
	c := client.New(conn, timeout)
	defer c.Close()
	err = serial.Serve(e.Stdin, e.Stdout, args[0], func(m *serial.Message) string {
		result := c.Send(&client.Message{Sender: m.Sender, Recipients: []string{m.Recipient}, Rest: m.Body, Size: m.Size})
		switch {
		case len(result.Answers) == 1:
			return result.Answers[0]
		case result.Sent:
			return "Zconnection ended before the answer, so there may be a duplicate"
		}
		return fmt.Sprintf("Zmessage not sent: %v", result.Err)
	})
	if err != nil {
		fmt.Fprintf(e.Stderr, "serialqmtp: fatal: %v\n", err)
		return exitLater
	}
	return 0
}
