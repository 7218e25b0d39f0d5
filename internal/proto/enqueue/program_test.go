package enqueue

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
)

// queueProgram makes a shell script in the place of qmail-queue.
func queueProgram(t *testing.T, text string) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	path = dir + "/queue"
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncd '"+dir+"'\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

var twoBoxes = &envelope.Envelope{Sender: "s@a.example", Recipients: []string{"x@b.example", "y@c.example"}}

func TestAProgramGetsMessageAndEnvelope(t *testing.T) {
	path, dir := queueProgram(t, "cat >message; cat <&1 >envelope; echo $MARK >mark")
	long := strings.Repeat("a line\n", 100000) // more than a pipe holds
	pid, err := Program(t.Context(), path, []string{"PATH=/usr/bin:/bin", "MARK=here"}, nil, twoBoxes, strings.NewReader(long))
	if err != nil || pid <= 0 {
		t.Fatal(pid, err)
	}
	for name, want := range map[string]string{"message": long, "envelope": "Fs@a.example\x00Tx@b.example\x00Ty@c.example\x00\x00", "mark": "here\n"} {
		if b, _ := os.ReadFile(dir + "/" + name); string(b) != want {
			t.Errorf("%s: %d bytes %.60q", name, len(b), b)
		}
	}
}

func TestVerdicts(t *testing.T) {
	tests := []struct {
		name, script, want string
	}{
		{"11 is an address that is too long", "exit 11", "Denvelope address too long for qq (#5.1.3)"},
		{"31 is never", "exit 31", "Dmail server permanently rejected message (#5.3.0)"},
		{"12 has no words of its own", "exit 12", "Dqq permanent problem (#5.3.0)"},
		{"40 is the last that is never", "exit 40", "Dqq permanent problem (#5.3.0)"},
		{"41 is later", "exit 41", "Zqq temporary problem (#4.3.0)"},
		{"53 is a full disk", "exit 53", "Zqq write error or disk full (#4.3.0)"},
		{"74 is a lost connection", "exit 74", "Zcommunication with mail server failed (#4.4.2)"},
		{"82 speaks for itself", "echo 'Dno spam here (#5.7.1)' >&6; exit 82", "Dno spam here (#5.7.1)"},
		{"82 without a class is later", "echo 'no spam here' >&6; exit 82", "Zqq temporary problem (#4.3.0)"},
		{"82 without a text is later", "exit 82", "Zqq temporary problem (#4.3.0)"},
		{"a crash is later", "kill -9 $$", "Zqq crashed (#4.3.0)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := queueProgram(t, tt.script)
			_, err := Program(t.Context(), path, []string{"PATH=/bin"}, nil, twoBoxes, strings.NewReader("x"))
			if err == nil || reply.Of(err).Report() != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}

func TestAMessageThatCannotBeReadLeavesTheEnvelopeUnfinished(t *testing.T) {
	path, dir := queueProgram(t, "cat >message; cat <&1 >envelope; exit 0")
	_, err := Program(t.Context(), path, []string{"PATH=/bin"}, nil, twoBoxes, io.MultiReader(strings.NewReader("begin"), iotest.ErrReader(errors.New("gone"))))
	if err == nil || reply.Of(err).Report() != "Zqq read error (#4.3.0)" {
		t.Error(err)
	}
	if b, _ := os.ReadFile(dir + "/envelope"); len(b) != 0 {
		t.Errorf("envelope %q", b)
	}
}

func TestAProgramThatIsNotThereDefers(t *testing.T) {
	_, err := Program(t.Context(), "/nonexistent/queue", nil, nil, twoBoxes, strings.NewReader("x"))
	if err == nil || reply.Of(err).Report() != "Zunable to exec qq (#4.3.0)" {
		t.Error(err)
	}
}

func TestAProgramThatDoesNotReadDoesNotStopUs(t *testing.T) {
	path, _ := queueProgram(t, "exit 31")
	_, err := Program(t.Context(), path, nil, nil, twoBoxes, strings.NewReader(strings.Repeat("x", 1<<20)))
	if reply.Letter(err) != 'D' {
		t.Error(fmt.Sprint(err))
	}
}
