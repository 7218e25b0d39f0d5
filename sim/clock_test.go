package sim

import (
	"hash/fnv"
	"math/rand/v2"
	"sync/atomic"
	"time"
	"unsafe"
)

// clock is the wall clock of a machine, which may be wrong; the time that passes, which timers measure, never is.
type clock struct {
	start time.Time // of the virtual time
	wrong atomic.Int64
}

func newClock() *clock { return &clock{start: time.Now()} }

// jump sets the wall clock ahead, or back.
func (c *clock) jump(d time.Duration) { c.wrong.Add(int64(d)) }

// now is what the machine believes. It has a monotonic part, as real time has and virtual time has not, so that who
// looks can tell a jump from time that has passed.
func (c *clock) now() time.Time {
	t := time.Now()
	passed := t.Sub(c.start)
	t = t.Add(time.Duration(c.wrong.Load()))
	const hasMonotonic, minWall = 1 << 63, 1884*365*24*3600 + (1884/4-1884/100+1884/400)*24*3600 // as package time has them
	const unixToInternal = 62135596800
	parts := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	parts.wall = hasMonotonic | uint64(t.Unix()+unixToInternal-minWall)<<30 | uint64(t.Nanosecond())
	parts.ext = int64(passed) + 1
	return t
}

// dice makes the random numbers of one thing: the same for a seed whatever else happens, and in which order.
func dice(seed uint64, name string, numbers ...uint64) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	for _, n := range numbers {
		for range 8 {
			h.Write([]byte{byte(n)})
			n >>= 8
		}
	}
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// chance is true with probability p.
func chance(r *rand.Rand, p float64) bool { return r.Float64() < p }

// between draws a duration, short ones more often than long ones.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	f := r.Float64()
	return low + time.Duration(f*f*float64(high-low))
}
