package send

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/bounce"
	"qmail/internal/format/dsn"
	"qmail/internal/format/envelope"
	"qmail/internal/proto/jobs"
	"qmail/internal/role/send/route"
	"qmail/internal/role/send/schedule"
	"qmail/internal/role/send/sendlog"
	"qmail/internal/store/queue"
)

const (
	// workerIdle is how long the connection to a user's qmail-local outlives its last job.
	workerIdle = 5 * time.Second
	// systemTrouble is how long something waits that failed through no fault of its own, as in qmail-send.
	systemTrouble = 123 * time.Second
	// maxEnvelopes bounds the envelopes kept in memory, in bytes.
	maxEnvelopes = 64 << 20
)

// core is qmail-send's one mind: a goroutine that takes events in order, moves the schedule on, gives out jobs
// and writes the log. Everything it calls returns at once; what may wait is done elsewhere and comes back as an
// event.
type core struct {
	store  queue.Store
	config *Config
	now    func() time.Time
	slog   *slog.Logger

	sched     *schedule.Scheduler
	log       *sendlog.Writer
	seed      maphash.Seed
	envelopes *envelopes
	running   map[uint32]*delivery
	lastJob   uint32
	lastNum   uint64 // the last delivery number in the log
	failures  map[queue.ID]*failure
	bouncing  int               // notices on their way into the queue
	injecting chan struct{}     // holds a token for each notice that is being written
	untold    map[*notice]bool  // deliveries whose senders are still to be told of them
	warned    map[queue.ID]bool // messages whose senders know that they are late
	notices   allowance         // of successes
	timers    []timer
	office
	batch queue.Batch // closes, notes, fails and holds of this turn
	rush  rush
	held  time.Time // deliveries on this machine wait until then; zero if they do not

	remote    *worker
	spawner   Spawner
	locals    map[string]*worker
	accounts  map[string]account
	verified  map[string]verdict
	verifying map[string]*verification
	idleCheck time.Time // when to look for idle workers
	stopping  bool
	stopped   chan struct{} // closed when stopping and nothing is left to wait for

	mu     sync.Mutex
	queued []any
	wake   chan struct{}
}

// delivery is a job on its way: the attempt to deliver to some recipients of a message.
type delivery struct {
	job      schedule.Job
	envelope *envelope.Envelope
	targets  []string // rewritten recipients
	first    uint64   // their delivery numbers count from here
	letters  []byte   // what became of each; 0 if not yet known
	contact  schedule.Contact
	passedOn []int             // those whose wishes for notices somebody else has taken over, by their place
	told     []uint32          // delivered, and their sender is to be told
	news     []dsn.Outcome     // what
	late     map[uint32]string // put off, and why; kept only where warnings are wanted
	worker   *worker
	lost     bool
	verify   *verification // instead of all above: nobody is delivered to
}

// timer is something to be done again later.
type timer struct {
	at time.Time
	do func()
}

func newCore(store queue.Store, config *Config, now func() time.Time, log *slog.Logger, out *sendlog.Writer) *core {
	options := config.Schedule
	seed := maphash.MakeSeed()
	options.Seed = maphash.String(seed, "sources")
	return &core{
		store: store, config: config, now: now, slog: log, log: out,
		sched: schedule.New(options, now()), seed: seed,
		envelopes: newEnvelopes(maxEnvelopes),
		running:   map[uint32]*delivery{},
		failures:  map[queue.ID]*failure{},
		injecting: make(chan struct{}, maxInjecting),
		untold:    map[*notice]bool{},
		warned:    map[queue.ID]bool{},
		notices:   allowance{map[string]spending{}},
		locals:    map[string]*worker{},
		accounts:  map[string]account{},
		verified:  map[string]verdict{},
		verifying: map[string]*verification{},
		office:    newOffice(),
		stopped:   make(chan struct{}),
		wake:      make(chan struct{}, 1),
	}
}

// post gives the core an event. It may be called from any goroutine and never waits.
func (c *core) post(event any) {
	c.mu.Lock()
	c.queued = append(c.queued, event)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *core) take(spare []any) []any {
	c.mu.Lock()
	defer c.mu.Unlock()
	events := c.queued
	c.queued = spare[:0]
	return events
}

