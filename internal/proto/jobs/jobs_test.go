package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/system/ipc"
)

// heard collects events.
type heard struct {
	mu      sync.Mutex
	changed sync.Cond
	results map[uint32][]Result
	over    map[uint32]bool
	gone    []uint32
	err     error
}

func newHeard() *heard {
	h := &heard{results: map[uint32][]Result{}, over: map[uint32]bool{}}
	h.changed.L = &h.mu
	return h
}

func (h *heard) Results(job uint32, results []Result, over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.results[job] = append(h.results[job], results...)
	if over {
		h.over[job] = true
	}
	h.changed.Broadcast()
}

func (h *heard) Gone(jobs []uint32, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone, h.err = jobs, err
	if err == nil {
		h.err = errors.New("gone without a reason")
	}
	h.changed.Broadcast()
}

func (h *heard) wait(t *testing.T, until func() bool) {
	t.Helper()
	late := time.AfterFunc(20*time.Second, func() {
		t.Error("waited too long")
		h.mu.Lock()
		h.err = errors.New("late")
		h.changed.Broadcast()
		h.mu.Unlock()
	})
	defer late.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	for !until() && h.err == nil {
		h.changed.Wait()
	}
}

func start(t *testing.T, handle Handler) (*Client, *heard, chan error) {
	t.Helper()
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- Serve(t.Context(), b, handle) }()
	h := newHeard()
	c := NewClient(a, h)
	t.Cleanup(func() { c.Close() })
	return c, h, ended
}

func TestJob(t *testing.T) {
	want := &Job{Body: 3, Sender: "s@t", Host: "t", Options: []string{"SMTPUTF8"}, Recipients: []string{"a@t", "b@t"}, RecipientOptions: map[int][]string{1: {"NOTIFY=NEVER"}}}
	message := bytes.Repeat([]byte("0123456789"), 20000)
	goOn := make(chan struct{})
	c, h, _ := start(t, func(_ context.Context, j *Job, body *Body, report Report) []Result {
		<-goOn
		got, err := io.ReadAll(body.Reader())
		if err != nil || !bytes.Equal(got, message) || body.Size() != int64(len(message)) || !reflect.DeepEqual(j, want) {
			t.Errorf("%+v, %d bytes %v", j, len(got), err)
		}
		report(Result{Recipient: 1, Text: "Dno such user (#5.1.1)\n"})
		return []Result{{Recipient: 0, Text: "Kaccepted"}}
	})
	if err := c.Load(3, message); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(9, want); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(9, want); err == nil {
		t.Error("a number was used twice")
	}
	close(goOn)
	c.Forget(3)
	h.wait(t, func() bool { return h.over[9] })
	if got := h.results[9]; !reflect.DeepEqual(got, []Result{{Recipient: 1, Text: "Dno such user (#5.1.1)\n"}, {Recipient: 0, Text: "Kaccepted"}}) {
		t.Errorf("%+v", got)
	}
}

func TestFileBody(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprint(f, "before|the message|after")
	read := make(chan string, 4)
	forgotten := make(chan struct{})
	c, h, _ := start(t, func(_ context.Context, j *Job, body *Body, _ Report) []Result {
		if j.Sender == "late" {
			<-forgotten
		}
		got, err := io.ReadAll(body.Reader())
		read <- fmt.Sprint(string(got), err)
		return []Result{{Recipient: 0, Text: "K"}}
	})
	if err := c.LoadFile(1, f, 7, 11); err != nil {
		t.Fatal(err)
	}
	c.Start(1, &Job{Body: 1, Recipients: []string{"a"}})
	c.Start(2, &Job{Body: 1, Sender: "late", Recipients: []string{"a"}})
	c.Forget(1)
	c.Load(1, []byte("another"))
	c.Start(3, &Job{Body: 1, Recipients: []string{"a"}})
	h.wait(t, func() bool { return h.over[1] && h.over[3] })
	close(forgotten)
	h.wait(t, func() bool { return h.over[2] })
	got := []string{<-read, <-read, <-read}
	slices.Sort(got)
	if !slices.Equal(got, []string{"another<nil>", "the message<nil>", "the message<nil>"}) {
		t.Errorf("%q", got)
	}
}

func TestManyJobsAtOnce(t *testing.T) {
	c, h, _ := start(t, func(_ context.Context, j *Job, _ *Body, _ Report) []Result {
		var results []Result
		for i := range j.Recipients {
			results = append(results, Result{Recipient: i, Text: "Z" + strings.Repeat(j.Recipients[i], 300)})
		}
		return results
	})
	c.Load(1, []byte("x"))
	for n := range uint32(300) {
		j := &Job{Body: 1}
		for i := range 1 + int(n)%MaxRecipients {
			j.Recipients = append(j.Recipients, fmt.Sprintf("%d-%d@example.org", n, i))
		}
		if err := c.Start(n, j); err != nil {
			t.Fatal(err)
		}
	}
	h.wait(t, func() bool { return len(h.over) == 300 })
	h.mu.Lock()
	defer h.mu.Unlock()
	for n := range uint32(300) {
		if len(h.results[n]) != 1+int(n)%MaxRecipients {
			t.Errorf("job %d: %d results", n, len(h.results[n]))
		}
	}
}

