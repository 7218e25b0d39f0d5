package send

import (
	"time"

	"qmail/internal/format/address"
)

// Bounds of what one sender is told of successes. Whoever forges a sender can have us tell somebody who never asked, a
// notice for each recipient that a message names, and neither we nor RFC 3461 know who asked. A failure is told once for
// a message, and strangers hear of unknown users before we have it; so these are the notices that could be made many.
const (
	noticesPerAddress = 100
	noticesPerDomain  = 2000
	noticesTime       = time.Hour // after which as many may go again
	maxAllowances     = 20000     // addresses and domains that are remembered
)

// allowance counts by name, and lets through so many at once and as many more evenly in each period.
type allowance struct {
	spent map[string]spending
}

// spending is what a name has used up, as of a time.
type spending struct {
	used float64
	at   time.Time
}

// take says whether what these names want is within all their limits, and counts it if so. When too many names are
// remembered, those that have not used anything of late are forgotten; one that is new then gets nothing.
func (a *allowance) take(now time.Time, limits map[string]float64) bool {
	if len(a.spent)+len(limits) > maxAllowances {
		for name, s := range a.spent {
			if now.Sub(s.at) >= noticesTime {
				delete(a.spent, name)
			}
		}
		if len(a.spent)+len(limits) > maxAllowances {
			return false
		}
	}
	for name, limit := range limits {
		if a.left(name, limit, now) < 1 {
			return false
		}
	}
	for name, limit := range limits {
		a.spent[name] = spending{limit - a.left(name, limit, now) + 1, now}
	}
	return true
}

func (a *allowance) left(name string, limit float64, now time.Time) float64 {
	s := a.spent[name]
	back := limit * max(now.Sub(s.at).Seconds(), 0) / noticesTime.Seconds()
	return limit - max(s.used-back, 0)
}

// mayTell says whether a sender may be told of one more success.
func (c *core) mayTell(sender string) bool {
	sender = address.Lower(sender)
	_, domain, _ := address.Split(sender)
	return c.notices.take(c.now(), map[string]float64{sender: noticesPerAddress, "@" + domain: noticesPerDomain})
}