// run is the loop. It returns when ctx ends.
func (c *core) run(ctx context.Context) {
	c.status()
	c.limit()
	var events []any
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		events = c.take(events)
		for i, event := range events {
			c.apply(ctx, event)
			events[i] = nil
		}
		now := c.now()
		c.runTimers(now)
		c.letIn(now)
		if !c.stopping {
			for job, ok := c.sched.Next(now); ok; job, ok = c.sched.Next(now) {
				c.begin(ctx, job)
			}
		}
		c.closeIdle(now)
		c.flush()
		c.log.Flush()
		if c.stopping && len(c.running) == 0 && c.bouncing == 0 {
			c.finishStop()
		}
		wait.Reset(c.pause(now))
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			runtime.Gosched() // who is about to post does so first: fewer and fuller turns under load
		case <-wait.C:
		}
	}
}

// pause is how long nothing is to be done unless an event comes.
func (c *core) pause(now time.Time) time.Duration {
	pause := time.Minute
	if at, ok := c.sched.Wake(now); ok && !c.stopping {
		pause = min(pause, at.Sub(now))
	}
	for _, t := range c.timers {
		pause = min(pause, t.at.Sub(now))
	}
	if !c.held.IsZero() {
		pause = min(pause, c.held.Sub(now))
	}
	if len(c.locals) > 0 {
		pause = min(pause, c.idleCheck.Sub(now))
	}
	return max(pause, 0)
}

func (c *core) later(d time.Duration, do func()) {
	c.timers = append(c.timers, timer{c.now().Add(d), do})
}

func (c *core) runTimers(now time.Time) {
	due := c.timers[:0:0]
	keep := c.timers[:0]
	for _, t := range c.timers {
		if t.at.After(now) {
			keep = append(keep, t)
		} else {
			due = append(due, t)
		}
	}
	c.timers = keep
	for _, t := range due {
		t.do()
	}
}

func (c *core) apply(ctx context.Context, event any) {
	switch e := event.(type) {
	case arrived:
		c.arrive(e)
	case jobResults:
		c.results(ctx, e)
	case jobFailed:
		c.jobFailed(ctx, e)
	case workerGone:
		c.lose(e.w)
	case loaded:
		c.loaded(ctx, e)
	case located:
		c.located(ctx, e)
	case queued:
		c.noticed(ctx, e)
	case func():
		e()
	}
}

// flush writes what this turn closed and put off.
func (c *core) flush() {
	if len(c.batch.Closes)+len(c.batch.Notes)+len(c.batch.Fails)+len(c.batch.Holds) == 0 {
		return
	}
	c.store.Write(c.batch)
	c.batch = queue.Batch{}
}

func (c *core) status() {
	s := c.sched.Stats()
	limits := &c.config.Schedule.Channels
	c.log.Status(s.Channels[schedule.Local].Jobs, limits[schedule.Local].Concurrency,
		s.Channels[schedule.Remote].Jobs, limits[schedule.Remote].Concurrency, c.stopping)
}

// letIn lets reception go first while it is busy.
func (c *core) letIn(now time.Time) {
	again, waits := c.rush.waits(now)
	changed := waits == c.held.IsZero()
	c.held = again
	if changed {
		c.limit()
	}
}

// limit sets how many jobs may run: none on a channel while nobody is there to do them, or while they wait.
func (c *core) limit() {
	there := [...]bool{schedule.Local: c.spawner != nil, schedule.Remote: c.remote != nil}
	for channel, limits := range c.config.Schedule.Channels {
		if !there[channel] || schedule.Channel(channel) == schedule.Local && !c.held.IsZero() {
			limits.Concurrency = 0
		}
		c.sched.SetConcurrency(schedule.Channel(channel), limits.Concurrency)
	}
}

// arrive takes a message that has just become durable.
func (c *core) arrive(e arrived) {
	c.rush.arrived()
	a := e.message
	c.log.New(a.ID)
	c.log.Info(a.ID, e.size, a.Envelope.Sender, a.Envelope.QP, a.Envelope.UID)
	if e.held {
		c.slog.Info(fmt.Sprintf("msg %d: held on arrival", a.ID))
	}
	c.add(queue.ID(a.ID), a.Envelope, e.birth, e.held)
}

