package inlet

import (
	"strings"
	"sync"
	"time"

	"qmail/internal/format/reply"
)

// verdicts remembers for a few seconds which recipients the queue would take, since clients repeat themselves.
// What is temporary is not remembered. It keeps two generations of bounded size: when the young one is full
// or too old it becomes the old one, and the old one goes.
type verdicts struct {
	mu         sync.Mutex
	young, old map[string]verdict
	born       time.Time // of young
}

type verdict struct {
	refusal *reply.Error // nil: welcome
	at      time.Time
}

const (
	verdictTime = 5 * time.Second
	verdictsMax = 4096 // of a generation
)

// get returns what is known of a recipient.
func (v *verdicts) get(recipient string, now time.Time) (refusal *reply.Error, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	found, ok := v.young[recipient]
	if !ok {
		found, ok = v.old[recipient]
	}
	if !ok || now.Sub(found.at) >= verdictTime {
		return nil, false
	}
	return found.refusal, true
}

// put remembers an answer: nil, or a permanent refusal.
func (v *verdicts) put(recipient string, refusal *reply.Error, now time.Time) {
	if refusal != nil && refusal.Letter() != 'D' {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.young == nil || len(v.young) >= verdictsMax || now.Sub(v.born) >= verdictTime {
		v.old, v.young, v.born = v.young, map[string]verdict{}, now
	}
	v.young[strings.Clone(recipient)] = verdict{refusal, now} // else the whole command line is kept with it
}
