package sim

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

var (
	oneSeed   = flag.Uint64("seed", 0, "run this seed only")
	storyFile = flag.String("story", "", "and write into this file what happened")
	seeds     = flag.Uint64("seeds", 200, "how many seeds to run")
	first     = flag.Uint64("first", 1, "the first of them")
	forever   = flag.Bool("forever", false, "run seeds until told to stop, and print those that fail")
)

// plan is what a seed has in store.
type plan struct {
	messages   int
	clients    int
	load       time.Duration // mail comes in for so long, and things go wrong
	lifetime   time.Duration // queuelifetime
	segment    int64
	cache      int64
	latency    time.Duration
	syncTime   time.Duration
	badWire    float64
	badDNS     float64
	slowClient float64
	impatient  float64
	faults     int
	kinds      []int // of them; each as often as it is named
}

// The kinds of faults.
const (
	power = iota
	killSend
	killServer
	killLocal
	clockJump
	partition
	refusals
	dnsSilence
	diskTrouble
	diskFull
	stopSend
	audit
)

func makePlan(seed uint64) plan {
	r := dice(seed, "plan")
	p := plan{
		messages: 100 + r.IntN(700), clients: 1 + r.IntN(8), load: between(r, 10*time.Minute, 36*time.Hour),
		lifetime: 24 * time.Hour, segment: []int64{64 << 10, 256 << 10, 1 << 20}[r.IntN(3)], cache: []int64{-1, 0, 100_000}[r.IntN(3)],
		latency: between(r, time.Millisecond, time.Second), syncTime: between(r, 0, 50*time.Millisecond),
		kinds:   []int{power, power, killSend, killServer, killLocal, clockJump, partition, refusals, dnsSilence, diskTrouble, diskFull, stopSend, audit},
		badWire: 0.2 * r.Float64() * r.Float64(), badDNS: 0.2 * r.Float64() * r.Float64(),
		slowClient: 0.1 * r.Float64() * r.Float64(), impatient: 0.1 * r.Float64() * r.Float64(), faults: r.IntN(40),
	}
	if chance(r, 0.1) {
		p.lifetime = 5 * 24 * time.Hour
	}
	if chance(r, 0.1) {
		p.messages = 2000 + r.IntN(2000)
		p.segment = 1 << 20
	}
	return p
}

// sim is one run.
type sim struct {
	t        testing.TB
	seed     uint64
	plan     plan
	homes    string
	log      *story
	net      *network
	dns      *zones
	hosts    []*host
	machine  *machine
	account  *account
	isCalm   atomic.Bool
	isOver   atomic.Bool
	bug      string // planted
	mu       sync.Mutex
	failures []string
	broken   map[disk.Kind]error // operations that fail now
}

func (s *sim) calm() bool { return s.isCalm.Load() }
func (s *sim) over() bool { return s.isOver.Load() }

// story keeps what the roles and the faults say.
type story struct {
	mu   sync.Mutex
	keep bool
	text bytes.Buffer
}

func (l *story) Write(p []byte) (int, error) {
	if !l.keep {
		return len(p), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, "%s ", time.Now().UTC().Format("02 15:04:05.000000"))
	return l.text.Write(p)
}

func (s *sim) note(format string, args ...any) {
	if s.log.keep {
		fmt.Fprintf(s.log, "* "+format+"\n", args...)
	}
}

// fail notes what must not be.
func (s *sim) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) < 20 {
		s.failures = append(s.failures, fmt.Sprintf(format, args...))
	}
}

// newSim makes the world of a seed.
func newSim(t testing.TB, seed uint64, homes string, story *story, bug string) *sim {
	s := &sim{t: t, seed: seed, plan: makePlan(seed), homes: homes, log: story, bug: bug, broken: map[disk.Kind]error{}}
	s.net = newNetwork(s)
	s.account = newAccount(s)
	s.makeFar()
	return s
}

