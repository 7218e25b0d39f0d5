package send

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/jobs"
	"qmail/internal/proto/lookup"
	"qmail/internal/store/ledger"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/store/users"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// house is a qmail-send with everything around it played by the test.
type house struct {
	t      *testing.T
	home   string
	store  *failingStore
	server *Server
	orders chan env.Order
	ended  chan error
	cancel context.CancelFunc
	client *enqueue.Client
	log    *lines
	now    func() time.Time
	takes  string // the domain whose server takes over wishes for notices

	mu        sync.Mutex
	deliver   func(recipient string, attempt int) string // what workers report
	attempts  map[string]int
	delivered []delivered
	accounts  map[string]users.Account
}

type delivered struct {
	channel, sender, recipient, dash, ext, body string
}

// lines is a log that can be waited on.
type lines struct {
	mu      sync.Mutex
	changed sync.Cond
	text    bytes.Buffer
}

func newLines() *lines { l := &lines{}; l.changed.L = &l.mu; return l }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.changed.Broadcast()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until a line that contains text has been written n times.
func (l *lines) await(t *testing.T, text string, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	stop := time.AfterFunc(20*time.Second, func() { l.mu.Lock(); l.changed.Broadcast(); l.mu.Unlock() })
	defer stop.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for strings.Count(l.text.String(), text) < n {
		if time.Now().After(deadline) {
			t.Fatalf("%q did not come %d times:\n%s", text, n, l.text.String())
		}
		l.changed.Wait()
	}
}

var controls = map[string]string{
	"me": "mx.test.example\n", "locals": "test.example\n", "virtualdomains": "virt.example:alice-virt\n",
}

