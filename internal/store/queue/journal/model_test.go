package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// modelMessage is what a plain map knows of a message.
type modelMessage struct {
	body string
	open map[uint32]int64  // next try, 0 for none
	bad  map[uint32]string // of those, who failed and why
	held bool
}

// TestModel does random things to a journal and to a map, restarts and kills it at random, and compares.
func TestModel(t *testing.T) {
	seeds, steps := 12, 1500
	if testing.Short() {
		seeds = 2
	}
	dropped := 0
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			m := &model{T: t, rnd: rand.New(rand.NewPCG(uint64(seed), 0)), want: map[queue.ID]*modelMessage{}, disk: disk.NewMemory()}
			m.open()
			defer func() { m.j.Close() }()
			for range steps {
				m.step()
			}
			synctest.Wait()
			m.compare()
			dropped += int(m.j.writer.seq) - len(m.j.segs)
			m.settled()
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if dropped < 10*seeds {
		t.Errorf("only %d segments dropped", dropped)
	}
}

type model struct {
	*testing.T
	rnd  *rand.Rand
	j    *Journal
	disk *disk.Memory
	want map[queue.ID]*modelMessage
	last queue.ID
}

func (m *model) open() {
	m.Helper()
	opt := Options{SegmentSize: minSegment, Warn: func(s string) { m.Log(s) }}
	if m.rnd.IntN(2) == 0 {
		opt.CacheBytes = 5000
	}
	j, err := Open(m.disk, opt)
	if err != nil {
		m.Fatal(err)
	}
	m.j = j
}

// some picks a live message.
func (m *model) some() (queue.ID, *modelMessage) {
	if len(m.want) == 0 {
		return 0, nil
	}
	ids := slices.Sorted(maps.Keys(m.want))
	id := ids[m.rnd.IntN(len(ids))]
	return id, m.want[id]
}

// who picks recipients, nil now and then.
func (m *model) who(msg *modelMessage) []uint32 {
	if m.rnd.IntN(4) == 0 {
		return nil
	}
	var set []uint32
	for i := range msg.open {
		if m.rnd.IntN(2) == 0 {
			set = append(set, i)
		}
	}
	slices.Sort(set)
	if set == nil {
		set = []uint32{}
	}
	return append(set, uint32(1000+m.rnd.IntN(5)))
}

func (m *model) step() {
	switch n := m.rnd.IntN(100); {
	case n < 30:
		m.accept()
	case n < 62:
		m.change(false)
	case n < 90:
		m.change(true)
	case n < 93:
		time.Sleep(time.Duration(m.rnd.IntN(3)) * time.Second)
	case n < 96:
		m.read()
	case n < 97:
		m.compare()
	case n < 98:
		if err := m.j.Close(); err != nil {
			m.Fatal(err)
		}
		m.open()
		m.compare()
	default:
		m.commit(queue.Batch{}) // so that nothing waits, and kill
		old := m.j
		m.disk = m.disk.Kill()
		old.Close()
		m.open()
		m.compare()
	}
}

func (m *model) commit(b queue.Batch) {
	m.Helper()
	if err := commit(m.j, b); err != nil {
		m.Fatal(err)
	}
}

func (m *model) accept() {
	var b queue.Batch
	for range 1 + m.rnd.IntN(2) {
		id := m.j.NewID()
		if id <= m.last {
			m.Errorf("id %v after %v", id, m.last)
		}
		m.last = id
		msg := &modelMessage{open: map[uint32]int64{}, bad: map[uint32]string{}}
		msg.body = strings.Repeat(fmt.Sprintf("%d,", m.rnd.IntN(1000)), m.rnd.IntN(600))
		env := benchEnvelope()
		env.Recipients = nil
		for i := range m.rnd.IntN(4) {
			env.Recipients = append(env.Recipients, strings.Repeat("r", m.rnd.IntN(300)))
			msg.open[uint32(i)] = 0
		}
		a := queue.Accept{ID: id, Envelope: env, Body: split(msg.body)}
		if m.rnd.IntN(10) == 0 {
			s, err := m.j.Spool()
			if err != nil {
				m.Fatal(err)
			}
			defer s.Close()
			if _, err := s.Write([]byte(msg.body)); err != nil {
				m.Fatal(err)
			}
			a.Body, a.Spool = nil, s
		}
		b.Accepts = append(b.Accepts, a)
		if len(msg.open) > 0 {
			m.want[id] = msg
		}
	}
	m.commit(b)
}

