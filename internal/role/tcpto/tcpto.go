// Package tcpto is qmail-tcpto and qmail-tcpok: the addresses to which connections have timed out, which are left alone
// for a while, as qmail-rspawn remembers them (store/tcpto). They ask it by way of qmail-send (proto/admin).
package tcpto

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/system/env"
)

// Main runs qmail-tcpto, which lists them.
func Main(_ context.Context, e *env.Env, _ []string) int {
	list, err := ask(e, false)
	if err == nil {
		w := bufio.NewWriter(e.Stdout)
		for _, s := range list {
			fmt.Fprintf(w, "%s timed out %d seconds ago; # recent timeouts: %d\n", s.Addr, max(int64(e.Now().Sub(s.Last)/time.Second), 0), s.Count)
		}
		err = w.Flush()
	}
	return exit(e, "qmail-tcpto", err)
}

// Forget runs qmail-tcpok, which has them forgotten.
func Forget(_ context.Context, e *env.Env, _ []string) int {
	_, err := ask(e, true)
	return exit(e, "qmail-tcpok", err)
}

func ask(e *env.Env, forget bool) ([]admin.Slow, error) {
	c, err := admin.Dial(e.Home)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Slow(forget)
}

func exit(e *env.Env, name string, err error) int {
	if err == nil {
		return 0
	}
	text := err.Error()
	if refusal, ok := errors.AsType[*reply.Error](err); ok {
		text = refusal.Text
	}
	fmt.Fprintf(e.Stderr, "%s: fatal: %s\n", name, text)
	return 111
}
