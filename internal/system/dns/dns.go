// Package dns asks the configured resolvers and remembers what they said.
//
// It is a stub (RFC 1034 5.3.1): recursion, CNAME chains and DNSSEC validation are the resolver's work. A
// question goes by UDP with EDNS (RFC 6891), each from a port and with an id of its own, and by TCP where
// the answer is cut; the servers are tried in turn. What comes back must repeat the question, parse to its
// last record, and is cut to fixed numbers of records. An Answer says found, no data or no such name; an
// error always means "later": no server gave a usable answer in time. Answers are cached by their TTL, absence by
// the SOA (RFC 2308), failures not at all; equal questions that meet share one flight.
//
// New asks the network. Over asks somebody else who does, such as qmail-resolve at the end of a link (proto/resolve),
// and is otherwise the same.
package dns

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Type is a record type's number.
type Type uint16

// The types that are understood; others are refused.
const (
	TypeA    Type = 1
	TypePTR  Type = 12
	TypeMX   Type = 15
	TypeTXT  Type = 16
	TypeAAAA Type = 28
	TypeTLSA Type = 52
)

// Status is what the resolver knows of a question. It is never a guess: whoever could not say gave an error.
type Status byte

const (
	Found  Status = iota + 1
	NoData        // the name exists without such records
	NoName        // NXDOMAIN, or a name that cannot exist
)

func (s Status) String() string {
	return [...]string{"", "found", "no data", "no such name"}[s&3]
}

// MX is a mail exchanger. Host is a checked, lower-case name; it is empty for "." (RFC 7505) and where Bad.
type MX struct {
	Preference uint16
	Host       string
	Bad        bool // the name cannot be a host's; no such host exists
}

// TLSA is a record of RFC 6698.
type TLSA struct {
	Usage, Selector, Matching byte
	Data                      []byte
}

// Answer is what is known about one question. Callers share it with the cache and must not change it.
type Answer struct {
	Status  Status
	Secure  bool         // the AD bit, from a resolver that may be believed
	MX      []MX         // by rising preference
	Addrs   []netip.Addr // of A or AAAA
	Texts   []string     // TXT, each with its strings joined
	Names   []string     // PTR
	TLSA    []TLSA
	Expires time.Time // when the cache forgets it
}

// Config is what a Resolver needs. The zero value of each field but Servers has a meaning.
type Config struct {
	Servers  []string      // "host:port" of resolvers, tried in this order
	Timeout  time.Duration // for one server's answer; 0 means 5 s
	Attempts int           // rounds over the servers; 0 means 2
	TrustAD  bool          // believe the AD bit of servers that are not on this machine, too
	Flights  int           // questions under way at once; 0 means Flights
	Now      func() time.Time
}

const (
	// Flights is how many questions a Resolver has under way at once unless told otherwise; others wait.
	Flights = 256
	// AskTime is how long one question may take, whatever the number of servers: who asked has other things to do.
	AskTime = 40 * time.Second
	// MaxRecords is how many records of an answer are kept.
	MaxRecords = 100
	// MaxTTL is how long an answer is remembered at most.
	MaxTTL = 6 * time.Hour

	defaultTimeout  = 5 * time.Second
	defaultAttempts = 2
	maxServers      = 8
	maxWaiting      = 4096
	// overBytes and overTTL bound what is remembered of the answers of somebody who remembers them himself: they
	// spare the way there, and are forgotten soon enough when he is told to ask others.
	overBytes = 1 << 20
	overTTL   = 30 * time.Second
)

// Source is where answers come from that are not remembered. Names are as ASCII gives them. An error is temporary.
type Source interface {
	Ask(ctx context.Context, name string, kind Type) (Answer, error)
}

// Resolver asks and remembers. It is safe for concurrent use.
type Resolver struct {
	source  Source
	network *network // the same, unless it is somebody else's
	now     func() time.Time
	cache   cache

	ctx     context.Context // of all flights
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	room    chan struct{} // one token for each flight under way
	mu      sync.Mutex
	flights map[question]*flight
	closed  bool
}