func TestALostWorkerNamesItsJobs(t *testing.T) {
	stop := make(chan struct{})
	c, h, _ := start(t, func(context.Context, *Job, *Body, Report) []Result { <-stop; return nil })
	defer close(stop)
	c.Load(1, []byte("x"))
	c.Start(5, &Job{Body: 1, Recipients: []string{"a"}})
	c.Close()
	h.wait(t, func() bool { return false })
	if !slices.Equal(h.gone, []uint32{5}) {
		t.Errorf("%v %v", h.gone, h.err)
	}
}

func TestALyingWorkerIsDropped(t *testing.T) {
	result := func(i int, text string) []byte { return appendResults(nil, []Result{{Recipient: i, Text: text}}) }
	tests := map[string][]ipc.Message{
		"a job never given":            {{Kind: kindEnd, Parts: [][]byte{result(0, "K")}}},
		"a recipient it does not have": {{Kind: kindResults, Parts: [][]byte{result(1, "K")}}},
		"a recipient far out of range": {{Kind: kindResults, Parts: [][]byte{[]byte("i99999\x00K\x00")}}},
		"a negative recipient":         {{Kind: kindResults, Parts: [][]byte{[]byte("i-1\x00K\x00")}}},
		"the same recipient twice":     {{Kind: kindResults, Parts: [][]byte{result(0, "K")}}, {Kind: kindResults, Parts: [][]byte{result(0, "D")}}},
		"a result after the end":       {{Kind: kindEnd}, {Kind: kindResults, Parts: [][]byte{result(0, "K")}}},
		"a result of no known letter":  {{Kind: kindResults, Parts: [][]byte{[]byte("i0\x00Qx\x00")}}},
		"a report cut short":           {{Kind: kindResults, Parts: [][]byte{[]byte("i0\x00Kx")}}},
		"a kind that only we may send": {{Kind: kindJob}},
	}
	for name, frames := range tests {
		t.Run(name, func(t *testing.T) {
			a, b, err := ipc.LocalPair()
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			h := newHeard()
			c := NewClient(a, h)
			number := uint32(4)
			if name == "a job never given" {
				number = 5
			}
			if err := c.Start(4, &Job{Body: 1, Recipients: []string{"a"}}); err != nil {
				t.Fatal(err)
			}
			b.SendAll(number, frames...)
			h.wait(t, func() bool { return false })
			if !errors.Is(h.err, errPeer) && !errors.Is(h.err, errResults) {
				t.Errorf("%v", h.err)
			}
			if len(h.results[4]) > 1 {
				t.Errorf("believed %v", h.results[4])
			}
		})
	}
}

func TestALyingSenderIsDropped(t *testing.T) {
	job := (&Job{Body: 1, Recipients: []string{"a"}}).append(nil)
	tests := map[string][]ipc.Message{
		"a job without its body": {{Kind: kindJob, Parts: [][]byte{job}}},
		"an unknown kind":        {{Kind: 'z'}},
		"a malformed job":        {{Kind: kindJob, Parts: [][]byte{[]byte("b1\x00Qx\x00Fa\x00Tb\x00")}}},
		"a file without a file":  {{Kind: kindFile, Parts: [][]byte{[]byte("o0\x00l5\x00")}}},
		"too large a body":       slices.Repeat([]ipc.Message{{Kind: kindBody, Parts: [][]byte{make([]byte, 256<<10)}}}, 3),
	}
	for name, frames := range tests {
		t.Run(name, func(t *testing.T) {
			a, b, err := ipc.LocalPair()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			go a.SendAll(1, frames...)
			err = Serve(t.Context(), b, func(context.Context, *Job, *Body, Report) []Result {
				t.Error("a job ran")
				return nil
			})
			if Ended(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestReportsAreMadeSafe(t *testing.T) {
	for in, want := range map[string]string{"": "Z", "x": "Zx", "Ka\x00Zb": "KaZb", strings.Repeat("K", MaxText+5): strings.Repeat("K", MaxText)} {
		got, err := parseResults(appendResults(nil, []Result{{Recipient: 7, Text: in}}))
		if err != nil || len(got) != 1 || got[0].Recipient != 7 || got[0].Text != want {
			t.Errorf("%.20q became %.60s, %v", in, fmt.Sprint(got), err)
		}
	}
}

func FuzzParseJob(f *testing.F) {
	f.Add((&Job{Body: 7, Verify: true, Sender: "s", Dash: "-", Ext: "e", Recipients: []string{"a"}}).append(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		j, err := parseJob(in)
		if err != nil {
			return
		}
		if err := j.check(); err != nil {
			t.Fatalf("parsed what cannot be written: %v", err)
		}
		again, err := parseJob(j.append(nil))
		if err != nil || !reflect.DeepEqual(j, again) {
			t.Errorf("%+v came back as %+v, %v", j, again, err)
		}
	})
}

func FuzzParseResults(f *testing.F) {
	f.Add([]byte("i0\x00Kok\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := parseResults(in)
		if err == nil && !bytes.Equal(appendResults(nil, r), in) {
			t.Errorf("%q is a second spelling", in)
		}
	})
}
