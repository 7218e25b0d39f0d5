package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/lookup"
	"qmail/internal/proto/sender"
	"qmail/internal/role/local"
	"qmail/internal/role/rspawn"
	"qmail/internal/role/send"
	"qmail/internal/role/smtpd"
	"qmail/internal/store/ledger"
	"qmail/internal/store/maildir"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/store/users"
	"qmail/internal/system/disk"
	"qmail/internal/system/dns"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// process is one of the machine's. What it holds dies with it.
type process struct {
	name   string
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	dead  bool
	ends  map[*end]bool
	ended chan struct{}
}

func newProcess(name string) *process {
	p := &process{name: name, ends: map[*end]bool{}, ended: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// owns makes an end of a connection the process's.
func (p *process) owns(e *end) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		e.cut(true)
		return
	}
	p.ends[e] = true
	e.onClose = func() {
		go func() { // whoever closes may hold our lock
			p.mu.Lock()
			delete(p.ends, e)
			p.mu.Unlock()
		}()
	}
}

func (p *process) gone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// kill ends the process at once, as far as anybody else can tell. Its goroutines find out by and by.
func (p *process) kill(told bool) {
	p.mu.Lock()
	p.dead = true
	ends := p.ends
	p.ends = map[*end]bool{}
	p.mu.Unlock()
	for e := range ends {
		e.cut(told)
	}
	p.cancel()
}

// machine is the server under test.
type machine struct {
	sim   *sim
	home  string
	clock *clock

	mu      sync.Mutex
	up      bool
	disk    *disk.Memory            // of the queue
	boxes   map[string]*disk.Memory // of users, by path
	send    *process
	smtpd   *process
	rspawn  *process
	locals  map[*process]bool
	orders  map[*process]chan env.Order
	store   *journal.Journal // of send, when it is open
	opened  int              // how often it was
	balance *ledger.Balance  // of the last audit
	waiting sync.WaitGroup   // all that was ever started
}

func newMachine(s *sim, home string) *machine {
	return &machine{
		sim: s, home: home, clock: newClock(), disk: disk.NewMemory(), boxes: map[string]*disk.Memory{},
		locals: map[*process]bool{}, orders: map[*process]chan env.Order{},
	}
}

// boot starts the machine.
func (m *machine) boot() {
	m.mu.Lock()
	m.up = true
	m.mu.Unlock()
	m.startSend()
	m.startRspawn()
	m.startSMTPD()
}

// running tells whether the machine is up, for who wants to start something again.
func (m *machine) running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up
}

// launch runs a process; again is called when it has ended and the machine still runs, as a supervisor would.
func (m *machine) launch(p *process, run func(), again func()) {
	m.waiting.Go(func() {
		run()
		m.mu.Lock()
		delete(m.orders, p)
		m.mu.Unlock()
		p.kill(true)
		close(p.ended)
		if m.sim.over() {
			return
		}
		time.Sleep(between(dice(m.sim.seed, "restart "+p.name, uint64(time.Now().UnixNano())), 0, 2*time.Second))
		if m.running() && !m.sim.over() && again != nil {
			again()
		}
	})
}

// current tells whether p still is the process of its name: one that the power failed of has been replaced.
func (m *machine) current(p *process, slot **process) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *slot == p
}

// order gives a process an order, unless it is gone.
func (m *machine) order(p *process, o env.Order) {
	if p == nil {
		return
	}
	m.mu.Lock()
	orders := m.orders[p]
	m.mu.Unlock()
	if orders == nil {
		return
	}
	select {
	case orders <- o:
	case <-p.ctx.Done():
	case <-p.ended:
	}
}

// pipe makes a link between two processes, either of which may be nil.
func (m *machine) pipe(a, b *process) (*ipc.Conn, *ipc.Conn) {
	x, y := wire(local4(1), local4(2), 0, nil)
	if a != nil {
		a.owns(x)
	}
	if b != nil {
		b.owns(y)
	}
	return ipc.New(link{x}), ipc.New(link{y})
}

