package local

import (
	"context"

	"qmail/internal/format/spawn"
	"qmail/internal/system/child"
)

// Reports about a program in the place of qmail-local, and what it is given.
const (
	moduleTooSlow = "Zqmail-local takes too long. (#4.3.0)\n"
	unreadable    = "ZUnable to read message. (#4.3.0)\n"
)

// runModule delivers with a program in the place of qmail-local: as the user, in qmail's home, with the classic
// arguments, the message on descriptor 0, and the report on 1 and 2.
func (w *worker) runModule(ctx context.Context, d *delivery) string {
	defer d.message.close()
	in, done, err := d.message.stdin()
	if err != nil {
		return unreadable
	}
	defer done()
	c := child.Capture{
		Argv: []string{w.program, "--", d.user, d.home, d.local, d.dash, d.ext, d.domain, d.sender, d.fallback},
		Vars: w.vars, Dir: w.door.home, Stdin: in, Keep: spawn.MaxLocal + 1,
	}
	out, code, err := c.Run(ctx)
	switch {
	case err == child.ErrCrashed:
		return spawn.LocalCrashed
	case err != nil && ctx.Err() != nil:
		return moduleTooSlow
	case err != nil: // it may be on its way to be replaced
		return spawn.LocalUnable
	}
	return spawn.LocalReport(code, out)
}
