package send

import "time"

// rush says when deliveries on this machine wait for a moment: while messages come in fast, so that those who bring them,
// and hold a connection meanwhile, are served first. What has waited is then delivered in larger groups, which costs
// less a message. No message waits longer for it than rushLongest.
type rush struct {
	window time.Time // when counting began
	count  int       // arrivals since
	since  time.Time // of the wait; zero if there is none
	until  time.Time // no wait begins before
}

const (
	// rushWindow is how long arrivals are counted, and rushCount how many of them are a rush: 1,000 a second.
	rushWindow = 10 * time.Millisecond
	rushCount  = 10
	// rushLongest is the longest wait. As long a time without one follows.
	rushLongest = 500 * time.Millisecond
)

// arrived counts a message.
func (r *rush) arrived() { r.count++ }

// waits reports whether deliveries wait, and when to ask again if they do.
func (r *rush) waits(now time.Time) (again time.Time, yes bool) {
	if passed := now.Sub(r.window); passed >= rushWindow || passed < 0 {
		busy := r.count >= rushCount && passed >= 0 && passed < 2*rushWindow
		r.window, r.count = now, 0
		switch {
		case !busy:
			r.since = time.Time{}
		case r.since.IsZero() && !now.Before(r.until):
			r.since = now
		}
	}
	if r.since.IsZero() {
		return time.Time{}, false
	}
	if d := now.Sub(r.since); d >= rushLongest || d < 0 {
		r.since, r.until = time.Time{}, now.Add(rushLongest)
		return time.Time{}, false
	}
	return r.window.Add(rushWindow), true
}
