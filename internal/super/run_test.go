package super

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/system/env"
)

// stage is a machine without processes: it notes what happens to the roles and when, in seconds since its
// beginning.
type stage struct {
	t      *testing.T
	began  time.Time
	story  []string
	cast   map[string]*actor
	birth  func(a *actor) // what a role does when it starts; by default it is ready at once
	broken int            // so many starts fail
	fresh  []socket       // what the next reload finds
	none   []string       // services without a socket
	log    bytes.Buffer
}

type actor struct {
	stage  *stage
	name   string
	ready  func()
	gone   func(exit)
	deaf   bool // to Stop
	orders []string
}

func (g *stage) note(format string, args ...any) {
	at := time.Since(g.began).Round(time.Millisecond).Seconds()
	g.story = append(g.story, fmt.Sprintf("%v ", at)+fmt.Sprintf(format, args...))
}

func (g *stage) start(p process, ready func(), gone func(exit)) (child, error) {
	if g.broken > 0 {
		g.broken--
		g.note("%s fails", p.name)
		return nil, errors.New("no more processes")
	}
	a := &actor{stage: g, name: p.name, ready: ready, gone: gone}
	g.cast[p.name] = a
	g.note("%s starts", p.name)
	if g.birth != nil {
		g.birth(a)
	} else {
		go ready()
	}
	return a, nil
}

func (a *actor) pid() int { return 1 }

func (a *actor) die(e exit) {
	a.stage.note("%s ends", a.name)
	go a.gone(e)
}

func (a *actor) alarm() { a.orders = append(a.orders, "alarm") }

func (a *actor) kill() { a.die(exit{-1, "signal: killed"}) }

func (a *actor) order(kind env.Kind, name string, f *os.File) {
	closeFile(f)
	a.orders = append(a.orders, strings.TrimSpace(string(kind)+" "+name))
	if kind == env.Stop && !a.deaf {
		a.die(exit{0, "exit status 0"})
	}
}

func (g *stage) of(p process) (list []socket, err error) {
	for _, name := range p.doors {
		list = append(list, socket{service: name})
	}
	for _, service := range p.services {
		if !slices.Contains(g.none, service) {
			list = append(list, socket{service: service})
		}
	}
	return list, nil
}

func (g *stage) wanted(p process) bool {
	list, _ := g.of(p)
	return len(p.files) == 0 && (len(list) > 0 || len(p.services) == 0)
}

func (g *stage) reload() ([]socket, error) {
	for _, k := range g.fresh {
		g.none = slices.DeleteFunc(g.none, func(s string) bool { return s == k.service })
	}
	return g.fresh, nil
}

func isSMTP(service string) bool { return service == "smtp" }

// play runs a supervisor on a stage in virtual time; script gets it once nothing more moves by itself.
func play(t *testing.T, setUp func(g *stage), script func(g *stage, hup chan<- os.Signal)) (g *stage, code int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g = &stage{t: t, began: time.Now(), cast: map[string]*actor{}, none: slices.DeleteFunc(servicesOf(table), isSMTP)}
		setUp(g)
		hup, stop := make(chan os.Signal, 1), make(chan os.Signal, 1)
		e := &env.Env{Stderr: &g.log}
		s := newSuper(table, g.start, g, e.Log("qmail-start"))
		ended := make(chan int)
		go func() { ended <- s.run(context.Background(), hup, stop) }()
		synctest.Wait()
		script(g, hup)
		stop <- os.Interrupt
		code = <-ended
	})
	return g, code
}

func nothing(*stage) {}

