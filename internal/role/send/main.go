// Package send is qmail-send: it owns the queue, decides who is tried when, gives deliveries to qmail-lspawn's
// and qmail-rspawn's workers, writes bounces and the log.
//
// All mail comes in through package enqueue: over links from the network's servers, over the socket
// queue/enqueue from everybody on this machine, and out of queue/drop for what came while nobody was there.
// One goroutine (core) has the whole state and never waits; package schedule decides, package
// queue remembers.
//
// Control files: bounceformat, bouncefrom, bouncehost, bouncemaxbytes, concurrencylocal, concurrencyremote,
// doublebouncehost, doublebounceto, envnoathost, ledgerdays, locals, me, percenthack, qmailremote, queuelifetime,
// virtualdomains, warnlifetime.
// All are read again on a reload, where an error keeps what was before.
//
// Signals: ALRM makes every deferred message due now; HUP and TERM are the supervisor's reload and stop.
package send

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"qmail/internal/proto/lookup"
	"qmail/internal/role/send/schedule"
	"qmail/internal/role/send/sendlog"
	"qmail/internal/store/control"
	"qmail/internal/store/ledger"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/disk"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// stopPatience is how long deliveries in progress may take to end when we are told to stop.
const stopPatience = 20 * time.Second

// Main runs qmail-send until the supervisor says stop. It returns 0, or 111 if it could not start.
func Main(ctx context.Context, e *env.Env, args []string) int {
	log := e.Log("qmail-send")
	if len(args) != 0 || e.Orders == nil {
		fmt.Fprintln(e.Stderr, "qmail-send: usage: started by qmail start, without arguments")
		return 100
	}
	config, err := ReadConfig(e.Home)
	if err != nil {
		fmt.Fprintf(e.Stderr, "alert: cannot start: unable to read controls: %v\n", err)
		return 111
	}
	if e.Get("QMAILREMOTE") != "" {
		config.Schedule.Channels[schedule.Remote].PerJob = 1 // as with control/qmailremote
	}
	warn := func(text string) { log.Warn(text) }
	account := ledger.Options{Now: e.Now, Warn: warn, Keep: func() int { return ledgerDays(e.Home) }}
	store, err := openJournal(e.Home, journal.Options{Now: e.Now, Warn: warn}, &account)
	if err != nil {
		fmt.Fprintf(e.Stderr, "alert: cannot start: %v\n", err)
		return 111
	}
	s := &Server{Home: e.Home, Store: store, Config: config, Now: e.Now, Log: log, Out: e.Stderr, Orders: withSignals(e.Orders), Ready: e.Ready}
	err = s.Run(ctx)
	if cerr := store.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		log.Error("stopped", "err", err)
		return 111
	}
	return 0
}

// ledgerDays reads control/ledgerdays. What cannot be read removes nothing.
func ledgerDays(home string) int {
	n, err := control.Open(home).Int("ledgerdays", 30)
	if err != nil {
		return 0
	}
	return int(min(n, maxDays))
}

// maxDays bounds ledgerdays, so that it can be counted in nanoseconds.
const maxDays = 100_000

// openJournal opens the queue of a home, and its account unless that is nil; their directory is private to qmail-send's
// user.
func openJournal(home string, options journal.Options, account *ledger.Options) (queue.Store, error) {
	path := filepath.Join(home, "queue", "journal")
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	dir, err := disk.OpenDir(path)
	if err != nil {
		return nil, err
	}
	if account != nil {
		options.Account = ledger.New(dir, *account)
	}
	store, err := journal.Open(dir, options)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return store, nil
}

// withSignals adds the signals that administrators send to qmail-send itself to the supervisor's orders.
func withSignals(orders <-chan env.Order) <-chan env.Order {
	all := make(chan env.Order)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGALRM, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		defer close(all)
		for {
			var o env.Order
			select {
			case got, ok := <-orders:
				if !ok {
					return
				}
				o = got
			case s := <-signals:
				o.Kind = map[os.Signal]env.Kind{syscall.SIGALRM: alarm, syscall.SIGHUP: env.Reload, syscall.SIGTERM: env.Stop, syscall.SIGINT: env.Stop}[s]
			}
			all <- o
			if o.Kind == env.Stop {
				return
			}
		}
	}()
	return all
}

