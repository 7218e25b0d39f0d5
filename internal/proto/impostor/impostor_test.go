package impostor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/lookup"
	"qmail/internal/proto/resolve"
	"qmail/internal/store/users"
	"qmail/internal/system/dns"
	"qmail/internal/system/ipc"
)

// patience is how long anything may take before it counts as stuck.
const patience = 20 * time.Second

// end is one end of a channel, and what its twin on the other side knows.
type end struct {
	name    string
	kinds   string   // of all frames of the protocol, in both directions
	samples []string // payloads that make sense
	// serve plays the end over conn and returns once it is over. stop ends what the end itself waits for.
	serve func(t *testing.T, conn *ipc.Conn, stop <-chan struct{})
}

func ends() []end {
	envelopes := []string{"Fs@x.example\x00Tu@x.example\x00", "F\x00Ta@b\x00Tc@d\x00", "Fs@x\x00", "u0\x00Fs@x\x00Ta@b\x00", "body\n", "a@b", ""}
	job := []string{"b1\x00Fs@x\x00Ta@b\x00", "v\x00D-\x00Ea\x00Fs@x\x00Ta@b\x00", "b1\x00Hx\x00Fs@x\x00Ta@b\x00Tc@d\x00", "xb0\x00Fs@x\x00Ta@b\x00", "s", "f", "o0\x00l10\x00", "o0\x00l9999999999999\x00", "o-1\x00l5\x00",
		"i0\x00Kyes\x00", "i1\x00Dno\x00", "i0\x00Kyes\x00i0\x00Kyes\x00", "i99\x00Zlater\x00", "i1\x00Kyes\x00w\x00", ""}
	account := []string{"Ualice\x00u1000\x00g1000\x00h/home/alice\x00d\x00e\x00", "Uroot\x00u0\x00g0\x00h/\x00d-\x00e\x00", "lalice\x00", "l\x00", "l../../x\x00", "Sorry, no.\n", "lalice\x00fassign\x00n1\x00t=alice\x00"}
	names := []string{"\x00\x01x.example", "\x00\x0fx.example", "\x00\x63x.example", "\x00\x01X\n.example", "\x01\x00\x00\x00\x00\x3c\x00\x04\x7f\x00\x00\x01", "\x03\x01\x00\x00\x00\x00", "trouble"}
	return []end{
		{"qmail-send, for an injector or a server", "EBDXVR", envelopes, playDoor},
		{"a server, for qmail-send", "EBDXVR", append(envelopes, "K1", "Kx", "Zno (#4.3.0)", "Dno (#5.3.0)"), playInjector},
		{"qmail-send, for qmail-rspawn and qmail-local", "BbFJQREA", job, playGiver},
		{"qmail-rspawn and qmail-local, for qmail-send", "BbFJQREA", job, playWorker},
		{"qmail-lspawn, for qmail-send", "LPWKZD", account, playSpawner},
		{"qmail-send, for qmail-lspawn", "LPWKZD", account, playSeeker},
		{"qmail-resolve, for who asks", "QAZ", names, playResolver},
		{"who asks, for qmail-resolve", "QAZ", names, playAsker},
	}
}

func number(name string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return otherwise
}

