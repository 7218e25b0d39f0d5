// Package keyd is qmail-keyd: the process that holds private keys, so that no other one does. It reads the files of
// store/keys at the start and on a reload, gives the certificates to those who may show them, and signs for them
// (proto/keyd). It opens no socket, and it hears nobody but the roles that the supervisor has linked to it.
//
// A file that has changed for the worse, or cannot be read, leaves what was before in use. Certificates that are about to
// expire are named in the log 30 days, 7 days and a day before.
package keyd

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"qmail/internal/proto/keyd"
	"qmail/internal/store/keys"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
	"qmail/internal/system/serve"
)

// Servers may show who we are to clients. One makes a signature for each handshake, so that the rate bounds
// what it costs us to be asked by one that has been taken over.
const (
	serverUses = string(keyd.TLS)
	serverRate = 5000
)

// rightsOf says what a role may have signed. Who is not named here gets nothing.
func rightsOf(role string) (r keyd.Rights, known bool) {
	switch role {
	case "smtpd", "qmtpd", "qmqpd", "popup":
		return keyd.Rights{Uses: serverUses, Rate: serverRate}, true
	}
	return keyd.Rights{}, false
}

// checkTime is how often certificates are looked at.
const checkTime = time.Hour

// Main runs qmail-keyd until the supervisor says stop.
func Main(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 || e.Orders == nil {
		fmt.Fprintln(e.Stderr, "qmail-keyd: usage: started by qmail start, without arguments")
		return 100
	}
	runtime.GOMAXPROCS(runtime.NumCPU()) // many wait for a signature at once, and do nothing meanwhile
	r := newRole(e)
	r.load()
	if err := e.Ready(); err != nil {
		r.log.Warn("unable to report to the supervisor", "err", err)
	}
	k := serve.Keeper{Log: r.log, Admit: r.admit, Reload: r.load, Tick: r.warn, Every: checkTime}
	k.Obey(ctx, e.Orders)
	k.Wait()
	return 0
}

type role struct {
	env    *env.Env
	log    *slog.Logger
	server keyd.Server
	pairs  map[string]keys.Pair // what is in use, by name
	told   map[string]int       // by certificate: the days left when the log was told
	notes  notes
}

func newRole(e *env.Env) *role {
	r := &role{env: e, log: e.Log("qmail-keyd"), pairs: map[string]keys.Pair{}, told: map[string]int{}}
	r.notes.log = r.log
	r.server.Note = r.notes.note
	return r
}

// admit is serve.Keeper's.
func (r *role) admit(name string) func(context.Context, *ipc.Conn) {
	rights, known := rightsOf(name)
	if !known {
		return nil
	}
	return func(ctx context.Context, link *ipc.Conn) { r.server.Serve(ctx, link, name, rights) }
}

// load reads the files. A pair that cannot be used is what it was before.
func (r *role) load() {
	pairs, troubles, err := keys.Load(r.env.Home)
	if err != nil {
		r.log.Error("unable to read the keys; keeping what was before", "err", err)
		return
	}
	next := make(map[string]keys.Pair, len(pairs))
	for _, t := range troubles {
		old, had := r.pairs[t.Name]
		if had {
			next[t.Name] = old
			pairs = append(pairs, old)
			r.log.Error("unable to use a key; keeping what was before", "key", t.Name, "err", t.Err)
			continue
		}
		r.log.Error("unable to use a key", "key", t.Name, "err", t.Err)
	}
	var list []keyd.Key
	for _, p := range pairs {
		id, err := keyd.IDOf(p.Key.Public())
		if err != nil {
			r.log.Error("unable to use a key", "key", p.Name, "err", err)
			continue
		}
		next[p.Name] = p
		list = append(list, keyd.Key{ID: id, Use: keyd.TLS, Signer: p.Key, Chain: p.Chain, Prefer: p.Prefer})
	}
	r.pairs = next
	r.server.Replace(list)
	r.warn()
}

// warn tells the log of certificates that are about to expire, once for each step of keys.Pair.Expires.
func (r *role) warn() {
	told := make(map[string]int, len(r.pairs))
	for _, p := range r.pairs {
		which := string(p.Leaf.Raw)
		days, due := p.Expires(r.env.Now())
		before, known := r.told[which]
		if !due {
			continue
		}
		if known && before <= days {
			told[which] = before
			continue
		}
		told[which] = days
		what := "a certificate is about to expire"
		if days < 0 {
			what = "a certificate has expired"
		}
		r.log.Warn(what, "file", p.Path, "expires", p.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	r.told = told
}

// notes tells the log of refusals, one a second at most: they are somebody's bug, or worse.
type notes struct {
	log  *slog.Logger
	mu   sync.Mutex
	last time.Time
	more int
}

func (n *notes) note(peer, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if now.Sub(n.last) < time.Second {
		n.more++
		return
	}
	n.log.Warn("refused to sign", "role", peer, "why", why, "before", n.more)
	n.last, n.more = now, 0
}
