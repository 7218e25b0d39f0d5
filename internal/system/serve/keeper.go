package serve

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// Keeper is the life of a role that has no sockets and keeps something for other roles: they ask it over the links that
// the supervisor makes.
type Keeper struct {
	Log *slog.Logger
	// Admit returns what serves a role over its link, until that ends or the context does; nil for a role that has no
	// rights here.
	Admit func(role string) func(ctx context.Context, link *ipc.Conn)
	// Helpers take links to roles that are not served but asked.
	Helpers map[string]func(link *ipc.Conn)
	// Reload reads the files again; Tick, if there is one, is called each time that Every has passed.
	Reload func()
	Tick   func()
	Every  time.Duration

	links   map[string]*ipc.Conn
	serving sync.WaitGroup
}

// Obey carries out orders until one says stop, or ctx ends.
func (k *Keeper) Obey(ctx context.Context, orders <-chan env.Order) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var due <-chan time.Time
	if k.Tick != nil {
		ticker := time.NewTicker(k.Every)
		defer ticker.Stop()
		due = ticker.C
	}
	for {
		select {
		case o, ok := <-orders:
			switch {
			case !ok || o.Kind == env.Stop:
				return
			case o.Kind == env.Reload:
				k.Reload()
			case o.Kind == env.Listen:
				o.Listener.Close()
			case o.Kind == env.Link:
				k.connect(ctx, o.Name, o.Link)
			}
		case <-due:
			k.Tick()
		case <-ctx.Done():
			return
		}
	}
}

// Wait returns when nobody is served any more, once Obey has returned.
func (k *Keeper) Wait() { k.serving.Wait() }

// connect serves a role over a new link; one from before is of no use any more.
func (k *Keeper) connect(ctx context.Context, role string, link *ipc.Conn) {
	if take := k.Helpers[role]; take != nil {
		take(link)
		return
	}
	serve := k.Admit(role)
	if serve == nil {
		k.Log.Warn("a link to a role that has no rights here", "role", role)
		link.Close()
		return
	}
	if old := k.links[role]; old != nil {
		old.Close()
	}
	if k.links == nil {
		k.links = map[string]*ipc.Conn{}
	}
	k.links[role] = link
	k.serving.Go(func() {
		defer link.Close()
		serve(ctx, link) // why it ended is the other's to know: we get a new link
	})
}
