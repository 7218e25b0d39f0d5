// Package queuetest is the contract of queue.Store as a test that every implementation must pass, and a queue in memory
// for the tests of others.
package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/disk"
)

// New is an empty queue in memory, closed when the test ends.
func New(t testing.TB) queue.Store {
	t.Helper()
	j, err := journal.Open(disk.NewMemory(), journal.Options{SegmentSize: 4 << 20, Warn: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// Wait commits b and waits until it is durable or has failed.
func Wait(s queue.Store, b queue.Batch) error {
	done := make(chan error, 1)
	s.Commit(b, func(err error) { done <- err })
	return <-done
}

// Accept puts a message into s and returns its id.
func Accept(t testing.TB, s queue.Store, body string, recipients ...string) queue.ID {
	t.Helper()
	id := s.NewID()
	if err := Wait(s, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: Envelope(recipients...), Body: Body(body)}}}); err != nil {
		t.Fatal(err)
	}
	return id
}

// Envelope is an envelope for tests.
func Envelope(recipients ...string) *envelope.Envelope {
	return &envelope.Envelope{
		UID: 7, QP: 1234, Birth: time.Unix(1700000000, 42), Sender: "sender@example.org", Recipients: recipients,
	}
}

// Body splits a body, so that its joints are tested too.
func Body(s string) [][]byte {
	if len(s) < 2 {
		return [][]byte{[]byte(s)}
	}
	return [][]byte{[]byte(s[:len(s)/3]), nil, []byte(s[len(s)/3:])}
}

// Read returns a message's body.
func Read(s queue.Store, id queue.ID) (string, error) {
	b, err := s.Body(context.Background(), id)
	if err != nil {
		return "", err
	}
	defer b.Close()
	out, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err == nil && int64(len(out)) != b.Size() {
		err = io.ErrUnexpectedEOF
	}
	return string(out), err
}

