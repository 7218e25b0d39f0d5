package serial

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHead(t *testing.T) {
	tests := []struct {
		name, text, sender, recipient, rest string
		ok                                  bool
	}{
		{"a message", "Return-Path: <s@x>\nDelivered-To: p-r@y\nSubject: x\n", "s@x", "r@y", "Subject: x\n", true},
		{"a bounce", "Return-Path: <>\nDelivered-To: p-r@y\n", "", "r@y", "", true},
		{"a quoted sender", "Return-Path: <\"a b\"@x>\nDelivered-To: p-r@y\n", "a b@x", "r@y", "", true},
		{"another prefix", "Return-Path: <s@x>\nDelivered-To: q-r@y\n", "", "", "", false},
		{"nobody", "Return-Path: <s@x>\nDelivered-To: p-\n", "", "", "", false},
		{"other lines first", "Subject: x\nReturn-Path: <s@x>\nDelivered-To: p-r@y\n", "", "", "", false},
		{"a line that has no end", "Return-Path: <s@x>\nDelivered-To: p-r@y", "", "", "", false},
		{"a long one", "Return-Path: <" + strings.Repeat("x", 1<<20) + ">\n", "", "", "", false},
		{"nothing", "", "", "", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := bufio.NewReader(strings.NewReader(tt.text))
			e, err := Head(r, "p-")
			if (err == nil) != tt.ok || e.Sender != tt.sender || e.Recipient != tt.recipient || err != nil && !errors.Is(err, ErrOther) {
				t.Errorf("%+v %v", e, err)
			}
			if rest, _ := io.ReadAll(r); tt.ok && string(rest) != tt.rest {
				t.Errorf("left %q", rest)
			}
		})
	}
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a": "Return-Path: <s@x>\nDelivered-To: p-a@y\nbody a\n", "b": "Return-Path: <s@x>\nDelivered-To: q-b@y\n",
		"c": "Return-Path: <s@x>\nDelivered-To: p-c@y\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := ""
	for _, n := range []string{"a", "b", "none", "c"} {
		names += filepath.Join(dir, n) + "\x00"
	}
	var out bytes.Buffer
	err := Serve(strings.NewReader(names), &out, "p-", func(m *Message) string {
		b, err := io.ReadAll(m.Body)
		if err != nil || int64(len(b)) != m.Size {
			t.Errorf("%d bytes, not %d: %v", len(b), m.Size, err)
		}
		return fmt.Sprintf("%s %s\n%s\n", m.Sender, m.Recipient, b)
	})
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(&out)
	var got []string
	for {
		r, err := Next(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %c%s", filepath.Base(r.Name), r.Letter, r.Text))
	}
	want := "a Zs@x a@y body a|b Zunable to read message: not a message with this prefix|none Zunable to open message|c Zs@x c@y"
	if strings.Join(got, "|") != want {
		t.Errorf("%q", got)
	}
}

func TestNext(t *testing.T) {
	for in, want := range map[string]string{
		"x\x00Kok\n":  "{x 75 ok} <nil>",
		"x\x00what\n": "{x 90 what} <nil>",
		"x\x00\n":     "{x 90 } <nil>",
		"":            "{ 0 } EOF",
		"x":           "{ 0 } unexpected EOF",
		"x\x00K":      "{ 0 } unexpected EOF",
		"x\x00":       "{ 0 } unexpected EOF",
		"x\x00K" + strings.Repeat("y", maxText+1) + "\n": "{ 0 } serial: too long",
		strings.Repeat("y", maxName+1) + "\x00":          "{ 0 } serial: too long",
	} {
		r, err := Next(bufio.NewReader(strings.NewReader(in)))
		if got := fmt.Sprintf("%v %v", r, err); got != want {
			t.Errorf("%.20q: %s", in, got)
		}
	}
}

// FuzzResults: what Serve says about any name is read back as that name, a letter, and one line.
func FuzzResults(f *testing.F) {
	f.Add("a", "Kok\nDno\x00")
	f.Fuzz(func(t *testing.T, name, report string) {
		if strings.ContainsRune(name, 0) || len(name) > maxName {
			return
		}
		r, err := Next(bufio.NewReader(strings.NewReader(name + "\x00" + line(report))))
		if err != nil || r.Name != name || report != "" && strings.IndexByte("KZD", report[0]) >= 0 && r.Letter != report[0] {
			t.Errorf("%+v %v", r, err)
		}
	})
}
