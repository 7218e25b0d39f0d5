package sim

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"qmail/internal/system/dns"
)

const (
	hereDomain = "here.example"
	farDomains = 16
)

func farDomain(n int) string { return fmt.Sprintf("d%d.example", n) }

// manner is how a server treats its clients.
type manner struct {
	slow    time.Duration // the longest that a reply takes
	later   float64       // how often it says 4yz, to anything
	drop    float64       // how often it closes the connection instead of a reply
	forgets float64       // how often it does so after it has taken a message
	grey    time.Duration // how long a new sender waits
	refuses bool          // boxes whose names begin with x
	babbles float64       // how often a reply is no reply
	single  bool          // it takes one recipient at a time
	fickle  float64       // how often a recipient is taken and then the message is refused for good
	never   bool          // nobody answers
	full    bool          // 452 for every recipient until the end
}

// host is somebody else's server.
type host struct {
	sim    *sim
	name   string
	addr   netip.Addr
	manner manner
	dead   bool

	mu       sync.Mutex
	sessions uint64
	seen     map[string]time.Time // of senders and recipients
	open     map[*end]bool
	waiting  sync.WaitGroup
	shut     bool
}

// accept begins a session.
func (h *host) accept(e *end) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shut {
		e.cut(true)
		return
	}
	h.sessions++
	number := h.sessions
	h.open[e] = true
	h.waiting.Go(func() {
		s := &session{host: h, end: e, dice: dice(h.sim.seed, h.name, number), number: number}
		s.serve()
		e.Close()
		h.mu.Lock()
		delete(h.open, e)
		h.mu.Unlock()
	})
}

func (h *host) close() {
	h.mu.Lock()
	h.shut = true
	for e := range h.open {
		e.cut(true)
	}
	h.mu.Unlock()
	h.waiting.Wait()
}

// session is one conversation with the machine.
type session struct {
	host    *host
	end     *end
	in      *bufio.Reader
	dice    *rand.Rand
	number  uint64
	from    string
	to      []string
	mailed  bool
	began   time.Time // the transaction, or the session that it is the first of
	used    bool
	babbled bool // and so the machine may have understood anything
}

// m is the manner of now: who is bad at times is better in the end, but for those who never are.
func (s *session) m() manner {
	m := s.host.manner
	if s.host.sim.calm() {
		m.later, m.drop, m.forgets, m.babbles, m.fickle, m.slow = 0, 0, 0, 0, 0, min(m.slow, time.Second)
	}
	return m
}

func (s *session) say(text string) bool {
	m := s.m()
	if m.slow > 0 {
		time.Sleep(between(s.dice, 0, m.slow))
	}
	if chance(s.dice, m.drop) {
		return false
	}
	if chance(s.dice, m.babbles) {
		s.babbled = true
		text = []string{"", "25", "hello\r\n", "250-and\r\n", strings.Repeat("250-x\r\n", 300), "999 what\r\n", "\x00\xff\r\n"}[s.dice.IntN(7)]
	}
	_, err := s.end.Write([]byte(text))
	return err == nil
}

func (s *session) serve() {
	s.in, s.began = bufio.NewReader(s.end), time.Now()
	if !s.say("220 " + s.host.name + " ESMTP\r\n") {
		return
	}
	for {
		s.end.SetReadDeadline(time.Now().Add(10 * time.Minute))
		line, err := s.in.ReadString('\n')
		if err != nil || !s.command(strings.TrimRight(line, "\r\n")) {
			return
		}
	}
}

func (s *session) command(line string) bool {
	m := s.m()
	verb := strings.ToUpper(line[:min(4, len(line))])
	if chance(s.dice, m.later) && verb != "QUIT" && verb != "DATA" {
		return s.say("451 4.3.0 not now\r\n")
	}
	switch verb {
	case "EHLO":
		return s.say("250-" + s.host.name + "\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n")
	case "HELO":
		return s.say("250 " + s.host.name + "\r\n")
	case "MAIL":
		s.from, s.to, s.mailed = path(line), nil, true
		if s.used {
			s.began = time.Now()
		}
		s.used = true
		return s.say("250 2.1.0 ok\r\n")
	case "RCPT":
		return s.rcpt(m, path(line))
	case "DATA":
		return s.data(m)
	case "RSET":
		s.from, s.to, s.mailed = "", nil, false
		return s.say("250 ok\r\n")
	case "QUIT":
		s.say("221 bye\r\n")
		return false
	}
	return s.say("502 what\r\n")
}

func path(line string) string {
	_, rest, _ := strings.Cut(line, "<")
	addr, _, _ := strings.Cut(rest, ">")
	return addr
}

func (s *session) rcpt(m manner, to string) bool {
	switch {
	case !s.mailed:
		return s.say("503 5.5.1 MAIL first\r\n")
	case m.refuses && strings.HasPrefix(to, "x"):
		return s.say("550 5.1.1 no such box\r\n")
	case m.full && !strings.HasPrefix(to, "s."):
		return s.say("452 4.2.2 mailbox full\r\n")
	case m.single && len(s.to) > 0:
		return s.say("452 4.5.3 one at a time\r\n")
	case m.grey > 0 && s.host.isNew(s.from+" "+to, m.grey):
		return s.say("451 4.7.1 come again\r\n")
	}
	s.to = append(s.to, to)
	return s.say("250 2.1.5 ok\r\n")
}

// isNew tells whether who is asking for this has not been waiting for long enough.
func (h *host) isNew(key string, wait time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	since, known := h.seen[key]
	if !known {
		h.seen[key] = time.Now()
		return true
	}
	return time.Since(since) < wait
}