// Entries is what Scan tells, by id.
func Entries(t testing.TB, s queue.Store) map[queue.ID]queue.Entry {
	t.Helper()
	all := map[queue.ID]queue.Entry{}
	err := s.Scan(func(e *queue.Entry) error {
		if _, twice := all[e.ID]; twice {
			t.Errorf("scan tells of message %v twice", e.ID)
		}
		copied := *e
		copied.Open, copied.Failed = slices.Clone(e.Open), slices.Clone(e.Failed)
		all[e.ID] = copied
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range all {
		if got, err := s.Entry(context.Background(), id); err != nil || !reflect.DeepEqual(normal(*got), normal(want)) {
			t.Errorf("entry %v is %+v %v, scan tells %+v", id, got, err, want)
		}
	}
	return all
}

// normal is an entry without the difference between an empty and no list.
func normal(e queue.Entry) queue.Entry {
	if len(e.Open) == 0 {
		e.Open = nil
	}
	if len(e.Failed) == 0 {
		e.Failed = nil
	}
	return e
}

// Open lists the open recipients of an entry.
func Open(e queue.Entry) []uint32 {
	var who []uint32
	for _, o := range e.Open {
		who = append(who, o.Recipient)
	}
	return who
}

// Run tests an implementation. make gives a function that opens one and the same queue, empty at first, each time
// it is called; it is called again only after the Store it gave was closed.
func Run(t *testing.T, make func(t *testing.T) (open func() (queue.Store, error))) {
	for _, tt := range contract {
		t.Run(tt.name, func(t *testing.T) {
			r := &rig{T: t, open: make(t)}
			r.reopen()
			defer func() { r.Store.Close() }()
			tt.test(r)
		})
	}
}

type rig struct {
	*testing.T
	queue.Store
	open func() (queue.Store, error)
}

func (r *rig) reopen() {
	r.Helper()
	if r.Store != nil {
		if err := r.Store.Close(); err != nil {
			r.Fatal(err)
		}
	}
	s, err := r.open()
	if err != nil {
		r.Fatal(err)
	}
	r.Store = s
}

// both runs a check now and after a restart.
func (r *rig) both(check func()) {
	r.Helper()
	check()
	r.reopen()
	check()
}

func (r *rig) wait(b queue.Batch) {
	r.Helper()
	if err := Wait(r.Store, b); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) is(err, want error) {
	r.Helper()
	if !errors.Is(err, want) {
		r.Errorf("error %v, want %v", err, want)
	}
}

func (r *rig) wantOpen(id queue.ID, want ...uint32) {
	r.Helper()
	if got := Open(Entries(r.T, r.Store)[id]); !slices.Equal(got, want) {
		r.Errorf("message %v: open %v, want %v", id, got, want)
	}
}

var contract = []struct {
	name string
	test func(*rig)
}{
	{"a message comes back as it was given", testRoundTrip},
	{"bodies of all sizes", testSizes},
	{"recipients close one by one", testClose},
	{"a close of nobody in particular closes all", testCloseAll},
	{"closes of what is not there are passed over", testStrayClose},
	{"a bounce and its cause are one", testBatch},
	{"a message without recipients is done at once", testNobody},
	{"the newest note counts, for whom it is", testNotes},
	{"who failed stays so until the bounce", testFails},
	{"a hold stays until it is lifted", testHold},
	{"a written close is there after a restart", testWrite},
	{"ids only grow", testIDs},
	{"an id is taken once", testIDTwice},
	{"unusable batches are refused", testUnusable},
	{"a spooled body comes back", testSpool},
	{"a spool that is closed leaves nothing", testSpoolDiscarded},
	{"a body stays readable while its message goes", testBodyOutlives},
	{"a large envelope comes back", testLargeEnvelope},
	{"many recipients", testManyRecipients},
	{"claims", testClaim},
	{"many at once", testMany},
	{"an error ends a scan", testScanError},
	{"a closed store says so", testClosed},
	{"stats count", testStats},
}

func testRoundTrip(r *rig) {
	env := Envelope("a@example.org", "", "\xff weird\n@example")
	env.Options = []string{"BODY=8BITMIME"}
	env.RecipientOptions = map[int][]string{1: {"NOTIFY=NEVER"}}
	id := r.NewID()
	r.wait(queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: env, Body: Body("Subject: x\n\nhello\n")}}})
	r.both(func() {
		got, err := r.Envelope(context.Background(), id)
		if err != nil || !reflect.DeepEqual(got, env) {
			r.Errorf("%v, envelope %+v", err, got)
		}
		body, err := Read(r.Store, id)
		if err != nil || body != "Subject: x\n\nhello\n" {
			r.Errorf("%v, body %q", err, body)
		}
		e := Entries(r.T, r.Store)[id]
		if !reflect.DeepEqual(e.Envelope, env) || e.Size != 18 || e.Recipients != 3 || e.Held || len(e.Open) != 3 {
			r.Errorf("scan tells %+v", e)
		}
	})
}

func testSizes(r *rig) {
	bodies := map[queue.ID]string{}
	for _, n := range []int{0, 1, 7, 8, 9, 511, 512, 513, 4095, 4096, 4097, 100_000} {
		s := strings.Repeat("0123456789abcdef", n/16+1)[:n]
		bodies[Accept(r.T, r.Store, s, "a@b")] = s
	}
	r.both(func() {
		for id, want := range bodies {
			if got, err := Read(r.Store, id); err != nil || got != want {
				r.Errorf("body of %d bytes: %v, %d bytes", len(want), err, len(got))
			}
		}
	})
}

func testClose(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b", "c", "d")
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{2, 0}, Outcome: queue.Delivered}}})
	r.both(func() { r.wantOpen(id, 1, 3) })
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{1}}, {ID: id, Recipients: []uint32{0, 3}}}})
	r.both(func() {
		_, err := r.Envelope(context.Background(), id)
		r.is(err, queue.ErrNotFound)
		_, err = r.Body(context.Background(), id)
		r.is(err, queue.ErrNotFound)
		if all := Entries(r.T, r.Store); len(all) != 0 {
			r.Errorf("still there: %v", all)
		}
	})
}

