package local

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"qmail/internal/format/address"
	"qmail/internal/format/spawn"
	"qmail/internal/proto/jobs"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// aliasUser gets what belongs to nobody else (qmail-getpw(8)).
const aliasUser = "alias"

// together is how many deliveries of a worker run at once.
const together = 32

// newWorker makes the worker of a user. Its programs get no variables but those that are promised.
func newWorker(e *env.Env, user, home, fallback string) *worker {
	queue := &door{home: e.Home}
	s := newSite(e, queue)
	s.vars = nil
	for _, name := range []string{"PATH", "QMAILHOME"} {
		if value, set := e.Lookup(name); set {
			s.vars = append(s.vars, name+"="+value)
		}
	}
	return &worker{
		site: s, door: queue, user: user, home: home, fallback: fallback, program: e.Get("QMAILLOCAL"),
		slots: make(chan struct{}, together),
	}
}

// serve takes jobs until qmail-send has no more. It does not stop for less: what it is told to do it finishes.
func serve(ctx context.Context, e *env.Env, w *worker) int {
	// Programs get descriptors 0, 1 and 2. What we were started with beyond them is no business of theirs.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		fmt.Fprintln(e.Stderr, "close_range:", err)
		return exitLater
	}
	conn, err := ipc.FromFile(e.Stdin)
	if err != nil {
		fmt.Fprintln(e.Stderr, "descriptor 0 is no pipe of qmail-lspawn's:", err)
		return exitLater
	}
	defer w.door.close()
	if err := jobs.ServeAsked(context.WithoutCancel(ctx), conn, w.handle, w.answer); !jobs.Ended(err) {
		fmt.Fprintln(e.Stderr, "qmail-send:", err)
		return exitLater
	}
	return exitDone
}

// worker delivers the jobs of one user. Whose home it is, and what an absent .qmail means, it has from
// qmail-lspawn; what qmail-send says of that does not count.
type worker struct {
	*site
	door                 *door
	user, home, fallback string
	program              string // to be run instead of all that is here, for each recipient
	slots                chan struct{}
}

func (w *worker) handle(ctx context.Context, j *jobs.Job, body *jobs.Body, _ jobs.Report) []jobs.Result {
	w.slots <- struct{}{}
	defer func() { <-w.slots }()
	ctx, cancel := context.WithTimeout(ctx, deliveryTime)
	defer cancel()
	results := make([]jobs.Result, len(j.Recipients))
	for i := range j.Recipients {
		results[i].Recipient = i
		results[i].Text, results[i].PassedOn = w.report(ctx, j, i, body)
	}
	return results
}

// report delivers to one recipient and says what became of it, as qmail-lspawn did.
func (w *worker) report(ctx context.Context, j *jobs.Job, i int, body *jobs.Body) (text string, passedOn bool) {
	d, refusal := w.delivery(j, i, body)
	if d == nil {
		return refusal, false
	}
	switch {
	case w.program != "" && j.Verify && w.user != aliasUser:
		return verdict(nil), false // only it knows
	case j.Verify: // whoever delivers: what is nobody's is the alias user's, whose addresses are its .qmail files
		return verdict(w.verify(d)), false
	case w.program != "":
		return w.runModule(ctx, d), false
	}
	out := &capped{}
	text = out.report(w.run(ctx, d, out, out))
	return text, d.passedOn
}

// delivery is what a job asks for as to one recipient, or why not.
func (w *worker) delivery(j *jobs.Job, i int, body *jobs.Body) (d *delivery, refusal string) {
	local, domain, ok := address.Split(j.Recipients[i])
	switch {
	case !ok:
		return nil, "DSorry, address must include host name. (#5.1.3)\n"
	case strings.Contains(j.Dash, "..") || strings.ContainsRune(j.Dash+j.Ext, 0):
		return nil, "Zunusable assignment of this address. (#4.3.0)\n"
	}
	return &delivery{
		user: w.user, home: w.home, local: local, domain: domain, dash: j.Dash, ext: j.Ext,
		sender: j.Sender, fallback: w.fallback, message: &message{body: body},
		options: j.Options, recipientOptions: j.RecipientOptions[i],
	}, ""
}

func verdict(err error) string {
	if err == nil {
		return "K\n"
	}
	f := failureOf(err)
	return letter(f.code) + f.text + "\n"
}

func letter(code int) string {
	switch code {
	case exitDone:
		return "K"
	case exitNever:
		return "D"
	}
	return "Z"
}

// maxOutput is how much a program may say, in bytes, before it loses its audience and, if it goes on, its life.
const maxOutput = 10 << 20

// capped keeps the beginning of what programs and we print.
type capped struct {
	text []byte
	seen int
}

var errFlood = errors.New("program prints too much")

func (c *capped) Write(p []byte) (int, error) {
	if c.seen += len(p); c.seen > maxOutput {
		return 0, errFlood
	}
	c.text = append(c.text, p[:min(len(p), spawn.MaxLocal+1-len(c.text))]...)
	return len(p), nil
}

func (c *capped) report(code int) string { return letter(code) + spawn.LocalText(c.text) }
