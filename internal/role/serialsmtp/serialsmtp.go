// Package serialsmtp is serialsmtp(1): a client of maildirserial(1) that sends messages over one SMTP connection,
// the one that tcpclient has left on descriptors 6 and 7, or with -c one that it opens itself.
package serialsmtp

import (
	"context"
	"strings"

	"qmail/internal/proto/serial"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/system/env"
)

const program = "serialsmtp"

// Main runs the role and returns its exit code.
func Main(_ context.Context, e *env.Env, args []string) int {
	conn, args, code := serial.Open(e, program, args, "prefix", "helohost")
	if conn == nil {
		return code
	}
	c := client.New(conn, client.Options{Hello: args[1], Timeout: serial.Timeout})
	defer c.Quit()
	if r := c.Hello(); r.Letter != 0 {
		return serial.Fatal(e, program, strings.TrimSuffix(r.Text, "\n"))
	}
	return serial.Run(e, program, args[0], func(m *serial.Message) string {
		if !c.Usable() {
			return "Zconnection has ended"
		}
		result := c.Deliver(&client.Message{
			Sender: m.Sender, Recipients: []string{m.Recipient}, Body: client.Body{Rest: m.Body, Size: m.Size},
		})
		return result.Of(0)
	})
}
