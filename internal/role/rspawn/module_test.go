package rspawn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmail/internal/proto/jobs"
	"qmail/internal/system/env"
)

func TestOutcome(t *testing.T) {
	tests := []struct {
		name string
		code int
		out  string
		want string
	}{
		{"accepted", 0, "r\x00K1.1.1.1 accepted.\n\x00", "K1.1.1.1 accepted.\n"},
		{"a permanent refusal of the recipient", 0, "hone\n\x00Kaccepted\x00", "Done\n"},
		{"a temporary one, then giving up", 0, "sone\n\x00Dgiving up\n\x00", "Zone\ngiving up\n"},
		{"a permanent one, and a death", 0, "hone\n\x00Zdied\n\x00", "Done\n"},
		{"no report on the message", 0, "r\x00", "D"},
		{"a report on the message alone", 0, "Zno host\n\x00", "Zno host\n"},
		{"a permanent one, then giving up", 0, "hone\n\x00Dgiving up\n\x00", "Done\ngiving up\n"},
		{"words that are no report", 0, "r\x00some warning\x00Kyes\n\x00", "K"},
		{"an error message comes first", 0, "such a thing\n\x00Kyes\x00", "Zuch a thing\n"},
		{"a last record without its end", 0, "r\x00Kaccepted\n", "Kaccepted\n"},
		{"the only record without its end", 0, "Zlater\n", "Zlater\n"},
		{"an empty first record", 0, "\x00Kyes\x00", "Kyes"},
		{"nothing but NULs", 0, "\x00\x00", "D"},
		{"nothing", 0, "", silent},
		{"trouble that passes", 111, "r\x00Kyes\x00", unableNow},
		{"any other exit code", 1, "r\x00Kyes\x00", unable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := outcome(tt.code, []byte(tt.out)); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzOutcome(f *testing.F) { // law: a report is a letter and a text without NUL, and success needs a K
	f.Add("r\x00K1.1.1.1 accepted.\n\x00")
	f.Add("s\x00h\x00")
	f.Fuzz(func(t *testing.T, out string) {
		got := outcome(0, []byte(out))
		if got == "" || !strings.Contains("KZD", got[:1]) || strings.ContainsRune(got, 0) || len(got) > len(out)+len(silent) {
			t.Errorf("%q from %q", got, out)
		}
		if got[0] == 'K' && !strings.HasPrefix(out, "K") && !strings.Contains(out, "\x00K") {
			t.Errorf("%q from %q", got, out)
		}
	})
}

// script writes an executable file for a program in the place of qmail-remote.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "remote")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func (r *rig) deliver(job uint32, body string, recipients ...string) map[int]string {
	r.t.Helper()
	if err := r.client.Load(job, []byte(body)); err != nil {
		r.t.Fatal(err)
	}
	if err := r.client.Start(job, &jobs.Job{Body: job, Sender: "s@here.example", Host: "far.example", Recipients: recipients}); err != nil {
		r.t.Fatal(err)
	}
	return r.wait(job)
}

// TestAProgramInThePlaceOfRemote gets the classic arguments and the message, which it can seek, once per recipient.
func TestAProgramInThePlaceOfRemote(t *testing.T) {
	program := script(t, `
case $3 in
no*) printf 'hno %s here\n\0Dgiving up\n\0' "$3" ;;
crash*) kill -9 $$ ;;
exit*) exit 3 ;;
mute*) ;;
seek*) test -f /dev/stdin && head -c 1 >/dev/null; printf 'r\0K%s\n\0' "$(tail -c 3)" ;;
*) printf 'r\0K%s %s %s %s: %s\n\0' "$#" "$1" "$2" "$3" "$(tr '\n' '/')" ;;
esac
`)
	r := start(t, map[string]string{"me": "here.example\n", "qmailremote": program + "\n"})
	got := r.deliver(1, "Subject: x\n\nbody\n", "u@far.example", "no@far.example", "crash@far.example", "exit@far.example", "mute@far.example", "hostless", "v@far.example", "seek@far.example")
	want := map[int]string{
		0: "K3 far.example s@here.example u@far.example: Subject: x//body/\n",
		1: "Dno no@far.example here\ngiving up\n", 2: crashed, 3: unable, 4: silent, 5: noHostName,
		6: "K3 far.example s@here.example v@far.example: Subject: x//body/\n", 7: "Kdy\n",
	}
	for i, text := range want {
		if got[i] != text {
			t.Errorf("recipient %d: %q, want %q", i, got[i], text)
		}
	}
	large := strings.Repeat("0123456789abcde\n", 100_000)
	if err := os.WriteFile(program, []byte("#!/bin/sh\nprintf 'r\\0K%s\\n\\0' $(wc -c)\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "body"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString(large)
	if err := r.client.LoadFile(2, f, 0, int64(len(large))); err != nil {
		t.Fatal(err)
	}
	r.client.Start(2, &jobs.Job{Body: 2, Sender: "s", Host: "h", Recipients: []string{"u@h"}})
	if got := r.wait(2)[0]; got != "K1600000\n" {
		t.Error(got)
	}
}

// TestAMissingProgramDefers: during an upgrade mail waits. (qmail-rspawn bounced all of it.)
func TestAMissingProgramDefers(t *testing.T) {
	r := start(t, map[string]string{"me": "here.example\n", "qmailremote": "/no/such/program\n"})
	if got := r.deliver(1, "x\n", "u@far.example")[0]; got != unableNow {
		t.Error(got)
	}
	r.control("qmailremote", script(t, "printf 'r\\0Kback\\n\\0'")+"\n")
	r.orders <- env.Order{Kind: env.Reload}
	r.orders <- env.Order{Kind: env.Reload} // taken when the first is done with
	if got := r.deliver(2, "x\n", "u@far.example")[0]; got != "Kback\n" {
		t.Error(got)
	}
}