// add puts a new message into the schedule.
func (c *core) add(id queue.ID, e *envelope.Envelope, birth time.Time, held bool) {
	if len(e.Recipients) == 0 {
		c.log.End(uint64(id))
		return
	}
	c.envelopes.put(id, e)
	m := c.message(id, e, birth)
	m.Held = held
	m.Recipients = make([]schedule.Recipient, len(e.Recipients))
	for i, r := range e.Recipients {
		to := c.config.Routes.Rewrite(r)
		m.Recipients[i] = schedule.Recipient{Index: uint32(i), Channel: to.Channel, Destination: to.Destination}
	}
	c.schedule(m)
}

// schedule hands a message over. An error would be a mistake of ours; the message stays in the queue.
func (c *core) schedule(m schedule.Message) {
	if err := c.sched.Add(m, c.now()); err != nil {
		c.slog.Error("message cannot be scheduled", "msg", m.ID, "err", err)
	}
}

func (c *core) message(id queue.ID, e *envelope.Envelope, birth time.Time) schedule.Message {
	return schedule.Message{
		ID: uint64(id), Birth: birth, Alone: route.IsVERP(e.Sender),
		Source: maphash.String(c.seed, e.Sender),
	}
}

// restore puts a message that was in the queue before we started into the schedule.
func (c *core) restore(ctx context.Context, entry *queue.Entry) error {
	if entry.Envelope == nil {
		c.slog.Error("message is damaged and will not be tried", "msg", entry.ID)
		c.damaged[entry.ID] = true
		return nil
	}
	m := c.message(entry.ID, entry.Envelope, entry.Envelope.Birth)
	m.Held = entry.Held
	m.Recipients = make([]schedule.Recipient, len(entry.Open))
	for i, open := range entry.Open {
		to := c.config.Routes.Rewrite(entry.Envelope.Recipients[open.Recipient])
		m.Recipients[i] = schedule.Recipient{Index: open.Recipient, Channel: to.Channel, Destination: to.Destination, Next: open.Next}
	}
	c.restoreFailures(ctx, entry)
	c.restoreWarning(entry, &m)
	c.schedule(m)
	return nil
}

// loaded brings an envelope that had to be read from the queue.
type loaded struct {
	job      schedule.Job
	envelope *envelope.Envelope
	err      error
}

// begin starts an attempt, once the envelope is at hand.
func (c *core) begin(ctx context.Context, job schedule.Job) {
	id := queue.ID(job.Message)
	if e := c.envelopes.get(id); e != nil {
		c.launch(ctx, job, e)
		return
	}
	go func() {
		e, err := c.store.Envelope(ctx, id)
		c.post(loaded{job, e, err})
	}()
}

func (c *core) loaded(ctx context.Context, l loaded) {
	if l.err != nil {
		c.slog.Warn("unable to open envelope; will try again later", "msg", l.job.Message, "err", l.err)
		c.done(l.job, make([]byte, len(l.job.Recipients)), schedule.Neutral)
		return
	}
	c.envelopes.put(queue.ID(l.job.Message), l.envelope)
	c.launch(ctx, l.job, l.envelope)
}

// launch logs the attempt and gives it to whoever delivers.
func (c *core) launch(ctx context.Context, job schedule.Job, e *envelope.Envelope) {
	d := &delivery{
		job: job, envelope: e, first: c.lastNum + 1,
		targets: make([]string, len(job.Recipients)), letters: make([]byte, len(job.Recipients)),
	}
	c.lastNum += uint64(len(job.Recipients))
	for i, r := range job.Recipients {
		to := c.config.Routes.Rewrite(e.Recipients[r])
		d.targets[i] = to.Address
		c.log.Starting(d.first+uint64(i), job.Message, job.Channel == schedule.Local, to.Address)
	}
	c.status()
	number := c.number()
	c.running[number] = d
	if job.Channel == schedule.Local {
		c.launchLocal(ctx, number, d)
		return
	}
	if c.remote == nil {
		c.jobFailed(ctx, jobFailed{job: number})
		return
	}
	c.give(c.remote, number, d, &jobs.Job{
		Sender: route.Expand(e.Sender, d.targets[0]), Host: job.Destination, Options: e.Options,
		Recipients: d.targets, RecipientOptions: d.options(),
	})
}

