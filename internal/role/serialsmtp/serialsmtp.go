// Package serialsmtp is serialsmtp(1): a client of maildirserial(1) that sends messages over one SMTP connection,
// the one that tcpclient has left on descriptors 6 and 7, or with -c one that it opens itself.
package serialsmtp

import (
	"context"
	"fmt"
	"strings"
	"time"

	"qmail/internal/format/getopt"
	"qmail/internal/proto/serial"
	"qmail/internal/proto/smtp/client"
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
	if err != nil || len(args) != 2 {
		fmt.Fprintln(e.Stderr, "serialsmtp: usage: serialsmtp [ -c host:port ] prefix helohost")
		return exitUsage
	}
	address := ""
	for _, o := range options {
		address = o.Arg
	}
	conn, err := serial.Connect(address)
	if err != nil {
		fmt.Fprintf(e.Stderr, "serialsmtp: fatal: unable to connect: %v\n", err)
		return exitLater
	}
	c := client.New(conn, client.Options{Hello: args[1], Timeout: timeout})
	defer c.Quit()
	if r := c.Hello(); r.Letter != 0 {
		fmt.Fprintf(e.Stderr, "serialsmtp: fatal: %s\n", strings.TrimSuffix(r.Text, "\n"))
		return exitLater
	}
	err = serial.Serve(e.Stdin, e.Stdout, args[0], func(m *serial.Message) string {
		if !c.Usable() {
			return "Zconnection has ended"
		}
		result := c.Deliver(&client.Message{
			Sender: m.Sender, Recipients: []string{m.Recipient}, Body: client.Body{Rest: m.Body, Size: m.Size},
		})
		return result.Of(0)
	})
	if err != nil {
		fmt.Fprintf(e.Stderr, "serialsmtp: fatal: %v\n", err)
		return exitLater
	}
	return 0
}
