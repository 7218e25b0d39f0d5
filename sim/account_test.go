package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"qmail/internal/system/disk"
)

// state is what a client knows of its message.
type state int

const (
	refused state = iota
	unknown       // nobody told it
	accepted
)

// mail is a message of a client, and what became of it according to those who got it.
type mail struct {
	token  string
	sender string
	rcpts  []*rcpt
	size   int
	state  state
	since  time.Time // of the state
}

// rcpt is one of its recipients.
type rcpt struct {
	addr  string
	taken bool    // at RCPT
	goals []*goal // where it leads
}

// goal is a mailbox that a message was to reach, once for each of the recipients that lead there.
type goal struct {
	addr    string
	direct  bool // no forward is on the way
	got     []*arrival
	notices []*arrival // that tell the sender that it did not
}

// wanted is how often a message is to reach a goal.
func (m *mail) wanted(g *goal) (n int) {
	for _, r := range m.rcpts {
		for _, x := range r.goals {
			if r.taken && x == g {
				n++
			}
		}
	}
	return n
}

// goals are where a message leads, each once.
func (m *mail) goals() (all []*goal) {
	for _, r := range m.rcpts {
		for _, g := range r.goals {
			if !slices.Contains(all, g) {
				all = append(all, g)
			}
		}
	}
	return all
}

// arrival is a message that came to somebody.
type arrival struct {
	began time.Time // when the machine may have set about it
	at    time.Time
	known time.Time // when the machine was told that it was taken; zero if it never was
	id    string    // of a notice: its Message-ID
	file  string    // in a maildir
	user  string
	text  string
}

// account is everybody's but the machine's view of all mail.
type account struct {
	sim *sim

	mu       sync.Mutex
	mails    map[string]*mail
	order    []*mail
	arrivals map[string]*arrival // in maildirs, by user and file
	troubles []trouble
	counts   struct{ accepted, refused, unknown, goals, delivered, bounced, twice int }
}

// trouble is a time in which things may be done twice.
type trouble struct{ from, to time.Time }

func newAccount(s *sim) *account {
	return &account{sim: s, mails: map[string]*mail{}, arrivals: map[string]*arrival{}}
}

func (a *account) disturbed(from, to time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.troubles = append(a.troubles, trouble{from, to})
}

