// Package serialqmtp is serialqmtp(1): a client of maildirserial(1) that sends messages over one QMTP connection,
// the one that tcpclient has left on descriptors 6 and 7, or with -c one that it opens itself.
package serialqmtp

import (
	"context"
	"fmt"

	"qmail/internal/proto/qmtp/client"
	"qmail/internal/proto/serial"
	"qmail/internal/system/env"
)

const program = "serialqmtp"

// Main runs the role and returns its exit code.
func Main(_ context.Context, e *env.Env, args []string) int {
	conn, args, code := serial.Open(e, program, args, "prefix")
	if conn == nil {
		return code
	}
	c := client.New(conn, serial.Timeout)
	defer c.Close()
	return serial.Run(e, program, args[0], func(m *serial.Message) string {
		result := c.Send(&client.Message{Sender: m.Sender, Recipients: []string{m.Recipient}, Rest: m.Body, Size: m.Size})
		switch {
		case len(result.Answers) == 1:
			return result.Answers[0]
		case result.Sent:
			return "Zconnection ended before the answer, so there may be a duplicate"
		}
		return fmt.Sprintf("Zmessage not sent: %v", result.Err)
	})
}
