package senders

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/store/control"
)

func load(t *testing.T, files map[string]string) (*Policy, error) {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Load(control.Open(home))
}

func TestMay(t *testing.T) {
	p, err := load(t, map[string]string{
		"me": "mx.test.example\n", "locals": "test.example\nlocalhost\n",
		"senderlogins": "# who may\nOffice@Test.example: alice@test.example, bob\n@shop.example:carol@test.example\n@:relay@test.example\nbob-list@test.example:dave\nall@test.example:*\nnobody@test.example:\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, login, sender string
		want                bool
	}{
		{"oneself", "alice@test.example", "alice@test.example", true},
		{"in another case", "Alice@test.example", "ALICE@Test.Example", true},
		{"an extension", "alice@test.example", "alice-list-request@test.example", true},
		{"nobody", "alice@test.example", "", true},
		{"another", "alice@test.example", "bob@test.example", false},
		{"a name that begins in the same way", "alice@test.example", "alice2@test.example", false},
		{"another domain", "alice@test.example", "alice@other.example", false},
		{"a subdomain", "alice@test.example", "alice@a.test.example", false},
		{"a local part with an @", "alice@test.example", "\"alice@test.example\"@other.example", false},
		{"what quoting might hide", "alice@test.example", "bob@other.example@test.example", false},
		{"without a domain", "alice@test.example", "alice", false},
		{"a login without a domain", "bob", "bob@test.example", true},
		{"in another of our domains", "bob", "bob@localhost", true},
		{"in none of ours", "bob", "bob@remote.example", false},
		{"a login without a domain, an extension", "bob", "bob-x@test.example", true},
		{"an address with a line", "alice@test.example", "office@test.example", true},
		{"another of that line", "bob", "office@TEST.example", true},
		{"one who is not in that line", "carol@test.example", "office@test.example", false},
		{"the line of an address is all about it", "bob", "bob-list@test.example", false},
		{"but for who is in it", "dave", "bob-list@test.example", true},
		{"also for who may send as all", "relay@test.example", "bob-list@test.example", false},
		{"a line for every login", "eve", "all@test.example", true},
		{"a line for none", "relay@test.example", "nobody@test.example", false},
		{"a domain", "carol@test.example", "anybody@shop.example", true},
		{"a domain of others", "alice@test.example", "alice@shop.example", false},
		{"everywhere", "relay@test.example", "x@remote.example", true},
		{"nobody logged in", "", "x@test.example", false},
		{"nobody logged in, and an extension of nobody", "", "-x@test.example", false},
	}
	for _, tt := range tests {
		if got := p.May(tt.login, tt.sender); got != tt.want {
			t.Errorf("%s: %q as %q is %v", tt.name, tt.login, tt.sender, got)
		}
	}
}

func TestLoad(t *testing.T) {
	if _, err := load(t, map[string]string{"senderlogins": "a@b.example:c\nnonsense\n"}); err == nil || !strings.Contains(err.Error(), "senderlogins:2:") {
		t.Errorf("%v", err)
	}
	if _, err := load(t, map[string]string{"senderlogins": "alice:c\n"}); err == nil {
		t.Error("a sender without a domain is taken")
	}
	p, err := load(t, map[string]string{"me": "mx.test.example\n"})
	if err != nil || !p.May("bob", "bob@mx.test.example") || p.May("bob", "bob@test.example") {
		t.Errorf("without locals: %v", err)
	}
}

var start = time.Unix(1_800_000_000, 0)

func TestMeter(t *testing.T) {
	var m Meter
	steps := []struct {
		after      time.Duration
		login      string
		recipients int
		want       bool
	}{
		{0, "alice", 99, true},
		{0, "alice", 1, true},
		{0, "ALICE", 1, false},
		{0, "bob", 100, true},
		{30 * time.Minute, "alice", 50, false}, // 101 - 50 + 50
		{30 * time.Minute, "bob", 50, true},
		{2 * time.Hour, "alice", 100, true},
		{2 * time.Hour, "alice", 100000, false},
		{4 * time.Hour, "alice", 100, true}, // however much that was
		{3 * time.Hour, "bob", 101, false},
	}
	for i, s := range steps {
		if got := m.Within(s.login, s.recipients, 100, start.Add(s.after)); got != s.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
	for range 1000 {
		if !m.Within("carol", 1000, 0, start) {
			t.Fatal("no limit is a limit")
		}
	}
}

func TestTell(t *testing.T) {
	var m Meter
	if !m.Tell("alice", start) || m.Tell("Alice", start.Add(59*time.Minute)) || !m.Tell("bob", start) || !m.Tell("alice", start.Add(time.Hour)) {
		t.Error("once an hour each")
	}
}

func TestMeterIsBounded(t *testing.T) {
	var m Meter
	for i := range 3 * maxSenders {
		m.Within(fmt.Sprint(i), 1+i%7, 10, start)
	}
	if len(m.users) > maxSenders {
		t.Errorf("%d are remembered", len(m.users))
	}
}