func testCloseAll(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b", "c")
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{}, Outcome: queue.Dropped}}})
	r.both(func() { r.wantOpen(id, 0, 1, 2) }) // an empty list is nobody
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Outcome: queue.Dropped}}})
	r.both(func() { r.is(r.Claim(context.Background(), id), queue.ErrNotFound) })
}

func testStrayClose(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b")
	r.wait(queue.Batch{Closes: []queue.Close{{ID: 999_999_999}, {ID: id, Recipients: []uint32{5, 1, 1_000_000_000, 4294967295}}}})
	r.both(func() { r.wantOpen(id, 0) })
}

func testBatch(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b")
	bounce := r.NewID()
	r.wait(queue.Batch{
		Accepts: []queue.Accept{{ID: bounce, Envelope: Envelope("sender"), Body: Body("sorry")}},
		Closes:  []queue.Close{{ID: id, Recipients: []uint32{1}, Outcome: queue.Bounced, As: bounce}},
	})
	r.both(func() {
		r.wantOpen(id, 0)
		r.wantOpen(bounce, 0)
		if got, err := Read(r.Store, bounce); err != nil || got != "sorry" {
			r.Errorf("%q %v", got, err)
		}
	})
	many := queue.Batch{Closes: []queue.Close{{ID: id}}}
	bodies := map[queue.ID]string{}
	for i := range 20 {
		id, body := r.NewID(), strings.Repeat(fmt.Sprint(i), i*10)
		bodies[id] = body
		many.Accepts = append(many.Accepts, queue.Accept{ID: id, Envelope: Envelope("x"), Body: Body(body)})
	}
	r.wait(many)
	r.both(func() {
		r.wantOpen(id)
		for id, want := range bodies {
			if got, err := Read(r.Store, id); err != nil || got != want {
				r.Errorf("%q %v, want %q", got, err, want)
			}
		}
	})
}

func testNobody(r *rig) {
	id := Accept(r.T, r.Store, "x")
	r.both(func() {
		if _, there := Entries(r.T, r.Store)[id]; there {
			r.Error("still there")
		}
		r.is(r.Claim(context.Background(), id), queue.ErrNotFound)
	})
}

func testNotes(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b", "c")
	one := Accept(r.T, r.Store, "x", "a")
	at := func(s int64) time.Time { return time.Unix(1800000000+s, 500) }
	next := func(id queue.ID) (all []int64) {
		for _, o := range Entries(r.T, r.Store)[id].Open {
			if o.Next.IsZero() {
				all = append(all, -1)
			} else {
				all = append(all, int64(o.Next.Sub(at(0))/time.Second))
			}
		}
		return all
	}
	steps := []struct {
		note queue.Note
		want []int64
	}{
		{queue.Note{ID: one, Next: at(1), Text: "busy"}, []int64{-1, -1, -1}},
		{queue.Note{ID: id, Recipients: []uint32{1}, Next: at(2), Text: "no route"}, []int64{-1, 2, -1}},
		{queue.Note{ID: id, Next: at(3)}, []int64{3, 3, 3}},
		{queue.Note{ID: id, Recipients: []uint32{2, 0}, Next: at(4)}, []int64{4, 3, 4}},
		{queue.Note{ID: id, Recipients: []uint32{0, 1, 2, 9}, Next: at(5)}, []int64{5, 5, 5}},
		{queue.Note{ID: 424242, Next: at(6)}, []int64{5, 5, 5}},
		{queue.Note{ID: id, Recipients: []uint32{}, Next: at(7)}, []int64{5, 5, 5}},
		{queue.Note{ID: id, Recipients: []uint32{0}, Next: at(2)}, []int64{2, 5, 5}}, // the newest, not the latest
	}
	for i, step := range steps {
		if i%2 == 0 {
			r.Write(queue.Batch{Notes: []queue.Note{step.note}})
			r.wait(queue.Batch{})
		} else {
			r.wait(queue.Batch{Notes: []queue.Note{step.note}})
		}
		r.both(func() {
			r.Helper()
			if got := next(id); !slices.Equal(got, step.want) {
				r.Errorf("step %d: next %v, want %v", i, got, step.want)
			}
			if got := next(one); !slices.Equal(got, []int64{1}) {
				r.Errorf("step %d: next of the other %v", i, got)
			}
		})
	}
}

