package queuetool

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/disk"
	"qmail/internal/system/env"
)

func open(t *testing.T, d disk.FS) *journal.Journal {
	t.Helper()
	j, err := journal.Open(d, journal.Options{SegmentSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func commit(t *testing.T, j queue.Store, b queue.Batch) {
	t.Helper()
	done := make(chan error, 1)
	j.Commit(b, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func accept(t *testing.T, j queue.Store, e *envelope.Envelope, body string) queue.ID {
	t.Helper()
	id := j.NewID()
	a := queue.Accept{ID: id, Envelope: e}
	if len(body) < 10_000 {
		a.Body = [][]byte{[]byte(body)}
	} else {
		s, err := j.Spool()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		io.WriteString(s, body)
		a.Spool = s
	}
	commit(t, j, queue.Batch{Accepts: []queue.Accept{a}})
	return id
}

// told is a queue as text, in the order of bodies.
func told(t *testing.T, j *journal.Journal) string {
	t.Helper()
	var lines []string
	err := j.Scan(func(e *queue.Entry) error {
		b, err := j.Body(context.Background(), e.ID)
		if err != nil {
			return err
		}
		defer b.Close()
		text, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
		r := remaining(e)
		lines = append(lines, fmt.Sprintf("%.20q %d from %s to %v %v birth %d uid %d held %v", text, len(text), r.Sender, r.Recipients, r.RecipientOptions, r.Birth.Unix(), r.UID, e.Held))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestWhatIsExportedFromAQueueInUseCanBeImported(t *testing.T) {
	m := disk.NewMemory()
	j := open(t, m)
	birth := time.Unix(1_000_000_000, 0)
	a := accept(t, j, &envelope.Envelope{Sender: "a@x", Recipients: []string{"one", "two", "three"}, RecipientOptions: map[int][]string{1: {"NOTIFY=NEVER"}}, Birth: birth, UID: 7}, "first")
	b := accept(t, j, &envelope.Envelope{Sender: "b@x", Recipients: []string{"one"}, Birth: birth}, strings.Repeat("second", 5000))
	c := accept(t, j, &envelope.Envelope{Sender: "c@x", Recipients: []string{"one"}, Birth: birth}, "third, which is done")
	accept(t, j, &envelope.Envelope{Sender: "", Recipients: []string{"one", "two"}, Birth: birth}, "")
	commit(t, j, queue.Batch{
		Closes: []queue.Close{{ID: a, Recipients: []uint32{0}, Outcome: queue.Delivered}, {ID: c, Outcome: queue.Delivered}},
		Fails:  []queue.Fail{{ID: a, Recipients: []uint32{2}, Outcome: queue.Bounced, Text: "no"}},
		Holds:  []queue.Hold{{ID: b, On: true}},
	})
	var out bytes.Buffer
	n, err := export(m, &out)
	if err != nil || n != 3 {
		t.Fatal(n, err)
	}
	want := told(t, j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	e := &env.Env{Now: time.Now, Stderr: io.Discard}
	fresh := disk.NewMemory()
	if n, err := restore(fresh, e, bytes.NewReader(out.Bytes())); err != nil || n != 3 {
		t.Fatal(n, err)
	}
	j, err = journal.Open(fresh, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if got := told(t, j); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := restore(fresh, e, bytes.NewReader(out.Bytes())); err == nil {
		t.Error("imported into a queue in use")
	}
	for _, at := range []int{3, len(exportMagic) + 1, out.Len() / 2, out.Len() - 1} {
		cut := disk.NewMemory()
		if _, err := restore(cut, e, bytes.NewReader(out.Bytes()[:at])); err == nil {
			t.Errorf("cut at %d, and nothing is said", at)
		}
		flipped := bytes.Clone(out.Bytes())
		flipped[at] ^= 4
		if _, err := restore(disk.NewMemory(), e, bytes.NewReader(flipped)); err == nil {
			t.Errorf("changed at %d, and nothing is said", at)
		}
	}
}

// TestExportOfABusyQueue exports while messages come and go. What is there all the time is in every export.
func TestExportOfABusyQueue(t *testing.T) {
	m := disk.NewMemory()
	j := open(t, m)
	defer j.Close()
	for i := range 20 {
		accept(t, j, &envelope.Envelope{Sender: "stays@x", Recipients: []string{"one"}}, fmt.Sprintf("%d %s", i, strings.Repeat("x", 1000*i)))
	}
	stop, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			id := accept(t, j, &envelope.Envelope{Sender: "goes@x", Recipients: []string{"one"}}, strings.Repeat("y", 3000+i%2*9000))
			commit(t, j, queue.Batch{Closes: []queue.Close{{ID: id, Outcome: queue.Delivered}}})
		}
	}()
	for range 20 {
		var out bytes.Buffer
		if _, err := export(m, &out); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "stays@x"); n != 20 {
			t.Fatalf("%d of 20", n)
		}
	}
	close(stop)
	<-ended
}