func (s *session) data(m manner) bool {
	if len(s.to) == 0 {
		return s.say("503 5.5.1 RCPT first\r\n")
	}
	if chance(s.dice, m.later) {
		return s.say("451 4.3.0 not now\r\n")
	}
	if !s.say("354 go\r\n") {
		return false
	}
	var b strings.Builder
	for {
		s.end.SetReadDeadline(time.Now().Add(10 * time.Minute))
		line, err := s.in.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		if !strings.HasSuffix(line, "\r\n") {
			s.host.sim.fail("%s got a line without CRLF: %q", s.host.name, line)
		}
		b.WriteString(strings.TrimPrefix(strings.TrimSuffix(line, "\r\n"), "."))
		b.WriteByte('\n')
	}
	from, to := s.from, s.to
	s.from, s.to, s.mailed = "", nil, false
	switch {
	case chance(s.dice, m.later):
		return s.say("451 4.3.0 not now\r\n")
	case chance(s.dice, m.fickle):
		return s.say("554 5.6.0 I do not like it\r\n")
	}
	return s.keep(m, from, to, b.String())
}

// keep takes a message. Whether the machine learns of it decides whether it may come again.
func (s *session) keep(m manner, from string, to []string, text string) bool {
	h := s.host
	const reaching = 15 * time.Minute // the DNS and other servers of the same domain may not answer
	told := h.sim.account.taken(s.began.Add(-reaching), from, to, text)
	if chance(s.dice, m.forgets) {
		return false
	}
	if m.slow > 0 {
		time.Sleep(between(s.dice, 0, m.slow))
	}
	if _, err := s.end.Write([]byte("250 2.0.0 taken\r\n")); err != nil {
		return false
	}
	if !s.babbled {
		s.end.out.whenTaken(told)
	}
	return true
}

// zones is the DNS.
type zones struct {
	sim *sim

	mu    sync.Mutex
	asked uint64
	until time.Time // nobody answers
	mx    map[string][]dns.MX
	a     map[string]netip.Addr
}

func (z *zones) silence(d time.Duration) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.until = time.Now().Add(d)
}

var errSilent = fmt.Errorf("no server answers")

// Ask is dns.Source.
func (z *zones) Ask(ctx context.Context, name string, kind dns.Type) (dns.Answer, error) {
	z.mu.Lock()
	z.asked++
	r := dice(z.sim.seed, "dns", z.asked)
	silent := time.Now().Before(z.until)
	z.mu.Unlock()
	wait := between(r, 0, 200*time.Millisecond)
	bad := silent || !z.sim.calm() && chance(r, z.sim.plan.badDNS)
	if bad {
		wait = 20 * time.Second
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return dns.Answer{}, context.Cause(ctx)
	}
	if bad {
		return dns.Answer{}, errSilent
	}
	a := dns.Answer{Status: dns.NoName, Expires: z.sim.machine.clock.now().Add(between(r, time.Second, time.Hour))}
	mx, known := z.mx[name]
	addr, is := z.a[name]
	switch {
	case kind == dns.TypeMX && known:
		a.Status, a.MX = dns.Found, mx
	case kind == dns.TypeA && is:
		a.Status, a.Addrs = dns.Found, []netip.Addr{addr}
	case known || is:
		a.Status = dns.NoData
	}
	return a, nil
}

// makeFar makes the others of a seed.
func (s *sim) makeFar() {
	s.dns = &zones{sim: s, mx: map[string][]dns.MX{}, a: map[string]netip.Addr{}}
	for i := range farDomains {
		domain := farDomain(i)
		r := dice(s.seed, "far", uint64(i))
		m := s.manner(i, r)
		for k := range 1 + r.IntN(3) {
			name := fmt.Sprintf("mx%d.%s", k, domain)
			addr := netip.AddrFrom4([4]byte{198, 51, byte(100 + k), byte(10 + i)})
			h := &host{sim: s, name: name, addr: addr, manner: m, seen: map[string]time.Time{}, open: map[*end]bool{}}
			h.dead = m.never || k > 0 && chance(r, 0.3)
			s.hosts = append(s.hosts, h)
			s.net.servers[addr] = h
			s.dns.a[name] = addr
			s.dns.mx[domain] = append(s.dns.mx[domain], dns.MX{Preference: uint16(10 * (1 + k)), Host: name})
		}
	}
}

// manner draws how the servers of a domain behave. Each kind is there for every seed; the last three never take
// anything, and the first takes everything.
func (s *sim) manner(i int, r *rand.Rand) manner {
	m := manner{refuses: true}
	switch i {
	case 0:
		return manner{}
	case 1:
		m.slow = between(r, time.Second, 2*time.Minute)
	case 2:
		m.later = 0.3 * r.Float64()
	case 3:
		m.drop = 0.2 * r.Float64()
	case 4:
		m.forgets = 0.5 * r.Float64()
	case 5:
		m.grey = between(r, time.Minute, 2*time.Hour)
	case 6:
		m.babbles = 0.2 * r.Float64()
	case 7:
		m.single = true
	case 8:
		m.fickle = 0.3
	case 9, 10, 11:
		m = manner{slow: between(r, 0, 20*time.Second), later: 0.1 * r.Float64(), drop: 0.1 * r.Float64(), forgets: 0.1 * r.Float64(),
			babbles: 0.05 * r.Float64(), refuses: true}
	case farDomains - 1:
		m.never = true
	case farDomains - 2:
		m.full = true
	}
	return m
}
