package lspawn

import (
	"context"
	"os"

	"qmail/internal/format/address"
	"qmail/internal/format/spawn"
	"qmail/internal/proto/lookup"
	"qmail/internal/proto/orders"
	"qmail/internal/system/child"
	"qmail/internal/system/env"
)

// tooSlow is the report about a delivery that does not end.
const tooSlow = "Zqmail-local takes too long. (#4.3.0)\n"

// classic serves a classic qmail-send on descriptors 0 and 1.
func (s *spawner) classic(ctx context.Context, e *env.Env) int {
	if err := keepFiles(); err != nil {
		s.log.Error("unable to close files", "cause", err)
		return 111
	}
	s.vars = e.Vars // the classic spawner hands on what it has
	deliver := func(ctx context.Context, o spawn.Order, message *os.File) string {
		return s.deliver(ctx, e.Home, o, message)
	}
	if err := orders.Serve(ctx, e.Stdin, e.Stdout, orders.Queue(e.Home), deliver); err != nil {
		s.log.Error("lost qmail-send", "cause", err)
		return 111
	}
	return 0
}

// deliver carries out one classic order.
func (s *spawner) deliver(ctx context.Context, home string, o spawn.Order, message *os.File) string {
	local, domain, _ := address.Split(o.Recipient)
	a, _, err := s.answer(ctx, local, false)
	if err != nil {
		return lookup.ReportOf(err)
	}
	delivery, module, err := s.settings(a)
	if err != nil {
		return lookup.ReportOf(err)
	}
	c := child.Capture{
		Argv: []string{"qmail-local", "--", a.User, a.Home, local, a.Dash, a.Ext, domain, o.Sender, delivery},
		Path: s.program, Vars: s.vars, Dir: home, Stdin: message, Keep: spawn.MaxLocal + 1, As: s.credential(a),
	}
	if module != "" {
		c.Argv[0], c.Path = module, ""
	}
	out, code, err := c.Run(ctx)
	switch {
	case err == child.ErrCrashed:
		return spawn.LocalCrashed
	case err != nil && ctx.Err() != nil:
		return tooSlow
	case err != nil: // it may be on its way to be replaced
		s.log.Warn("unable to run qmail-local", "user", a.User, "cause", err)
		return spawn.LocalUnable
	}
	return spawn.LocalReport(code, out)
}
