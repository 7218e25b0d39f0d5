// Package super is qmail-start: the one process that is root all the time, so it parses nothing that comes
// from outside and holds nothing of anybody's mail.
//
// In go the home, its control/listen and the process table (table.go); out come one process per role, each
// with its own user, an empty environment, and descriptor 3, over which it is handed its sockets (orders:
// system/env). A role that dies is started again and its partners get a new end of their link; listening
// sockets stay here, so that nobody who connects in the meantime is refused.
//
// SIGUSR2, which qmail-restart sends, stops all roles in order and puts the program that is on the disk by then in our
// place; the sockets stay open. SIGHUP reads control/listen again and tells all roles to do the same with their files; SIGALRM goes on to
// qmail-send, which once had our place. SIGTERM and SIGINT stop the roles in order. A killed supervisor takes all roles with it (PR_SET_PDEATHSIG), so that the next
// one finds the ports and the queue free.
package super

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/env"
)

// stopTimes say for each turn how long after the beginning of an orderly stop its roles are killed.
var stopTimes = [...]time.Duration{16 * time.Second, 26 * time.Second, 30 * time.Second}

// Exit codes, as qmail's programs have them.
const (
	exitUsage = 100
	exitLater = 111
)

// Main runs qmail-start until ctx ends or a signal comes.
func Main(ctx context.Context, e *env.Env, args []string) int {
	log := e.Log("qmail-start")
	old := parseArgs(args)
	if old.on {
		log = slog.New(quiet{log.Handler()})
	}
	unix.Umask(0o077)
	if err := keepToOurselves(); err != nil {
		log.Error("unable to look at our descriptors", "err", err)
		return exitLater
	}
	self, err := os.Executable() // which is not our name any more once another is in its place
	if err != nil {
		log.Error("unable to find our own program", "err", err)
		return exitLater
	}
	hup, stop := make(chan os.Signal, 2), make(chan os.Signal, 2)
	signal.Notify(hup, unix.SIGHUP, unix.SIGALRM)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT, again)
	defer signal.Stop(hup)
	defer signal.Stop(stop)

	s, done, err := prepare(e, old, log)
	if err != nil {
		log.Error(err.Error())
		return exitLater
	}
	defer done()
	s.program = self
	code := s.run(ctx, hup, stop)
	if s.again && code == 0 && len(stop) == 0 {
		log.Info("restarting", "program", self)
		err := s.sockets.(*listeners).execute(self, e)
		log.Error("unable to restart", "err", err)
		code = exitLater
	}
	return code
}

// keepToOurselves sees to it that no role gets what our parent left open.
func keepToOurselves() error {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd") // before Linux 5.11
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return err
}

// prepare checks the home, binds the sockets and finds the users. done undoes it.
func prepare(e *env.Env, old classic, log *slog.Logger) (s *super, done func(), err error) {
	ids, err := identities(table, log)
	if err != nil {
		return nil, nil, err
	}
	sender := os.Geteuid()
	if ids != nil {
		sender = int(ids["send"].uid)
	}
	table := present(table, ids, log)
	if err := checkHome(e.Home, os.Geteuid(), sender); err != nil {
		return nil, nil, err
	}
	lock, err := takeLock(e.Home)
	if err != nil {
		return nil, nil, err
	}
	l := &listeners{home: e.Home, services: servicesOf(table), names: doorsOf(table), classic: old.on, log: log}
	x, err := newExecutor(e, ids)
	if left, ok := e.Lookup(inheritVariable); ok {
		l.inherit(left)
	}
	undo := func() { l.close(); lock.Close() }
	if err == nil {
		undo = func() { l.close(); x.close(); lock.Close() }
		err = l.open()
	}
	if err == nil && old.on {
		err = x.oldWays(e, old, log)
	}
	if err != nil {
		undo()
		return nil, nil, err
	}
	if ids == nil {
		log.Info(fmt.Sprintf("not root: all roles run as uid %d, whoever the mail is for", os.Geteuid()))
	}
	s = newSuper(table, x.start, l, log)
	return s, undo, nil
}

const (
	// patience is how long the start of later roles waits for an earlier one to be ready.
	patience = 30 * time.Second
	// firstDelay and maxDelay bound the pause before a role that keeps dying is started again; the first
	// time there is none. A role that lived for goodLife begins anew.
	firstDelay = 100 * time.Millisecond
	maxDelay   = 10 * time.Second
	goodLife   = time.Minute
	// killTime is how long a killed process is waited for.
	killTime = 2 * time.Second
)

// child is a running role. None of its methods waits.
type child interface {
	pid() int
	// order hands over an order; f, if not nil, belongs to the child from now on.
	order(kind env.Kind, name string, f *os.File)
	kill()
	// alarm sends it a SIGALRM.
	alarm()
}

// exit is how a child ended.
type exit struct {
	code int    // -1 for a signal
	text string // such as "exit status 1" or "signal: killed"
}

// starter starts a role and tells what becomes of it: ready at most once, then gone once, from any goroutine.
type starter func(p process, ready func(), gone func(exit)) (child, error)

// sockets are the listening sockets.
type sockets interface {
	// of returns the sockets of a role. The files belong to the caller.
	of(p process) ([]socket, error)
	// wanted reports whether a role has a socket, or needs none.
	wanted(p process) bool
	// reload reads control/listen again and returns the new sockets. Their files stay where they are.
	reload() ([]socket, error)
}

// event is what a child tells.
type event struct {
	seat *seat
	run  int // which child of the seat: news of an earlier one are stale
	exit *exit
}

// seat is a line of the table with the process that fills it now.
type seat struct {
	process
	child   child // nil when none is running
	wanted  bool  // it shall run
	run     int
	ready   bool      // this child is
	settled bool      // a child has once been ready, or was waited for long enough
	first   time.Time // when it was first started
	began   time.Time
	delay   time.Duration // after the next death
	due     time.Time     // of the next start, when there is no child
}

// super is the supervisor at work. Everything happens in the goroutine of run.
type super struct {
	seats     []*seat
	start     starter
	sockets   sockets
	log       *slog.Logger
	events    chan event
	ended     chan struct{} // closed when nobody listens to events any more
	announced bool
	fatal     bool   // a role refuses to start at all
	again     bool   // it was told to restart
	program   string // what it executes then
}

func newSuper(table []process, start starter, l sockets, log *slog.Logger) *super {
	s := &super{start: start, sockets: l, log: log, events: make(chan event, 64), ended: make(chan struct{})}
	for _, p := range table {
		s.seats = append(s.seats, &seat{process: p, wanted: l.wanted(p)})
	}
	return s
}