// write makes up a message.
func (a *account) write(r *rand.Rand, token string) *mail {
	m := &mail{token: token, size: r.IntN(3000), since: time.Now()}
	switch {
	case chance(r, 0.01):
		m.size = r.IntN(400 << 10)
	case chance(r, 0.05):
		m.size = r.IntN(40 << 10)
	}
	m.size = min(m.size, int(a.sim.plan.segment/4)) // so that a record holds the bounce, too
	switch n := r.IntN(20); {
	case n < 2:
		m.sender = "" // like a bounce from elsewhere
	case n < 10:
		m.sender = fmt.Sprintf("s.%s@%s", token, farDomain(r.IntN(farDomains)))
	default:
		m.sender = fmt.Sprintf("u%d@%s", r.IntN(6), hereDomain)
	}
	count := 1
	if chance(r, 0.3) {
		count += r.IntN(6)
	}
	seen := map[string]bool{}
	for range count {
		to := a.recipient(r)
		if !seen[to] {
			seen[to] = true
			m.rcpts = append(m.rcpts, &rcpt{addr: to})
		}
	}
	goals := map[string]*goal{}
	for _, x := range m.rcpts {
		for _, addr := range destinations(x.addr) {
			g := goals[addr]
			if g == nil {
				g = &goal{addr: addr, direct: true}
				goals[addr] = g
			}
			g.direct = g.direct && addr == x.addr
			x.goals = append(x.goals, g)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mails[token] = m
	a.order = append(a.order, m)
	return m
}

func (a *account) recipient(r *rand.Rand) string {
	switch n := r.IntN(20); {
	case n < 9:
		return fmt.Sprintf("u%d@%s", r.IntN(localUsers), hereDomain)
	case n == 9:
		return "nobody@" + hereDomain
	case n == 10:
		return "box@nowhere.example"
	case n == 11:
		return "x@" + farDomain(r.IntN(farDomains))
	}
	return fmt.Sprintf("b%d@%s", r.IntN(50), farDomain(r.IntN(farDomains)))
}

// destinations follows forwards to mailboxes.
func destinations(addr string) (all []string) {
	name, domain, _ := strings.Cut(addr, "@")
	lines := forwards(name)
	if domain != hereDomain || lines == nil {
		return []string{addr}
	}
	for _, line := range lines {
		if to, ok := strings.CutPrefix(line, "&"); ok {
			all = append(all, destinations(to)...)
		} else {
			all = append(all, addr)
		}
	}
	return all
}

func (m *mail) set(s state) { m.state, m.since = s, time.Now() }

// text is the message as it was sent; the end of it is what must arrive.
func (m *mail) text() string { return "X-Sim: " + m.token + "\n" + m.body() }

func (m *mail) body() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: %s\n\n", m.token)
	line := fmt.Sprintf("%s of %s, to be read by all\n", m.token, m.sender)
	for b.Len() < m.size {
		b.WriteString(line)
	}
	return b.String() + "end\n"
}

// taken notes what a far server took; what it returns is to be called when the machine has been told.
func (a *account) taken(began time.Time, from string, to []string, text string) (told func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &arrival{began: began, at: time.Now(), text: text}
	if text == "" {
		return func() {} // who babbles where a recipient was to be answered gets an empty message (RFC 2920 3.1)
	}
	for _, r := range to {
		a.arrive(from, r, v)
	}
	v.text = ""
	return func() { v.known = time.Now() }
}

// arrive files an arrival under what it tells.
func (a *account) arrive(from, to string, v *arrival) {
	if (from == "" || from == "#@[]") && strings.Contains(v.text[:min(len(v.text), 4000)], "Content-Type: multipart/report") {
		a.notice(to, v)
		return
	}
	token := field(v.text, "X-Sim: ")
	m := a.mails[token]
	if m == nil {
		a.sim.fail("%s got a message from nowhere: %.300q", to, v.text)
		return
	}
	if !strings.HasSuffix(v.text, "\nX-Sim: "+token+"\n"+m.body()) {
		a.sim.fail("%s: %s got other bytes than were sent", token, to)
	}
	for _, g := range m.goals() {
		if g.addr == to {
			g.got = append(g.got, v)
			return
		}
	}
	a.sim.fail("%s was not sent to %s", token, to)
}

// field is the first of its name.
func field(text, name string) string {
	_, rest, ok := strings.Cut(text, "\n"+name)
	if !ok {
		rest, ok = strings.CutPrefix(text, name)
	}
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

// notice reads who is told what. A notice of a notice that could not be delivered, which the postmaster gets, tells of the
// innermost.
func (a *account) notice(to string, v *arrival) {
	token := field(v.text, "X-Sim: ")
	m := a.mails[token]
	if m == nil {
		a.sim.fail("%s got a notice of nothing: %.3000q", to, v.text)
		return
	}
	if to != m.sender && to != "postmaster@"+hereDomain {
		a.sim.fail("%s: the notice for %s went to %s", token, m.sender, to)
	}
	v.id = field(v.text, "Message-ID: ")
	failed := map[string]bool{}
	for rest := v.text; ; {
		var ok bool
		if _, rest, ok = strings.Cut(rest, "\nFinal-Recipient: rfc822; "); !ok {
			break
		}
		addr, _, _ := strings.Cut(rest, "\n")
		failed[addr] = true
	}
	found := false
	for addr := range failed {
		for _, to := range destinations(addr) {
			for _, g := range m.goals() {
				if g.addr == to {
					g.notices = append(g.notices, v)
					found = true
				}
			}
		}
	}
	if !found {
		a.sim.fail("%s: a notice tells of %v", token, slices.Collect(maps.Keys(failed)))
	}
}

// linked notes a delivery to a maildir. What is in it is read at the end.
func (a *account) linked(user, name string, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.arrivals[user+"/"+name] = &arrival{began: at, at: at, known: at, file: name, user: user}
}

// collect reads the maildirs.
func (a *account) collect(boxes map[string]*disk.Memory) {
	for _, path := range sorted(boxes) {
		parts := strings.Split(path, "/")
		user := parts[len(parts)-2]
		names, err := boxes[path].ReadDir("new")
		if err != nil {
			a.sim.fail("%s: %v", path, err)
		}
		for _, name := range names {
			text, err := contents(boxes[path], "new/"+name)
			if err != nil {
				a.sim.fail("%s: %v", path, err)
				continue
			}
			v := a.arrivals[user+"/new/"+name]
			if v == nil {
				a.sim.fail("%s/%s came from nowhere", path, name)
				continue
			}
			a.file(user, v, text)
		}
	}
}

func (a *account) file(user string, v *arrival, text string) {
	first, rest, _ := strings.Cut(text, "\n")
	second, rest, _ := strings.Cut(rest, "\n")
	from, ok := strings.CutPrefix(first, "Return-Path: <")
	if !ok || second != "Delivered-To: "+user+"@"+hereDomain {
		a.sim.fail("%s got a message that begins with %q, %q", user, first, second)
		return
	}
	v.text = rest
	a.arrive(strings.TrimSuffix(from, ">"), user+"@"+hereDomain, v)
	v.text = ""
}

func contents(d *disk.Memory, name string) (string, error) {
	f, err := d.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return "", err
	}
	return string(b), nil
}

// judge compares what was promised with what happened.
func (a *account) judge() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.order {
		a.judgeMail(m)
	}
}

