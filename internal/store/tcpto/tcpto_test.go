package tcpto

import (
	"net/netip"
	"testing"
	"time"
)

func TestRule(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	start := time.Unix(1e9, 0)
	type step struct {
		after time.Duration // since the step before
		event string        // "out", "in" or "" of a
		skip  bool          // then
	}
	tests := []struct {
		name   string
		random int
		steps  []step
	}{
		{"one time-out is not enough", 0, []step{{0, "out", false}, {time.Hour, "", false}}},
		{"two are, for 64 minutes", 0, []step{{0, "out", false}, {3 * time.Minute, "out", true}, {64*time.Minute - 1, "", true}, {1, "", false}}},
		{"or for 97 minutes", 31, []step{{0, "out", false}, {3 * time.Minute, "out", true}, {97 * time.Minute, "", true}, {4 * time.Second, "", false}}},
		{"time-outs within two minutes are one", 0, []step{{0, "out", false}, {119 * time.Second, "out", false}, {time.Second, "out", true}}},
		{"a connection clears it", 0, []step{{0, "out", false}, {3 * time.Minute, "out", true}, {0, "in", false}, {0, "out", false}}},
		{"a clock set back skips nothing", 0, []step{{0, "out", false}, {3 * time.Minute, "out", true}, {-time.Hour, "", false}}},
		{"once more after the skip, and it is skipped again", 0, []step{{0, "out", false}, {3 * time.Minute, "out", true}, {65 * time.Minute, "out", true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := New(func(n int) int { return min(tt.random, n-1) })
			now := start
			for i, s := range tt.steps {
				now = now.Add(s.after)
				switch s.event {
				case "out":
					table.TimedOut(a, now)
				case "in":
					table.Connected(a)
				}
				if got := table.Skip(a, now); got != s.skip {
					t.Errorf("step %d: skip %v", i, got)
				}
				if table.Skip(b, now) {
					t.Errorf("step %d: another address is skipped", i)
				}
			}
		})
	}
}

func TestTableIsBounded(t *testing.T) {
	table := New(func(int) int { return 0 })
	now := time.Unix(1e9, 0)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := range 3 * MaxHosts {
		table.TimedOut(addr(i), now.Add(time.Duration(i)*time.Second))
	}
	list := table.Entries()
	if len(list) != MaxHosts || list[0].Addr != addr(2*MaxHosts) {
		t.Errorf("%d entries from %v", len(list), list[0].Addr)
	}
}

func TestLine(t *testing.T) {
	table := New(func(int) int { return 0 })
	now := time.Unix(1e9, 0)
	for i := range 12 {
		table.TimedOut(netip.MustParseAddr("1.2.3.4"), now.Add(time.Duration(i)*time.Hour))
	}
	if got := table.Entries()[0].Line(now.Add(11*time.Hour + 90*time.Second)); got != "1.2.3.4 timed out 90 seconds ago; # recent timeouts: 10" {
		t.Errorf("%q", got)
	}
}