// options are the recipients' options by their place in the job.
func (d *delivery) options() map[int][]string {
	if d.envelope.RecipientOptions == nil {
		return nil
	}
	options := map[int][]string{}
	for i, r := range d.job.Recipients {
		if o := d.envelope.RecipientOptions[int(r)]; o != nil {
			options[i] = o
		}
	}
	return options
}

// number finds a job number that is not in use.
func (c *core) number() uint32 {
	for {
		c.lastJob++
		if _, used := c.running[c.lastJob]; !used && c.lastJob != 0 {
			return c.lastJob
		}
	}
}

func (c *core) give(w *worker, number uint32, d *delivery, j *jobs.Job) {
	d.worker = w
	w.running++
	w.start(number, j, queue.ID(d.job.Message))
}

// results takes reports of a worker.
func (c *core) results(ctx context.Context, e jobResults) {
	d := c.running[e.job]
	if d == nil {
		return
	}
	for _, r := range e.results {
		if d.verify != nil {
			d.verify.report = r.Text
		} else {
			if r.PassedOn {
				d.passedOn = append(d.passedOn, r.Recipient)
			}
			c.result(d, r.Recipient, r.Text)
		}
	}
	if e.over {
		c.over(ctx, e.job, d)
	}
}

// jobFailed ends a job that nobody will report on.
func (c *core) jobFailed(ctx context.Context, e jobFailed) {
	d := c.running[e.job]
	if d == nil {
		return
	}
	if d.verify != nil {
		d.verify.report = e.report
		c.over(ctx, e.job, d)
		return
	}
	d.lost = e.report == ""
	for i := range d.letters {
		if d.letters[i] != 0 {
			continue
		}
		if e.report != "" {
			c.result(d, i, e.report)
		} else {
			c.result(d, i, "Zdelivery process lost, will try again. (#4.3.0)\n")
		}
	}
	c.over(ctx, e.job, d)
}

// result takes the report of one recipient.
func (c *core) result(d *delivery, i int, text string) {
	text, drop := c.judge(queue.ID(d.job.Message), text)
	if drop {
		c.drop(d, i, text)
		return
	}
	letter := text[0]
	expired := letter == 'Z' && d.job.Dying && !d.lost
	if expired {
		letter, text = 'D', "D"+text[1:]+bounce.Expired
	}
	d.letters[i] = letter
	recipient := d.job.Recipients[i]
	id := queue.ID(d.job.Message)
	switch letter {
	case 'K':
		c.log.Success(d.first+uint64(i), text[1:])
		c.delivered(d, i, text[1:])
	case 'D':
		c.log.Failure(d.first+uint64(i), text[1:])
		outcome := queue.Bounced
		if expired {
			outcome = queue.Expired
		}
		c.fail(id, d.envelope, recipient, d.targets[i], text[1:], outcome)
	default:
		c.log.Deferral(d.first+uint64(i), text[1:])
		d.contact = max(d.contact, contact(text))
		c.note(id, recipient, d.job.Next, text[1:])
		if c.config.Warn > 0 && !c.warned[id] {
			if d.late == nil {
				d.late = map[uint32]string{}
			}
			d.late[recipient] = text[1:]
		}
	}
}

// contact reads from a deferral whether the destination was there at all: RFC 3463 keeps X.4.1 and X.4.2 for
// no answer from the host and a bad connection, and X.1.2 is a name that could not be resolved.
func contact(text string) schedule.Contact {
	text = strings.TrimRight(text, "\n")
	for _, status := range [...]string{"(#4.4.1)", "(#4.4.2)", "(#4.1.2)"} {
		if strings.HasSuffix(text, status) {
			return schedule.Unreachable
		}
	}
	return schedule.Answered
}

