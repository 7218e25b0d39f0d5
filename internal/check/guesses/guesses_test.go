package guesses

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

var (
	start = time.Unix(1_800_000_000, 0)
	bad   = netip.MustParseAddr("192.0.2.66")
	good  = netip.MustParseAddr("198.51.100.7")
)

// guess makes n wrong guesses and returns how many were looked at.
func guess(g *Guesses, ip netip.Addr, login string, n int, now time.Time) (taken int) {
	for range n {
		if g.Take(ip, login, now) {
			taken++
		}
	}
	return taken
}

func TestWrongGuessesRunOut(t *testing.T) {
	tests := []struct {
		name string
		ip   func(i int) netip.Addr
		who  func(i int) string
		want int
	}{
		{"of one address, at one login", func(int) netip.Addr { return bad }, func(int) string { return "alice" }, 15},
		{"of one address, at many logins", func(int) netip.Addr { return bad }, func(i int) string { return fmt.Sprint(i) }, 15},
		{"of one network", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }, func(i int) string { return fmt.Sprint(i) }, 60},
		{"of one IPv6 network", func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 1, byte(i >> 8), byte(i)})
		}, func(i int) string { return fmt.Sprint(i) }, 60},
		{"of one IPv6 link", func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 8: byte(i >> 8), 15: byte(i)})
		}, func(i int) string { return fmt.Sprint(i) }, 15},
		{"at one login, from everywhere", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}) }, func(int) string { return "Alice" }, 50},
		{"without an address", func(int) netip.Addr { return netip.Addr{} }, func(i int) string { return fmt.Sprint(i) }, 15},
		{"of an address in two forms", func(i int) netip.Addr {
			if i%2 == 0 {
				return netip.AddrFrom16(bad.As16())
			}
			return bad
		}, func(i int) string { return fmt.Sprint(i) }, 15},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var g Guesses
			taken := 0
			for i := range 1000 {
				taken += guess(&g, tt.ip(i), tt.who(i), 1, start)
			}
			if taken != tt.want {
				t.Errorf("%d of 1000 were looked at, want %d", taken, tt.want)
			}
		})
	}
}

func TestTimeForgives(t *testing.T) {
	var g Guesses
	guess(&g, bad, "alice", 100, start)
	if n := guess(&g, bad, "alice", 100, start.Add(61*time.Second)); n != 2 {
		t.Errorf("%d more after a minute, want 2", n)
	}
	if n := guess(&g, bad, "alice", 100, start.Add(time.Hour)); n != 15 {
		t.Errorf("%d more after an hour, want 15", n)
	}
	if n := guess(&g, bad, "alice", 100, start); n != 0 {
		t.Errorf("%d more when the clock was set back", n)
	}
}

func TestRightOnesDoNotCount(t *testing.T) {
	var g Guesses
	for range 1000 {
		if !g.Take(good, "alice", start) {
			t.Fatal("who is right is locked out")
		}
		g.Right(good, "alice", start)
	}
	for range 1000 {
		if !g.Take(bad, "bob", start) {
			t.Fatal("what could not be looked at counts")
		}
		g.Void(bad, "bob", start)
	}
}

func TestOthersDoNotLockOutWhoIsKnown(t *testing.T) {
	var g Guesses
	g.Take(good, "alice", start)
	g.Right(good, "alice", start)
	guess(&g, good, "bob", 100, start) // a neighbour behind the same address
	for i := range 200 {
		guess(&g, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), "alice", 10, start)
	}
	if !g.Take(good, "alice", start) {
		t.Error("alice is locked out where she has been before")
	}
	if g.Take(netip.MustParseAddr("203.0.113.1"), "alice", start) {
		t.Error("guesses at alice's password go on elsewhere")
	}
	if n := guess(&g, good, "alice", 100, start); n != 14 {
		t.Errorf("where she is known there were %d guesses, want 14", n)
	}
}

func TestAnswersComeLaterAndLater(t *testing.T) {
	var g Guesses
	var got []float64
	for range 7 {
		g.Take(bad, "alice", start)
		got = append(got, g.Delay(bad, "alice", start).Seconds())
	}
	if fmt.Sprint(got) != "[1 2 4 8 16 16 16]" {
		t.Errorf("%v seconds", got)
	}
	if d := g.Delay(good, "bob", start); d != firstDelay {
		t.Errorf("others wait %v", d)
	}
	g.Take(good, "alice", start)
	if d := g.Delay(good, "alice", start); d != 4*time.Second {
		t.Errorf("guesses from elsewhere wait %v", d)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var g Guesses
	for i := range 3 * maxBuckets {
		ip := netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1})
		now := start.Add(time.Duration(i) * time.Millisecond)
		g.Take(ip, fmt.Sprint("a", i), now)
		g.Take(ip, fmt.Sprint("b", i), now)
		g.Right(ip, fmt.Sprint("b", i), now)
	}
	for kind, table := range g.buckets {
		if len(table) > maxBuckets {
			t.Errorf("%d buckets of kind %d", len(table), kind)
		}
	}
	if len(g.known) > maxKnown || len(g.known) < maxKnown/10 {
		t.Errorf("%d are known", len(g.known))
	}
}
