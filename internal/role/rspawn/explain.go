package rspawn

import (
	"context"
	"fmt"
	"strings"
	"time"

	"qmail/internal/format/spawn"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/sender"
)

// answerTime is how long an answer may take, DNS included.
const answerTime = time.Minute

// answer is the jobs.Answerer.
func (s *spawner) answer(ctx context.Context, q *jobs.Question) []byte {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	switch {
	case q.Explain != nil:
		return admin.AppendSteps(nil, s.explain(ctx, q.Explain))
	case q.Forget:
		s.sender.Slow().Clear()
		s.log.Info("forgot which addresses timed out")
	}
	// A list may be empty, an answer may not: the first byte says that there is one.
	return admin.AppendSlow([]byte{0}, s.slow())
}

// slow lists the addresses that timed out.
func (s *spawner) slow() []admin.Slow {
	var list []admin.Slow
	for _, e := range s.sender.Slow().Entries() {
		list = append(list, admin.Slow{Addr: e.Addr, Count: e.Count, Last: e.Last, Skipped: s.sender.Slow().Skip(e.Addr, time.Now())})
	}
	return list
}

// explain says what deliver would do.
func (s *spawner) explain(ctx context.Context, j *jobs.Job) []admin.Step {
	if program := *s.program.Load(); program != "" {
		file, line := s.dir.Path("qmailremote"), 1
		if s.replaced != "" {
			file, line = "", 0 // the environment says so
		}
		return []admin.Step{{Topic: "replacement", Value: program, Text: "this program delivers in the place of qmail-remote", File: file, Line: line}, admin.Verdict("K\n")}
	}
	if len(withHost(j.Recipients)) == 0 {
		return []admin.Step{admin.Verdict(spawn.NoHost)}
	}
	e := s.sender.Explain(ctx, j.Host)
	var steps []admin.Step
	if e.Setting != "" {
		step := admin.Step{Topic: e.Setting, Value: relayText(e), File: s.dir.Path(e.Setting)}
		step.Line, step.Text = sender.RouteLine(s.dir, e.Setting, j.Host, e.Relay)
		if step.Line == 0 {
			step.Text = "the file has changed since it was read"
		}
		steps = append(steps, step)
	}
	counts := map[string]string{}
	for _, entry := range s.sender.Slow().Entries() {
		counts[entry.Addr.String()] = entry.Line(time.Now())
	}
	for i, t := range e.Targets {
		text := t.Host
		if e.Setting == "" || e.Relay.Direct() {
			text += fmt.Sprintf(", preference %d", t.Preference)
		}
		if line := counts[t.Addr.Addr().String()]; line != "" {
			_, what, _ := strings.Cut(line, " ")
			text += ", " + what
		}
		topic := "target"
		if e.Skipped[i] {
			topic = "skipped"
			text += "; it is left alone for now"
		}
		steps = append(steps, admin.Step{Topic: topic, Value: t.Addr.String(), Text: text})
	}
	if e.Verdict.Letter != 0 {
		return append(steps, admin.Verdict(string(e.Verdict.Letter)+e.Verdict.Text))
	}
	how := "SMTP"
	if e.QMTP {
		how = "QMTP"
	}
	return append(steps, admin.Verdict("Kit would be sent by "+how+" to the first of these that answers\n"))
}

func relayText(e sender.Explanation) string {
	switch {
	case e.Relay.Direct():
		return fmt.Sprintf("the domain's own servers, port %d", e.Relay.Port)
	case e.Relay.Addr.IsValid():
		return fmt.Sprintf("%s port %d", e.Relay.Addr, e.Relay.Port)
	}
	return fmt.Sprintf("%s port %d", e.Relay.Host, e.Relay.Port)
}
