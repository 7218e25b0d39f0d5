package sendmail

import (
	"context"
	"fmt"

	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
)

// verify is -bv: it asks the queue whether it would take each address.
func verify(ctx context.Context, e *env.Env, recipients []string) int {
	client, err := enqueue.Dial(e.Home)
	if err != nil {
		fmt.Fprintf(e.Stderr, "%s: fatal: unable to reach the queue\n", name)
		return 111
	}
	defer client.Close()
	code := 0
	for _, r := range recipients {
		if err := client.Verify(ctx, r); err != nil {
			refusal := reply.Of(err)
			fmt.Fprintf(e.Stdout, "%s... %s (#%s)\n", r, refusal.Text, refusal.Status)
			switch {
			case refusal.Letter() != 'D':
				code = 111
			case code == 0:
				code = 100
			}
			continue
		}
		fmt.Fprintf(e.Stdout, "%s... deliverable\n", r)
	}
	return code
}
