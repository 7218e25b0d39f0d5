package journal

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/store/queue"
)

// TestManyWorkersWhileTheCollectorRuns keeps many busy on a real disk with segments so small that the collector is too; run it with
// the race detector.
func TestManyWorkersWhileTheCollectorRuns(t *testing.T) {
	j := openDir(t, Options{SegmentSize: 256 << 10, CacheBytes: 100 << 10})
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for w := range 24 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			type m struct {
				id   queue.ID
				body string
			}
			var mine []m
			n := 0
			for range 120 {
				body := strings.Repeat(string(rune('a'+w)), rnd.IntN(9000))
				id := j.NewID()
				if err := commit(j, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: benchEnvelope(), Body: split(body)}}}); err != nil {
					t.Error(err)
					return
				}
				n++
				mine = append(mine, m{id, body})
				k := rnd.IntN(len(mine))
				if got, err := readAll(j, mine[k].id); err != nil || got != mine[k].body {
					t.Errorf("%v %d %d", err, len(got), len(mine[k].body))
					return
				}
				if len(mine) > 20 || rnd.IntN(2) == 0 {
					j.Write(queue.Batch{Closes: []queue.Close{{ID: mine[k].id}}})
					mine[k] = mine[len(mine)-1]
					mine = mine[:len(mine)-1]
				} else if rnd.IntN(3) == 0 {
					j.Write(queue.Batch{Notes: []queue.Note{{ID: mine[k].id, Next: time.Now(), Text: "x"}}})
				}
				if rnd.IntN(50) == 0 {
					if err := j.Scan(func(*queue.Entry) error { return nil }); err != nil {
						t.Error(err)
					}
				}
			}
			mu.Lock()
			total += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if j.writer.seq < 20 || len(j.segs) > int(j.writer.seq)/2 {
		t.Errorf("%d messages, %d segments of %d left", total, len(j.segs), j.writer.seq)
	}
}
