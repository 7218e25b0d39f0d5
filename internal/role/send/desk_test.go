package send

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
	"qmail/internal/proto/enqueue"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// openDesk opens the admin socket and asks as whoever runs the test, who owns the queue.
func (h *house) openDesk() *admin.Client {
	h.t.Helper()
	ln, err := ipc.Listen(admin.SocketPath(h.home), 0o666)
	if err != nil {
		h.t.Fatal(err)
	}
	h.orders <- env.Order{Kind: env.Listen, Name: "admin", Listener: net.Listener(ln)}
	c, err := admin.Dial(h.home)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// written waits until what is on the log is in the journal, too.
func (h *house) written() {
	h.t.Helper()
	written := make(chan error, 1)
	h.store.Commit(queue.Batch{}, func(err error) { written <- err })
	if err := <-written; err != nil {
		h.t.Error(err)
	}
}

// as asks as somebody else. The desk must be open.
func (h *house) as(uid int) *admin.Client {
	a, b := h.pair()
	go h.server.desk.serve(context.Background(), a, admin.Peer{UID: uid})
	c := admin.NewClient(b)
	h.t.Cleanup(func() { c.Close() })
	return c
}

// listOf makes a list with recipients as lines.
func listOf(t *testing.T, c *admin.Client, f admin.Filter) (lines []string) {
	t.Helper()
	f.Recipients = true
	_, err := c.List(&f, func(m *admin.Message) error {
		lines = append(lines, fmt.Sprintf("%d <%s>", m.ID, m.Sender))
		return nil
	}, func(r *admin.Recipient) error {
		lines[len(lines)-1] += fmt.Sprintf(" %s:%v", r.Address, r.State)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

// show shows one message.
func show(t *testing.T, c *admin.Client, id uint64) (m admin.Message, all []admin.Recipient) {
	t.Helper()
	err := c.Show(id, func(got *admin.Message) error { m = *got; return nil }, func(r *admin.Recipient) error {
		all = append(all, *r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, all
}

func is(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// deferring plays a world in which "bad" fails, "now" is delivered and all others are put off.
func deferring(r string, _ int) string {
	switch {
	case strings.HasPrefix(r, "bad"):
		return "Dno such box (#5.1.1)\n"
	case strings.HasPrefix(r, "now") || strings.HasPrefix(r, "alice"):
		return "Kok\n"
	}
	return "Znot now, " + r + " (#4.3.0)\n"
}

func TestTheQueueIsListed(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	c := h.openDesk()
	one := h.submit("s@far.example", "Subject: one\n\nx\n", "later@a.example", "bad@b.example", "now@c.example")
	two := h.submit("", "two\n", "later@Sub.A.example", "alice@test.example")
	h.log.await(t, "deferral:", 2)
	h.log.await(t, "failure:", 1)
	h.log.await(t, "success:", 2)
	h.written()
	first := fmt.Sprintf("%d <s@far.example> later@a.example:waiting bad@b.example:failed now@c.example:done", one)
	second := fmt.Sprintf("%d <> later@Sub.A.example:waiting alice@test.example:done", two)
	tests := []struct {
		name   string
		filter admin.Filter
		want   []string
	}{
		{"all", admin.Filter{}, []string{first, second}},
		{"the empty sender", admin.Filter{Sender: "<>"}, []string{second}},
		{"a sender", admin.Filter{Sender: "S@FAR.example"}, []string{first}},
		{"a pattern of senders", admin.Filter{Sender: "*@far.*"}, []string{first}},
		{"a recipient", admin.Filter{Recipient: "bad@*"}, []string{first}},
		{"a domain", admin.Filter{Domain: "sub.a.example"}, []string{second}},
		{"domains below", admin.Filter{Domain: ".a.example"}, []string{second}},
		{"a state", admin.Filter{State: admin.Failed}, []string{first}},
		{"a state of a recipient of a domain", admin.Filter{State: admin.Waiting, Domain: "b.example"}, nil},
		{"the old", admin.Filter{OlderThan: time.Hour}, nil},
		{"the young", admin.Filter{YoungerThan: time.Hour}, []string{first, second}},
		{"none", admin.Filter{State: admin.Held}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { is(t, listOf(t, c, tt.filter), tt.want) })
	}
	totals, err := c.List(&admin.Filter{CountOnly: true}, nil, nil)
	if err != nil || totals.Messages != 2 || totals.Recipients != 3 || totals.Failed != 1 || totals.Bytes < 50 || time.Since(totals.Oldest) > time.Minute {
		t.Errorf("%+v %v", totals, err)
	}
	m, all := show(t, c, one)
	if m.Recipients != 3 || m.Waiting != 1 || m.Failed != 1 || m.Done() != 1 || m.UID != os.Getuid() || time.Until(m.Next) < time.Minute {
		t.Errorf("%+v", m)
	}
	if all[0].Text != "not now, later@a.example (#4.3.0)" || !all[0].Next.Equal(m.Next) || all[0].Channel != admin.Remote ||
		all[1].Text != "no such box (#5.1.1)" || !all[1].Next.IsZero() || all[2].Text != "" {
		t.Errorf("%+v", all)
	}
	if _, all = show(t, c, two); all[1].Channel != admin.Local || all[1].To != "alice@test.example" {
		t.Errorf("%+v", all)
	}
	var body bytes.Buffer
	if err := c.Copy(one, &body); err != nil || !strings.HasSuffix(body.String(), "\nSubject: one\n\nx\n") || m.Size != int64(body.Len()) {
		t.Errorf("%q %v", body.String(), err)
	}
	if size, err := c.Size(); err != nil || size.Messages != 2 || size.Recipients != 3 {
		t.Errorf("%+v %v", size, err)
	}
	if err := c.Show(1<<40, nil, nil); reply.Of(err) == nil || reply.Of(err).Text != "no such message" {
		t.Errorf("%v", err)
	}
	h.end()
}

func TestUsersSeeTheirOwnMailAndTouchNothing(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	c := h.openDesk()
	mine := h.submit("s@far.example", "x\n", "later@a.example")
	h.log.await(t, "deferral:", 1)
	e := &envelope.Envelope{UID: 4711, Sender: "u@far.example", Recipients: []string{"later@b.example"}}
	id := h.server.Store.NewID()
	h.server.door.Accept(arrivalOf(uint64(id), e, "hidden\n"), func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	h.log.await(t, "deferral:", 2)
	h.written()
	user, stranger := h.as(4711), h.as(4712)
	is(t, listOf(t, c, admin.Filter{}), []string{
		fmt.Sprintf("%d <s@far.example> later@a.example:waiting", mine), fmt.Sprintf("%d <u@far.example> later@b.example:waiting", id),
	})
	is(t, listOf(t, user, admin.Filter{}), []string{fmt.Sprintf("%d <u@far.example> later@b.example:waiting", id)})
	is(t, listOf(t, stranger, admin.Filter{}), nil)
	if m, _ := show(t, user, uint64(id)); m.UID != 4711 {
		t.Errorf("%+v", m)
	}
	var body bytes.Buffer
	if err := user.Copy(uint64(id), &body); err != nil || !strings.Contains(body.String(), "hidden") {
		t.Errorf("%q %v", body.String(), err)
	}
	h.through()
	events := 0
	if err := user.Life(uint64(id), func(*admin.Event) error { events++; return nil }); err != nil || events < 2 {
		t.Errorf("%d %v", events, err)
	}
	for name, err := range map[string]error{
		"show":    stranger.Show(uint64(id), nil, nil),
		"other's": user.Show(mine, nil, nil),
		"copy":    user.Copy(mine, &body),
		"life":    stranger.Life(uint64(id), func(*admin.Event) error { return errors.New("told") }),
	} {
		if r := reply.Of(err); r == nil || r.Text != "no such message" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, verb := range admin.Verbs() {
		if _, err := user.Order(&admin.Order{Verb: verb, ID: uint64(id)}); reply.Of(err) == nil || reply.Of(err).Status != "5.7.1" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := user.Size(); reply.Of(err) == nil || reply.Of(err).Status != "5.7.1" {
		t.Errorf("%v", err)
	}
	if _, err := user.Slow(true); reply.Of(err) == nil || reply.Of(err).Status != "5.7.1" {
		t.Errorf("%v", err)
	}
	is(t, listOf(t, user, admin.Filter{State: admin.Waiting}), []string{fmt.Sprintf("%d <u@far.example> later@b.example:waiting", id)})
	for range maxAskersPerUser + 2 { // the last ones find the door shut
		extra := h.as(4711)
		if _, err := extra.List(&admin.Filter{CountOnly: true}, nil, nil); err != nil {
			h.end()
			return
		}
	}
	t.Error("one user may take all places")
	h.end()
}

func TestOwners(t *testing.T) {
	o := ownership{uids: []int{0, 100, 7}, group: 50, never: []int{300}}
	tests := []struct {
		name   string
		peer   ipc.Peer
		groups []int
		want   bool
	}{
		{"root", ipc.Peer{UID: 0, GID: 0}, nil, true},
		{"the owner", ipc.Peer{UID: 7, GID: 1}, nil, true},
		{"by group", ipc.Peer{UID: 1000, GID: 50}, nil, true},
		{"by another group", ipc.Peer{UID: 1000, GID: 1000}, []int{4, 50}, true},
		{"a system user in the group", ipc.Peer{UID: 300, GID: 50}, []int{50}, false},
		{"anybody", ipc.Peer{UID: 1000, GID: 1000}, []int{4}, false},
	}
	for _, tt := range tests {
		if got := o.has(tt.peer, tt.groups); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if none := (ownership{group: -1}); none.has(ipc.Peer{UID: 5, GID: -1}, []int{-1}) {
		t.Error("no group is a group")
	}
}

func orderOf(t *testing.T, c *admin.Client, verb admin.Verb, id uint64) admin.Effect {
	t.Helper()
	e, err := c.Order(&admin.Order{Verb: verb, ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAHoldOutlivesARestart(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	c := h.openDesk()
	id := h.submit("s@far.example", "x\n", "later@a.example")
	h.log.await(t, "deferral:", 1)
	if e := orderOf(t, c, admin.Hold, id); e.Recipients != 1 {
		t.Errorf("%+v", e)
	}
	h.log.await(t, fmt.Sprintf("msg %d: held by uid %d", id, os.Getuid()), 1)
	if _, err := c.Order(&admin.Order{Verb: admin.Retry, ID: id}); reply.Letter(err) != 'D' || !strings.Contains(err.Error(), "on hold") {
		t.Errorf("%v", err)
	}
	h.setDeliver(func(string, int) string { return "Kok\n" })
	h.orders <- env.Order{Kind: alarm}
	is(t, listOf(t, c, admin.Filter{State: admin.Held}), []string{fmt.Sprintf("%d <s@far.example> later@a.example:held", id)})
	h.end()
	h.start()
	c = h.openDesk()
	h.orders <- env.Order{Kind: alarm}
	is(t, listOf(t, c, admin.Filter{}), []string{fmt.Sprintf("%d <s@far.example> later@a.example:held", id)})
	if _, err := c.Order(&admin.Order{Verb: admin.Hold, ID: id + 1000}); reply.Letter(err) != 'D' {
		t.Errorf("%v", err)
	}
	orderOf(t, c, admin.Release, id)
	orderOf(t, c, admin.Retry, id)
	h.log.await(t, "end msg", 1)
	h.empty()
	h.end()
}

func TestARetryIsAtOnceAndWrittenDown(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	c := h.openDesk()
	id := h.submit("s@far.example", "x\n", "later@a.example", "later@b.example")
	h.log.await(t, "deferral:", 2)
	if e := orderOf(t, c, admin.Retry, id); e.Recipients != 2 {
		t.Errorf("%+v", e)
	}
	h.log.await(t, "deferral:", 4)
	h.written()
	var what []string
	if err := c.Life(id, func(e *admin.Event) error {
		what = append(what, e.What)
		if e.Time.IsZero() || time.Since(e.Time) > time.Minute {
			t.Errorf("at %v", e.Time)
		}
		if e.What == "retried" && (e.Recipients != "0-1" || e.Text != fmt.Sprintf("retry ordered by uid %d", os.Getuid())) {
			t.Errorf("%+v", e)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if slices.Index(what, "retried") < 0 || what[0] != "accepted" || what[len(what)-1] != "deferred" {
		t.Errorf("%q", what)
	}
	if _, all := show(t, c, id); all[0].Text != "not now, later@a.example (#4.3.0)" {
		t.Errorf("%+v", all)
	}
	h.end()
}

func TestADeletedMessageIsGone(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	c := h.openDesk()
	id := h.submit("alice@test.example", "x\n", "later@a.example", "bad@b.example", "now@c.example")
	h.log.await(t, "deferral:", 1)
	h.log.await(t, "failure:", 1)
	h.log.await(t, "success:", 1)
	h.written()
	if e := orderOf(t, c, admin.Delete, id); e.Recipients != 2 || e.Running != 0 {
		t.Errorf("%+v", e)
	}
	h.log.await(t, fmt.Sprintf("msg %d: deleted by uid %d", id, os.Getuid()), 1)
	h.log.await(t, fmt.Sprintf("end msg %d", id), 1)
	h.empty()
	if _, err := c.Order(&admin.Order{Verb: admin.Delete, ID: id}); reply.Letter(err) != 'D' {
		t.Errorf("%v", err)
	}
	outcomes := map[string]int{}
	if err := c.Life(id, func(e *admin.Event) error { outcomes[e.What]++; return nil }); err != nil || outcomes["dropped"] != 1 || outcomes["delivered"] != 1 {
		t.Errorf("%v %v", outcomes, err)
	}
	h.end()
	h.start() // nothing of it comes back, and nobody was told
	h.empty()
	h.end()
	if strings.Contains(h.log.String(), "bounce msg") {
		t.Error("it bounced")
	}
}

func TestABouncedMessageTellsItsSender(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	c := h.openDesk()
	id := h.submit("alice@test.example", "x\n", "later@a.example", "bad@b.example", "later@virt.example")
	h.log.await(t, "success:", 1)
	h.log.await(t, "deferral:", 1)
	h.log.await(t, "failure:", 1)
	if e, err := c.Order(&admin.Order{Verb: admin.Bounce, ID: id, Reason: "spam is not for others"}); err != nil || e.Recipients != 2 {
		t.Errorf("%+v %v", e, err)
	}
	h.log.await(t, "end msg", 2)
	h.log.await(t, fmt.Sprintf("msg %d: bounced by uid %d: spam is not for others", id, os.Getuid()), 1)
	h.empty()
	h.end()
	var bounce string
	for _, d := range h.got() {
		if d.sender == "" {
			bounce = d.body
		}
	}
	for _, text := range []string{"<later@a.example>:\nspam is not for others\n", "<bad@b.example>:\nno such box (#5.1.1)\n"} {
		if !strings.Contains(bounce, text) {
			t.Errorf("the bounce lacks %q:\n%s", text, bounce)
		}
	}
	if strings.Contains(bounce, "virt") {
		t.Error("who has the message is in the bounce")
	}
}

// TestAnOrderCatchesWhoIsBeingDeliveredTo: what is running is not tried again.
func TestAnOrderCatchesWhoIsBeingDeliveredTo(t *testing.T) {
	for _, verb := range []admin.Verb{admin.Delete, admin.Bounce} {
		for _, report := range []string{"K", "Z", "D"} {
			t.Run(string(verb)+report, func(t *testing.T) {
				h := newHouse(t, nil)
				started, goOn := make(chan bool), make(chan bool)
				h.setDeliver(func(r string, _ int) string {
					if strings.HasPrefix(r, "alice") {
						return "Kok\n"
					}
					h.mu.Unlock() // setDeliver's caller holds it
					started <- true
					<-goOn
					h.mu.Lock()
					return report + "a report (#4.0.0)\n"
				})
				h.start()
				c := h.openDesk()
				id := h.submit("alice@test.example", "x\n", "slow@a.example")
				<-started
				if e := orderOf(t, c, verb, id); e.Recipients != 1 || e.Running != 1 {
					t.Errorf("%+v", e)
				}
				is(t, listOf(t, c, admin.Filter{}), []string{fmt.Sprintf("%d <alice@test.example> slow@a.example:running", id)})
				goOn <- true
				h.log.await(t, fmt.Sprintf("end msg %d", id), 1)
				bounced := verb == admin.Bounce && report != "K"
				if bounced {
					h.log.await(t, "end msg", 2)
				}
				h.empty()
				h.end()
				if got := strings.Contains(h.log.String(), "bounce msg"); got != bounced {
					t.Errorf("bounced: %v\n%s", got, h.log.String())
				}
				if n := h.attempts["slow@a.example"]; n != 1 {
					t.Errorf("%d attempts", n)
				}
			})
		}
	}
}

func TestAnOrderThatIsNotOnTheDiskSaysSo(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	c := h.openDesk()
	id := h.submit("s@far.example", "x\n", "later@a.example")
	h.log.await(t, "deferral:", 1)
	h.store.fail(errors.New("no disk"), func(queue.Batch) bool { return true })
	if _, err := c.Order(&admin.Order{Verb: admin.Hold, ID: id}); reply.Letter(err) != 'Z' || !strings.Contains(err.Error(), "not on the disk yet") {
		t.Errorf("%v", err)
	}
	h.store.fail(nil, nil)
	h.end()
}

// TestDeliveriesGoOnDuringAList reads a long queue slowly while mail passes.
func TestDeliveriesGoOnDuringAList(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 5_000
	}
	if v := os.Getenv("QMAIL_TEST_LISTED"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	h := newHouse(t, nil)
	fill(t, h, n)
	h.start()
	c := h.openDesk()
	reader := h.as(os.Getuid()) // an owner in truth, but who looks through all for his own: the most work
	listed := make(chan int)
	go func() {
		seen := 0
		_, err := reader.List(&admin.Filter{Recipients: true}, func(m *admin.Message) error { seen++; return nil }, func(*admin.Recipient) error { return nil })
		if err != nil {
			t.Error(err)
		}
		listed <- seen
	}()
	began := time.Now()
	slowest, mails := time.Duration(0), 0
	for seen := -1; seen < 0; mails++ {
		at := time.Now()
		h.submit("s@far.example", "x\n", "alice@test.example")
		h.log.await(t, "success:", mails+1)
		slowest = max(slowest, time.Since(at))
		select {
		case seen = <-listed:
			if seen < n {
				t.Errorf("%d of %d", seen, n)
			}
		default:
		}
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	t.Logf("%d MB of heap", memory.HeapSys>>20)
	t.Logf("%d messages listed in %v; meanwhile %d mails went through, the slowest in %v", n, time.Since(began), mails, slowest)
	if mails < 3 || slowest > 5*time.Second {
		t.Errorf("%d mails, the slowest took %v", mails, slowest)
	}
	began = time.Now()
	totals, err := c.List(&admin.Filter{CountOnly: true, Sender: "bulk*"}, nil, nil)
	if err != nil || totals.Messages != int64(n) {
		t.Errorf("%+v %v", totals, err)
	}
	t.Logf("counted in %v", time.Since(began))
	h.end()
}

// fill puts n messages that wait into the queue of a house that is not open.
func fill(t *testing.T, h *house, n int) {
	t.Helper()
	store, err := openJournal(h.home, journal.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	next := time.Now().Add(30 * time.Minute)
	done := make(chan error, n)
	for i := range n {
		id := store.NewID()
		e := &envelope.Envelope{UID: os.Getuid(), Birth: time.Now(), Sender: fmt.Sprintf("bulk%d@far.example", i), Recipients: []string{fmt.Sprintf("r%d@d%d.example", i, i%1000)}}
		store.Commit(queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: e, Body: [][]byte{[]byte("x\n")}}}}, func(err error) { done <- err })
		store.Write(queue.Batch{Notes: []queue.Note{{ID: id, Next: next, Text: "not now\n"}}})
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.home, "queue/journal/ids")); err != nil {
		t.Fatal(err)
	}
}

func TestPatterns(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"a@b", "A@B", true}, {"a@b", "a@bc", false}, {"*", "", true}, {"*", "x", true}, {"a*", "abc", true}, {"*c", "abc", true},
		{"a*c*e", "abcde", true}, {"a*c*e", "abde", false}, {"", "", true}, {"", "x", false}, {"**", "x", true}, {"*a*a*a*b", "aaaaaaaaaaaaaaaaaaaa", false},
	}
	for _, tt := range tests {
		if got := matches(tt.pattern, tt.s); got != tt.want {
			t.Errorf("%q %q: %v", tt.pattern, tt.s, got)
		}
	}
	if matchesSender("<>", "x") || !matchesSender("<>", "") || !matchesDomain(".b.c", "x@a.B.c") || matchesDomain(".b.c", "x@b.c") || !matchesDomain("B.c", "x@b.c") {
		t.Error("senders or domains")
	}
}

func TestRanges(t *testing.T) {
	for want, set := range map[string][]uint32{"": nil, "0": {0}, "0-3,7": {0, 1, 2, 3, 7}, "1,3-4": {1, 3, 4}} {
		if got := ranges(set); got != want {
			t.Errorf("%v: %q", set, got)
		}
	}
	var odd []uint32
	for i := range uint32(100_000) {
		odd = append(odd, 2*i+1)
	}
	if got := ranges(odd); len(got) > 2*maxReason || !strings.HasSuffix(got, ",...") {
		t.Errorf("%d bytes", len(got))
	}
}

// arrivalOf is a message of somebody else.
func arrivalOf(id uint64, e *envelope.Envelope, body string) *enqueue.Arrival {
	return &enqueue.Arrival{ID: id, Envelope: e, Body: []byte(body)}
}
