package mbox

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestFromLine(t *testing.T) {
	at := time.Date(2026, 11, 5, 3, 57, 29, 0, time.FixedZone("", 3600))
	for sender, want := range map[string]string{
		"a@b.example": "From a@b.example Thu Nov 05 02:57:29 2026\n",
		"":            "From MAILER-DAEMON Thu Nov 05 02:57:29 2026\n",
		"a b\tc\nd@e": "From a-b-c-d@e Thu Nov 05 02:57:29 2026\n",
	} {
		if got := string(FromLine(sender, at)); got != want {
			t.Errorf("FromLine(%q) = %q, want %q", sender, got, want)
		}
	}
}

func TestWriteBody(t *testing.T) {
	long := strings.Repeat("x", bufferSize-1)
	tests := []struct{ name, in, want string }{
		{"a message and an empty line", "A: b\n\nhi\n", "A: b\n\nhi\n\n"},
		{"a missing newline is added", "hi", "hi\n\n"},
		{"nothing is an empty line", "", "\n"},
		{"From lines are quoted wherever they are", "From a\n\nFrom b\n", ">From a\n\n>From b\n\n"},
		{"quoted ones once more", ">From a\n>>From b\n", ">>From a\n>>>From b\n\n"},
		{"From without a blank is no From line", "From: a\nFrom\n > From a\n", "From: a\nFrom\n > From a\n\n"},
		{"the middle of a long line is no beginning", long + "xFrom a\n", long + "xFrom a\n\n"},
		{"a line after a long one is", long + "\nFrom a\n", long + "\n>From a\n\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := WriteBody(&out, iotest.OneByteReader(strings.NewReader(tt.in))); err != nil || out.String() != tt.want {
				t.Errorf("%v\n got %.80q\nwant %.80q", err, out.String(), tt.want)
			}
		})
	}
}

func TestErrorsSayWhoseTheyAre(t *testing.T) {
	err := WriteBody(io.Discard, iotest.ErrReader(io.ErrClosedPipe))
	if _, ok := errors.AsType[*ReadError](err); !ok || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("reading: %v", err)
	}
	err = WriteBody(failing{}, strings.NewReader("x"))
	if _, ok := errors.AsType[*ReadError](err); ok || err == nil {
		t.Errorf("writing: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// The laws: no line of a written body begins a new message, and taking one ">" off each quoted line gives the
// message back, up to its last newline.
func FuzzWriteBody(f *testing.F) {
	f.Add("From a\n>From b\n\nx")
	f.Fuzz(func(t *testing.T, message string) {
		var out bytes.Buffer
		if err := WriteBody(&out, strings.NewReader(message)); err != nil {
			t.Fatal(err)
		}
		var back strings.Builder
		body, ok := strings.CutSuffix(out.String(), "\n")
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "From ") {
				t.Errorf("%q starts a message", line)
			}
			if rest, quoted := strings.CutPrefix(line, ">"); quoted && wantsQuote([]byte(rest)) {
				line = rest
			}
			back.WriteString(line)
		}
		want := message
		if want != "" && !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if !ok || back.String() != want {
			t.Errorf("%q came back as %q", want, back.String())
		}
	})
}
