package rspawn

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"qmail/internal/format/address"
	"qmail/internal/format/spawn"
	"qmail/internal/proto/orders"
	"qmail/internal/store/control"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// classic serves a classic qmail-send on descriptors 0 and 1. QMAILREMOTE and control/qmailremote name a program in the
// place of qmail-remote, which else we are.
func classic(ctx context.Context, e *env.Env, log *slog.Logger) int {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		log.Error("unable to close files", "err", err)
		return 111
	}
	deliver := func(ctx context.Context, o spawn.Order, message *os.File) string {
		_, host, _ := address.Split(o.Recipient)
		c := child.Capture{Argv: []string{"qmail-remote", host, o.Sender, o.Recipient}, Path: "/proc/self/exe", Vars: e.Vars, Dir: e.Home, Stdin: message}
		program, err := module(control.Open(e.Home), e.Get("QMAILREMOTE"))
		if err != nil {
			log.Warn("unable to read control/qmailremote", "err", err)
			return spawn.RemoteUnable
		}
		if program != "" {
			c.Argv[0], c.Path = program, ""
		}
		return runRemote(ctx, c, log)
	}
	if err := orders.Serve(ctx, e.Stdin, e.Stdout, orders.Queue(e.Home), deliver); err != nil {
		log.Error("lost qmail-send", "err", err)
		return 111
	}
	return 0
}