// pass lets time pass and everything happen that is due by then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (g *stage) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(g.story, want) {
		t.Errorf("what happened:\n\t%s\nwanted:\n\t%s", strings.Join(g.story, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func (g *stage) logged(t *testing.T, want string, times int) {
	t.Helper()
	if n := strings.Count(g.log.String(), want); n != times {
		t.Errorf("%q is on the log %d times, not %d:\n%s", want, n, times, g.log.String())
	}
}

func TestRolesStartInOrderEachWhenTheOneBeforeIsReady(t *testing.T) {
	setUp := func(g *stage) {
		g.birth = func(a *actor) { time.AfterFunc(time.Second, a.ready) }
	}
	g, code := play(t, setUp, func(*stage, chan<- os.Signal) { pass(time.Minute) })
	g.expect(t, "0 send starts", "1 lspawn starts", "2 resolve starts", "3 rspawn starts", "4 keyd starts", "5 smtpd starts",
		"60 smtpd ends", "60 send ends", "60 lspawn ends", "60 resolve ends", "60 rspawn ends", "60 keyd ends")
	g.logged(t, "qmail-start: ready\n", 1)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestARoleThatIsNotReadyHoldsTheOthersUpForALimitedTime(t *testing.T) {
	setUp := func(g *stage) {
		g.birth = func(a *actor) {
			if a.name != "lspawn" {
				go a.ready()
			}
		}
	}
	g, _ := play(t, setUp, func(g *stage, _ chan<- os.Signal) {
		pass(time.Minute)
		g.logged(t, "qmail-start: ready\n", 0)
		g.cast["lspawn"].ready()
		synctest.Wait()
	})
	g.expect(t, "0 send starts", "0 lspawn starts", "30 resolve starts", "30 rspawn starts", "30 keyd starts", "30 smtpd starts",
		"60 smtpd ends", "60 send ends", "60 lspawn ends", "60 resolve ends", "60 rspawn ends", "60 keyd ends")
	g.logged(t, "qmail-lspawn is not ready after 30s; going on without", 1)
	g.logged(t, "qmail-start: ready\n", 1)
}

func TestEveryRoleGetsItsSocketsAndBothEndsOfALinkAreTold(t *testing.T) {
	play(t, nothing, func(g *stage, hup chan<- os.Signal) {
		want := map[string]string{
			"send":    "A enqueue, A admin, L lspawn, L rspawn, L smtpd",
			"keyd":    "L smtpd",
			"lspawn":  "L send",
			"resolve": "L rspawn",
			"rspawn":  "L send, L resolve",
			"smtpd":   "L send, L keyd, A smtp",
		}
		for name, orders := range want {
			if got := strings.Join(g.cast[name].orders, ", "); got != orders {
				t.Errorf("%s got %s, wanted %s", name, got, orders)
			}
		}
		g.cast["rspawn"].die(exit{1, "exit status 1"})
		synctest.Wait()
		if got := strings.Join(g.cast["send"].orders, ", "); got != want["send"]+", L rspawn" {
			t.Errorf("after rspawn came back, send has got %s", got)
		}
		if got := strings.Join(g.cast["rspawn"].orders, ", "); got != "L send, L resolve" {
			t.Errorf("the new rspawn got %s", got)
		}
		g.cast["send"].die(exit{1, "exit status 1"})
		synctest.Wait()
		for name, want := range map[string]string{"lspawn": "L send, L send", "rspawn": "L send, L resolve, L send"} {
			if got := strings.Join(g.cast[name].orders, ", "); got != want {
				t.Errorf("after send came back, %s has got %s", name, got)
			}
		}
	})
}

func TestARoleThatKeepsDyingIsRestartedAtGrowingIntervalsForEver(t *testing.T) {
	setUp := func(g *stage) {
		g.birth = func(a *actor) {
			go a.ready()
			if a.name == "smtpd" {
				go a.die(exit{2, "exit status 2"})
			}
		}
	}
	g, _ := play(t, setUp, func(g *stage, _ chan<- os.Signal) { pass(42 * time.Second) })
	var starts []string
	for _, line := range g.story {
		if at, ok := strings.CutSuffix(line, " smtpd starts"); ok {
			starts = append(starts, at)
		}
	}
	want := []string{"0", "0", "0.1", "0.3", "0.7", "1.5", "3.1", "6.3", "12.7", "22.7", "32.7"}
	if !slices.Equal(starts, want) {
		t.Errorf("started at %v, wanted %v", starts, want)
	}
	g.logged(t, "qmail-start: warning: qmail-smtpd died: exit status 2; restarting at once\n", 1)
	g.logged(t, "qmail-start: warning: qmail-smtpd died: exit status 2; restarting in 100ms\n", 1)
}

func TestAMinuteOfLifeForgivesEarlierDeaths(t *testing.T) {
	g, _ := play(t, nothing, func(g *stage, _ chan<- os.Signal) {
		for range 4 {
			g.cast["send"].die(exit{-1, "signal: killed"})
			pass(10 * time.Second)
		}
		pass(time.Minute)
		g.story = nil
		g.cast["send"].die(exit{-1, "signal: killed"})
		synctest.Wait()
	})
	g.expect(t, "100 send ends", "100 send starts", "100 smtpd ends", "100 send ends", "100 lspawn ends", "100 resolve ends", "100 rspawn ends", "100 keyd ends")
}

func TestAStartThatFailsIsTriedAgain(t *testing.T) {
	g, _ := play(t, func(g *stage) { g.broken = 3 }, func(*stage, chan<- os.Signal) { pass(time.Second) })
	g.expect(t, "0 send fails", "0 send fails", "0.1 send fails", "0.3 send starts", "0.3 lspawn starts", "0.3 resolve starts", "0.3 rspawn starts", "0.3 keyd starts",
		"0.3 smtpd starts", "1 smtpd ends", "1 send ends", "1 lspawn ends", "1 resolve ends", "1 rspawn ends", "1 keyd ends")
	g.logged(t, "qmail-send could not be started: no more processes; restarting in 100ms", 1)
}

func TestARoleThatRefusesToStartAtFirstStopsAll(t *testing.T) {
	for _, code := range []int{100, 111} {
		setUp := func(g *stage) {
			g.birth = func(a *actor) {
				if a.name == "rspawn" {
					a.die(exit{code, fmt.Sprint("exit status ", code)})
				} else {
					go a.ready()
				}
			}
		}
		g, got := play(t, setUp, func(*stage, chan<- os.Signal) {})
		g.expect(t, "0 send starts", "0 lspawn starts", "0 resolve starts", "0 rspawn starts", "0 rspawn ends", "0 send ends", "0 lspawn ends", "0 resolve ends")
		g.logged(t, "qmail-start: alert: qmail-rspawn refuses to start: exit status", 1)
		if got != 111 {
			t.Errorf("exit code %d", got)
		}
	}
}

func TestARoleThatRefusesToStartLaterIsRetriedAndTheOthersGoOn(t *testing.T) {
	setUp := func(g *stage) {
		births := 0
		g.birth = func(a *actor) {
			if a.name == "lspawn" {
				births++
			}
			if a.name == "lspawn" && 1 < births && births < 6 {
				a.die(exit{111, "exit status 111"})
			} else {
				go a.ready()
			}
		}
	}
	g, code := play(t, setUp, func(g *stage, _ chan<- os.Signal) {
		g.story = nil
		g.cast["lspawn"].die(exit{-1, "signal: killed"})
		pass(10 * time.Second)
	})
	g.expect(t, "0 lspawn ends", "0 lspawn starts", "0 lspawn ends", "0.1 lspawn starts", "0.1 lspawn ends", "0.3 lspawn starts",
		"0.3 lspawn ends", "0.7 lspawn starts", "0.7 lspawn ends", "1.5 lspawn starts",
		"10 smtpd ends", "10 send ends", "10 lspawn ends", "10 resolve ends", "10 rspawn ends", "10 keyd ends")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestARoleThatDoesNotStopIsKilledBeforeTheDeadline(t *testing.T) {
	setUp := func(g *stage) {
		g.birth = func(a *actor) { a.deaf = a.name != "rspawn"; go a.ready() }
	}
	g, code := play(t, setUp, func(*stage, chan<- os.Signal) {})
	g.expect(t, "0 send starts", "0 lspawn starts", "0 resolve starts", "0 rspawn starts", "0 keyd starts", "0 smtpd starts",
		"16 smtpd ends", "26 send ends", "26 rspawn ends", "30 lspawn ends", "30 resolve ends", "30 keyd ends")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestReloadReachesEveryRoleAndNewSocketsTheirs(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	play(t, nothing, func(g *stage, hup chan<- os.Signal) {
		g.fresh = []socket{{service: "smtp", file: file}}
		hup <- os.Interrupt
		synctest.Wait()
		for name, want := range map[string]string{"send": "H", "lspawn": "H", "rspawn": "H", "smtpd": "A smtp, H"} {
			if got := strings.Join(g.cast[name].orders, ", "); !strings.HasSuffix(got, ", "+want) {
				t.Errorf("%s got %s", name, got)
			}
		}
	})
}

func TestAnAlarmIsForSend(t *testing.T) {
	play(t, nothing, func(g *stage, hup chan<- os.Signal) {
		hup <- syscall.SIGALRM
		synctest.Wait()
		for name, a := range g.cast {
			if got := slices.Contains(a.orders, "alarm"); got != (name == "send") {
				t.Errorf("%s got %q", name, a.orders)
			}
			if slices.Contains(a.orders, "H") {
				t.Errorf("%s was told to reload", name)
			}
		}
	})
}

func TestAServerWithoutASocketDoesNotRun(t *testing.T) {
	setUp := func(g *stage) { g.none = servicesOf(table) }
	g, _ := play(t, setUp, func(g *stage, hup chan<- os.Signal) {
		g.logged(t, "qmail-start: ready\n", 1)
		g.fresh = []socket{{service: "qmtp"}}
		pass(time.Second)
		hup <- os.Interrupt
		pass(time.Second)
		if got := strings.Join(g.cast["qmtpd"].orders, ", "); got != "L send, L keyd, A qmtp" {
			t.Errorf("qmtpd got %s", got)
		}
		g.none, g.fresh = servicesOf(table), nil
		hup <- os.Interrupt
		pass(time.Second)
		g.cast["qmtpd"].die(exit{2, "exit status 2"})
		pass(time.Minute)
	})
	g.expect(t, "0 send starts", "0 lspawn starts", "0 resolve starts", "0 rspawn starts", "0 keyd starts", "1 qmtpd starts", "3 qmtpd ends",
		"63 send ends", "63 lspawn ends", "63 resolve ends", "63 rspawn ends", "63 keyd ends")
}