func (m *model) change(wait bool) {
	id, msg := m.some()
	if msg == nil {
		return
	}
	var b queue.Batch
	if m.rnd.IntN(3) == 0 {
		note := queue.Note{ID: id, Recipients: m.who(msg), Next: time.Unix(0, 1+m.rnd.Int64N(1<<40)), Text: strings.Repeat("t", m.rnd.IntN(50))}
		b.Notes = append(b.Notes, note)
	}
	if m.rnd.IntN(4) == 0 {
		fail := queue.Fail{ID: id, Recipients: m.who(msg), Outcome: queue.Expired, Text: strings.Repeat("f", m.rnd.IntN(50))}
		b.Fails = append(b.Fails, fail)
	}
	if m.rnd.IntN(8) == 0 {
		b.Holds = append(b.Holds, queue.Hold{ID: id, On: m.rnd.IntN(2) == 0})
	}
	if m.rnd.IntN(3) > 0 {
		b.Closes = append(b.Closes, queue.Close{ID: id, Recipients: m.who(msg), Outcome: queue.Delivered})
	}
	if wait {
		m.commit(b)
	} else {
		m.j.Write(b)
		if m.rnd.IntN(2) == 0 {
			synctest.Wait()
		}
	}
	for _, c := range b.Closes { // closes come first in a batch
		msg.shut(c.Recipients)
	}
	for _, n := range b.Notes {
		for i := range msg.open {
			if n.Recipients == nil || slices.Contains(n.Recipients, i) {
				msg.open[i] = n.Next.UnixNano()
				delete(msg.bad, i)
			}
		}
	}
	for _, f := range b.Fails {
		for i := range msg.open {
			if f.Recipients == nil || slices.Contains(f.Recipients, i) {
				msg.bad[i] = f.Text
			}
		}
	}
	for _, h := range b.Holds {
		msg.held = h.On
	}
	if len(msg.open) == 0 {
		delete(m.want, id)
	}
}

func (msg *modelMessage) shut(who []uint32) {
	if who == nil {
		clear(msg.open)
		clear(msg.bad)
	}
	for _, i := range who {
		delete(msg.open, i)
		delete(msg.bad, i)
	}
}

func (m *model) read() {
	if id, msg := m.some(); msg != nil {
		if got, err := readAll(m.j, id); err != nil || got != msg.body {
			m.Errorf("message %v: %v, %d bytes, want %d", id, err, len(got), len(msg.body))
		}
	}
	if _, err := m.j.Envelope(context.Background(), 1<<40); !errors.Is(err, queue.ErrNotFound) {
		m.Error(err)
	}
}

func (m *model) compare() {
	m.Helper()
	m.commit(queue.Batch{}) // what was written before is in the index now
	seen, open, held := 0, 0, 0
	err := m.j.Scan(func(e *queue.Entry) error {
		seen++
		msg := m.want[e.ID]
		if msg == nil {
			m.Errorf("message %v should be gone", e.ID)
			return nil
		}
		open += len(e.Open) + len(e.Failed)
		if e.Held {
			held++
		}
		if len(e.Open)+len(e.Failed) != len(msg.open) || len(e.Failed) != len(msg.bad) || e.Held != msg.held || e.Size != int64(len(msg.body)) || e.Envelope == nil {
			m.Errorf("message %v: %+v, want open %v held %v size %d", e.ID, e, msg.open, msg.held, len(msg.body))
		}
		for _, f := range e.Failed {
			if text, ok := msg.bad[f.Recipient]; !ok || text != f.Text || f.Outcome != queue.Expired {
				m.Errorf("message %v recipient %d: failed with %q, want %q %v", e.ID, f.Recipient, f.Text, text, ok)
			}
		}
		for _, o := range e.Open {
			next, ok := msg.open[o.Recipient]
			if !ok || next == 0 != o.Next.IsZero() || next != 0 && o.Next.UnixNano() != next {
				m.Errorf("message %v recipient %d: next %v, want %v %v", e.ID, o.Recipient, o.Next, next, ok)
			}
		}
		return nil
	})
	if err != nil || seen != len(m.want) {
		m.Errorf("%v: scan tells of %d messages, want %d", err, seen, len(m.want))
	}
	if s := m.j.Stats(); s.Messages != seen || s.Recipients != open || s.Held != held {
		m.Errorf("stats %+v: %d messages, %d open, %d held", s, seen, open, held)
	}
	if m.Failed() {
		m.FailNow()
	}
}

// settled checks the books of the collector: what is counted is what is there.
func (m *model) settled() {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	live := map[*segment]int{}
	bytes := map[*segment]int64{}
	for _, e := range m.j.index.live {
		live[e.seg]++
		bytes[e.seg] += int64(e.bytes)
	}
	for _, d := range m.j.index.dead {
		live[d.seg]++
		bytes[d.seg] += int64(d.bytes)
	}
	for _, s := range m.j.segs {
		if s.live != live[s] || s.liveBytes != bytes[s] {
			m.Errorf("segment %d counts %d live, %d bytes; there are %d, %d", s.seq, s.live, s.liveBytes, live[s], bytes[s])
		}
		delete(live, s)
	}
	if len(live) > 0 {
		m.Errorf("messages in segments that are gone: %v", live)
	}
}
