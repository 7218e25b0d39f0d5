package serve

import "time"

// Patience is how long a session waits for its client. All must be set.
type Patience struct {
	Wait  time.Duration // for the next bytes, and for answers to be taken
	Total time.Duration // of a session
	Grace time.Duration // of a message, before Rate counts
	Rate  int64         // bytes per second that a message has to come in with
}

// Read is when the next bytes must be there, in a session that began then; of the message at hand received bytes
// have come since start. Between messages received is 0.
func (p *Patience) Read(now, began, start time.Time, received int64) time.Time {
	deadline := earlier(now.Add(p.Wait), began.Add(p.Total))
	if seconds := received / max(p.Rate, 1); received > 0 && seconds < 1<<20 {
		deadline = earlier(deadline, start.Add(p.Grace+time.Duration(seconds)*time.Second))
	}
	return deadline
}

// Write is when what is written now must have been taken; there is still a time for it when Total is over.
func (p *Patience) Write(now, began time.Time) time.Time {
	return earlier(now.Add(p.Wait), began.Add(p.Total+p.Wait))
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
