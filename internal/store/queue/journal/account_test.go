package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
)

// account is what a test was told by a journal, and so what a journal must still know after a crash.
type account struct {
	mu   sync.Mutex
	msgs map[queue.ID]*told
	// pairs are batches of an accept and a close, neither touched by anything else: both or none.
	pairs []pair
	high  queue.ID // given
	n     int
}

type told struct {
	body     string
	who      []string
	accepted fact
	refused  bool   // with an error while the power was on: must never be seen again
	closed   []fact // of each recipient
	failed   map[uint32]string
	doubtful map[uint32]bool // whether they failed is not known
	held     fact            // stopped
	tried    bool            // a hold was spoken of at all
}

type pair struct {
	bounce, cause queue.ID
	recipient     uint32
}

// fact is how sure it is.
type fact int

const (
	no fact = iota
	maybe
	yes
)

func newAccount() *account { return &account{msgs: map[queue.ID]*told{}} }

func (a *account) envelope(n int, who []string) *envelope.Envelope {
	return &envelope.Envelope{QP: int64(n), Birth: time.Unix(int64(n), 0), Sender: fmt.Sprintf("s%d@x", n), Recipients: who}
}

// message makes up a message of size bytes, different from all others.
func (a *account) message(j queue.Store, size, recipients int) (queue.ID, *told, *envelope.Envelope) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	id := j.NewID()
	m := &told{closed: make([]fact, recipients), failed: map[uint32]string{}, doubtful: map[uint32]bool{}}
	m.body = strings.Repeat(fmt.Sprintf("message %d;", a.n), size/10+1)[:size]
	for i := range recipients {
		m.who = append(m.who, fmt.Sprintf("r%d-%d@example.org", a.n, i))
	}
	a.msgs[id] = m
	a.high = max(a.high, id)
	return id, m, a.envelope(a.n, m.who)
}

// commit waits for a batch; sure is whether it succeeded, unknown whether it may have although it failed.
func commit(j queue.Store, b queue.Batch) error {
	done := make(chan error, 1)
	j.Commit(b, func(err error) { done <- err })
	return <-done
}

// after judges an outcome: an error while the power is on means no.
func after(err error, dead bool) fact {
	switch {
	case err == nil:
		return yes
	case dead:
		return maybe
	}
	return no
}

func (a *account) accept(j queue.Store, dead func() bool, size, recipients int) queue.ID {
	id, m, env := a.message(j, size, recipients)
	err := commit(j, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: env, Body: split(m.body)}}})
	a.set(func() {
		m.accepted = after(err, dead())
		m.refused = err != nil && !dead()
	})
	return id
}

func (a *account) spool(j queue.Store, dead func() bool, size int) queue.ID {
	id, m, env := a.message(j, size, 1)
	err := func() error {
		s, err := j.Spool()
		if err != nil {
			return err
		}
		defer s.Close()
		for _, part := range split(m.body) {
			if _, err := s.Write(part); err != nil {
				return err
			}
		}
		return commit(j, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: env, Spool: s}}})
	}()
	a.set(func() {
		m.accepted = after(err, dead())
		m.refused = err != nil && !dead()
	})
	return id
}

// bounce closes a recipient and accepts a message about it in one batch.
func (a *account) bounce(j queue.Store, dead func() bool, cause queue.ID, recipient uint32) queue.ID {
	id, m, env := a.message(j, 300, 1)
	err := commit(j, queue.Batch{
		Accepts: []queue.Accept{{ID: id, Envelope: env, Body: split(m.body)}},
		Closes:  []queue.Close{{ID: cause, Recipients: []uint32{recipient}, Outcome: queue.Bounced, As: id}},
	})
	a.set(func() {
		m.accepted = after(err, dead())
		m.refused = err != nil && !dead()
		c := a.msgs[cause]
		c.closed[recipient] = max(c.closed[recipient], m.accepted)
		if a.msgs[cause].accepted == yes {
			a.pairs = append(a.pairs, pair{id, cause, recipient})
		}
	})
	return id
}

func (a *account) close(j queue.Store, dead func() bool, id queue.ID, who ...uint32) {
	a.mark(id, who, maybe)
	err := commit(j, queue.Batch{Closes: []queue.Close{{ID: id, Recipients: who, Outcome: queue.Delivered}}})
	if err == nil {
		a.mark(id, who, yes)
	}
	if f := after(err, dead()); f == no {
		a.mark(id, who, maybe) // a close may survive: it says what is true
	}
}

// write closes without waiting; a later flush makes it sure.
func (a *account) write(j queue.Store, id queue.ID, who ...uint32) {
	a.mark(id, who, maybe)
	j.Write(queue.Batch{Closes: []queue.Close{{ID: id, Recipients: who, Outcome: queue.Delivered}}})
}

func (a *account) hold(j queue.Store, id queue.ID, on bool) {
	err := commit(j, queue.Batch{Holds: []queue.Hold{{ID: id, On: on}}})
	a.set(func() {
		m := a.msgs[id]
		m.tried = true
		switch {
		case err != nil:
			m.held = maybe
		case on:
			m.held = yes
		default:
			m.held = no
		}
	})
}

