package keys

import "time"

// Expires says how many days are left of a certificate: the least of 30, 7 and 1 that it has no more than, or -1 if
// it has expired. due is false while there are more than 30.
func (p *Pair) Expires(now time.Time) (days int, due bool) {
	left := p.Leaf.NotAfter.Sub(now)
	if left <= 0 {
		return -1, true
	}
	for _, days := range [...]int{1, 7, 30} {
		if left <= time.Duration(days)*24*time.Hour {
			return days, true
		}
	}
	return 0, false
}
