package injection

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/header"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
)

// world makes a home and an environment. Messages end as drop files.
func world(t testing.TB, vars ...string) *env.Env {
	t.Helper()
	home := t.TempDir()
	for _, dir := range []string{"control", "queue/drop"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(home, "control", "me"), []byte("test.example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return &env.Env{
		Home: home, Vars: append(vars, "USER=joe"),
		Now: func() time.Time { return time.Unix(1800000000, 0) },
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// queued takes the one message that was dropped.
func queued(t testing.TB, e *env.Env) (*envelope.Envelope, string) {
	t.Helper()
	paths, err := enqueue.ListDropped(e.Home)
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v, %v", paths, err)
	}
	d, err := enqueue.OpenDropped(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Done()
	b, err := io.ReadAll(d.Body)
	if err != nil {
		t.Fatal(err)
	}
	return d.Envelope, string(b)
}

func nothingQueued(t testing.TB, e *env.Env) {
	t.Helper()
	if list, err := os.ReadDir(enqueue.DropDir(e.Home)); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestRun(t *testing.T) {
	const added = "Date: 15 Jan 2027 08:00:00 -0000\nMessage-ID: <20270115080000.PID.qmail@test.example>\n"
	tests := []struct {
		name     string
		options  Options
		in       string
		sender   string
		to       []string
		out      string
		variable string
	}{
		{"a header is completed", Options{FromHeader: true}, "To: a@b\n\nx\n", "joe@test.example", []string{"a@b.test.example"},
			added + "From: joe@test.example\nTo: a@b.test.example\n\nx\n", ""},
		{"lines that end in CRLF are lines", Options{FromHeader: true}, "To: a@b.c\r\nSubject: s\r\n t\r\n\r\nx\r\ny\rz\r\n", "joe@test.example", []string{"a@b.c"},
			added + "From: joe@test.example\nTo: a@b.c\nSubject: s\n t\n\nx\ny\rz\n", ""},
		{"a CR in a text of LF lines stays", Options{Recipients: []string{"a@b.c"}}, "Subject: s\nX: y\r\n\nx\r\n", "joe@test.example", []string{"a@b.c"},
			added + "From: joe@test.example\nCc: recipient list not shown: ;\nSubject: s\nX: y\r\n\nx\r\n", ""},
		{"-f <> of qmail-inject is made by its caller, an empty one is the null sender", Options{Recipients: []string{"a@b.c"}, HasSender: true}, "From: a\n\n", "", []string{"a@b.c"},
			added + "Cc: recipient list not shown: ;\nFrom: a@test.example\n\n", ""},
		{"VERP of the null sender is the null sender", Options{Recipients: []string{"a@b.c"}}, "From: a\nReturn-Path: <>\n\n", "", []string{"a@b.c"},
			added + "Cc: recipient list not shown: ;\nFrom: a@test.example\n\n", "QMAILINJECT=r"},
		{"VERP of another is marked", Options{Recipients: []string{"a@b.c"}}, "From: a\nReturn-Path: <l@m.n>\nReturn-Path: <second@m.n>\n\n", "l@m.n-@[]", []string{"a@b.c"},
			added + "Cc: recipient list not shown: ;\nFrom: a@test.example\n\n", "QMAILINJECT=r"},
		{"an encoded and a UTF-8 field stay as they are", Options{FromHeader: true}, "Subject: =?utf-8?q?=0Ax?= \xe9 ü\nTo: Jörg <a@b.c>\nX-Odd:\n\nü\n", "joe@test.example", []string{"a@b.c"},
			added + "From: joe@test.example\nSubject: =?utf-8?q?=0Ax?= \xe9 ü\nTo: Jörg <a@b.c>\nX-Odd:\n\nü\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := world(t, tt.variable)
			for name, in := range map[string]io.Reader{"at once": strings.NewReader(tt.in), "byte by byte": iotest.OneByteReader(strings.NewReader(tt.in))} {
				if err := Run(within(t), e, in, tt.options); err != nil {
					t.Fatal(err)
				}
				env, out := queued(t, e)
				pid, _, _ := strings.Cut(out[strings.Index(out, "20270115080000.")+15:], ".")
				if out = strings.ReplaceAll(out, "."+pid+".", ".PID."); out != tt.out {
					t.Errorf("%s: got\n%q, want\n%q", name, out, tt.out)
				}
				if env.Sender != tt.sender || !slices.Equal(env.Recipients, tt.to) {
					t.Errorf("%s: %+v", name, env)
				}
			}
		})
	}
}

func TestOptionsOfTheEnvelope(t *testing.T) {
	e := world(t)
	err := Run(within(t), e, strings.NewReader("To: a@b.c, d@e.f\n\n"), Options{
		FromHeader: true, MessageOptions: []string{"RET=HDRS"}, RecipientOptions: []string{"NOTIFY=NEVER"},
	})
	if err != nil {
		t.Fatal(err)
	}
	env, _ := queued(t, e)
	if !slices.Equal(env.Options, []string{"RET=HDRS"}) || len(env.RecipientOptions) != 2 || env.RecipientOptions[1][0] != "NOTIFY=NEVER" {
		t.Errorf("%+v", env)
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name, in  string
		options   Options
		permanent bool
		text      string
	}{
		{"a From that is none", "From: <a\nTo: b@c.d\n\n", Options{FromHeader: true}, false, ""},
		{"an unclosed comment in From", "From: a (\nTo: b@c.d\n\n", Options{FromHeader: true}, true, "unable to parse this line:\nFrom: a ("},
		{"a NUL in an address", "To: b\x00c@d.e\n\n", Options{FromHeader: true}, true, "unable to parse this line:\nTo: b\x00c@d.e"},
		{"an argument that is no address", "\n", Options{Recipients: []string{"a@(b"}}, true, "unable to parse address: a@(b"},
		{"a long address", "\n", Options{Recipients: []string{strings.Repeat("a", 2000) + "@b.c"}}, true, "envelope address too long for qq (#5.1.3)"},
		{"a header without end", strings.Repeat("a", maxHeader+1), Options{}, true, "the header is too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := world(t)
			err := Run(within(t), e, strings.NewReader(tt.in), tt.options)
			if tt.text == "" {
				if err != nil {
					t.Fatal(err) // "<a" is a local part, oddly
				}
				return
			}
			refusal, ok := errors.AsType[*Error](err)
			if !ok || refusal.Permanent != tt.permanent || refusal.Text != tt.text {
				t.Errorf("%v", err)
			}
			nothingQueued(t, e)
		})
	}
}

func TestATextThatCannotBeReadIsNotQueued(t *testing.T) {
	for _, in := range []string{"", "To: a@b.c\n", "To: a@b.c\n\nbody", "To: a@b.c\n\n" + strings.Repeat("x\n", 1<<19)} {
		e := world(t)
		err := Run(within(t), e, io.MultiReader(strings.NewReader(in), iotest.ErrReader(errors.New("broken"))), Options{FromHeader: true})
		refusal, ok := errors.AsType[*Error](err)
		if !ok || refusal.Code() != 111 || refusal.Text != "read error" {
			t.Errorf("%.20q: %v", in, err)
		}
		nothingQueued(t, e)
	}
}

func TestUnreadableControlFileWaits(t *testing.T) {
	e := world(t)
	if err := os.Mkdir(filepath.Join(e.Home, "control", "idhost"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := Run(within(t), e, strings.NewReader("\n"), Options{})
	if refusal, ok := errors.AsType[*Error](err); !ok || refusal.Code() != 111 {
		t.Error(err)
	}
}

// A long body passes through and is not kept.
func TestMemoryDoesNotGrowWithTheBody(t *testing.T) {
	e := world(t)
	const size = 32 << 20
	in := io.MultiReader(strings.NewReader("To: a@b.c\n\n"), io.LimitReader(lines{}, size))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := Run(within(t), e, in, Options{FromHeader: true}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("%d bytes allocated for a message of %d", grown, size)
	}
	if _, out := queued(t, e); len(out) < size {
		t.Errorf("%d bytes queued", len(out))
	}
}

type lines struct{}

func (lines) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = "0123456\n"[i%8]
	}
	return len(p) &^ 7, nil
}

// fieldNames are the names of a message's fields; it fails the test if the header is not what it seems.
func fieldNames(message string) (names []string, body string) {
	head, rest := header.Split([]byte(message))
	for f := range header.Fields(head) {
		names = append(names, strings.ToLower(f.Name()))
	}
	return names, string(rest)
}

// The hostile messages.
func TestHostileHeaders(t *testing.T) {
	f, err := os.Open("testdata/header.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for in := bufio.NewScanner(f); in.Scan(); n++ {
		var c struct {
			Name  string
			Setup struct{ Env map[string]string }
			Input []byte `json:"input_b64"`
			Parts []struct {
				Bytes  []byte `json:"b64"`
				Repeat int
			} `json:"chunks"`
			Expect struct {
				Recipients []string `json:"rcpts"`
				MustNot    []string `json:"must_not"`
			}
		}
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Parts {
			c.Input = append(c.Input, bytes.Repeat(p.Bytes, max(1, p.Repeat))...)
		}
		t.Run(c.Name, func(t *testing.T) {
			var vars []string
			for name, value := range c.Setup.Env {
				vars = append(vars, name+"="+value)
			}
			e := world(t, vars...)
			started := time.Now()
			if err := Run(within(t), e, bytes.NewReader(c.Input), Options{FromHeader: true}); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(started); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
			env, out := queued(t, e)
			slices.Sort(env.Recipients)
			if c.Expect.Recipients != nil && !slices.Equal(env.Recipients, c.Expect.Recipients) {
				t.Errorf("recipients %q", env.Recipients)
			}
			names, body := fieldNames(out)
			if _, given := header.Split(c.Input); body != string(given) {
				t.Errorf("the header ends too early: %q", out)
			}
			for _, name := range names {
				if slices.Contains([]string{"bcc", "resent-bcc", "x", "content-length", "return-path"}, name) {
					t.Errorf("a field %s: %q", name, out)
				}
			}
			for _, word := range c.Expect.MustNot {
				if who, ok := strings.CutPrefix(word, "rcpt:"); ok && slices.Contains(env.Recipients, who) {
					t.Errorf("recipient %s", who)
				}
			}
		})
	}
	if n < 4 {
		t.Fatalf("only %d cases", n)
	}
}

// kept are the fields that qmail-inject does not look into, as they stand.
func kept(message []byte) (list []string) {
	for f := range header.Fields(message) {
		name := strings.ToLower(f.Name())
		switch name {
		case "date", "message-id", "resent-date", "resent-message-id", "mail-followup-to":
			continue // may be ours
		}
		if t := treat(name); !t.addresses && !t.drop {
			list = append(list, string(f))
		}
	}
	return list
}

// What comes out is a message: complete, with the body and the fields nobody reads untouched, without those that
// must not leave. What comes out of that is the same again.
func FuzzRun(f *testing.F) {
	for _, s := range []string{
		"To: a@b\nBcc: c\nSubject: x\n y\n\nbody", "From x\nTo: a\n", "a: b\r\n\r\nc\r\n", "Resent-To: a;b\nDate: x\n\n", " x\n", "Return-Path: <>\n", "\n\x00",
	} {
		f.Add([]byte(s), "n")
		f.Add([]byte(s), "a\nb: c\n\nd")
	}
	e := world(f)
	f.Fuzz(func(t *testing.T, in []byte, name string) {
		user := *e
		user.Vars = []string{"QMAILUSER=" + name, "QMAILNAME=" + name, "QMAILHOST=" + name, "QMAILIDHOST=" + name}
		once, err := printed(t, &user, in)
		if err != nil {
			return
		}
		if bytes.HasPrefix(firstLine(in), []byte("From ")) {
			return // becomes another field
		}
		head, body := header.Split(once)
		lf := in
		if bytes.HasSuffix(firstLine(in), []byte("\r\n")) {
			lf = bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n"))
		}
		if len(lf) > 0 && lf[len(lf)-1] != '\n' {
			lf = append(slices.Clone(lf), '\n')
		}
		givenHead, given := header.Split(lf)
		if len(given) > 0 && given[0] != '\n' {
			if bytes.Contains(lf, []byte("\nFrom ")) {
				return // goes on after the mbox line
			}
			given = append([]byte("\n"), given...)
		}
		if !bytes.Equal(body, given) {
			t.Fatalf("%q became %q: the body is %q, was %q", in, once, body, given)
		}
		if was, is := kept(givenHead), kept(head); !slices.Equal(was, is) && !slices.Contains(is, "Cc: recipient list not shown: ;\n") {
			t.Fatalf("%q became %q: fields %q, were %q", in, once, is, was)
		}
		names, _ := fieldNames(string(once))
		for _, name := range []string{"bcc", "resent-bcc", "return-path", "content-length"} {
			if slices.Contains(names, name) {
				t.Fatalf("%q became %q, with %s", in, once, name)
			}
		}
		resent := slices.ContainsFunc(names, func(n string) bool { return n == "resent-from" })
		if !resent && (!slices.Contains(names, "from") || !slices.Contains(names, "date") || !slices.Contains(names, "message-id")) {
			t.Fatalf("%q became %q, which is not complete", in, once)
		}
		if leftOvers(once) {
			return
		}
		if twice, err := printed(t, &user, once); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q became %q, that %q, %v", in, once, twice, err)
		}
	})
}

// leftOvers finds addresses that end in a dot or an @, or begin with one, still: qmail-inject takes off one of
// each, and would go on next time.
func leftOvers(message []byte) (found bool) {
	for f := range header.Fields(message) {
		if !treat(strings.ToLower(f.Name())).addresses {
			continue
		}
		tokens, _ := header.Tokenize(string(f.Body()))
		_, _ = header.List(tokens, func(a []header.Token) []header.Token {
			if n := len(a); n > 0 {
				found = found || a[n-1].Kind == header.Dot || a[n-1].Kind == header.At || a[0].Kind == header.At
			}
			return a
		})
	}
	return found
}

func firstLine(b []byte) []byte {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i+1]
	}
	return b
}

// printed is what -n prints, without the Return-Path.
func printed(t *testing.T, e *env.Env, in []byte) ([]byte, error) {
	var out bytes.Buffer
	err := Run(within(t), e, bytes.NewReader(in), Options{FromHeader: true, Print: true, Output: &out, HasSender: true})
	b, ok := bytes.CutPrefix(out.Bytes(), []byte("Return-Path: <>\n"))
	if err == nil && !ok {
		t.Fatalf("%q", out.Bytes())
	}
	return b, err
}