func newHouse(t *testing.T, files map[string]string) *house {
	t.Helper()
	h := &house{t: t, home: t.TempDir(), attempts: map[string]int{}, accounts: map[string]users.Account{}, now: time.Now}
	for _, dir := range []string{"control", "queue/drop"} {
		if err := os.MkdirAll(filepath.Join(h.home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, set := range []map[string]string{controls, files} {
		for name, text := range set {
			if err := os.WriteFile(filepath.Join(h.home, "control", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.deliver = func(string, int) string { return "Kaccepted\n" }
	h.accounts["alice"] = users.Account{User: "alice", UID: 1001, GID: 1001, Home: "/home/alice"}
	return h
}

// start opens the queue and runs qmail-send over it; end stops it in an orderly way.
func (h *house) start() {
	t := h.t
	t.Helper()
	store, err := openJournal(h.home, journal.Options{SegmentSize: 1 << 20}, &ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := ReadConfig(h.home)
	if err != nil {
		t.Fatal(err)
	}
	h.store, h.orders, h.ended, h.log = &failingStore{Store: store}, make(chan env.Order), make(chan error, 1), newLines()
	h.server = &Server{
		Home: h.home, Store: h.store, Config: config, Now: h.now, Orders: h.orders, Out: h.log,
		Log: slog.New(slog.NewTextHandler(h.log, nil)), Ready: func() error { return nil },
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	go func() { h.ended <- h.server.Run(ctx) }()
	h.link("lspawn", func(c *ipc.Conn) { lookup.Serve(ctx, c, h.find) })
	h.link("rspawn", func(c *ipc.Conn) { jobs.Serve(ctx, c, h.worker("remote")) })
	a, b := h.pair()
	h.orders <- env.Order{Kind: env.Link, Name: "smtpd", Link: a}
	h.client = enqueue.NewClient(b)
	t.Cleanup(func() { cancel() })
}

func (h *house) pair() (a, b *ipc.Conn) {
	a, b, err := ipc.LocalPair()
	if err != nil {
		h.t.Fatal(err)
	}
	return a, b
}

func (h *house) link(name string, serve func(*ipc.Conn)) {
	a, b := h.pair()
	go serve(b)
	h.orders <- env.Order{Kind: env.Link, Name: name, Link: a}
}

func (h *house) end() {
	h.t.Helper()
	close(h.orders)
	if err := <-h.ended; err != nil {
		h.t.Error(err)
	}
	h.client.Close()
	if err := h.store.Close(); err != nil {
		h.t.Error(err)
	}
}

// find plays qmail-lspawn.
func (h *house) find(ctx context.Context, local string, pipe bool) (users.Account, *os.File, error) {
	user, ext, dash := strings.Cut(local, "-")
	h.mu.Lock()
	account, ok := h.accounts[user]
	h.mu.Unlock()
	if !ok {
		return users.Account{}, nil, &lookup.Refusal{Report: "DSorry, no mailbox here by that name. (#5.1.1)\n"}
	}
	if dash {
		account.Dash, account.Ext = "-", ext
	}
	if !pipe {
		return account, nil, nil
	}
	a, b, err := ipc.Pair()
	if err != nil {
		return users.Account{}, nil, err
	}
	conn, err := ipc.FromFile(b)
	if err != nil {
		return users.Account{}, nil, err
	}
	go jobs.Serve(ctx, conn, h.worker("local"))
	return account, a, nil
}

// worker plays qmail-local and qmail-rspawn.
func (h *house) worker(channel string) jobs.Handler {
	return func(_ context.Context, j *jobs.Job, body *jobs.Body, _ jobs.Report) []jobs.Result {
		text, err := io.ReadAll(body.Reader())
		if err != nil {
			h.t.Error(err)
		}
		var results []jobs.Result
		for i, r := range j.Recipients {
			h.mu.Lock()
			if !j.Verify {
				h.attempts[r]++
			}
			report := h.deliver(r, h.attempts[r])
			if report[0] == 'K' && !j.Verify {
				h.delivered = append(h.delivered, delivered{channel, j.Sender, r, j.Dash, j.Ext, string(text)})
			}
			h.mu.Unlock()
			results = append(results, jobs.Result{Recipient: i, Text: report, PassedOn: h.takes != "" && strings.HasSuffix(r, "@"+h.takes)})
		}
		return results
	}
}

func (h *house) got() []delivered {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.delivered)
}

func (h *house) setDeliver(f func(string, int) string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deliver = f
}

func (h *house) submit(sender, body string, recipients ...string) uint64 {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, err := h.client.Submit(ctx, &envelope.Envelope{Sender: sender, Recipients: recipients}, []byte(body))
	if err != nil {
		h.t.Fatal(err)
	}
	return a.ID
}

// through waits until the queue has applied what was written before.
func (h *house) through() {
	h.t.Helper()
	through := make(chan error)
	h.store.Commit(queue.Batch{}, func(err error) { through <- err })
	if err := <-through; err != nil {
		h.t.Error(err)
	}
}

// empty checks that nothing is left in the queue.
func (h *house) empty() {
	h.t.Helper()
	h.through()
	h.store.Scan(func(e *queue.Entry) error {
		h.t.Errorf("left in the queue: %+v", e)
		return nil
	})
}

func TestAMessageGoesBothWays(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	h.submit("s@far.example", "Subject: hi\n\nhello\n", "alice-x@test.example", "box@virt.example", "r1@remote.example", "r2@Remote.example")
	h.log.await(t, "end msg", 1)
	got := h.got()
	slices.SortFunc(got, func(a, b delivered) int { return strings.Compare(a.recipient, b.recipient) })
	want := []delivered{
		{"local", "s@far.example", "alice-virt-box@virt.example", "-", "virt-box", ""},
		{"local", "s@far.example", "alice-x@test.example", "-", "x", ""},
		{"remote", "s@far.example", "r1@remote.example", "", "", ""},
		{"remote", "s@far.example", "r2@Remote.example", "", "", ""},
	}
	for i := range got {
		if !strings.HasPrefix(got[i].body, "Received: (qmail ") || !strings.HasSuffix(got[i].body, " -0000\nSubject: hi\n\nhello\n") {
			t.Errorf("%q", got[i].body)
		}
		got[i].body = ""
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	h.empty()
	h.end()
	if text := h.log.String(); !strings.HasSuffix(text, "status: exiting\n") {
		t.Errorf("the log ends in %q", text)
	}
}

func TestTheLogIsQmails(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(string, int) string { return "K127.0.0.1 accepted message.\nRemote host said: 250 ok\n" })
	h.start()
	id := h.submit("s@far.example", "x\n", "r@remote.example")
	h.log.await(t, "end msg", 1)
	h.end()
	size := len(h.got()[0].body)
	want := fmt.Sprintf(`status: local 0/10 remote 0/20
new msg %d
info msg %d: bytes %d from <s@far.example> qp %d uid %d
starting delivery 1: msg %d to remote r@remote.example
status: local 0/10 remote 1/20
delivery 1: success: 127.0.0.1_accepted_message./Remote_host_said:_250_ok/
status: local 0/10 remote 0/20
end msg %d
status: local 0/10 remote 0/20 exitasap
status: exiting
`, id, id, size, id, os.Getuid(), id, id)
	if got := h.log.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestPermanentFailuresBounceTogether(t *testing.T) {
	h := newHouse(t, map[string]string{"bounceformat": "qsbmf\n"})
	h.setDeliver(func(r string, attempt int) string {
		switch {
		case strings.HasPrefix(r, "bad"):
			return "Dno such box " + r + " (#5.1.1)\n"
		case strings.HasPrefix(r, "later") && attempt < 2:
			return "Ztry again (#4.3.0)\n"
		}
		return "Kok\n"
	})
	h.start()
	id := h.submit("alice@test.example", "Subject: hi\n\nhello\n", "bad1@remote.example", "later@other.example", "bad2@third.example")
	h.log.await(t, "deferral: try_again", 1)
	if strings.Contains(h.log.String(), "bounce msg") {
		t.Error("bounced before the last recipient was done")
	}
	h.orders <- env.Order{Kind: alarm}
	h.log.await(t, "end msg", 2)
	var bounce string
	for _, d := range h.got() {
		if d.recipient == "alice@test.example" && d.sender == "" {
			bounce = d.body
		}
	}
	for _, text := range []string{
		"invoked for bounce", "\nFrom: MAILER-DAEMON@mx.test.example\nTo: alice@test.example\nSubject: failure notice\n",
		"<bad1@remote.example>:\nno such box bad1@remote.example (#5.1.1)\n\n", "<bad2@third.example>:\n",
		"--- Below this line is a copy of the message.\n\nReturn-Path: <alice@test.example>\nReceived: (qmail ", "Subject: hi\n\nhello\n",
	} {
		if !strings.Contains(bounce, text) {
			t.Errorf("the bounce lacks %q:\n%s", text, bounce)
		}
	}
	if strings.Contains(bounce, "later@") {
		t.Error("a delivered recipient is in the bounce")
	}
	h.empty()
	if !strings.Contains(h.log.String(), fmt.Sprintf("bounce msg %d qp ", id)) {
		t.Error(h.log.String())
	}
	h.end()
}

func TestDoubleAndTripleBounce(t *testing.T) {
	h := newHouse(t, map[string]string{"doublebounceto": "dead\n", "doublebouncehost": "remote.example\n"})
	h.setDeliver(func(r string, _ int) string { return "Dnever (#5.0.0)\n" })
	h.start()
	h.submit("s@far.example", "x\n", "r@remote.example")
	h.log.await(t, "end msg", 3)
	h.empty()
	h.end()
	for _, text := range []string{"from <> qp", "to remote s@far.example", "from <#@[]> qp", "to remote dead@remote.example", "triple bounce: discarding bounce/"} {
		if strings.Count(h.log.String(), text) != 1 {
			t.Errorf("%q:\n%s", text, h.log.String())
		}
	}
}

func TestVERP(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	h.submit("list-@test.example-@[]", "x\n", "a@remote.example", "b@remote.example", "alice@test.example")
	h.log.await(t, "end msg", 1)
	var senders []string
	for _, d := range h.got() {
		senders = append(senders, d.sender)
	}
	slices.Sort(senders)
	if !slices.Equal(senders, []string{"list-a=remote.example@test.example", "list-alice=test.example@test.example", "list-b=remote.example@test.example"}) {
		t.Errorf("%q", senders)
	}
	h.end()
}

func TestExpiry(t *testing.T) {
	h := newHouse(t, map[string]string{"queuelifetime": "0\n", "doublebouncehost": "test.example\n", "doublebounceto": "alice\n"})
	h.setDeliver(func(r string, attempt int) string {
		if r == "r@remote.example" {
			return "Zbusy (#4.4.1)\n"
		}
		return "Kok\n"
	})
	h.start()
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // lifetime counts whole seconds
	h.submit("", "x\n", "r@remote.example")
	for i := 1; !strings.Contains(h.log.String(), "bounce msg"); i++ {
		h.log.await(t, "delivery ", 1)
		h.orders <- env.Order{Kind: alarm}
		if i > 400 {
			t.Fatal(h.log.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.log.await(t, "end msg", 2)
	if !strings.Contains(h.log.String(), "failure: busy_(#4.4.1)/I'm_not_going_to_try_again;_this_message_has_been_in_the_queue_too_long./") {
		t.Error(h.log.String())
	}
	h.end()
}

func TestALostWorkerLosesNothing(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	a, b := h.pair()
	h.orders <- env.Order{Kind: env.Link, Name: "rspawn", Link: a}
	go func() { // a worker that takes a job and dies
		for {
			f, err := b.Read()
			if err != nil || f.Kind == 'J' {
				b.Close()
				return
			}
		}
	}()
	h.submit("s@far.example", "x\n", "r@remote.example")
	h.log.await(t, "deferral: delivery_process_lost", 1)
	h.link("rspawn", func(c *ipc.Conn) { jobs.Serve(t.Context(), c, h.worker("remote")) })
	h.log.await(t, "end msg", 1)
	if n := len(h.got()); n != 1 {
		t.Errorf("delivered %d times", n)
	}
	h.empty()
	h.end()
}

func TestWhatIsLeftIsTriedAfterARestart(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(r string, _ int) string {
		if strings.HasPrefix(r, "later") {
			return "Znot now (#4.3.0)\n"
		}
		return "Kok\n"
	})
	h.start()
	h.submit("s@far.example", "x\n", "later@remote.example", "now@remote.example", "alice@test.example")
	h.log.await(t, "success", 2)
	h.log.await(t, "deferral", 1)
	h.end()
	h.setDeliver(func(string, int) string { return "Kok\n" })
	h.start()
	h.orders <- env.Order{Kind: alarm}
	h.log.await(t, "end msg", 1)
	seen := map[string]int{}
	for _, d := range h.got() {
		seen[d.recipient]++
	}
	if len(seen) != 3 || seen["later@remote.example"] != 1 || seen["now@remote.example"] != 1 || seen["alice@test.example"] != 1 {
		t.Errorf("%v", seen)
	}
	h.empty()
	h.end()
}

func TestVerify(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(r string, _ int) string {
		if strings.Contains(r, "-no@") {
			return "DSorry, no mailbox here by that name. (#5.1.1)\n"
		}
		return "K"
	})
	h.start()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tests := []struct {
		address, status string
	}{
		{"alice@test.example", ""}, {"alice-yes@test.example", ""}, {"alice-no@test.example", "5.1.1"},
		{"nouser@test.example", "5.1.1"}, {"x@virt.example", ""}, {"anybody@far.example", ""},
	}
	for range 2 { // the second time from memory
		for _, tt := range tests {
			err := h.client.Verify(ctx, tt.address)
			if e := reply.Of(err); (e == nil) != (tt.status == "") || e != nil && (e.Status != tt.status || e.Code < 500) {
				t.Errorf("%s: %v", tt.address, err)
			}
		}
	}
	if n := len(h.got()); n != 0 {
		t.Errorf("%d deliveries", n)
	}
	h.orders <- env.Order{Kind: env.Link, Name: "lspawn", Link: func() *ipc.Conn { a, b := h.pair(); b.Close(); return a }()}
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := h.client.Verify(ctx, fmt.Sprintf("other%d@test.example", time.Now().UnixNano()))
		if reply.Letter(err) == 'Z' {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("without a spawner: %v", err)
		}
	}
	h.end()
}

func TestDroppedMessagesAreTaken(t *testing.T) {
	h := newHouse(t, nil)
	drop := func(size int) {
		e := &envelope.Envelope{Sender: "s@far.example", Recipients: []string{"r@remote.example"}}
		if err := enqueue.Drop(h.home, e, strings.NewReader(strings.Repeat("x", size)+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	drop(10)
	drop(dropInMemory + 1000)
	if err := os.WriteFile(filepath.Join(h.home, "queue/drop/garbage"), []byte("not a message"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.log.await(t, "end msg", 2)
	for _, d := range h.got() {
		if line, _, _ := strings.Cut(d.body, "\n"); !strings.Contains(line, "invoked by ") && !strings.Contains(line, "invoked f") {
			t.Errorf("%.80q", d.body)
		}
	}
	h.log.await(t, "unable to take a dropped message", 1)
	if left, _ := enqueue.ListDropped(h.home); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	h.end()
}

func TestAFullDiskRefusesAndRecovers(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	h.store.fail(queue.ErrFull, func(queue.Batch) bool { return true })
	_, err := h.client.Submit(t.Context(), &envelope.Envelope{Recipients: []string{"r@remote.example"}}, []byte("x"))
	if e := reply.Of(err); e == nil || e.Code != 451 || e.Status != "4.3.0" {
		t.Errorf("%v", err)
	}
	h.store.fail(nil, nil)
	h.submit("s@far.example", "x", "r@remote.example")
	h.log.await(t, "end msg", 1)
	h.end()
}

// failingStore is a queue that can be made to refuse some batches.
type failingStore struct {
	queue.Store
	mu   sync.Mutex
	err  error
	when func(queue.Batch) bool
}

func (f *failingStore) fail(err error, when func(queue.Batch) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.when = err, when
}

func (f *failingStore) Commit(b queue.Batch, done func(error)) {
	f.mu.Lock()
	err := f.err
	if err != nil && !f.when(b) {
		err = nil
	}
	f.mu.Unlock()
	if err != nil {
		go done(err)
		return
	}
	f.Store.Commit(b, done)
}

func TestABounceThatCannotBeQueuedIsKept(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(func(r string, _ int) string {
		if r == "bad@remote.example" {
			return "Dno (#5.1.1)\n"
		}
		return "Kok\n"
	})
	h.start()
	h.store.fail(errors.New("disk on fire"), func(b queue.Batch) bool { return len(b.Closes) > 0 })
	h.submit("alice@test.example", "x\n", "bad@remote.example")
	h.log.await(t, "warning: trouble injecting bounce message, will try later", 1)
	h.store.fail(nil, nil)
	h.server.core.post(func() { // now, not in 123 seconds
		for i := range h.server.core.timers {
			h.server.core.timers[i].at = time.Now()
		}
	})
	h.log.await(t, "end msg", 2)
	if got := h.got(); len(got) != 1 || got[0].recipient != "alice@test.example" {
		t.Errorf("%+v", got)
	}
	h.empty()
	h.end()
}

func TestReloadKeepsWhatWorks(t *testing.T) {
	h := newHouse(t, nil)
	h.start()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(h.home, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("locals", "test.example\nnew.example\n")
	write("concurrencyremote", "7\n")
	h.orders <- env.Order{Kind: env.Reload}
	h.log.await(t, "status: local 0/10 remote 0/7\n", 1)
	h.submit("s@far.example", "x\n", "alice@new.example")
	h.log.await(t, "to local alice@new.example", 1)
	h.log.await(t, "end msg", 1)
	if err := os.Remove(filepath.Join(h.home, "control", "locals")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(h.home, "control", "locals"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.orders <- env.Order{Kind: env.Reload}
	h.log.await(t, "control/locals", 1)
	h.submit("s@far.example", "x\n", "alice@new.example")
	h.log.await(t, "to local alice@new.example", 2)
	h.log.await(t, "end msg", 2)
	h.end()
}