// live is the life of one seed.
func (s *sim) live() {
	home := s.t.TempDir()
	s.controls(home)
	s.machine = newMachine(s, home)
	s.injectInto(s.machine.disk)
	s.machine.boot()

	var clients sync.WaitGroup
	for i := range s.plan.clients {
		c := &client{sim: s, n: i, dice: dice(s.seed, "client", uint64(i)), addr: netip.AddrFrom4([4]byte{203, 0, byte(i), 1})}
		clients.Go(func() { c.run(s.plan.messages/s.plan.clients, s.plan.load) })
	}
	s.misfortunes()
	clients.Wait()
	s.isCalm.Store(true)
	s.heal()
	s.drain()
	s.machine.audit("in the end, while it runs")
	s.isOver.Store(true)
	s.machine.shut()
	for _, h := range s.hosts {
		h.close()
	}
	s.machine.audit("in the end")
	s.account.collect(s.machine.boxes)
	s.account.judge()
}

func (s *sim) controls(home string) {
	dir := filepath.Join(home, "control")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"me": hereDomain, "locals": hereDomain, "rcpthosts": hereDomain, "relayclients": "203.0.0.0/8",
		"queuelifetime": fmt.Sprint(int(s.plan.lifetime / time.Second)), "bouncemaxbytes": "0", "timeoutconnect": "60",
		"concurrencyincoming": "200", "maxperclient": "100",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}

// drain waits until nothing is left to do.
func (s *sim) drain() {
	deadline := time.Now().Add(3*s.plan.lifetime + 48*time.Hour)
	for time.Now().Before(deadline) {
		time.Sleep(10 * time.Minute)
		s.machine.mu.Lock()
		store := s.machine.store
		s.machine.mu.Unlock()
		if store != nil && store.Stats().Messages == 0 {
			time.Sleep(time.Minute)
			return
		}
	}
	s.machine.mu.Lock()
	store := s.machine.store
	s.machine.mu.Unlock()
	if store == nil {
		s.fail("the queue is not open")
		return
	}
	left := 0
	store.Scan(func(e *queue.Entry) error {
		if left++; left < 5 {
			s.fail("message %v never ends: %+v", e.ID, e)
		}
		return nil
	})
}

// misfortunes lets things go wrong, one after the other, while mail comes in.
func (s *sim) misfortunes() {
	r := dice(s.seed, "faults")
	var all sync.WaitGroup
	for i := range s.plan.faults {
		time.Sleep(time.Duration(r.ExpFloat64() * float64(s.plan.load) / float64(s.plan.faults)))
		all.Go(func() { s.misfortune(dice(s.seed, "fault", uint64(i))) })
	}
	all.Wait()
}

func (s *sim) misfortune(r *rand.Rand) {
	m := s.machine
	long := s.plan.load / 8 // nothing is wrong for longer
	far := s.hosts[r.IntN(len(s.hosts))].addr
	switch s.plan.kinds[r.IntN(len(s.plan.kinds))] {
	case power:
		m.crash(disk.Crash(r.IntN(3)), r, between(r, 0, min(long, 10*time.Minute)))
	case killSend:
		m.kill("send")
	case killServer:
		m.kill([]string{"smtpd", "rspawn"}[r.IntN(2)])
	case killLocal:
		m.kill("local")
	case clockJump:
		d := between(r, -3*time.Hour, 72*time.Hour)
		if chance(r, 0.5) {
			d = -d
		}
		s.note("the clock jumps by %v", d)
		m.clock.jump(d)
	case partition:
		d := between(r, time.Second, 2*long)
		s.note("%v is parted for %v", far, d)
		s.net.block(far, d)
	case refusals:
		s.net.refuse(far, between(r, time.Second, 2*long))
	case dnsSilence:
		s.dns.silence(between(r, time.Second, long))
	case diskTrouble:
		s.trouble(r, min(long, 10*time.Minute))
	case diskFull:
		s.full(r, long)
	case audit:
		s.mu.Lock()
		quiet := len(s.broken) == 0
		s.mu.Unlock()
		if quiet && m.running() {
			m.audit("while it runs")
		}
	case stopSend:
		s.note("qmail-send is stopped")
		s.account.disturbed(time.Now(), time.Now().Add(25*time.Second))
		m.stopSend()
	}
}

