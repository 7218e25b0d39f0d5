package rspawn

import (
	"bytes"
	"context"
	"os"
	"strings"
	"time"

	"qmail/internal/proto/jobs"
	"qmail/internal/system/child"
)

const (
	// moduleTime is how long a program in the place of qmail-remote may take.
	moduleTime = 24 * time.Hour
	// moduleOutput is how much of what it prints is kept, in bytes: more than qmail-send takes.
	moduleOutput = 64 << 10
)

// Reports of qmail-rspawn about a program in the place of qmail-remote.
const (
	crashed   = "Zqmail-remote crashed.\n"
	unableNow = "ZUnable to run qmail-remote.\n"
	unable    = "DUnable to run qmail-remote.\n"
	silent    = "Zqmail-remote produced no output.\n"
	tooSlow   = "Zqmail-remote takes too long. (#4.3.0)\n"
)

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
		text := noHostName
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
	c := child.Capture{Argv: argv, Vars: s.vars, Dir: s.home, Stdin: in, Keep: moduleOutput}
	out, code, err := c.Run(limited)
	switch {
	case err == child.ErrCrashed:
		return crashed
	case err != nil && limited.Err() != nil:
		return tooSlow
	case err != nil: // it may be on its way to be replaced
		s.log.Warn("unable to run a program in the place of qmail-remote", "err", err)
		return unableNow
	}
	return outcome(code, out)
}

// outcome is what qmail-rspawn makes of a qmail-remote's end and its output. A record that lacks its NUL ends where
// the output does.
func outcome(code int, out []byte) string {
	switch {
	case code == 111:
		return unableNow
	case code != 0:
		return unable
	case len(out) == 0:
		return silent
	}
	records := bytes.Split(bytes.TrimSuffix(out, []byte{0}), []byte{0})
	const never, later, done = -1, 0, 1
	rank := map[byte]int{'K': done, 'Z': later, 'D': never}
	result := never
	for _, r := range records {
		if len(r) > 0 {
			if n, ok := rank[r[0]]; ok {
				result = n
				break
			}
		}
	}
	final := result
	switch out[0] {
	case 's':
		final = later
	case 'h':
		final = never
	}
	text := []byte{"DZK"[final+1]}
	if len(records[0]) > 0 {
		text = append(text, records[0][1:]...)
	}
	if result <= final && len(records) > 1 && len(records[1]) > 0 {
		if _, ok := rank[records[1][0]]; ok {
			text = append(text, records[1][1:]...)
		}
	}
	return string(text)
}
