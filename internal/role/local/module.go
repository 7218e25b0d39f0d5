package local

import (
	"bytes"
	"context"

	"qmail/internal/system/child"
)

// Reports of qmail-lspawn about a program in the place of qmail-local.
const (
	moduleCrashed = "Zqmail-local crashed.\n"
	moduleUnable  = "ZUnable to run qmail-local.\n"
	moduleTooSlow = "Zqmail-local takes too long. (#4.3.0)\n"
	unreadable    = "ZUnable to read message. (#4.3.0)\n"
)

// saying is the report of an exit code that says enough by itself; "" if it does not.
func saying(code int) string {
	return map[int]string{
		112: "ZInternal qmail-lspawn bug.\n",
		113: "ZNot allowed to perform deliveries as root.\n",
		115: "ZNFS failure in qmail-local.\n",
		116: "ZUnable to find alias user!\n",
		117: "ZTrouble reading users/cdb in qmail-lspawn.\n",
		118: "ZTemporary failure in qmail-lspawn.\n",
		119: "ZOut of memory in qmail-lspawn.\n",
		120: "ZUnable to run qmail-local.\n",
		121: "ZUnable to run qmail-getpw.\n",
		126: "DUnable to run qmail-local.\n",
	}[code]
}

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
		Vars: w.vars, Dir: w.door.home, Stdin: in, Keep: maxReport + 1,
	}
	out, code, err := c.Run(ctx)
	switch {
	case err == child.ErrCrashed:
		return moduleCrashed
	case err != nil && ctx.Err() != nil:
		return moduleTooSlow
	case err != nil: // it may be on its way to be replaced
		return moduleUnable
	}
	return moduleReport(code, out)
}

// moduleReport is what qmail-lspawn makes of a qmail-local's end and its output.
func moduleReport(code int, out []byte) string {
	if text := saying(code); text != "" {
		return text
	}
	if len(out) > maxReport {
		out = append(out[:cutReport-len(tooLong):cutReport-len(tooLong)], tooLong...)
	}
	out, _, _ = bytes.Cut(out, []byte{0})
	switch code {
	case 0:
		return "K" + string(out)
	case 111, 71, 74, 75:
		return "Z" + string(out)
	}
	return "D" + string(out)
}
