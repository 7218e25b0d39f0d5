// Package resolve is qmail-resolve: it asks the configured DNS resolvers for the other roles, which have no sockets
// for that, and remembers what they said for all of them.
//
// It talks to those resolvers, by UDP and TCP, and over links from the supervisor to the roles that ask
// (proto/resolve). What is asked and answered, and how answers are checked and remembered, is package system/dns. It
// knows nothing of mail, holds no secret, and opens no file after it has read its configuration.
//
// Control files: resolvers, else /etc/resolv.conf. It is read again on a reload, where an error keeps what was before.
package resolve

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"qmail/internal/proto/resolve"
	"qmail/internal/store/control"
	"qmail/internal/system/dns"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// Main serves the roles that the supervisor links us to. It returns 0, or 111 if it could not start.
func Main(ctx context.Context, e *env.Env, args []string) int {
	log := e.Log("qmail-resolve")
	if e.Orders == nil || len(args) != 0 {
		log.Error("to be started by qmail start, without arguments")
		return 100
	}
	dir := control.Open(e.Home)
	config, err := resolve.Servers(dir)
	if err != nil {
		log.Error("cannot start: unable to read controls", "err", err)
		return 111
	}
	config.Flights, config.Now = resolve.Flights, e.Now
	r := &role{dir: dir, log: log, now: e.Now, resolver: dns.New(config)}
	defer r.resolver.Close()
	r.say(config)
	if err := e.Ready(); err != nil {
		log.Error("supervisor lost", "err", err)
		return 111
	}
	r.obey(ctx, e.Orders)
	return 0
}

// role is qmail-resolve with its surroundings as values.
type role struct {
	dir      control.Dir
	log      *slog.Logger
	now      func() time.Time
	resolver *dns.Resolver
	links    sync.WaitGroup
}

// say tells whom we ask.
func (r *role) say(c dns.Config) { r.log.Info("asking " + strings.Join(c.Servers, " ")) }

// obey serves links until an order says stop, or ctx ends.
func (r *role) obey(ctx context.Context, orders <-chan env.Order) {
	serving, cut := context.WithCancel(ctx)
	defer r.links.Wait()
	defer cut()
	for {
		var o env.Order
		select {
		case <-ctx.Done():
			return
		case got, ok := <-orders:
			if o = got; !ok {
				return
			}
		}
		switch o.Kind {
		case env.Link:
			r.links.Go(func() { r.serve(serving, o.Name, o.Link) })
		case env.Listen:
			o.Listener.Close() // not ours to serve
		case env.Reload:
			r.reload()
		case env.Stop:
			return
		}
	}
}

// serve answers one role. An older link of the same role ends by itself.
func (r *role) serve(ctx context.Context, name string, link *ipc.Conn) {
	err := resolve.Serve(ctx, link, r.resolver.Lookup, r.now)
	if resolve.Broken(err) {
		r.log.Error("qmail-"+name+" broke the protocol", "err", err)
	}
}

// reload takes over other resolvers for the questions to come.
func (r *role) reload() {
	config, err := resolve.Servers(r.dir)
	if err != nil {
		r.log.Error("keeping the configuration as it is: unable to read controls", "err", err)
		return
	}
	r.resolver.Configure(config)
	r.say(config)
}