func (a *account) judgeMail(m *mail) {
	some, none := false, false
	for _, g := range m.goals() {
		wanted, reached := m.wanted(g), len(g.got)+len(g.notices)
		none = none || reached < wanted
		some = some || reached > 0
		if wanted == 0 && reached > 0 {
			a.sim.fail("%s: %s was refused and got it", m.token, g.addr)
		}
		a.judgeGoal(m, g, wanted)
		a.counts.goals += wanted
	}
	switch m.state {
	case accepted:
		a.counts.accepted++
		if none {
			a.lost(m)
		}
	case refused:
		a.counts.refused++
		if some {
			a.sim.fail("%s was refused at %v and arrived: %s", m.token, m.since, a.tell(m))
		}
	default:
		a.counts.unknown++
		if some && none {
			a.sim.fail("%s: some of its recipients have it, others not: %s", m.token, a.tell(m))
		}
	}
}

func (a *account) lost(m *mail) {
	a.sim.fail("%s, accepted at %v, is lost: %s", m.token, m.since, a.tell(m))
}

// tell says what became of a message.
func (a *account) tell(m *mail) string {
	var b strings.Builder
	fmt.Fprintf(&b, "from <%s>", m.sender)
	for _, r := range m.rcpts {
		fmt.Fprintf(&b, "; %s (taken %v)", r.addr, r.taken)
		for _, g := range r.goals {
			fmt.Fprintf(&b, " -> %s:", g.addr)
			for _, v := range g.got {
				fmt.Fprintf(&b, " got at %v %v", v.at, v.file)
			}
			for _, v := range g.notices {
				fmt.Fprintf(&b, " notice at %v %s", v.at, v.id)
			}
		}
	}
	return b.String()
}

// judgeGoal looks for a reason why somebody got more than was sent.
func (a *account) judgeGoal(m *mail, g *goal, wanted int) {
	if len(g.got) > 0 {
		a.counts.delivered++
	}
	if len(g.notices) > 0 {
		a.counts.bounced++
	}
	all := slices.Concat(g.got, g.notices)
	slices.SortStableFunc(all, func(x, y *arrival) int { return x.at.Compare(y.at) })
	for i := max(wanted, 1); i < len(all); i++ {
		a.counts.twice++
		again := all[i]
		if !slices.ContainsFunc(all[:i], func(before *arrival) bool { return a.excused(m, g, before, again) }) {
			a.sim.fail("%s: %s got it again at %v for no reason: %s", m.token, g.addr, again.at, a.tell(m))
		}
	}
}

// excused tells whether the machine could not know of the first arrival when it caused the second, or forgot it when
// something happened to it. What is forwarded may be forwarded twice, whenever it arrives in the end.
func (a *account) excused(m *mail, g *goal, first, second *arrival) bool {
	if first.known.IsZero() {
		return true
	}
	memory := 5*time.Second + 5*a.sim.plan.syncTime // a close is durable after a second
	from, to := first.began.Add(-memory), first.known.Add(memory)
	if second.began.Before(first.began) {
		from = second.began.Add(-memory)
	}
	if !g.direct {
		from = m.since.Add(-memory)
	}
	return slices.ContainsFunc(a.troubles, func(t trouble) bool { return !t.to.Before(from) && !t.from.After(to) })
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
