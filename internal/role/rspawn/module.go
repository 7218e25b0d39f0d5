package rspawn

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	"qmail/internal/format/spawn"
	"qmail/internal/proto/jobs"
	"qmail/internal/system/child"
)

const (
	// moduleTime is how long a program in the place of qmail-remote may take.
	moduleTime = 24 * time.Hour
	// moduleOutput is how much of what it prints is kept, in bytes: more than qmail-send takes.
	moduleOutput = 64 << 10
)

// tooSlow is the report about a program in the place of qmail-remote that does not end.
const tooSlow = "Zqmail-remote takes too long. (#4.3.0)\n"

// runModule carries out a job with a program in the place of qmail-remote, which is run once for each recipient, as
// qmail-rspawn always did: program HOST SENDER RECIPIENT, the message on descriptor 0.
func (s *spawner) runModule(ctx context.Context, program string, j *jobs.Job, body *jobs.Body, report jobs.Report) []jobs.Result {
	message, err := body.Copy()
	if err != nil {
		s.log.Error("unable to copy a message", "err", err)
		return all(make([]jobs.Result, len(j.Recipients)), unreadable)
	}
	defer message.Close()
	for i, recipient := range j.Recipients {
		text := spawn.NoHost
		if strings.IndexByte(recipient, '@') >= 0 {
			text = s.runOnce(ctx, []string{program, j.Host, j.Sender, recipient}, message)
		}
		report(jobs.Result{Recipient: i, Text: text})
	}
	return nil
}

func (s *spawner) runOnce(ctx context.Context, argv []string, message *os.File) string {
	in, err := jobs.Reopen(message)
	if err != nil {
		s.log.Error("unable to open a message", "err", err)
		return unreadable
	}
	defer in.Close()
	limited, cancel := context.WithTimeout(ctx, moduleTime)
	defer cancel()
	return runRemote(limited, child.Capture{Argv: argv, Vars: s.vars, Dir: s.home, Stdin: in}, s.log)
}

// runRemote runs a qmail-remote and reports on it.
func runRemote(ctx context.Context, c child.Capture, log *slog.Logger) string {
	c.Keep = moduleOutput
	out, code, err := c.Run(ctx)
	switch {
	case err == child.ErrCrashed:
		return spawn.RemoteCrashed
	case err != nil && ctx.Err() != nil:
		return tooSlow
	case err != nil: // it may be on its way to be replaced
		log.Warn("unable to run qmail-remote", "err", err)
		return spawn.RemoteUnable
	}
	return spawn.RemoteReport(code, out)
}