// fail takes a recipient as failed; with text "" it takes that back by a note.
func (a *account) fail(j queue.Store, dead func() bool, id queue.ID, who uint32, text string) {
	b := queue.Batch{Fails: []queue.Fail{{ID: id, Recipients: []uint32{who}, Outcome: queue.Bounced, Text: text}}}
	if text == "" {
		b = queue.Batch{Notes: []queue.Note{{ID: id, Recipients: []uint32{who}, Next: time.Unix(2_000_000_000, 0)}}}
	}
	err := commit(j, b)
	a.set(func() {
		m := a.msgs[id]
		switch {
		case err == nil && text == "":
			delete(m.failed, who)
		case err == nil:
			m.failed[who] = text
		case dead():
			m.doubtful[who] = true
		}
	})
}

func (a *account) mark(id queue.ID, who []uint32, f fact) {
	a.set(func() {
		m := a.msgs[id]
		if len(who) == 0 {
			for i := range m.closed {
				m.closed[i] = max(m.closed[i], f)
			}
		}
		for _, i := range who {
			m.closed[i] = max(m.closed[i], f)
		}
	})
}

func (a *account) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func split(s string) [][]byte { return [][]byte{[]byte(s[:len(s)/2]), []byte(s[len(s)/2:])} }

// check compares an opened journal with what was told.
func (a *account) check(t testing.TB, j *Journal) {
	t.Helper()
	for _, complaint := range a.audit(j) {
		t.Error(complaint)
	}
}

// audit lists what is wrong.
func (a *account) audit(j *Journal) []string {
	t := &complaints{}
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := map[queue.ID]queue.Entry{}
	err := j.Scan(func(e *queue.Entry) error {
		if _, twice := seen[e.ID]; twice {
			t.Errorf("message %v twice", e.ID)
		}
		c := *e
		c.Open, c.Failed = slices.Clone(e.Open), slices.Clone(e.Failed)
		seen[e.ID] = c
		return nil
	})
	if err != nil {
		t.Errorf("scan: %v", err)
	}
	for id, e := range seen {
		a.checkSeen(t, j, id, e)
	}
	for id, m := range a.msgs {
		if _, ok := seen[id]; !ok && m.accepted == yes && slices.Contains(m.closed, no) {
			t.Errorf("message %v is lost", id)
		}
	}
	for _, p := range a.pairs {
		a.checkPair(t, seen, p)
	}
	if next := j.NewID(); next <= a.high {
		t.Errorf("id %v is given again: had %v", next, a.high)
	}
	return t.list
}

type complaints struct{ list []string }

func (c *complaints) Errorf(format string, args ...any) {
	c.list = append(c.list, fmt.Sprintf(format, args...))
}

func (a *account) checkSeen(t *complaints, j *Journal, id queue.ID, e queue.Entry) {
	m := a.msgs[id]
	if m == nil {
		t.Errorf("message %v from nowhere", id)
		return
	}
	if m.refused {
		t.Errorf("message %v was refused, and is there", id)
	}
	open := map[uint32]bool{}
	for _, o := range e.Open {
		open[o.Recipient] = true
	}
	for _, f := range e.Failed {
		if open[f.Recipient] {
			t.Errorf("message %v: recipient %d failed and is to be tried", id, f.Recipient)
		}
		open[f.Recipient] = true
		if want := m.failed[f.Recipient]; want != f.Text && !m.doubtful[f.Recipient] || f.Outcome != queue.Bounced {
			t.Errorf("message %v: recipient %d failed with %q %v, want %q", id, f.Recipient, f.Text, f.Outcome, want)
		}
	}
	for i, want := range m.failed {
		found := slices.ContainsFunc(e.Failed, func(f queue.Failed) bool { return f.Recipient == i })
		if want != "" && !found && !m.doubtful[i] && m.closed[i] == no {
			t.Errorf("message %v: recipient %d failed with %q, and nobody knows", id, i, want)
		}
	}
	for i, f := range m.closed {
		if f == yes && open[uint32(i)] {
			t.Errorf("message %v: recipient %d is open again", id, i)
		}
		if f == no && !open[uint32(i)] {
			t.Errorf("message %v: recipient %d is lost", id, i)
		}
	}
	if m.accepted == yes && (m.held == yes && !e.Held || m.held == no && e.Held) {
		t.Errorf("message %v: held %v, want %v", id, e.Held, m.held)
	}
	if e.Envelope == nil || !slices.Equal(e.Envelope.Recipients, m.who) {
		t.Errorf("message %v: scan has the envelope %+v", id, e.Envelope)
	}
	if env, err := j.Envelope(context.Background(), id); err != nil || !slices.Equal(env.Recipients, m.who) {
		t.Errorf("message %v: %v", id, err)
	}
	body, err := readAll(j, id)
	if err != nil || body != m.body {
		t.Errorf("message %v: %v, %d bytes of %d", id, err, len(body), len(m.body))
	}
}

func (a *account) checkPair(t *complaints, seen map[queue.ID]queue.Entry, p pair) {
	if b := a.msgs[p.bounce]; b.closed[0] != no {
		return // it may have gone on
	}
	_, bounced := seen[p.bounce]
	closed := !slices.ContainsFunc(seen[p.cause].Open, func(o queue.Open) bool { return o.Recipient == p.recipient }) &&
		!slices.ContainsFunc(seen[p.cause].Failed, func(o queue.Failed) bool { return o.Recipient == p.recipient })
	if bounced != closed {
		t.Errorf("bounce %v is there: %v, its cause closed: %v", p.bounce, bounced, closed)
	}
}

func readAll(j queue.Store, id queue.ID) (string, error) {
	b, err := j.Body(context.Background(), id)
	if err != nil {
		return "", err
	}
	defer b.Close()
	out, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err == nil && int64(len(out)) != b.Size() {
		err = errors.New("short body")
	}
	return string(out), err
}
