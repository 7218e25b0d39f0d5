package local

import (
	"context"
	"fmt"
	"io"
	"strings"

	"qmail/internal/format/dotqmail"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/jobs"
)

// maxExplained bounds the lines of a .qmail file that an explanation tells.
const maxExplained = 300

// answer is the worker's jobs.Answerer: what a delivery would do, found by what a delivery uses.
func (w *worker) answer(_ context.Context, q *jobs.Question) []byte {
	if q.Explain == nil {
		return nil
	}
	d, refusal := w.delivery(q.Explain, 0, jobs.NewBody(nil))
	if d == nil {
		return admin.AppendSteps(nil, []admin.Step{admin.Verdict(refusal)})
	}
	if w.program != "" {
		return admin.AppendSteps(nil, []admin.Step{
			{Topic: "replacement", Value: w.program, Text: "this program delivers in the place of qmail-local"}, admin.Verdict("K\n"),
		})
	}
	return admin.AppendSteps(nil, w.explain(d))
}

// explain goes the way of deliver, up to where something would be done.
func (s *site) explain(d *delivery) []admin.Step {
	if err := checkHome(d, io.Discard); err != nil {
		return []admin.Step{{Topic: "home", Value: d.home, File: d.home}, admin.Verdict(verdict(err))}
	}
	in, err := s.instructions(d)
	if err != nil {
		return append(sought(d), admin.Verdict(verdict(err)))
	}
	file, steps := "", []admin.Step(nil)
	switch {
	case in.from.Name == "":
		steps = append(sought(d), admin.Step{Topic: "qmail", Text: "there is none: the default delivery counts"})
	case in.empty:
		steps = append(steps, admin.Step{Topic: "qmail", Value: d.home + "/" + in.from.Name, File: d.home + "/" + in.from.Name, Text: "it is empty: the default delivery counts"})
	default:
		file = d.home + "/" + in.from.Name
		text := ""
		if in.forwardOnly {
			text = "its x bit is set: only forwards are allowed"
		}
		steps = append(steps, admin.Step{Topic: "qmail", Value: file, Text: text, File: file})
	}
	sender, err := forwardSender(d)
	if err != nil {
		return append(steps, admin.Verdict(verdict(err)))
	}
	if sender != d.sender {
		steps = append(steps, admin.Step{Topic: "owner", Value: sender, Text: "the sender of what is forwarded", File: d.home + "/" + dotqmail.Owner(d.dash, d.ext)})
	}
	lines, err := in.parse()
	for i, l := range lines {
		if i == maxExplained {
			steps = append(steps, admin.Step{Topic: "more", Text: fmt.Sprintf("and %d more lines", len(lines)-i)})
			break
		}
		steps = append(steps, admin.Step{Topic: l.Kind.String(), Value: l.Text, File: file, Line: l.Number})
	}
	if err == nil && len(lines) == 0 {
		steps = append(steps, admin.Step{Topic: "nothing", Text: "no line asks for anything: the message is thrown away", File: file})
	}
	return append(steps, admin.Verdict(verdict(err)))
}

// sought names the files that are not there.
func sought(d *delivery) []admin.Step {
	var names []string
	for _, c := range dotqmail.Candidates(d.dash, d.ext) {
		if len(names) == 20 {
			names = append(names, "...")
			break
		}
		names = append(names, c.Name)
	}
	return []admin.Step{{Topic: "sought", Value: strings.Join(names, " "), Text: "files looked for", File: d.home}}
}