// note writes down a deferral. Recipients that a job puts off in the same words share a note.
func (c *core) note(id queue.ID, recipient uint32, next time.Time, text string) {
	if n := len(c.batch.Notes); n > 0 {
		if last := &c.batch.Notes[n-1]; last.ID == id && last.Text == text && last.Next.Equal(next) {
			last.Recipients = append(last.Recipients, recipient)
			return
		}
	}
	c.batch.Notes = append(c.batch.Notes, queue.Note{ID: id, Recipients: []uint32{recipient}, Next: next, Text: text})
}

func (c *core) close(id queue.ID, recipient uint32, outcome queue.Outcome) {
	// A job reports its recipients in a row: one close for all of them.
	if n := len(c.batch.Closes); n > 0 {
		if last := &c.batch.Closes[n-1]; last.ID == id && last.Outcome == outcome {
			last.Recipients = append(last.Recipients, recipient)
			return
		}
	}
	c.batch.Closes = append(c.batch.Closes, queue.Close{ID: id, Recipients: []uint32{recipient}, Outcome: outcome})
}

// over ends a job.
func (c *core) over(ctx context.Context, number uint32, d *delivery) {
	delete(c.running, number)
	if w := d.worker; w != nil {
		w.over(number)
		if w.running--; w.running == 0 {
			w.idle = c.now()
		}
	}
	if d.verify != nil {
		d.verify.finish(c)
		return
	}
	for i, letter := range d.letters {
		if letter == 0 {
			c.result(d, i, "Zdelivery ended without a report. (#4.3.0)\n")
		}
	}
	progress, ok := c.done(d.job, d.letters, d.verdict())
	c.status()
	c.tell(ctx, d)
	c.warn(ctx, d)
	if ok && progress.Finished() {
		c.finish(ctx, queue.ID(d.job.Message), d.envelope)
	}
}

// done tells the schedule how a job ended.
func (c *core) done(job schedule.Job, letters []byte, contact schedule.Contact) (schedule.Progress, bool) {
	progress, err := c.sched.Done(job.ID, letters, contact, c.now())
	if err != nil {
		c.slog.Error("a job ended that the schedule does not know", "msg", job.Message, "err", err)
	}
	return progress, err == nil
}

func (d *delivery) verdict() schedule.Contact {
	if d.lost {
		return schedule.Lost
	}
	return d.contact
}

// finish ends a message none of whose recipients is to be tried again.
func (c *core) finish(ctx context.Context, id queue.ID, e *envelope.Envelope) {
	f := c.failures[id]
	if f == nil {
		c.end(id)
		return
	}
	c.bounce(ctx, id, e, f)
}

func (c *core) end(id queue.ID) {
	delete(c.failures, id)
	delete(c.doomed, id)
	delete(c.warned, id)
	c.envelopes.drop(id)
	c.log.End(uint64(id))
}

// lose takes note of a worker whose connection has ended.
func (c *core) lose(w *worker) {
	w.close()
	if c.remote == w {
		c.remote = nil
		c.limit()
	}
	if c.locals[w.accounts] == w {
		delete(c.locals, w.accounts)
	}
}

// closeIdle ends connections that nobody has used for a while. It looks once a second.
func (c *core) closeIdle(now time.Time) {
	if now.Before(c.idleCheck) {
		return
	}
	c.idleCheck = now.Add(time.Second)
	for key, w := range c.locals {
		if w.running == 0 && now.Sub(w.idle) >= workerIdle {
			delete(c.locals, key)
			w.close()
		}
	}
}

// stop begins the orderly end: nothing is started any more, what runs may finish.
func (c *core) stop() {
	if !c.stopping {
		c.stopping = true
		c.status()
	}
}

func (c *core) finishStop() {
	select {
	case <-c.stopped:
		return
	default:
	}
	for _, w := range c.locals {
		w.close()
	}
	if c.remote != nil {
		c.remote.close()
	}
	c.giveUpTelling()
	c.log.Exiting()
	c.log.Flush()
	close(c.stopped)
}

// localPart is the address up to its last @.
func localPart(addr string) string {
	local, _, _ := address.Split(addr)
	return local
}

// setConfig takes new settings. What is routed already stays so.
func (c *core) setConfig(config *Config) {
	c.config = config
	clear(c.verified)
	clear(c.accounts)
	c.limit()
	c.sched.SetLifetime(config.Schedule.Lifetime)
	c.status()
}
