package rights

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"qmail/internal/system/env"
)

// TestEveryProcessHasRights compares the table with the process table, which is another package's own.
func TestEveryProcessHasRights(t *testing.T) {
	b, err := os.ReadFile("../table.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\{name: "(\w+)"`).FindAllStringSubmatch(string(b), -1)
	if len(names) < 7 {
		t.Fatalf("only %d processes found", len(names))
	}
	for _, name := range names {
		if !slices.ContainsFunc(table, func(r row) bool { return r.role == name[1] }) {
			t.Errorf("qmail-%s has no rights", name[1])
		}
	}
	for i, r := range table {
		if slices.ContainsFunc(table[:i], func(other row) bool { return other.role == r.role }) {
			t.Errorf("qmail-%s has two rows", r.role)
		}
	}
}

func TestSettingsWidenRights(t *testing.T) {
	home := t.TempDir()
	e := &env.Env{Home: home}
	if err := os.Mkdir(home+"/control", 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := table[slices.IndexFunc(table, func(r row) bool { return r.role == "rspawn" })]
	first, err := r.rights(e, nil)
	if err != nil || first.Programs || !slices.Contains(first.Connect, 25) || slices.Contains(first.Connect, 2525) {
		t.Fatalf("%+v, %v", first, err)
	}
	tests := []struct {
		name, file, text string
		within           bool
	}{
		{"a port that is allowed anyway changes nothing", "smtproutes", "a.example:relay.example:25\n", true},
		{"another port does", "smtproutes", "a.example:relay.example:2525\n", false},
		{"so does one behind an address in brackets", "smtproutes", ":[2001:db8::1]:2626\n", false},
		{"so does a program", "qmailremote", "/opt/remote\n", false},
		{"an empty file names none", "qmailremote", "\n", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			write(tt.file, tt.text)
			defer os.Remove(filepath.Join(home, "control", tt.file))
			now, err := r.rights(e, nil)
			if err != nil || now.within(first) != tt.within {
				t.Errorf("%+v, %v", now, err)
			}
		})
	}
	if err := os.Symlink("/etc/hostname", home+"/control/me"); err != nil {
		t.Fatal(err)
	}
	if now, err := r.rights(e, nil); err != nil || !slices.Contains(now.Read, home+"/control/me") || now.within(first) {
		t.Errorf("what a link leads to: %v, %v", now.Read, err)
	}
}

func TestAReloadThatNeedsWiderWallsStops(t *testing.T) {
	orders, narrow, said := make(chan env.Order), false, 0
	passed := outgrow(orders, func() bool { return narrow }, func() { said++ })
	got := ""
	for i, kind := range []env.Kind{env.Link, env.Reload, env.Reload, env.Stop} {
		narrow = i == 2
		orders <- env.Order{Kind: kind}
		got += string((<-passed).Kind)
	}
	close(orders)
	if _, open := <-passed; open || got != "LHTT" || said != 1 {
		t.Errorf("%q, said %d times", got, said)
	}
}

func TestAHomeAroundOursIsLetInto(t *testing.T) {
	e := &env.Env{Home: "/home/ann/mail"}
	for home, want := range map[string]bool{"/home/ann": true, "/home/ann/mail/mail/bob": false, "/home/an": false, "/": true} {
		if got := around(e, []string{"--serve", "ann", home, "./Maildir/"}); got != want {
			t.Errorf("%s: %v", home, got)
		}
	}
	if around(e, strings.Fields("start")) {
		t.Error("no home at all")
	}
}
