package lookup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/format/text0"
	"qmail/internal/store/users"
	"qmail/internal/system/ipc"
)

var ann = users.Account{User: "ann", UID: 1001, GID: 1002, Home: "/home/ann", Dash: "-", Ext: "List"}

// start serves handle at the other end of a client.
func start(t *testing.T, handle Handler) *Client {
	t.Helper()
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), b, handle) }()
	c := NewClient(a)
	t.Cleanup(func() {
		c.Close()
		if err := <-served; err == nil {
			t.Error("Serve ended without a reason")
		}
	})
	return c
}

func TestAnswers(t *testing.T) {
	c := start(t, func(_ context.Context, local string, pipe bool) (users.Account, *os.File, error) {
		switch local {
		case "ann-List":
			return ann, nil, nil
		case "nobody":
			return users.Account{}, nil, &Refusal{"DSorry, no mailbox here by that name. (#5.1.1)\n"}
		case "noalias":
			return users.Account{}, nil, &users.Error{Report: "ZUnable to find alias user!\n"}
		}
		return users.Account{}, nil, errors.New("something odd")
	})
	tests := []struct {
		name, local, report string
	}{
		{"an account arrives as it was", "ann-List", ""},
		{"a permanent report arrives as it was", "nobody", "DSorry, no mailbox here by that name. (#5.1.1)\n"},
		{"a report without a status arrives as it was", "noalias", "ZUnable to find alias user!\n"},
		{"an error nobody classified is temporary, and its cause stays with the spawner", "odd", "Ztemporary local problem (#4.3.0)\n"},
		{"no name is longer than an address", strings.Repeat("x", 2000), "DSorry, no mailbox here by that name. (#5.1.1)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := c.Find(t.Context(), tt.local)
			if tt.report == "" {
				if a != ann || err != nil {
					t.Errorf("%+v, %v", a, err)
				}
				return
			}
			r, ok := errors.AsType[*Refusal](err)
			if !ok || r.Report != tt.report || reply.Letter(err) != tt.report[0] {
				t.Errorf("%v, want %q", err, tt.report)
			}
		})
	}
}

func TestAPipeLeadsToItsWorker(t *testing.T) {
	c := start(t, func(_ context.Context, local string, pipe bool) (users.Account, *os.File, error) {
		ours, theirs, err := ipc.Pair()
		if err != nil {
			return users.Account{}, nil, err
		}
		if _, err := theirs.WriteString("I am " + local); err != nil {
			return users.Account{}, nil, err
		}
		return ann, ours, theirs.Close()
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			local := fmt.Sprintf("box%d", i)
			a, conn, err := c.Pipe(t.Context(), local)
			if err != nil || a != ann {
				t.Errorf("%+v, %v", a, err)
				return
			}
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Read(); !errors.Is(err, ipc.ErrFrame) && err == nil { // the text is no frame
				t.Error("the pipe is silent")
			}
		})
	}
	wg.Wait()
}

func TestAPipeThatWasNotAskedForIsRefused(t *testing.T) {
	c := start(t, func(context.Context, string, bool) (users.Account, *os.File, error) {
		f, err := os.Open("/dev/null")
		return ann, f, err
	})
	if _, err := c.Find(t.Context(), "ann"); reply.Letter(err) != 'Z' {
		t.Errorf("Find: %v", err)
	}
	if _, _, err := c.Pipe(t.Context(), "ann"); reply.Letter(err) != 'Z' {
		t.Errorf("Pipe took /dev/null: %v", err)
	}
}

func TestGarbledRequestsAreRefusedAndOthersGoOn(t *testing.T) {
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	go Serve(t.Context(), b, func(_ context.Context, local string, _ bool) (users.Account, *os.File, error) {
		if local != "good" {
			t.Errorf("handled %q", local)
		}
		return ann, nil, nil
	})
	tests := []struct {
		name    string
		kind    byte
		payload string
		want    byte
	}{
		{"an unknown kind", 'X', "lgood\x00", 'Z'},
		{"no record", 'L', "", 'Z'},
		{"a record cut short", 'L', "lgood", 'Z'},
		{"another record", 'L', "mgood\x00", 'Z'},
		{"two records", 'L', "lgood\x00lgood\x00", 'Z'},
		{"a local part that is too long", 'P', "l" + strings.Repeat("x", maxLocal+1) + "\x00", 'Z'},
		{"a good one after all these", 'L', "lgood\x00", 'K'},
	}
	a.SetReadDeadline(time.Now().Add(5 * time.Second))
	for i, tt := range tests {
		if err := a.Send(tt.kind, uint32(i), []byte(tt.payload)); err != nil {
			t.Fatal(err)
		}
		f, err := a.Read()
		if err != nil || f.Kind != tt.want || f.Stream != uint32(i) {
			t.Errorf("%s: %c for stream %d, %v; want %c", tt.name, f.Kind, f.Stream, err, tt.want)
		}
	}
}