func local4(n byte) net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, n), Port: 1} }

// log is where the roles write.
func (m *machine) log(name string) *slog.Logger { return (&env.Env{Stderr: m.sim.log}).Log(name) }

func (m *machine) startSend() {
	p := newProcess("send")
	m.mu.Lock()
	m.send = p
	orders := make(chan env.Order)
	m.orders[p] = orders
	m.mu.Unlock()
	m.launch(p, func() { m.runSend(p, orders) }, func() {
		if m.current(p, &m.send) {
			m.startSend()
		}
	})
}

// options are those of the journal: segments so small that they come and go.
func (m *machine) options() journal.Options {
	return journal.Options{
		SegmentSize: m.sim.plan.segment, CacheBytes: m.sim.plan.cache, Now: m.clock.now,
		Warn: func(text string) { m.sim.note("journal: %s", text) },
	}
}

// audit balances the machine's own account against its queue, as qmail ledger does beside a server that runs.
func (m *machine) audit(when string) {
	m.mu.Lock()
	d := m.disk
	m.mu.Unlock()
	b, err := ledger.Verify(d, func(after queue.Account, each func(*queue.Entry) error) error { return journal.Inspect(d, after, each) })
	switch {
	case err != nil:
		m.sim.fail("the account cannot be read %s: %v", when, err)
	case !b.Even():
		m.sim.fail("the account does not come out even %s: %+v", when, b)
	}
	m.balance = b
}

func (m *machine) runSend(p *process, orders chan env.Order) {
	m.mu.Lock()
	d := m.disk
	m.mu.Unlock()
	files := gated{d, p, m.sim}
	options := m.options()
	options.Account = ledger.New(files, ledger.Options{
		FileSize: m.sim.plan.segment / 8, Now: m.clock.now, Warn: func(text string) { m.sim.note("%s", text) },
	})
	store, err := journal.Open(files, options)
	if err != nil {
		m.sim.note("queue does not open: %v", err)
		return
	}
	config, err := send.ReadConfig(m.home)
	if err != nil {
		m.sim.fail("controls: %v", err)
		store.Close()
		return
	}
	m.mu.Lock()
	m.store = store
	m.opened++
	m.mu.Unlock()
	s := &send.Server{
		Home: m.home, Store: m.sim.planted(store), Config: config, Now: m.clock.now, Log: m.log("qmail-send"), Out: m.sim.log, Orders: orders,
		Ready:   func() error { return nil },
		Spawner: func(c *ipc.Conn) send.Spawner { return &spawner{m: m, of: p, link: c} },
	}
	go m.introduce(p)
	if err := s.Run(p.ctx); err != nil {
		m.sim.note("qmail-send: %v", err)
	}
	m.mu.Lock()
	if m.store == store {
		m.store = nil
	}
	m.mu.Unlock()
	if err := store.Close(); err != nil {
		m.sim.note("queue does not close: %v", err)
	}
}

// introduce links a new qmail-send with the others.
func (m *machine) introduce(p *process) {
	a, _ := m.pipe(p, nil)
	m.order(p, env.Order{Kind: env.Link, Name: "lspawn", Link: a})
	m.mu.Lock()
	rspawn, smtpd := m.rspawn, m.smtpd
	m.mu.Unlock()
	m.link(p, rspawn, "rspawn", "send")
	m.link(p, smtpd, "smtpd", "send")
}

// link joins two processes, each of which knows the end by the name of the other.
func (m *machine) link(a, b *process, nameForA, nameForB string) {
	if a == nil || b == nil || a.gone() || b.gone() {
		return
	}
	x, y := m.pipe(a, b)
	m.order(a, env.Order{Kind: env.Link, Name: nameForA, Link: x})
	m.order(b, env.Order{Kind: env.Link, Name: nameForB, Link: y})
}