// TestEachEndSurvivesItsImpostor sends frames of all sorts, connection after connection. Each connection ends in time, what the
// ends promise holds (see the play functions), and no descriptor is left.
func TestEachEndSurvivesItsImpostor(t *testing.T) {
	total, seed := int(number("IMPOSTOR", 10_000)), number("IMPOSTORSEED", 1)
	for _, e := range ends() {
		t.Run(e.name, func(t *testing.T) {
			before := descriptors(t)
			r := rand.New(rand.NewPCG(seed, seed))
			sent, connections := 0, 0
			for sent < total && !t.Failed() {
				sent += attack(t, e, r, min(total-sent, 1+r.IntN(200)))
				connections++
			}
			if connections < total/200 {
				t.Errorf("%d connections", connections)
			}
			for end := time.Now().Add(patience); descriptors(t) > before; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d descriptors, and %d before: %v", descriptors(t), before, openFiles())
				}
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("cannot count descriptors: ", err)
	}
	return len(list)
}

// attack is one connection of an impostor. It returns how many frames were sent.
func attack(t *testing.T, e end, r *rand.Rand, frames int) (sent int) {
	twin, conn := channel(t)
	defer twin.Close()
	stop, over := make(chan struct{}), make(chan struct{})
	go func() { defer close(over); e.serve(t, conn, stop) }()
	heard := make(chan struct{})
	go func() { defer close(heard); listen(twin) }()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Error(err)
	}
	defer file.Close()
	for ; sent < frames; sent++ {
		b, with := frame(e, r)
		twin.SetWriteDeadline(time.Now().Add(patience))
		var f *os.File
		if with {
			f = file
		}
		if err := twin.Write(b, f); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the end neither reads nor hangs up")
			}
			break // cut off, as it deserves
		}
	}
	twin.Close()
	close(stop)
	for _, c := range []chan struct{}{over, heard} {
		select {
		case <-c:
		case <-time.After(patience):
			t.Error("the end does not end")
			return sent
		}
	}
	return max(sent, 1)
}

// channel is a link whose one side is bytes.
func channel(t *testing.T) (ipc.Stream, *ipc.Conn) {
	t.Helper()
	a, b, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	c, err := net.FileConn(a)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := ipc.FromFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return ipc.Unix(c.(*net.UnixConn)), conn
}

// listen takes all that comes, so that nobody has to wait for the impostor to read.
func listen(s ipc.Stream) {
	b := make([]byte, 64<<10)
	for {
		_, files, err := s.Read(b)
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			return
		}
	}
}

// frame makes the next thing to send: mostly a frame of the protocol whose payload makes sense, or nearly so.
func frame(e end, r *rand.Rand) (b []byte, file bool) {
	payload := []byte(e.samples[r.IntN(len(e.samples))])
	switch r.IntN(20) {
	case 0: // any bytes
		payload = make([]byte, r.IntN(300))
		for i := range payload {
			payload[i] = byte(r.Uint32())
		}
	case 1, 2, 3: // a byte is another
		if len(payload) > 0 {
			payload[r.IntN(len(payload))] = byte(r.Uint32())
		}
	case 4: // cut
		payload = payload[:r.IntN(len(payload)+1)]
	case 5: // doubled
		payload = bytes.Repeat(payload, 2)
	case 6: // long
		if r.IntN(20) == 0 {
			payload = bytes.Repeat(append(payload, 'x'), 1+r.IntN(100_000)/(len(payload)+1))
		}
	}
	kind := e.kinds[r.IntN(len(e.kinds))]
	if r.IntN(50) == 0 {
		kind = byte(r.Uint32())
	}
	stream := r.Uint32N(6)
	if r.IntN(20) == 0 {
		stream = r.Uint32()
	}
	size, flags := uint32(len(payload)), byte(0)
	switch r.IntN(300) {
	case 0:
		size = r.Uint32()
	case 1:
		size++
	case 2:
		flags = byte(r.Uint32())
	case 3:
		file = true // that nothing announces
	case 4:
		flags = 1 // and nothing comes
	case 5, 6, 7:
		flags, file = 1, true
	}
	if kind == 'b' && r.IntN(2) == 0 {
		flags, file = 1, true
	}
	b = append(binary.BigEndian.AppendUint32(nil, size), kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...), file
}

// queue is a queue behind the door, which notes what it is told.
type queue struct {
	t      *testing.T
	ids    atomic.Uint64
	spools atomic.Int64
}

func (q *queue) NewID() uint64                   { return q.ids.Add(1) }
func (q *queue) Now() time.Time                  { return time.Unix(1, 0) }
func (q *queue) Verify(_ string, f func(error))  { f(nil) }
func (q *queue) Spool() (enqueue.Spool, error)   { q.spools.Add(1); return &spool{q: q}, nil }
func (s *spool) Write(p []byte) (n int, e error) { return len(p), nil }

type spool struct {
	q      *queue
	closed bool
}

func (s *spool) Close() error {
	if !s.closed {
		s.closed = true
		s.q.spools.Add(-1)
	}
	return nil
}

// uid is whom the kernel says that an injector is.
const uid = 4242