// question is the key of flights and cache; the name is checked and lower-case.
type question struct {
	name string
	kind Type
}

// flight is one question under way, and later its answer.
type flight struct {
	done   chan struct{}
	answer Answer
	err    error
}

// New makes a resolver that asks the network. Close ends it.
func New(c Config) *Resolver {
	n := newNetwork(c.Now)
	r := start(n, n.now, c.Flights)
	r.cache.limit, r.cache.longest = cacheBytes, MaxTTL
	r.network = n
	r.Configure(c)
	return r
}

// Over makes a resolver that asks s, who remembers for long; this one remembers little and not for long. Close ends it.
func Over(s Source, now func() time.Time) *Resolver {
	r := start(s, now, Flights)
	r.cache.limit, r.cache.longest = overBytes, overTTL
	return r
}

func start(s Source, now func() time.Time, flights int) *Resolver {
	if flights <= 0 {
		flights = Flights
	}
	r := &Resolver{source: s, now: now, flights: map[question]*flight{}, room: make(chan struct{}, flights)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Configure changes whom the questions to come are put to; the clock and the number of flights stay. Other servers
// may know other things, so what was remembered is forgotten.
func (r *Resolver) Configure(c Config) {
	if r.network == nil {
		return
	}
	old := r.network.configure(c)
	if old != nil && (!slices.Equal(old.Servers, c.Servers) || old.TrustAD != c.TrustAD) {
		r.cache.clear()
	}
}

// Forget forgets what is remembered: whoever remembers it for us may have been told to ask others.
func (r *Resolver) Forget() { r.cache.clear() }

// Close gives up all questions under way and waits for their goroutines.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

// Lookup answers a question from memory, or asks. The error, if any, is temporary.
func (r *Resolver) Lookup(ctx context.Context, name string, kind Type) (Answer, error) {
	f, a, err := r.begin(name, kind)
	if f == nil {
		return a, err
	}
	select {
	case <-f.done:
		return f.answer, f.err
	case <-ctx.Done():
		return Answer{}, &Error{name, kind, context.Cause(ctx)}
	}
}

// Prefetch starts to ask what a Lookup will soon want, and does not wait.
func (r *Resolver) Prefetch(name string, kind Type) { r.begin(name, kind) }

// begin returns the answer if it is known, else the flight that will have it.
func (r *Resolver) begin(name string, kind Type) (*flight, Answer, error) {
	ascii, ok := ASCII(name)
	if !ok {
		return nil, Answer{Status: NoName}, nil
	}
	if !understood(kind) {
		return nil, Answer{}, &Error{ascii, kind, errType}
	}
	q := question{ascii, kind}
	if a, ok := r.cache.get(q, r.now()); ok {
		return nil, a, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.flights[q]; f != nil {
		return f, Answer{}, nil
	}
	if r.closed || len(r.flights) >= maxWaiting {
		return nil, Answer{}, &Error{ascii, kind, errBusy}
	}
	f := &flight{done: make(chan struct{})}
	r.flights[q] = f
	r.wg.Go(func() { r.fly(q, f) })
	return f, Answer{}, nil
}

func (r *Resolver) fly(q question, f *flight) {
	f.err = &Error{q.name, q.kind, errBusy}
	defer func() {
		if f.err == nil {
			r.cache.put(q, f.answer, r.now())
		}
		r.mu.Lock()
		delete(r.flights, q)
		r.mu.Unlock()
		close(f.done)
	}()
	select {
	case r.room <- struct{}{}:
		defer func() { <-r.room }()
	case <-r.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, AskTime)
	defer cancel()
	a, err := r.source.Ask(ctx, q.name, q.kind)
	if err != nil {
		f.err = &Error{q.name, q.kind, err}
		return
	}
	f.answer, f.err = a, nil
}
