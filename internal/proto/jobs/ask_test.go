package jobs

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"qmail/internal/system/ipc"
)

type asked struct {
	answer []byte
	err    error
}

// askAll puts questions to a worker that answers so and waits for all answers.
func askAll(t *testing.T, answer Answerer, questions ...*Question) (got []asked) {
	t.Helper()
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	go ServeAsked(t.Context(), b, func(context.Context, *Job, *Body, Report) []Result { return nil }, answer)
	c := NewClient(a, silent{})
	defer c.Close()
	for _, q := range questions {
		done := make(chan asked, 1)
		if err := c.Ask(q, func(answer []byte, err error) { done <- asked{answer, err} }); err != nil {
			got = append(got, asked{nil, err})
			continue
		}
		select {
		case one := <-done:
			got = append(got, one)
		case <-time.After(20 * time.Second):
			t.Fatal("no answer")
		}
	}
	return got
}

type silent struct{}

func (silent) Results(uint32, []Result, bool) {}
func (silent) Gone([]uint32, error)           {}

func TestQuestionsAreAnswered(t *testing.T) {
	got := askAll(t, func(_ context.Context, q *Question) []byte {
		switch {
		case q.Slow:
			return []byte("slow")
		case q.Forget:
			return []byte("forgotten")
		case q.Explain.Recipients[0] == "long@x":
			return make([]byte, MaxAnswer+1)
		case q.Explain.Recipients[0] == "none@x":
			return nil
		}
		return []byte(q.Explain.Sender + q.Explain.Host + q.Explain.Dash + q.Explain.Ext + q.Explain.Recipients[0])
	},
		&Question{Slow: true}, &Question{Forget: true},
		&Question{Explain: &Job{Sender: "s", Host: "h", Dash: "-", Ext: "e", Recipients: []string{"r"}}},
		&Question{Explain: &Job{Recipients: []string{"long@x"}}}, &Question{Explain: &Job{Recipients: []string{"none@x"}}},
		&Question{}, &Question{Explain: &Job{}}, &Question{Slow: true})
	for i, want := range []string{"slow", "forgotten", "sh-er", "", "", "", "", "slow"} {
		if string(got[i].answer) != want || (want == "") != (got[i].err != nil) {
			t.Errorf("%d: %q %v", i, got[i].answer, got[i].err)
		}
	}
}

func TestAWorkerThatKnowsNothingSaysSo(t *testing.T) {
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	go Serve(t.Context(), b, func(context.Context, *Job, *Body, Report) []Result { return nil })
	c := NewClient(a, silent{})
	done := make(chan error, 1)
	if err := c.Ask(&Question{Slow: true}, func(_ []byte, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != ErrNoAnswer {
		t.Error(err)
	}
	c.Close()
	for err = nil; err == nil; { // until the client knows that it is closed
		err = c.Ask(&Question{Slow: true}, func(_ []byte, err error) { done <- err })
		if err == nil {
			err = <-done
		}
	}
}

func TestALyingAnswererIsDropped(t *testing.T) {
	for name, lie := range map[string]func(c *ipc.Conn, f ipc.Frame){
		"another number": func(c *ipc.Conn, f ipc.Frame) { c.Send(kindAnswer, f.Stream+1, []byte("x")) },
		"twice": func(c *ipc.Conn, f ipc.Frame) {
			c.Send(kindAnswer, f.Stream, nil)
			c.Send(kindAnswer, f.Stream, nil)
		},
		"too long":     func(c *ipc.Conn, f ipc.Frame) { c.Send(kindAnswer, f.Stream, make([]byte, MaxAnswer+1)) },
		"a job's word": func(c *ipc.Conn, f ipc.Frame) { c.Send(kindEnd, f.Stream, nil) },
		"goes away":    func(c *ipc.Conn, f ipc.Frame) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, err := ipc.LocalPair()
			if err != nil {
				t.Fatal(err)
			}
			gone := make(chan error, 1)
			c := NewClient(a, events{gone})
			done := make(chan error, 2)
			if err := c.Ask(&Question{Slow: true}, func(_ []byte, err error) { done <- err }); err != nil {
				t.Fatal(err)
			}
			f, err := b.Read()
			if err != nil {
				t.Fatal(err)
			}
			lie(b, f)
			if err := <-done; err == nil {
				t.Error("an answer")
			}
			select {
			case <-gone:
			case <-time.After(20 * time.Second):
				t.Error("the connection goes on")
			}
			if len(done) > 0 {
				t.Error("answered twice")
			}
		})
	}
}

type events struct{ gone chan error }

func (events) Results(uint32, []Result, bool) {}
func (e events) Gone(_ []uint32, err error)   { e.gone <- err }

func TestQuestionsArePatient(t *testing.T) {
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan bool)
	ended := make(chan error, 1)
	go func() {
		ended <- ServeAsked(t.Context(), b, func(context.Context, *Job, *Body, Report) []Result { return nil },
			func(context.Context, *Question) []byte { <-release; return []byte("x") })
	}()
	c := NewClient(a, silent{})
	done := make(chan error, maxAsked)
	for range maxAsked {
		if err := c.Ask(&Question{Slow: true}, func(_ []byte, err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Ask(&Question{Slow: true}, nil); err != ErrNoAnswer {
		t.Errorf("one too many: %v", err)
	}
	close(release)
	for range maxAsked {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	c.Close()
	if err := <-ended; !Ended(err) && !strings.Contains(err.Error(), "reset") && !errors.Is(err, ipc.ErrClosed) {
		t.Error(err)
	}
}

func FuzzQuestion(f *testing.F) { // a question has one spelling
	for _, q := range []*Question{{Slow: true}, {Forget: true}, {Explain: &Job{Sender: "s", Dash: "-", Ext: "e", Recipients: []string{"r@x"}}}} {
		b, err := q.append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseQuestion(b)
		if err != nil {
			return
		}
		again, err := q.append(nil)
		if err != nil {
			return // a job that may be read, but not given
		}
		if q2, err := parseQuestion(again); err != nil {
			t.Fatalf("%q reads as %+v, which is written as %q: %v", b, q, again, err)
		} else if third, err := q2.append(nil); err != nil || !bytes.Equal(third, again) {
			t.Fatalf("%q is written as %q", again, third)
		}
	})
}