func (m *machine) startSMTPD() {
	p := newProcess("smtpd")
	m.mu.Lock()
	m.smtpd = p
	orders := make(chan env.Order)
	m.orders[p] = orders
	send := m.send
	m.mu.Unlock()
	e := &env.Env{Home: m.home, Stderr: m.sim.log, Now: m.clock.now, Orders: orders, Ready: func() error { return nil }}
	m.launch(p, func() { smtpd.Main(p.ctx, e, nil) }, func() {
		if m.current(p, &m.smtpd) {
			m.startSMTPD()
		}
	})
	go func() {
		m.link(send, p, "smtpd", "send")
		m.order(p, env.Order{Kind: env.Listen, Name: "smtp", Listener: m.sim.net.listener(p)})
	}()
}

func (m *machine) startRspawn() {
	p := newProcess("rspawn")
	m.mu.Lock()
	m.rspawn = p
	orders := make(chan env.Order)
	m.orders[p] = orders
	send := m.send
	m.mu.Unlock()
	m.launch(p, func() { m.runRspawn(p, orders) }, func() {
		if m.current(p, &m.rspawn) {
			m.startRspawn()
		}
	})
	go m.link(send, p, "rspawn", "send")
}

func (m *machine) runRspawn(p *process, orders chan env.Order) {
	resolver := dns.Over(m.sim.dns, m.clock.now)
	defer resolver.Close()
	random := dice(m.sim.seed, "rspawn")
	var mu sync.Mutex
	world := sender.World{
		Resolver: resolver, Now: m.clock.now, Log: m.log("qmail-rspawn"),
		Dial:   func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) { return m.sim.net.dial(ctx, p, addr) },
		Local:  func() ([]netip.Addr, error) { return []netip.Addr{here}, nil },
		Random: func(n int) int { mu.Lock(); defer mu.Unlock(); return random.IntN(n) },
	}
	var links sync.WaitGroup
	defer links.Wait()
	for {
		select {
		case <-p.ctx.Done():
			return
		case o := <-orders:
			switch o.Kind {
			case env.Link:
				links.Go(func() {
					if err := rspawn.Serve(p.ctx, o.Link, m.home, world, world.Log); err != nil {
						m.sim.fail("rspawn: %v", err)
					}
				})
			case env.Stop:
				return
			}
		}
	}
}

// spawner is qmail-lspawn as qmail-send sees it. Its processes are the users'.
type spawner struct {
	m    *machine
	of   *process
	link *ipc.Conn
}

var errUnknown = &lookup.Refusal{Report: "DSorry, no mailbox here by that name. (#5.1.1)\n"}

func (s *spawner) Find(_ context.Context, name string) (users.Account, error) {
	if !isUser(name) {
		return users.Account{}, errUnknown
	}
	return users.Account{User: name, UID: 1000, GID: 1000, Home: filepath.Join(s.m.sim.homes, name)}, nil
}

func (s *spawner) Explain(ctx context.Context, name string) (users.Account, users.Source, error) {
	a, err := s.Find(ctx, name)
	return a, users.Source{}, err
}

func (s *spawner) Close() error { return s.link.Close() }

// Pipe starts a qmail-local.
func (s *spawner) Pipe(ctx context.Context, name string) (users.Account, *ipc.Conn, error) {
	a, err := s.Find(ctx, name)
	if err != nil {
		return a, nil, err
	}
	p := newProcess("local " + name)
	ours, theirs := s.m.pipe(s.of, p)
	s.m.mu.Lock()
	s.m.locals[p] = true
	s.m.mu.Unlock()
	s.m.launch(p, func() {
		s.m.runLocal(p, theirs, a)
		s.m.mu.Lock()
		delete(s.m.locals, p)
		s.m.mu.Unlock()
	}, nil)
	return a, ours, nil
}

