package send

import (
	"os"
	"slices"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/proto/enqueue"
)

func TestOnlyRootAndWeAreBelievedHowOldAMessageIs(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	past := now.Add(-time.Hour)
	for name, tt := range map[string]struct {
		uid    int
		option string
		want   time.Time
	}{
		"root":          {0, enqueue.BirthOption(past), past},
		"we ourselves":  {os.Geteuid(), enqueue.BirthOption(past), past},
		"somebody else": {os.Geteuid() + 12345, enqueue.BirthOption(past), now},
		"the future":    {0, enqueue.BirthOption(now.Add(time.Hour)), now},
	} {
		e := &envelope.Envelope{UID: tt.uid, Options: []string{"BODY=8BITMIME", tt.option}}
		if got := takeBirth(e, now); !got.Equal(tt.want) || !slices.Equal(e.Options, []string{"BODY=8BITMIME"}) {
			t.Errorf("%s: %v, options %q", name, got, e.Options)
		}
	}
}
