package lspawn

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/spawn"
	"qmail/internal/system/env"
)

// classicLocal is the qmail-local of these tests, started for one delivery: it says what it was given.
func classicLocal() int {
	switch local := os.Args[4]; local {
	case "crash":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "later":
		fmt.Fprintln(os.Stderr, "later")
		return 111
	case "never":
		fmt.Fprintln(os.Stderr, "never")
		return 100
	}
	groups, _ := os.Getgroups()
	body, _ := io.ReadAll(os.Stdin)
	dir, _ := os.Getwd()
	fmt.Printf("%q %d %d %d %q %q %q\n", os.Args[1:], os.Getuid(), os.Getgid(), len(groups), body, os.Getenv("INHERITED"), dir)
	return 0
}

// TestTheClassicSpawner is started without a supervisor, and takes orders on descriptor 0.
func TestTheClassicSpawner(t *testing.T) {
	account := own()
	like := func(name string) string { return name + strings.TrimPrefix(account, "ann") }
	dir := home(t, account, like("crash"), like("later"), like("never"), "root 0 0")
	if err := os.WriteFile(filepath.Join(dir, "passwd"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mess := filepath.Join(dir, "queue", "mess", "8")
	if err := os.MkdirAll(mess, 0o755); err != nil {
		t.Fatal(err)
	}
	for path := dir; path != "/"; path = filepath.Dir(path) { // others have to get here
		_ = os.Chmod(path, 0o755)
		if path == os.TempDir() {
			break
		}
	}
	if err := os.WriteFile(filepath.Join(mess, "1234"), []byte("the message"), 0o644); err != nil {
		t.Fatal(err)
	}
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
		e := &env.Env{Home: dir, Stdin: in, Stdout: &out, Stderr: io.Discard, Vars: append(vars, "INHERITED=yes", "PATH=/usr/bin:/bin"), Now: time.Now}
		s := newSpawner(e, filepath.Join(dir, "passwd"), slog.New(slog.DiscardHandler))
		s.delivery = func() (string, error) { return "./Mailbox", nil }
		if code := s.classic(t.Context(), e); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if b := out.Bytes(); len(b) < 4 || b[1] != 7 || b[len(b)-1] != 0 {
			t.Fatalf("%q", b)
		}
		return string(out.Bytes()[2 : out.Len()-1])
	}
	var uid, gid int
	fmt.Sscanf(account, "ann %d %d", &uid, &gid)
	groups := 0
	if os.Getuid() != 0 {
		list, _ := os.Getgroups()
		groups = len(list)
	}
	want := fmt.Sprintf("K[\"--\" \"ann\" \"/home/ann\" \"ann\" \"\" \"\" \"b.example\" \"s@a.example\" \"./Mailbox\"] %d %d %d \"the message\" \"yes\" %q\n", uid, gid, groups, dir)
	if got := ask("ann@b.example"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	module := filepath.Join(dir, "module")
	if err := os.WriteFile(module, []byte("#!/bin/sh\necho $# $2 $8; cat\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, recipient, variable, want string }{
		{"root", "root@b.example", "", "ZNot allowed to perform deliveries as root.\n"},
		{"nobody", "who@b.example", "", "ZUnable to find alias user!\n"},
		{"a crash", "crash@b.example", "", spawn.LocalCrashed},
		{"a delay", "later@b.example", "", "Zlater\n"},
		{"a refusal", "never@b.example", "", "Dnever\n"},
		{"an empty local part is no way to lose mail", "@b.example", "", errEmpty.Report},
		{"no host", "ann", "", spawn.NoHost},
		{"another program", "ann@b.example", "QMAILLOCAL=" + module, "K9 ann s@a.example\nthe message"},
		{"another program by its relative name", "ann@b.example", "QMAILLOCAL=./module", "K9 ann s@a.example\nthe message"},
		{"another program that is not there", "ann@b.example", "QMAILLOCAL=/no/such/local", spawn.LocalUnable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var vars []string
			if tt.variable != "" {
				vars = []string{tt.variable}
			}
			if got := ask(tt.recipient, vars...); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