func (m *machine) runLocal(p *process, conn *ipc.Conn, a users.Account) {
	random := dice(m.sim.seed, "local", uint64(time.Now().UnixNano()))
	var mu sync.Mutex
	local.Serve(p.ctx, conn, a.User, a.Home, "./Maildir/", local.World{
		Now:    m.clock.now,
		Random: func() uint64 { mu.Lock(); defer mu.Unlock(); return random.Uint64() },
		Open:   func(path string) (maildir.Disk, error) { return m.openBox(p, path) },
		Queue: func() (*enqueue.Client, error) {
			m.mu.Lock()
			send := m.send
			m.mu.Unlock()
			x, y := m.pipe(send, p)
			if send == nil || send.gone() {
				x.Close()
				y.Close()
				return nil, reply.Temporary("4.3.0", "nobody is there", nil)
			}
			m.order(send, env.Order{Kind: env.Link, Name: "local", Link: x})
			return enqueue.NewClient(y), nil
		},
	})
}

// openBox opens the maildir at path, and makes it if there is none.
func (m *machine) openBox(p *process, path string) (maildir.Disk, error) {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.boxes[path]
	if d == nil {
		d = disk.NewMemory()
		for _, dir := range []string{"tmp", "new", "cur"} {
			if err := d.Mkdir(dir, 0o700); err != nil {
				return nil, err
			}
		}
		if err := d.SyncDir("."); err != nil {
			return nil, err
		}
		m.boxes[path] = d
	}
	return &box{gated: gated{d, p, m.sim}, user: filepath.Base(filepath.Dir(path)), account: m.sim.account}, nil
}

// stop ends qmail-send in an orderly way, as a reload of everything does; the supervisor starts it again.
func (m *machine) stopSend() {
	m.mu.Lock()
	p := m.send
	m.mu.Unlock()
	m.order(p, env.Order{Kind: env.Stop})
}

// victims are the processes that may be killed, by name.
func (m *machine) victim(name string) *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name {
	case "send":
		return m.send
	case "smtpd":
		return m.smtpd
	case "rspawn":
		return m.rspawn
	}
	var first *process
	for p := range m.locals {
		if first == nil || p.name < first.name {
			first = p
		}
	}
	return first
}

// kill kills one process.
func (m *machine) kill(name string) {
	p := m.victim(name)
	if p == nil {
		return
	}
	m.sim.account.disturbed(time.Now(), time.Now())
	m.sim.note("kill %s", p.name)
	p.kill(true)
	if name == "send" {
		m.mu.Lock()
		m.disk = m.disk.Kill()
		m.sim.injectInto(m.disk)
		m.mu.Unlock()
	}
}

// fails the power: all processes are gone, and of what was not synced something is left. The machine comes up again
// after a while.
func (m *machine) crash(how disk.Crash, r *rand.Rand, away time.Duration) {
	m.mu.Lock()
	if !m.up {
		m.mu.Unlock()
		return
	}
	m.up = false
	all := []*process{m.smtpd, m.rspawn, m.send}
	for p := range m.locals {
		all = append(all, p)
	}
	m.mu.Unlock()
	m.sim.account.disturbed(time.Now(), time.Now().Add(away))
	m.sim.note("power fails, %v, for %v", how, away)
	for _, p := range all {
		if p != nil {
			p.kill(false)
		}
	}
	m.mu.Lock()
	m.disk = m.disk.Crash(how, r)
	m.sim.injectInto(m.disk)
	for _, path := range sorted(m.boxes) {
		m.boxes[path] = m.boxes[path].Crash(how, r)
		m.sim.injectInto(m.boxes[path])
	}
	m.mu.Unlock()
	time.Sleep(away)
	m.boot()
}

// shut ends everything, for good.
func (m *machine) shut() {
	m.mu.Lock()
	m.up = false
	all := []*process{m.smtpd, m.rspawn, m.send}
	for p := range m.locals {
		all = append(all, p)
	}
	m.mu.Unlock()
	for _, p := range all {
		if p != nil {
			p.kill(true)
		}
	}
	m.waiting.Wait()
}

