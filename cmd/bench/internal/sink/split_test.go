package sink

import (
	"hash/maphash"
	"testing"
	"time"
)

// What a session says must not depend on how its input was cut into reads.
func TestCutAnywhere(t *testing.T) {
	const in = "EHLO x\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nDATA\r\n..\r\n.x\n.\r\n\r\r\n.\r\nMAIL FROM:<a>\r\nRCPT TO:<d>\r\nDATA\r\n.\r\nQUIT\r\n"
	seed := maphash.MakeSeed()
	play := func(cuts ...int) (string, Counts) {
		s := &Sink{seed: seed}
		s.Expect(1<<40, false)
		c := &session{sink: s, fd: -1}
		from := 0
		for _, to := range append(cuts, len(in)) {
			c.take([]byte(in[from:to]))
			from = to
		}
		counts := s.Counts()
		counts.Last = time.Time{}
		return string(c.out), counts
	}
	wantOut, wantCounts := play()
	if wantCounts.Messages != 2 || wantCounts.Recipients != 3 {
		t.Fatalf("uncut: %+v", wantCounts)
	}
	for i := range in {
		for j := i; j < len(in); j++ {
			if out, counts := play(i, j); out != wantOut || counts != wantCounts {
				t.Fatalf("cut at %d and %d: %q, %+v", i, j, out, counts)
			}
		}
	}
}
