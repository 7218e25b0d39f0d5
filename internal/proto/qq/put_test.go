package qq

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"qmail/internal/format/envelope"
)

func TestPut(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "qq")
	for _, tt := range []struct {
		name, script string
		body         io.Reader
		text         string
		code         int
	}{
		{"a message goes in whole", "cat >message; cat <&1 >envelope", strings.NewReader("body\n"), "", 0},
		{"a refusal is permanent", "exit 31", strings.NewReader("body\n"), "mail server permanently rejected message (#5.3.0)", 100},
		{"trouble is temporary", "exit 53", strings.NewReader("body\n"), "qq write error or disk full (#4.3.0)", 111},
		{"a message that cannot be read is not queued", "cat >half; cat <&1 >half.envelope; exit 54", iotest.ErrReader(errors.New("disk")), "qq read error (#4.3.0)", 111},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(program, []byte("#!/bin/sh\ncd "+dir+"\n"+tt.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			q := &Queue{Home: dir, Program: program, Replaced: true, Vars: os.Environ(), Now: time.Now}
			_, err := q.Put(t.Context(), &envelope.Envelope{Sender: "s", Recipients: []string{"a", "b"}}, strings.NewReader("head\n"), tt.body)
			if tt.code == 0 {
				if err != nil {
					t.Fatal(err)
				}
				message, _ := os.ReadFile(filepath.Join(dir, "message"))
				records, _ := os.ReadFile(filepath.Join(dir, "envelope"))
				if string(message) != "head\nbody\n" || string(records) != "Fs\x00Ta\x00Tb\x00\x00" {
					t.Errorf("%q %q", message, records)
				}
				return
			}
			if text, code := Explain(err); text != tt.text || code != tt.code {
				t.Errorf("%q %d", text, code)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(dir, "half.envelope")); err != nil || len(b) != 0 {
		t.Errorf("the envelope of half a message: %q %v", b, err)
	}
}