// alarm is the order to try everything now; only a signal gives it.
const alarm env.Kind = '!'

// Server is qmail-send with its surroundings as values, for Main and for tests.
type Server struct {
	Home   string
	Store  queue.Store
	Config *Config
	Now    func() time.Time
	Log    *slog.Logger
	Out    interface{ Write([]byte) (int, error) } // the classic log
	Orders <-chan env.Order
	Ready  func() error
	// Spawner is how a link to qmail-lspawn is spoken over; lookup.NewClient if nil.
	Spawner func(*ipc.Conn) Spawner

	core *core
	door *door
	desk *desk
	wg   sync.WaitGroup
}

// Run works until a stop order, or until ctx ends, which breaks off everything. The Store stays open.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.core = newCore(s.Store, s.Config, s.Now, s.Log, sendlog.NewWriter(s.Out))
	s.door = newDoor(ctx, s.core, s.Store, s.Now, s.Log)
	s.desk = newDesk(ctx, s.core, s.Store, s.Home, s.Now, s.Log)
	if err := s.Store.Scan(func(e *queue.Entry) error { return s.core.restore(ctx, e) }); err != nil {
		return fmt.Errorf("unable to read the queue: %w", err)
	}
	s.wg.Go(func() { s.core.run(ctx) })
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	s.wg.Go(func() { s.door.pickUp(serving, s.Home) })
	if err := s.Ready(); err != nil {
		s.Log.Warn("unable to report to the supervisor", "err", err)
	}
	s.obey(ctx, serving)
	stopServing()
	s.door.close()
	s.desk.close()
	s.core.post(func() { s.core.stop() })
	select {
	case <-s.core.stopped:
	case <-time.After(stopPatience):
		s.Log.Warn("deliveries are still running; they will be tried again")
	case <-ctx.Done():
	}
	cancel()
	s.wg.Wait()
	s.core.hangUp()
	return nil
}

// hangUp ends the connections to all who deliver. The core runs no more.
func (c *core) hangUp() {
	for _, w := range c.locals {
		w.close()
	}
	if c.remote != nil {
		c.remote.close()
	}
	if c.spawner != nil {
		c.spawner.Close()
	}
}

// obey carries out orders until one says stop.
func (s *Server) obey(ctx, serving context.Context) {
	for {
		var o env.Order
		select {
		case got, ok := <-s.Orders:
			if !ok {
				return
			}
			o = got
		case <-ctx.Done():
			return
		}
		switch o.Kind {
		case env.Link:
			s.link(ctx, o)
		case env.Listen:
			listen := s.door.listen
			if o.Name == "admin" {
				listen = s.desk.listen
			}
			s.wg.Go(func() { listen(serving, o.Listener) })
		case env.Reload:
			s.reload()
		case alarm:
			s.core.post(func() { s.core.sched.Alarm(s.Now()) })
		case env.Stop:
			return
		}
	}
}

func (s *Server) link(ctx context.Context, o env.Order) {
	switch o.Name {
	case "lspawn":
		spawner := s.spawner(o.Link)
		s.core.post(func() { s.core.setSpawner(spawner) })
	case "rspawn":
		s.core.post(func() { s.core.setRemote(ctx, o.Link) })
	default: // a server for the network: smtpd and its like
		go s.door.serve(o.Link, s.door.network())
	}
}

func (s *Server) spawner(link *ipc.Conn) Spawner {
	if s.Spawner != nil {
		return s.Spawner(link)
	}
	return lookup.NewClient(link)
}

func (s *Server) reload() {
	config, err := ReadConfig(s.Home)
	if err != nil {
		s.Log.Error("unable to reread controls; the old ones stay", "err", strings.TrimSpace(err.Error()))
		return
	}
	s.core.post(func() { s.core.setConfig(config) })
}
