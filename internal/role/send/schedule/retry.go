package schedule

import "math"

// skip is how far, in square roots of seconds, qmail's channels step from attempt to attempt.
var skip = [channels]int64{Local: 10, Remote: 20}

// retry is qmail-send's nextretry: when an attempt that starts now is followed by the next. A birth in the
// future counts as now.
func retry(birth, now int64, c Channel) int64 {
	birth = min(birth, now)
	n := isqrt(now-birth) + skip[c]
	return birth + n*n
}

// maxAge keeps squares within int64; it is more than any clock's difference between two real dates.
const maxAge = 1 << 60

// isqrt is the largest n with n*n <= x.
func isqrt(x int64) int64 {
	x = min(max(x, 0), maxAge)
	n := int64(math.Sqrt(float64(x)))
	for n*n > x {
		n--
	}
	for (n+1)*(n+1) <= x {
		n++
	}
	return n
}
