package schedule

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestPagesMeetEachMessageOnce lists while messages come and go.
func TestPagesMeetEachMessageOnce(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(1_800_000_000, 0)
	s := New(Defaults(), now)
	last := uint64(0)
	add := func() uint64 {
		last++
		m := Message{ID: last, Birth: now.Add(-time.Hour), Held: last%7 == 0}
		for i := range uint32(1 + rnd.IntN(40)) {
			m.Recipients = append(m.Recipients, Recipient{Index: i, Channel: Remote, Destination: string(rune('a' + rnd.IntN(5)))})
		}
		if err := s.Add(m, now); err != nil {
			t.Fatal(err)
		}
		return last
	}
	there := map[uint64]bool{}
	for range 3000 {
		there[add()] = true
	}
	seen := map[uint64]int{}
	pages := 0
	for from := uint32(0); ; {
		var page []Known
		page, from = s.Page(nil, from, 50)
		pages++
		for _, k := range page {
			seen[k.ID]++
			if k.Held != (k.ID%7 == 0) || !k.Birth.Equal(now.Add(-time.Hour)) || len(k.Plans) == 0 {
				t.Fatalf("%+v", k)
			}
		}
		if from == 0 {
			break
		}
		for range rnd.IntN(20) {
			add()
			gone := 1 + rnd.Uint64N(last)
			if removed, _ := s.Remove(gone, nil); len(removed) > 0 {
				delete(there, gone)
			}
		}
	}
	for id, n := range seen {
		if n > 1 {
			t.Errorf("message %d came %d times", id, n)
		}
	}
	for id := range there {
		if seen[id] != 1 {
			t.Errorf("message %d came %d times", id, seen[id])
		}
	}
	if pages < 60 || !s.Has(last) || s.Has(last+1) {
		t.Errorf("%d pages", pages)
	}
}

func TestAPageTakesLittleTime(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := New(Defaults(), now)
	for id := uint64(1); id <= 100_000; id++ {
		if err := s.Add(Message{ID: id, Birth: now, Recipients: []Recipient{{Channel: Remote, Destination: "x"}}}, now); err != nil {
			t.Fatal(err)
		}
	}
	for id := uint64(1); id < 100_000; id++ {
		s.Remove(id, nil)
	}
	calls := 0
	for from := uint32(0); ; calls++ { // nearly all places are empty
		var page []Known
		page, from = s.Page(nil, from, 100)
		if from == 0 {
			if len(page) != 1 || page[0].ID != 100_000 {
				t.Errorf("%+v", page)
			}
			break
		}
	}
	if calls < 15 {
		t.Errorf("it looked at more than 6,400 places at a time: %d calls", calls)
	}
}
