package sim

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/store/queue"
)

// The bugs that a test of this test plants. Each was made by somebody, somewhere, for good reasons.
const (
	noBug         = "none"
	noDirSync     = "names are not synced"
	earlyReply    = "250 is said before the sync"
	secondSync    = "a failed sync is tried again, and believed"
	earlyMark     = "a recipient is marked as done before the delivery"
	droppedBounce = "a bounce is lost on its way into the queue"
)

// planted puts a bug between qmail-send and its queue.
func (s *sim) planted(q queue.Store) queue.Store {
	switch s.bug {
	case earlyReply, earlyMark, droppedBounce:
		return &careless{Store: q, bug: s.bug}
	}
	return q
}

// careless is a queue with a bug.
type careless struct {
	queue.Store
	bug string
}

func (c *careless) Commit(b queue.Batch, done func(error)) {
	switch {
	case c.bug == earlyReply && len(b.Closes) == 0:
		c.Store.Commit(b, func(error) {})
		done(nil)
	case c.bug == droppedBounce && len(b.Closes) > 0:
		b.Accepts = nil
		c.Store.Commit(b, done)
	default:
		c.Store.Commit(b, done)
	}
}

func (c *careless) Body(ctx context.Context, id queue.ID) (queue.Body, error) {
	b, err := c.Store.Body(ctx, id)
	if err == nil && c.bug == earlyMark {
		c.Store.Write(queue.Batch{Closes: []queue.Close{{ID: id, Outcome: queue.Delivered}}})
	}
	return b, err
}

// TestPlantedBugsAreCaught: a test that finds nothing has to show that it could, and that it was not the plan that it found.
func TestPlantedBugsAreCaught(t *testing.T) {
	homes := homesOf(t)
	for _, bug := range []string{noBug, noDirSync, earlyReply, secondSync, earlyMark, droppedBounce} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			const tries = 12
			for seed := uint64(1); seed <= tries; seed++ {
				var failures []string
				synctest.Test(t, func(t *testing.T) {
					s := newSim(t, seed, homes, &story{}, bug)
					s.plan.messages, s.plan.faults, s.plan.load, s.plan.latency = 300, 30, 20*time.Minute, 20*time.Millisecond
					s.plan.segment, s.plan.syncTime, s.plan.lifetime = 64<<10, 3*time.Second, 12*time.Hour
					s.plan.kinds = []int{power}
					if bug == secondSync {
						s.plan.kinds = []int{power, diskTrouble, diskTrouble}
					}
					s.live()
					failures = s.failures
				})
				if bug == noBug {
					for _, f := range failures {
						t.Errorf("seed %d: %.900s", seed, f)
					}
					continue
				}
				if len(failures) > 0 {
					t.Logf("seed %d: %.300s", seed, failures[0])
					return
				}
			}
			if bug != noBug {
				t.Errorf("%d seeds found nothing", tries)
			}
		})
	}
}
