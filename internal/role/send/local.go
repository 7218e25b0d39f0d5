package send

import (
	"context"
	"errors"
	"fmt"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/lookup"
	"qmail/internal/role/send/route"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/users"
	"qmail/internal/system/ipc"
)

const (
	// accountLife is how long an answer of qmail-lspawn is believed. A change of users/cdb or passwd counts
	// after that at the latest.
	accountLife = 2 * time.Second
	maxAccounts = 10000
	// maxLocals bounds the qmail-local processes that are alive at once.
	maxLocals = 500
	// spawnerPatience is how long qmail-lspawn may take to answer.
	spawnerPatience = 30 * time.Second

	// verdictLife is how long an answer to verify is believed.
	verdictLife  = 5 * time.Second
	maxVerdicts  = 10000
	maxVerifying = 1000
)

// account is a remembered answer.
type account struct {
	users.Account
	until time.Time
}

// located brings qmail-lspawn's answer for a job.
type located struct {
	job     uint32
	local   string
	account users.Account
	err     error
}

// launchLocal finds out whose mail it is, then gives the job to that user's qmail-local.
func (c *core) launchLocal(ctx context.Context, number uint32, d *delivery) {
	local := localPart(d.targets[0])
	if a, ok := c.accounts[local]; ok && c.now().Before(a.until) {
		c.giveLocal(ctx, number, d, local, a.Account)
		return
	}
	spawner := c.spawner
	if spawner == nil {
		c.jobFailed(ctx, jobFailed{job: number})
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, spawnerPatience)
		defer cancel()
		a, err := spawner.Find(ctx, local)
		c.post(located{number, local, a, err})
	}()
}

func (c *core) located(ctx context.Context, l located) {
	d := c.running[l.job]
	if d == nil {
		return
	}
	if l.err != nil {
		c.jobFailed(ctx, jobFailed{l.job, reportOf(l.err)})
		return
	}
	if len(c.accounts) >= maxAccounts {
		clear(c.accounts)
	}
	c.accounts[l.local] = account{l.account, c.now().Add(accountLife)}
	c.giveLocal(ctx, l.job, d, l.local, l.account)
}

// reportOf is what the recipients are told of an error: the spawner's own report if it has one.
func reportOf(err error) string {
	if r, ok := errors.AsType[*lookup.Refusal](err); ok {
		return r.Report
	}
	return reply.Of(err).Report() + "\n"
}

func (c *core) giveLocal(ctx context.Context, number uint32, d *delivery, local string, a users.Account) {
	w := c.localWorker(ctx, local, a)
	if w == nil {
		c.jobFailed(ctx, jobFailed{number, "Ztoo many users receive mail at once. (#4.3.0)\n"})
		return
	}
	j := &jobs.Job{Dash: a.Dash, Ext: a.Ext, Recipients: d.targets}
	if d.verify != nil {
		j.Verify = true
	} else {
		j.Sender = route.Expand(d.envelope.Sender, d.targets[0])
		j.Options, j.RecipientOptions = d.envelope.Options, d.options()
	}
	c.give(w, number, d, j)
}

// localWorker is the connection to the qmail-local of an account, made if there is none.
func (c *core) localWorker(ctx context.Context, local string, a users.Account) *worker {
	key := fmt.Sprintf("%d:%d:%s:%s", a.UID, a.GID, a.User, a.Home)
	if w := c.locals[key]; w != nil {
		return w
	}
	if len(c.locals) >= maxLocals && !c.closeOneIdle() {
		return nil
	}
	spawner := c.spawner
	w := newWorker(c.store, c.post, func(ctx context.Context) (*ipc.Conn, error) {
		if spawner == nil {
			return nil, errNoSpawner
		}
		ctx, cancel := context.WithTimeout(ctx, spawnerPatience)
		defer cancel()
		got, conn, err := spawner.Pipe(ctx, local)
		if err != nil {
			return nil, err
		}
		if got.UID != a.UID || got.GID != a.GID || got.User != a.User || got.Home != a.Home {
			conn.Close()
			return nil, errChanged
		}
		return conn, nil
	})
	w.accounts = key
	c.locals[key] = w
	go w.run(ctx)
	return w
}

var (
	errNoSpawner = reply.Temporary("4.3.0", "qmail-lspawn is not there", nil)
	errChanged   = reply.Temporary("4.3.0", "the account changes just now", nil)
)

func (c *core) closeOneIdle() bool {
	for key, w := range c.locals {
		if w.running == 0 {
			delete(c.locals, key)
			w.close()
			return true
		}
	}
	return false
}

// Spawner is qmail-lspawn at the other end of its link, as a lookup.Client talks to it.
type Spawner interface {
	Find(ctx context.Context, local string) (users.Account, error)
	Explain(ctx context.Context, local string) (users.Account, users.Source, error)
	Pipe(ctx context.Context, local string) (users.Account, *ipc.Conn, error)
	Close() error
}

// setSpawner takes a new link to qmail-lspawn. Users' processes of before live on.
func (c *core) setSpawner(s Spawner) {
	if c.spawner != nil {
		go c.spawner.Close()
	}
	c.spawner = s
	c.limit()
}

// setRemote takes a new link to qmail-rspawn.
func (c *core) setRemote(ctx context.Context, conn *ipc.Conn) {
	if c.remote != nil {
		c.remote.close()
	}
	c.remote = newWorker(c.store, c.post, func(context.Context) (*ipc.Conn, error) { return conn, nil })
	c.limit()
	go c.remote.run(ctx)
}

// verdict is a remembered answer to verify.
type verdict struct {
	report string
	until  time.Time
}

// verification asks whether an address would be taken.
type verification struct {
	address string
	report  string // empty: nobody knows
	done    []func(error)
}

var errUnknown = reply.Temporary("4.3.0", "unable to verify the address just now", nil)

// verify answers, sooner or later, whether mail for addr would be accepted: an address that is not local
// always is, as far as we are concerned. done must not wait.
func (c *core) verify(ctx context.Context, addr string, done func(error)) {
	to := c.config.Routes.Rewrite(addr)
	if to.Channel != schedule.Local {
		done(nil)
		return
	}
	now := c.now()
	if v, ok := c.verified[to.Address]; ok && now.Before(v.until) {
		done(reply.Parse(v.report))
		return
	}
	if v := c.verifying[to.Address]; v != nil && len(v.done) < maxVerifying {
		v.done = append(v.done, done)
		return
	}
	if len(c.verifying) >= maxVerifying || c.stopping {
		done(errUnknown)
		return
	}
	number := c.number()
	d := &delivery{targets: []string{to.Address}, verify: &verification{address: to.Address, done: []func(error){done}}}
	c.verifying[to.Address] = d.verify
	c.running[number] = d
	c.launchLocal(ctx, number, d)
}

// finish answers who asked.
func (v *verification) finish(c *core) {
	delete(c.verifying, v.address)
	err := error(errUnknown)
	if v.report != "" {
		if len(c.verified) >= maxVerdicts {
			clear(c.verified)
		}
		c.verified[v.address] = verdict{v.report, c.now().Add(verdictLife)}
		err = reply.Parse(v.report)
	}
	for _, done := range v.done {
		done(err)
	}
}