var errDead = errors.New("sim: this process is dead")

// gated is a disk as one process has it.
type gated struct {
	disk.FS
	of  *process
	sim *sim
}

func (g gated) check() error {
	if g.of.gone() {
		return errDead
	}
	return nil
}

func (g gated) Open(name string) (disk.File, error) { return g.file(g.FS.Open, name) }
func (g gated) OpenWrite(name string) (disk.File, error) {
	return g.file(g.FS.OpenWrite, name)
}

func (g gated) file(open func(string) (disk.File, error), name string) (disk.File, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	return &gatedFile{f, g}, nil
}

func (g gated) Create(name string, perm os.FileMode) (disk.File, error) {
	return g.file(func(name string) (disk.File, error) { return g.FS.Create(name, perm) }, name)
}

func (g gated) Temp(dir string, perm os.FileMode) (disk.File, error) {
	return g.file(func(name string) (disk.File, error) { return g.FS.Temp(name, perm) }, dir)
}

func (g gated) Link(f disk.File, name string) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.FS.Link(f.(*gatedFile).File, name)
}

func (g gated) Rename(old, new string) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.FS.Rename(old, new)
}

func (g gated) Remove(name string) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.FS.Remove(name)
}

func (g gated) SyncDir(name string) error {
	if err := g.check(); err != nil || g.sim.bug == noDirSync {
		return err
	}
	return g.FS.SyncDir(name)
}

func (g gated) SyncAll() error {
	if err := g.check(); err != nil {
		return err
	}
	return g.FS.SyncAll()
}

// gatedFile is an open file of one process.
type gatedFile struct {
	disk.File
	g gated
}

func (f *gatedFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.g.check(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f *gatedFile) WriteVec(pieces [][]byte, off int64) (int64, error) {
	if err := f.g.check(); err != nil {
		return 0, err
	}
	return f.File.WriteVec(pieces, off)
}

// Sync takes time, in which others come and power fails.
func (f *gatedFile) Sync() error {
	if d := f.g.sim.syncTime(f.g.of); d > 0 {
		time.Sleep(d)
	}
	if err := f.g.check(); err != nil {
		return err
	}
	err := f.File.Sync()
	if err != nil && f.g.sim.bug == secondSync {
		f.File.Sync()
		return nil
	}
	return err
}

func (f *gatedFile) Truncate(size int64) error {
	if err := f.g.check(); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// box is a maildir whose deliveries are written down.
type box struct {
	gated
	user    string
	account *account
}

func (b *box) Close() error { return nil }

func (b *box) Link(f disk.File, name string) error {
	if err := b.gated.Link(f, name); err != nil {
		return err
	}
	b.account.linked(b.user, name, time.Now())
	return nil
}

// isUser says who has a mailbox.
func isUser(name string) bool {
	return name == "postmaster" || len(name) == 2 && name[0] == 'u' && '0' <= name[1] && name[1] < '0'+localUsers
}

// makeHomes makes the homes of users. u6 and u7 forward, u8 keeps a copy and forwards, u9 forwards to another user.
func makeHomes(dir string) error {
	for i := range localUsers {
		name := fmt.Sprintf("u%d", i)
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
		lines := strings.Join(forwards(name), "\n")
		if lines == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name, ".qmail"), []byte(lines+"\n"), 0o644); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(dir, "postmaster"), 0o755)
}

const localUsers = 10

// forwards are the lines of a user's .qmail.
func forwards(name string) []string {
	return map[string][]string{
		"u6": {"&f6@" + farDomain(0)},
		"u7": {"&f7@" + farDomain(1), "&f7@" + farDomain(5)},
		"u8": {"./Maildir/", "&f8@" + farDomain(2)},
		"u9": {"&u0@" + hereDomain, "&u8@" + hereDomain},
	}[name]
}