func TestAGarbledAnswerIsTemporary(t *testing.T) {
	tests := []struct {
		name    string
		kind    byte
		payload string
	}{
		{"an unknown kind", 'X', ""},
		{"no account", 'K', ""},
		{"an account without its end", 'K', "Uann\x00u5\x00g6\x00"},
		{"an account of root", 'K', string(appendAccount(nil, users.Account{User: "r", UID: 0, Home: "/"}))},
		{"a uid in a second spelling", 'K', "Uann\x00u05\x00g6\x00h/\x00d\x00e\x00"},
		{"records after the account", 'K', string(text0.Append(appendAccount(nil, ann), 'x', ""))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := parseAnswer(ipc.Frame{Kind: tt.kind, Payload: []byte(tt.payload)})
			if reply.Letter(r.err) != 'Z' {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestALostSpawnerIsTemporary(t *testing.T) {
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(a)
	go func() {
		b.Read()
		b.Close()
	}()
	if _, err := c.Find(t.Context(), "ann"); reply.Letter(err) != 'Z' {
		t.Errorf("while waiting: %v", err)
	}
	<-c.Done()
	if _, err := c.Find(t.Context(), "ann"); reply.Letter(err) != 'Z' {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAnImpatientCallerIsToldToWaitAndItsPipeIsClosed(t *testing.T) {
	release, far := make(chan struct{}), make(chan *os.File, 1)
	c := start(t, func(context.Context, string, bool) (users.Account, *os.File, error) {
		<-release
		ours, theirs, err := ipc.Pair()
		far <- theirs
		return ann, ours, err
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.Pipe(ctx, "ann"); reply.Letter(err) != 'Z' {
		t.Errorf("%v", err)
	}
	close(release)
	worker := <-far
	defer worker.Close()
	if n, err := worker.Read(make([]byte, 1)); n != 0 || err != io.EOF { // waits until nobody holds the other end
		t.Errorf("%d bytes, %v", n, err)
	}
}

// The law: what is accepted as an account is what appendAccount writes.
func FuzzParseAccount(f *testing.F) {
	f.Add(appendAccount(nil, ann))
	f.Fuzz(func(t *testing.T, in []byte) {
		if a, rest, err := parseAccount(in); err == nil && string(appendAccount(nil, a))+string(rest) != string(in) {
			t.Errorf("%q is a second spelling of %+v", in, a)
		}
	})
}

func TestWhy(t *testing.T) {
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	handle := func(context.Context, string, bool) (users.Account, *os.File, error) { return ann, nil, nil }
	go ServeWhy(t.Context(), b, handle, func(_ context.Context, local string) (users.Account, users.Source, error) {
		if local == "nobody" {
			return users.Account{}, users.Source{}, &Refusal{"DSorry, no mailbox here by that name. (#5.1.1)\n"}
		}
		return ann, users.Source{File: "users/assign", Line: 7, Text: "=ann\x00"}, nil
	})
	c := NewClient(a)
	defer c.Close()
	account, source, err := c.Explain(t.Context(), "ann")
	if err != nil || account != ann || source.File != "users/assign" || source.Line != 7 || source.Text != "=ann?" {
		t.Errorf("%+v %+v %v", account, source, err)
	}
	if _, _, err := c.Explain(t.Context(), "nobody"); reply.Letter(err) != 'D' {
		t.Errorf("%v", err)
	}
	if account, err := c.Find(t.Context(), "ann"); err != nil || account != ann {
		t.Errorf("%+v %v", account, err)
	}
	silent := start(t, handle)
	if _, _, err := silent.Explain(t.Context(), "ann"); reply.Letter(err) != 'Z' {
		t.Errorf("from one who cannot say: %v", err)
	}
}

// The law: what is accepted as a source is what appendSource writes.
func FuzzParseSource(f *testing.F) {
	f.Add(appendSource(nil, users.Source{File: "f", Line: 3, Text: "t"}))
	f.Fuzz(func(t *testing.T, in []byte) {
		if s, err := parseSource(in); err == nil && string(appendSource(nil, s)) != string(in) {
			t.Errorf("%q is a second spelling of %+v", in, s)
		}
	})
}

// The law: what is accepted as a request is what appendRequest writes.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("lann\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if local, err := parseRequest(ipc.Frame{Kind: kindPipe, Payload: in}); err == nil && string(appendRequest(nil, local)) != string(in) {
			t.Errorf("%q is a second spelling of %q", in, local)
		}
	})
}