// Accept checks that a message is the injector's own, and whole.
func (q *queue) Accept(m *enqueue.Arrival, done func(error)) {
	if m.Envelope.UID != uid || m.ID == 0 || m.Envelope.QP != 77 {
		q.t.Errorf("a message of somebody else: %+v", m.Envelope)
	}
	if err := m.Envelope.Check(); err != nil {
		q.t.Errorf("an envelope that cannot be: %v", err)
	}
	if m.Spool == nil && !bytes.HasPrefix(m.Body, []byte("Received: (qmail 77 invoked by uid 4242); ")) {
		q.t.Errorf("a message that does not say whose it is: %.80q", m.Body)
	}
	if m.Spool != nil {
		m.Spool.Close()
	}
	done(nil)
}

func playDoor(t *testing.T, conn *ipc.Conn, _ <-chan struct{}) {
	q := &queue{t: t}
	enqueue.Serve(conn, enqueue.Peer{UID: uid, PID: 77, How: enqueue.ByUID(uid), MaxRecipients: 100}, q)
	if n := q.spools.Load(); n != 0 {
		t.Errorf("%d spool files are left", n)
	}
}

// playInjector asks and submits all the time: whatever it hears is an acceptance or a refusal.
func playInjector(t *testing.T, conn *ipc.Conn, _ <-chan struct{}) {
	c := enqueue.NewClient(conn)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				_, err := c.Submit(ctx, &envelope.Envelope{Sender: "s@x", Recipients: []string{"a@b"}}, []byte("x\n"))
				if e, ok := errors.AsType[*reply.Error](err); err != nil && (!ok || e.Code < 400 || e.Code > 599) {
					t.Errorf("an error that is no refusal: %v", err)
				}
				select {
				case <-c.Done():
					return
				default:
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Error("it was let wait")
	}
}

// giver is qmail-send, which gave out jobs and believes only what can be true of them.
type giver struct {
	t    *testing.T
	mu   sync.Mutex
	open map[uint32][]bool // jobs and which recipients were reported
	gone chan struct{}
}

func (g *giver) Results(job uint32, results []jobs.Result, over bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	told, ok := g.open[job]
	if !ok {
		g.t.Errorf("results of job %d, which is not under way", job)
		return
	}
	for _, r := range results {
		if r.Recipient < 0 || r.Recipient >= len(told) || told[r.Recipient] {
			g.t.Errorf("recipient %d of job %d, of %v", r.Recipient, job, told)
			return
		}
		told[r.Recipient] = true
		if !strings.Contains("KZD", r.Text[:1]) || len(r.Text) > jobs.MaxText || strings.ContainsRune(r.Text, 0) {
			g.t.Errorf("report %.100q", r.Text)
		}
	}
	if over {
		delete(g.open, job)
	}
}

func (g *giver) Gone(left []uint32, _ error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, job := range left {
		if _, ok := g.open[job]; !ok {
			g.t.Errorf("job %d is said to be left", job)
		}
		delete(g.open, job)
	}
	if len(g.open) != 0 {
		g.t.Errorf("jobs nobody knows of: %v", g.open)
	}
	close(g.gone)
}

func playGiver(t *testing.T, conn *ipc.Conn, stop <-chan struct{}) {
	g := &giver{t: t, open: map[uint32][]bool{}, gone: make(chan struct{})}
	for job := range uint32(5) { // before anybody listens, so that what is true does not depend on time
		g.open[job] = make([]bool, 1+job)
	}
	started := make(chan struct{})
	c := jobs.NewClient(conn, &late{g, started})
	defer c.Close()
	c.Load(1, []byte("x\n"))
	for job := range uint32(5) {
		recipients := make([]string, 1+job)
		for i := range recipients {
			recipients[i] = "a@b"
		}
		if c.Start(job, &jobs.Job{Body: 1, Sender: "s@x", Recipients: recipients}) != nil {
			g.mu.Lock()
			delete(g.open, job)
			g.mu.Unlock()
		}
	}
	close(started)
	c.Ask(&jobs.Question{Slow: true}, func([]byte, error) {})
	select {
	case <-g.gone:
	case <-stop:
		<-g.gone
	}
}