func testHold(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b")
	is := func(want bool) {
		r.Helper()
		r.both(func() {
			r.Helper()
			if got := Entries(r.T, r.Store)[id].Held; got != want || r.Stats().Held != len(Entries(r.T, r.Store))*b2i(want) {
				r.Errorf("held %v, want %v", got, want)
			}
		})
	}
	is(false)
	r.wait(queue.Batch{Holds: []queue.Hold{{ID: id, On: true}}})
	is(true)
	r.wait(queue.Batch{Notes: []queue.Note{{ID: id, Next: time.Unix(1, 0)}}})
	is(true)
	r.wait(queue.Batch{Holds: []queue.Hold{{ID: id, On: true}, {ID: id}}})
	is(false)
	r.wait(queue.Batch{Notes: []queue.Note{{ID: id, Next: time.Unix(1, 0)}}})
	is(false)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func testFails(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b", "c", "d", "e")
	fail := func(text string, outcome queue.Outcome, who ...uint32) {
		r.wait(queue.Batch{Fails: []queue.Fail{{ID: id, Recipients: who, Outcome: outcome, Text: text}}})
	}
	want := func(open []uint32, failed ...queue.Failed) {
		r.Helper()
		r.both(func() {
			r.wantOpen(id, open...)
			if got := Entries(r.T, r.Store)[id].Failed; !slices.Equal(got, failed) {
				r.Errorf("failed %v, want %v", got, failed)
			}
		})
	}
	fail("no such box\nsorry", queue.Bounced, 3)
	fail("too old", queue.Expired, 1, 2)
	want([]uint32{0, 4}, queue.Failed{Recipient: 3, Outcome: queue.Bounced, Text: "no such box\nsorry"},
		queue.Failed{Recipient: 1, Outcome: queue.Expired, Text: "too old"}, queue.Failed{Recipient: 2, Outcome: queue.Expired, Text: "too old"})
	r.wait(queue.Batch{Notes: []queue.Note{{ID: id, Recipients: []uint32{2}, Next: time.Unix(9, 0)}}})
	fail("gone", queue.Bounced, 3)
	want([]uint32{0, 2, 4}, queue.Failed{Recipient: 1, Outcome: queue.Expired, Text: "too old"},
		queue.Failed{Recipient: 3, Outcome: queue.Bounced, Text: "gone"})
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{1, 0}, Outcome: queue.Bounced}}})
	want([]uint32{2, 4}, queue.Failed{Recipient: 3, Outcome: queue.Bounced, Text: "gone"})
	r.wait(queue.Batch{Fails: []queue.Fail{{ID: id, Outcome: queue.Bounced, Text: "all"}}})
	want(nil, queue.Failed{Recipient: 2, Outcome: queue.Bounced, Text: "all"},
		queue.Failed{Recipient: 3, Outcome: queue.Bounced, Text: "all"}, queue.Failed{Recipient: 4, Outcome: queue.Bounced, Text: "all"})
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Outcome: queue.Bounced}}})
	r.both(func() {
		_, err := r.Entry(context.Background(), id)
		r.is(err, queue.ErrNotFound)
	})
	if Wait(r.Store, queue.Batch{Fails: []queue.Fail{{ID: id, Outcome: queue.Delivered}}}) == nil {
		r.Error("a failure that delivered")
	}
}

func testWrite(r *rig) {
	id := Accept(r.T, r.Store, "x", "a", "b")
	r.Write(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{0}, Outcome: queue.Delivered}}})
	r.reopen() // Close makes it durable
	r.wantOpen(id, 1)
}

func testIDs(r *rig) {
	var last queue.ID
	for range 5 {
		for range 100 {
			id := r.NewID()
			if id <= last {
				r.Fatalf("%v after %v", id, last)
			}
			last = id
		}
		id := Accept(r.T, r.Store, "x", "a")
		r.wait(queue.Batch{Closes: []queue.Close{{ID: id}}})
		last = r.NewID() // given, never used, and still never again
		r.reopen()
	}
}

