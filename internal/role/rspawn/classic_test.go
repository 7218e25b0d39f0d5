package rspawn

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"qmail/internal/format/spawn"
	"qmail/internal/system/env"
)

// TestTheClassicSpawner is started without a supervisor, takes orders on descriptor 0, and runs a program for each.
func TestTheClassicSpawner(t *testing.T) {
	home := t.TempDir()
	mess := filepath.Join(home, "queue", "mess", "8")
	for _, dir := range []string{mess, filepath.Join(home, "control")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(mess, "1234"), []byte("the message\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	program := script(t, `
case $3 in
no*) printf 'hno\n\0Dgiving up\n\0' ;;
crash*) kill -9 $$ ;;
*) printf 'r\0K%s %s %s %s %s: %s\n\0' "$#" "$1" "$2" "$3" "$INHERITED" "$(tr '\n' '/')" ;;
esac
`)
	ask := func(recipient string, vars ...string) string {
		t.Helper()
		order, err := spawn.AppendOrder(nil, spawn.Order{Slot: 7, Message: "8/1234", Sender: "s@a.example", Recipient: recipient})
		if err != nil {
			t.Fatal(err)
		}
		in, err := os.Create(filepath.Join(t.TempDir(), "in"))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		in.Write(order)
		in.Seek(0, io.SeekStart)
		var out bytes.Buffer
		e := &env.Env{Home: home, Stdin: in, Stdout: &out, Stderr: io.Discard, Vars: append(vars, "INHERITED=yes", "PATH=/usr/bin:/bin"), Now: time.Now}
		if code := Main(t.Context(), e, nil); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if b := out.Bytes(); len(b) < 4 || b[1] != 7 || b[len(b)-1] != 0 {
			t.Fatalf("%q", b)
		}
		return string(out.Bytes()[2 : out.Len()-1])
	}
	const done = "K3 b.example s@a.example u@b.example yes: the message/\n"
	replaced := "QMAILREMOTE=" + program
	for _, tt := range []struct{ name, recipient, variable, want string }{
		{"the classic arguments", "u@b.example", replaced, done},
		{"two results", "no@b.example", replaced, "Dno\ngiving up\n"},
		{"a crash", "crash@b.example", replaced, spawn.RemoteCrashed},
		{"no host", "u", replaced, spawn.NoHost},
		{"a program that is not there", "u@b.example", "QMAILREMOTE=/no/such/remote", spawn.RemoteUnable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ask(tt.recipient, tt.variable); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	if err := os.WriteFile(filepath.Join(home, "control", "qmailremote"), []byte(program+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := ask("u@b.example"); got != done {
		t.Errorf("named in control/qmailremote: %q", got)
	}
}
