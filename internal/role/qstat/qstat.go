// Package qstat is qmail-qstat: how many messages there are in the queue of a running qmail-send (proto/admin). Those
// that are not yet preprocessed are those in queue/drop that qmail-send has not taken yet: it has no other stage
// between accepting a message and scheduling it.
package qstat

import (
	"context"
	"errors"
	"fmt"

	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/system/env"
)

// Main runs qmail-qstat. It returns 0, 100 for those who may not know, or 111 if there is nobody to ask.
func Main(_ context.Context, e *env.Env, _ []string) int {
	c, err := admin.Dial(e.Home)
	var size admin.Size
	if err == nil {
		defer c.Close()
		size, err = c.Size()
	}
	if err == nil {
		_, err = fmt.Fprintf(e.Stdout, "messages in queue: %d\nmessages in queue but not yet preprocessed: %d\n", size.Messages+size.Dropped, size.Dropped)
	}
	if err == nil {
		return 0
	}
	code, text := 111, err.Error()
	if refusal, ok := errors.AsType[*reply.Error](err); ok {
		text = refusal.Text
		if refusal.Letter() == 'D' {
			code = 100
		}
	}
	fmt.Fprintf(e.Stderr, "qmail-qstat: fatal: %s\n", text)
	return code
}
