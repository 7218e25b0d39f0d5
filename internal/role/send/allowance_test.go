package send

import (
	"fmt"
	"testing"
	"time"
)

func TestWhatASenderIsToldIsBounded(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	c := &core{now: func() time.Time { return now }, notices: allowance{map[string]spending{}}}
	told := func(n int, name func(i int) string) (yes int) {
		for i := range n {
			if c.mayTell(name(i)) {
				yes++
			}
		}
		return yes
	}
	one := func(int) string { return "Victim@one.example" }
	if got := told(1000, one); got != noticesPerAddress {
		t.Errorf("%d notices at once", got)
	}
	if !c.mayTell("other@one.example") || c.mayTell("victim@ONE.example") {
		t.Error("others are not concerned, other spellings are")
	}
	now = now.Add(noticesTime / 10)
	if got := told(1000, one); got != noticesPerAddress/10 {
		t.Errorf("%d notices after a tenth of the time", got)
	}
	now = now.Add(10 * noticesTime)
	if got := told(1000, one); got != noticesPerAddress {
		t.Errorf("%d notices after a long time", got)
	}
	now = now.Add(-5 * noticesTime) // somebody sets the clock
	if got := told(1000, one); got != 0 {
		t.Errorf("%d notices when the clock goes back", got)
	}
	if got := told(5000, func(i int) string { return fmt.Sprintf("u%d@two.example", i) }); got != noticesPerDomain {
		t.Errorf("%d notices to one domain", got)
	}
	if got := told(5000, func(i int) string { return fmt.Sprintf("u@v%d@three.example", i) }); got != noticesPerDomain {
		t.Errorf("%d notices to one domain by local parts with an @", got)
	}
	told(3*maxAllowances, func(i int) string { return fmt.Sprintf("u@d%d.example", i) })
	if len(c.notices.spent) > maxAllowances {
		t.Errorf("%d names are remembered", len(c.notices.spent))
	}
	now = now.Add(20 * noticesTime)
	if !c.mayTell("late@new.example") {
		t.Error("a flood keeps the others out for ever")
	}
}