func testIDTwice(r *rig) {
	id := Accept(r.T, r.Store, "first", "a")
	again := queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: Envelope("b"), Body: Body("second")}}}
	if Wait(r.Store, again) == nil {
		r.Error("accepted twice")
	}
	if got, err := Read(r.Store, id); err != nil || got != "first" {
		r.Errorf("%q %v", got, err)
	}
}

func testUnusable(r *rig) {
	good := Accept(r.T, r.Store, "x", "a")
	for _, b := range []queue.Batch{
		{Accepts: []queue.Accept{{ID: r.NewID()}}},
		{Accepts: []queue.Accept{{Envelope: Envelope("a")}}},
		{Accepts: []queue.Accept{{ID: 1 << 50, Envelope: Envelope("a")}}},
		{Accepts: []queue.Accept{{ID: r.NewID(), Envelope: Envelope("a\x00Tb")}}},
	} {
		b.Closes = []queue.Close{{ID: good}}
		if Wait(r.Store, b) == nil {
			r.Errorf("committed %+v", b.Accepts)
		}
	}
	r.both(func() { r.wantOpen(good, 0) })
}

func spooled(r *rig, parts ...string) queue.Spool {
	r.Helper()
	s, err := r.Spool()
	if err != nil {
		r.Fatal(err)
	}
	for _, p := range parts {
		if _, err := io.WriteString(s, p); err != nil {
			r.Fatal(err)
		}
	}
	return s
}

func testSpool(r *rig) {
	part := strings.Repeat("0123456789", 30_000)
	s := spooled(r, part, "", part)
	if s.Size() != 600_000 {
		r.Errorf("size %d", s.Size())
	}
	id := r.NewID()
	r.wait(queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: Envelope("a", "b"), Spool: s}}})
	if err := s.Close(); err != nil {
		r.Error(err)
	}
	r.both(func() {
		got, err := Read(r.Store, id)
		if err != nil || got != part+part {
			r.Errorf("%v, %d bytes", err, len(got))
		}
		b, err := r.Body(context.Background(), id)
		if err != nil {
			r.Fatal(err)
		}
		defer b.Close()
		if f := b.File(); f != nil {
			all, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
			if err != nil || string(all) != part+part {
				r.Errorf("by file: %v, %d bytes", err, len(all))
			}
			if _, err := f.WriteAt([]byte("x"), 0); err == nil {
				r.Error("the body's file can be written")
			}
		}
	})
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id}}})
	r.both(func() { r.is(r.Claim(context.Background(), id), queue.ErrNotFound) })
}

func testSpoolDiscarded(r *rig) {
	s := spooled(r, "gone")
	if err := s.Close(); err != nil {
		r.Error(err)
	}
	if _, err := s.Write([]byte("x")); err == nil {
		r.Error("wrote to a closed spool")
	}
	if Wait(r.Store, queue.Batch{Accepts: []queue.Accept{{ID: r.NewID(), Envelope: Envelope("a"), Spool: s}}}) == nil {
		r.Error("accepted a closed spool")
	}
	r.both(func() {
		if all := Entries(r.T, r.Store); len(all) != 0 {
			r.Errorf("there is %v", all)
		}
	})
}

func testBodyOutlives(r *rig) {
	small := Accept(r.T, r.Store, "small", "a")
	large := r.NewID()
	r.wait(queue.Batch{Accepts: []queue.Accept{{ID: large, Envelope: Envelope("a"), Spool: spooled(r, "large")}}})
	r.reopen()
	var bodies []queue.Body
	for _, id := range []queue.ID{small, large} {
		b, err := r.Body(context.Background(), id)
		if err != nil {
			r.Fatal(err)
		}
		bodies = append(bodies, b)
		r.wait(queue.Batch{Closes: []queue.Close{{ID: id}}})
	}
	for i := range 50 { // give the store reason to clean up
		id := Accept(r.T, r.Store, strings.Repeat("y", 1000*i), "a")
		r.wait(queue.Batch{Closes: []queue.Close{{ID: id}}})
	}
	for i, want := range []string{"small", "large"} {
		got, err := io.ReadAll(io.NewSectionReader(bodies[i], 0, 100))
		if err != nil || string(got) != want {
			r.Errorf("%q %v", got, err)
		}
		if err := bodies[i].Close(); err != nil {
			r.Error(err)
		}
	}
}