// late lets a giver hear only when all jobs are out.
type late struct {
	*giver
	started chan struct{}
}

func (l *late) Results(job uint32, results []jobs.Result, over bool) {
	<-l.started
	l.giver.Results(job, results, over)
}

func (l *late) Gone(left []uint32, err error) { <-l.started; l.giver.Gone(left, err) }

func playWorker(t *testing.T, conn *ipc.Conn, _ <-chan struct{}) {
	jobs.ServeAsked(context.Background(), conn, func(_ context.Context, j *jobs.Job, body *jobs.Body, report jobs.Report) []jobs.Result {
		if len(j.Recipients) == 0 || len(j.Recipients) > jobs.MaxRecipients {
			t.Errorf("%d recipients", len(j.Recipients))
		}
		if !j.Verify { // a file may be shorter than was said, and unreadable; that is an error, and not a message
			if n, err := io.Copy(io.Discard, io.LimitReader(body.Reader(), 1<<20)); err == nil && n > body.Size() {
				t.Errorf("%d bytes of a message of %d", n, body.Size())
			}
		}
		return []jobs.Result{{Recipient: 0, Text: "Kyes"}}
	}, func(context.Context, *jobs.Question) []byte { return []byte("x") })
}

func playSpawner(t *testing.T, conn *ipc.Conn, _ <-chan struct{}) {
	lookup.Serve(context.Background(), conn, func(_ context.Context, local string, pipe bool) (users.Account, *os.File, error) {
		if len(local) > envelope.MaxAddress || strings.ContainsRune(local, 0) {
			t.Errorf("asked for %.100q", local)
		}
		if !pipe {
			return users.Account{User: "alice", UID: 1000, GID: 1000, Home: "/home/alice"}, nil, nil
		}
		a, b, err := ipc.Pair()
		if err != nil {
			return users.Account{}, nil, err
		}
		b.Close()
		return users.Account{User: "alice", UID: 1000, GID: 1000, Home: "/home/alice"}, a, nil
	})
}

// playSeeker asks all the time: what it hears is an account that can be, with a pipe if it asked for one, or a refusal.
func playSeeker(t *testing.T, conn *ipc.Conn, _ <-chan struct{}) {
	c := lookup.NewClient(conn)
	defer c.Close()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
				var err error
				var pipe *ipc.Conn
				if i%2 == 0 {
					_, err = c.Find(ctx, "alice")
				} else {
					_, pipe, err = c.Pipe(ctx, "alice")
				}
				cancel()
				if pipe != nil {
					pipe.Close()
				} else if err == nil && i%2 == 1 {
					t.Error("neither a pipe nor an error")
				}
				if _, ok := errors.AsType[*lookup.Refusal](err); err != nil && !ok {
					t.Errorf("an error that is no refusal: %v", err)
				}
				select {
				case <-c.Done():
					return
				default:
				}
			}
		})
	}
	wg.Wait()
}

func playResolver(t *testing.T, conn *ipc.Conn, _ <-chan struct{}) {
	resolve.Serve(context.Background(), conn, func(_ context.Context, name string, _ dns.Type) (dns.Answer, error) {
		if ascii, ok := dns.ASCII(name); !ok || ascii != name {
			t.Errorf("asked for %q", name)
		}
		return dns.Answer{Status: dns.NoName, Expires: time.Unix(2, 0)}, nil
	}, func() time.Time { return time.Unix(1, 0) })
}

// playAsker asks all the time: what it hears has a status and clean names, or is an error.
func playAsker(t *testing.T, conn *ipc.Conn, stop <-chan struct{}) {
	l := &resolve.Link{Now: time.Now}
	l.Connect(conn)
	defer l.Connect(nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-stop; cancel() }()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				a, err := l.Ask(ctx, "x.example", dns.TypeA)
				if err == nil && (a.Status < dns.Found || a.Status > dns.NoName || len(a.Addrs) > dns.MaxRecords) {
					t.Errorf("%+v", a)
				}
			}
		})
	}
	wg.Wait()
}

// openFiles says what the descriptors are.
func openFiles() (list []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		list = append(list, to)
	}
	return list
}