// trouble has an operation of all disks fail for a moment, or for long.
func (s *sim) trouble(r *rand.Rand, long time.Duration) {
	kind := []disk.Kind{disk.OpSync, disk.OpWrite, disk.OpSyncDir, disk.OpRename, disk.OpCreate, disk.OpLink, disk.OpRead, disk.OpAllocate}[r.IntN(8)]
	d := between(r, time.Millisecond, long)
	s.note("%s fails for %v", kind, d)
	from := time.Now()
	s.mu.Lock()
	s.broken[kind] = syscall.EIO
	s.mu.Unlock()
	time.Sleep(d)
	s.mu.Lock()
	delete(s.broken, kind)
	s.mu.Unlock()
	s.account.disturbed(from, time.Now().Add(10*time.Second))
}

// full leaves no room on the disks for a while.
func (s *sim) full(r *rand.Rand, long time.Duration) {
	d := between(r, time.Second, long)
	room := int64(r.IntN(300 << 10))
	s.note("there is room for %d bytes, for %v", room, d)
	from := time.Now()
	s.space(room)
	time.Sleep(d)
	s.space(-1)
	s.account.disturbed(from, time.Now().Add(10*time.Second))
}

func (s *sim) space(n int64) {
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	s.machine.disk.SetSpace(n)
	for _, d := range s.machine.boxes {
		d.SetSpace(n)
	}
}

// heal ends all that is wrong but the ways of others.
func (s *sim) heal() {
	s.mu.Lock()
	clear(s.broken)
	s.mu.Unlock()
	s.space(-1)
}

// injectInto has a disk fail as planned.
func (s *sim) injectInto(d *disk.Memory) {
	d.Inject(func(o disk.Op) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.broken[o.Kind]
	})
}

// syncTime is how long a sync takes. Those of maildirs take none: their deliveries wait for each other.
func (s *sim) syncTime(p *process) time.Duration {
	if p.name != "send" {
		return 0
	}
	return s.plan.syncTime
}

// play runs a seed and says what was wrong.
func play(t *testing.T, seed uint64, homes string, story *story) (failures []string, text string) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed, homes, story, noBug)
		s.live()
		failures = s.failures
		c := s.account.counts
		text = fmt.Sprintf("seed %d: %d accepted, %d refused, %d unknown; of %d mailboxes %d delivered, %d bounced; %d times twice; %d openings, %v",
			seed, c.accepted, c.refused, c.unknown, c.goals, c.delivered, c.bounced, c.twice, s.machine.opened, time.Since(s.machine.clock.start))
	})
	return failures, text
}

// homesOf makes the homes of the users, which all runs share.
func homesOf(t *testing.T) string {
	dir := t.TempDir()
	if err := makeHomes(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSeeds runs the first seeds, or the one that was asked for.
func TestSeeds(t *testing.T) {
	homes := homesOf(t)
	if *oneSeed != 0 {
		story := &story{keep: *storyFile != ""}
		failures, text := play(t, *oneSeed, homes, story)
		t.Log(text)
		for _, f := range failures {
			t.Error(f)
		}
		if story.keep {
			if err := os.WriteFile(*storyFile, story.text.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	count := *seeds
	if testing.Short() {
		count = min(count, 20)
	}
	for seed := *first; seed < *first+count; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			failures, text := play(t, seed, homes, &story{})
			t.Log(text)
			for _, f := range failures {
				t.Error(f)
			}
		})
	}
}

// TestForever runs seeds, one after the other, until it is stopped: make simulate.
func TestForever(t *testing.T) {
	if !*forever {
		t.Skip("not asked for: -forever")
	}
	homes := homesOf(t)
	for seed := *first; ; seed++ {
		failures, text := play(t, seed, homes, &story{})
		fmt.Println(text)
		for _, f := range failures {
			fmt.Printf("FAILED seed %d: %s\n", seed, f)
		}
	}
}