func testLargeEnvelope(r *rig) {
	var who []string
	for i := range 400 {
		who = append(who, fmt.Sprintf("recipient-%d@some.example.org", i))
	}
	id := Accept(r.T, r.Store, "x", who...)
	r.both(func() {
		env, err := r.Envelope(context.Background(), id)
		if err != nil || !slices.Equal(env.Recipients, who) {
			r.Error(err)
		}
		if e := Entries(r.T, r.Store)[id]; e.Envelope == nil || !slices.Equal(e.Envelope.Recipients, who) {
			r.Error("scan has another envelope")
		}
	})
}

func testManyRecipients(r *rig) {
	who := slices.Repeat([]string{"a@b"}, 5000)
	id := Accept(r.T, r.Store, "x", who...)
	var odd, rest []uint32
	for i := range uint32(5000) {
		if i%2 == 1 {
			odd = append(odd, i)
		} else {
			rest = append(rest, i)
		}
	}
	slices.Reverse(odd)
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: odd}}, Notes: []queue.Note{{ID: id, Next: time.Unix(9, 0)}}})
	r.both(func() { r.wantOpen(id, rest...) })
	if n := r.Stats().Recipients; n != 2500 {
		r.Errorf("%d open", n)
	}
}

func testClaim(r *rig) {
	id := Accept(r.T, r.Store, "x", "a")
	r.both(func() {
		if err := r.Claim(context.Background(), id); err != nil {
			r.Error(err)
		}
		r.is(r.Claim(context.Background(), id+1000), queue.ErrNotFound)
	})
}

func testMany(r *rig) {
	const workers, each = 16, 40
	var mu sync.Mutex
	kept := map[queue.ID]string{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				body := strings.Repeat(fmt.Sprintf("%d/%d ", w, i), i)
				id := r.NewID()
				err := Wait(r.Store, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: Envelope("a", "b"), Body: Body(body)}}})
				if err != nil {
					r.Error(err)
					return
				}
				if got, err := Read(r.Store, id); err != nil || got != body {
					r.Errorf("%v: %q, want %q", err, got, body)
				}
				if i%3 != 0 {
					r.Write(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{0}}}})
					r.Write(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{1}}}})
					continue
				}
				mu.Lock()
				kept[id] = body
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.reopen()
	all := Entries(r.T, r.Store)
	if len(all) != len(kept) {
		r.Errorf("%d messages, want %d", len(all), len(kept))
	}
	for id, want := range kept {
		if got, err := Read(r.Store, id); err != nil || got != want {
			r.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

func testScanError(r *rig) {
	for range 3 {
		Accept(r.T, r.Store, "x", "a")
	}
	stop, calls := errors.New("stop"), 0
	r.is(r.Scan(func(*queue.Entry) error { calls++; return stop }), stop)
	if calls != 1 {
		r.Errorf("%d calls", calls)
	}
}

func testClosed(r *rig) {
	if err := r.Close(); err != nil {
		r.Error(err)
	}
	r.is(r.Close(), queue.ErrClosed)
	r.is(Wait(r.Store, queue.Batch{}), queue.ErrClosed)
	r.Write(queue.Batch{Closes: []queue.Close{{ID: 1}}})
}

func testStats(r *rig) {
	Accept(r.T, r.Store, "x", "a", "b", "c")
	id := Accept(r.T, r.Store, "x", "a", "b")
	r.wait(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: []uint32{1}}}})
	r.both(func() {
		if s := r.Stats(); s.Messages != 2 || s.Recipients != 4 || s.Failures != 0 || len(s.Quarantined) != 0 {
			r.Errorf("%+v", s)
		}
	})
}
