package journal

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// historyOf lists what is known of a message, without copies.
func historyOf(t *testing.T, j *Journal, id queue.ID) (all []queue.Event) {
	t.Helper()
	err := j.History(context.Background(), id, func(e *queue.Event) error {
		if !e.Copy {
			all = append(all, *e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestHistoryTellsWhatWasRecorded(t *testing.T) {
	m := disk.NewMemory()
	when := time.Unix(1_800_000_000, 5)
	opt := smallOptions(t)
	opt.Now = func() time.Time { return when }
	j, err := Open(m, opt)
	if err != nil {
		t.Fatal(err)
	}
	a := newAccount()
	alive := func() bool { return false }
	id := a.accept(j, alive, 100, 3)
	other := a.accept(j, alive, 100, 1)
	next := time.Unix(1_900_000_000, 7)
	for _, b := range []queue.Batch{
		{Notes: []queue.Note{{ID: id, Recipients: []uint32{0, 2}, Next: next, Text: "not now"}, {ID: other, Next: next, Text: "nor this"}}},
		{Fails: []queue.Fail{{ID: id, Recipients: []uint32{1}, Outcome: queue.Bounced, Text: "never"}}, Holds: []queue.Hold{{ID: id, On: true}}},
		{Closes: []queue.Close{{ID: id, Outcome: queue.Dropped}}},
	} {
		if err := commit(j, b); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		all := historyOf(t, j, id)
		if len(all) != 5 {
			t.Fatalf("%d events: %+v", len(all), all)
		}
		for _, e := range all {
			if !e.Time.Equal(when) {
				t.Errorf("at %v", e.Time)
			}
		}
		accept, note, fail, hold, end := all[0].Accept, all[1].Note, all[2].Fail, all[3].Hold, all[4].Close
		if accept == nil || accept.Size != 100 || len(accept.Envelope.Recipients) != 3 {
			t.Errorf("accept %+v", accept)
		}
		if note == nil || !slices.Equal(note.Recipients, []uint32{0, 2}) || note.Text != "not now" || !note.Next.Equal(next) {
			t.Errorf("note %+v", note)
		}
		if fail == nil || !slices.Equal(fail.Recipients, []uint32{1}) || fail.Text != "never" || fail.Outcome != queue.Bounced {
			t.Errorf("fail %+v", fail)
		}
		if hold == nil || !hold.On || end == nil || end.Outcome != queue.Dropped {
			t.Errorf("hold %+v, close %+v", hold, end)
		}
	}
	check() // from the head
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = Open(m, opt); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	check() // from a footer, which has no texts of notes
	stop := errors.New("enough")
	if err := j.History(context.Background(), id, func(*queue.Event) error { return stop }); err != stop {
		t.Errorf("error %v", err)
	}
	if all := historyOf(t, j, 1<<40); len(all) != 0 {
		t.Errorf("of a message that never was: %+v", all)
	}
}

// TestTheFirstFormatIsRead makes a queue look as version 1 wrote it.
func TestTheFirstFormatIsRead(t *testing.T) {
	m := disk.NewMemory()
	j, err := Open(m, smallOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	a := newAccount()
	id := a.accept(j, m.Dead, 100, 2)
	a.close(j, m.Dead, id, 1)
	name := j.segs[0].name
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := m.OpenWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, headerCopy, size - trailerSize} {
		b := make([]byte, headerSize)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		le.PutUint32(b[8:], 1)
		le.PutUint32(b[60:], checksum(b[:60]))
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	if j, err = Open(m, smallOptions(t)); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	a.check(t, j)
	if j.segs[0].footer.Load() == nil {
		t.Error("its footer was not used")
	}
}
