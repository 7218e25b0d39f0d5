package send

import (
	"testing"
	"time"
)

// play lets so many messages arrive each millisecond and returns the milliseconds in which deliveries wait.
func play(r *rush, start time.Time, each []int) (waits []bool) {
	for ms, n := range each {
		for range n {
			r.arrived()
		}
		_, yes := r.waits(start.Add(time.Duration(ms) * time.Millisecond))
		waits = append(waits, yes)
	}
	return waits
}

func repeat(n, times int) []int {
	list := make([]int, times)
	for i := range list {
		list[i] = n
	}
	return list
}

func longest(waits []bool) (most, all int) {
	row := 0
	for _, w := range waits {
		if !w {
			row = 0
			continue
		}
		row++
		all++
		most = max(most, row)
	}
	return most, all
}

var dawn = time.Unix(1700000000, 0)

func TestDeliveriesDoNotWaitForFewMessages(t *testing.T) {
	few := repeat(0, 2000)
	for i := 0; i < len(few); i += 2 { // 500 a second
		few[i] = 1
	}
	few[1000] = 2 * rushCount // and some at once after a while
	if most, all := longest(play(new(rush), dawn, few)); all > 25 {
		t.Errorf("%d ms, %d in a row", all, most)
	}
	alone := repeat(0, 200)
	alone[105] = 1000
	if _, all := longest(play(new(rush), dawn, alone)); all > int(rushWindow/time.Millisecond) {
		t.Errorf("one burst after silence waits for %d ms", all)
	}
}

func TestDeliveriesWaitInARushButNeverLong(t *testing.T) {
	const limit = int(rushLongest / time.Millisecond)
	most, all := longest(play(new(rush), dawn, repeat(5, 5000)))
	if most > limit+1 || most < limit-15 {
		t.Errorf("%d ms in a row", most)
	}
	if all < 2000 || all > 2600 { // half of the time
		t.Errorf("%d ms of 5000", all)
	}
}

func TestTheEndOfARushEndsTheWait(t *testing.T) {
	waits := play(new(rush), dawn, append(repeat(5, 100), repeat(0, 100)...))
	if !waits[50] || !waits[99] {
		t.Error("it does not wait in the rush")
	}
	for ms, w := range waits[125:] {
		if w {
			t.Fatalf("it still waits %d ms after the rush", ms+25)
		}
	}
}

func TestAskingAgainEndsIt(t *testing.T) {
	r, now := new(rush), dawn
	play(r, now, repeat(5, 50))
	now = now.Add(50 * time.Millisecond)
	for range 3 {
		again, yes := r.waits(now)
		if !yes {
			return
		}
		if !again.After(now) || again.Sub(now) > rushWindow {
			t.Fatalf("asked at %v, again at %v", now.Sub(dawn), again.Sub(dawn))
		}
		now = again
	}
	t.Error("it waits for nobody")
}

func TestAClockThatLeapsEndsTheWait(t *testing.T) {
	for _, leap := range []time.Duration{-time.Hour, time.Hour} {
		r := new(rush)
		play(r, dawn, repeat(5, 100))
		if _, yes := r.waits(dawn.Add(leap)); yes {
			t.Errorf("it waits after %v", leap)
		}
	}
}
