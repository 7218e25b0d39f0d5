package super

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// run starts the roles and keeps them running until ctx ends or stop says so, then stops them. It stays on
// one thread, since the roles die with the thread that started them.
func (s *super) run(ctx context.Context, hup, stop <-chan os.Signal) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(s.ended)
	for !s.fatal {
		timer := time.NewTimer(s.begin(time.Now()))
		select {
		case ev := <-s.events:
			s.handle(ev)
		case <-timer.C:
		case sig := <-hup:
			if sig == syscall.SIGALRM {
				s.alarm()
			} else {
				s.reload()
			}
		case sig := <-stop:
			if s.again = sig == again; s.again {
				if err := unix.Access(s.program, unix.X_OK); err != nil {
					s.log.Error("will not restart", "program", s.program, "err", err)
					break
				}
			}
			return s.stopAll(0)
		case <-ctx.Done():
			return s.stopAll(0)
		}
		timer.Stop()
	}
	return s.stopAll(exitLater)
}

// alarm tells qmail-send to try everything now.
func (s *super) alarm() {
	for _, x := range s.seats {
		if x.name == "send" && x.child != nil && x.ready {
			x.child.alarm()
		}
	}
}

// begin starts every role whose time has come and returns how long there is nothing more to start. At first
// each role waits for the one before it in the table.
func (s *super) begin(now time.Time) time.Duration {
	wait := time.Hour
	for _, x := range s.seats {
		if x.child == nil && !x.wanted {
			continue
		}
		if x.child == nil && !now.Before(x.due) {
			s.launch(x, now)
		}
		if x.child == nil {
			wait = min(wait, x.due.Sub(now))
		}
		if !x.settled {
			left := x.first.Add(patience).Sub(now)
			if left > 0 {
				return max(min(wait, left), 0)
			}
			s.log.Warn(fmt.Sprintf("qmail-%s is not ready after %v; going on without", x.name, patience))
			x.settled = true
		}
	}
	return max(wait, 0)
}

// launch starts one role and hands it what it listens to and whom it talks to.
func (s *super) launch(x *seat, now time.Time) {
	if x.first.IsZero() {
		x.first = now
	}
	x.run++
	x.began, x.ready = now, false
	run := x.run
	tell := func(e *exit) {
		select {
		case s.events <- event{x, run, e}:
		case <-s.ended:
		}
	}
	c, err := s.start(x.process, func() { tell(nil) }, func(e exit) { tell(&e) })
	if err != nil {
		s.retry(x, "could not be started: "+err.Error(), now)
		return
	}
	x.child = c
	s.log.Info(fmt.Sprintf("started qmail-%s", x.name), "pid", c.pid())
	if err := s.equip(x); err != nil {
		s.log.Warn(fmt.Sprintf("qmail-%s cannot be equipped", x.name), "err", err)
		c.kill() // the next one may have more luck
	}
}

// equip hands a new child its sockets, and new links to it and its partners.
func (s *super) equip(x *seat) error {
	list, err := s.sockets.of(x.process)
	if err != nil {
		return err
	}
	for _, y := range s.seats { // links first: whoever comes in by a socket wants what is behind them
		if y.child == nil || !names(x.links, y.name) && !names(y.links, x.name) {
			continue
		}
		if err := plumb(x, y); err != nil {
			for _, k := range list {
				k.file.Close()
			}
			return err
		}
	}
	for _, k := range list {
		x.child.order(env.Listen, k.service, k.file)
	}
	return nil
}

// plumb gives two running roles the ends of a new link.
func plumb(x, y *seat) error {
	a, b, err := ipc.Pair()
	if err != nil {
		return err
	}
	x.child.order(env.Link, y.name, a)
	y.child.order(env.Link, x.name, b)
	return nil
}

func names(list []string, name string) bool {
	for _, v := range list {
		if v == name {
			return true
		}
	}
	return false
}

// handle takes one piece of news.
func (s *super) handle(ev event) {
	x := ev.seat
	if ev.run != x.run || x.child == nil {
		return
	}
	if ev.exit == nil {
		x.ready, x.settled = true, true
		s.announce()
		return
	}
	x.child = nil
	refused := !x.ready && (ev.exit.code == exitUsage || ev.exit.code == exitLater)
	if refused && !s.announced {
		s.log.Error(fmt.Sprintf("qmail-%s refuses to start: %s", x.name, ev.exit.text))
		s.fatal = true
		return
	}
	s.retry(x, "died: "+ev.exit.text, time.Now())
}

// retry plans the next start of a role that is not running.
func (s *super) retry(x *seat, why string, now time.Time) {
	if now.Sub(x.began) >= goodLife {
		x.delay = 0
	}
	when := "at once"
	if x.delay > 0 {
		when = "in " + x.delay.String()
	}
	s.log.Warn(fmt.Sprintf("qmail-%s %s; restarting %s", x.name, why, when))
	x.due = now.Add(x.delay)
	x.delay = min(max(2*x.delay, firstDelay), maxDelay)
}

// announce says once that all roles are ready.
func (s *super) announce() {
	for _, x := range s.seats {
		if x.wanted && !x.ready {
			return
		}
	}
	if !s.announced {
		s.announced = true
		s.log.Info("ready")
	}
}

// reload takes over a changed control/listen and tells all roles to read their files again.
func (s *super) reload() {
	added, err := s.sockets.reload()
	if err != nil {
		s.log.Error("keeping the sockets as they are: " + err.Error())
	}
	for _, x := range s.seats {
		if x.wanted = s.sockets.wanted(x.process); x.child == nil {
			continue // if it is to run, it gets everything then
		}
		if err := hand(x, added); err != nil {
			s.log.Warn(fmt.Sprintf("qmail-%s cannot be given its new sockets", x.name), "err", err)
			x.child.kill() // its successor gets all of them
		}
		x.child.order(env.Reload, "", nil)
	}
	s.log.Info("reloaded")
}

// hand gives a running role those of the new sockets that are for it.
func hand(x *seat, added []socket) error {
	for _, k := range added {
		if !names(x.services, k.service) {
			continue
		}
		k, err := k.dup()
		if err != nil {
			return err
		}
		x.child.order(env.Listen, k.service, k.file)
	}
	return nil
}

// stopAll stops the roles in their turns and returns code. Who is not gone in time is killed.
func (s *super) stopAll(code int) int {
	s.log.Info("stopping")
	began := time.Now()
	for turn, limit := range stopTimes {
		for _, x := range s.seats {
			if x.child != nil && x.stop == turn {
				x.child.order(env.Stop, "", nil)
			}
		}
		if s.gone(turn, began.Add(limit)) {
			continue
		}
		for _, x := range s.seats {
			if x.child != nil && x.stop == turn {
				s.log.Warn(fmt.Sprintf("qmail-%s does not stop; killing it", x.name), "pid", x.child.pid())
				x.child.kill()
			}
		}
		if !s.gone(turn, time.Now().Add(killTime)) {
			s.log.Error("there are processes that cannot be killed")
			code = exitLater
		}
	}
	s.log.Info("stopped")
	return code
}

// gone waits until no role of that turn is running, and reports whether that came true in time.
func (s *super) gone(turn int, deadline time.Time) bool {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		left := false
		for _, x := range s.seats {
			left = left || x.child != nil && x.stop == turn
		}
		if !left {
			return true
		}
		select {
		case ev := <-s.events:
			if ev.exit != nil && ev.run == ev.seat.run {
				ev.seat.child = nil
			}
		case <-timer.C:
			return false
		}
	}
}
