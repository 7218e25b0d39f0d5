package rspawn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmail/internal/format/spawn"
	"qmail/internal/proto/jobs"
	"qmail/internal/system/env"
)

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
		1: "Dno no@far.example here\ngiving up\n", 2: spawn.RemoteCrashed, 3: "DUnable to run qmail-remote.\n", 4: "Zqmail-remote produced no output.\n", 5: spawn.NoHost,
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
	if got := r.deliver(1, "x\n", "u@far.example")[0]; got != spawn.RemoteUnable {
		t.Error(got)
	}
	r.control("qmailremote", script(t, "printf 'r\\0Kback\\n\\0'")+"\n")
	r.orders <- env.Order{Kind: env.Reload}
	r.orders <- env.Order{Kind: env.Reload} // taken when the first is done with
	if got := r.deliver(2, "x\n", "u@far.example")[0]; got != "Kback\n" {
		t.Error(got)
	}
}
