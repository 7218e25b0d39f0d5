package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestControlFilesThatCannotBeUsedAreNamedAndNothingStarts(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(h *house) error
		want    string
	}{
		{"a malformed line", func(h *house) error { h.write("control/relayclients", "127.0.0.0/8\nnot a network\n"); return nil }, "/control/relayclients:2: "},
		{"an unknown service", func(h *house) error { h.write("control/listen", "pop2 :109\n"); return nil }, `/control/listen:1: unknown service "pop2"`},
		{"a file that may not be read", func(h *house) error { return os.Chmod(filepath.Join(h.home, "control/locals"), 0) }, "/control/locals: permission denied"},
		{"a directory for a file", func(h *house) error {
			return errors.Join(os.Remove(filepath.Join(h.home, "control/rcpthosts")), os.Mkdir(filepath.Join(h.home, "control/rcpthosts"), 0o755))
		}, "/control/rcpthosts: not a regular file"},
		{"a malformed route", func(h *house) error { h.write("control/smtproutes", "far.example:127.0.0.1:notaport\n"); return nil }, "/control/smtproutes: line 1: "},
		{"a virtual domain without a colon", func(h *house) error {
			h.write("control/virtualdomains", "# ours\nvirt.example:alice\nlost.example\n")
			return nil
		}, `/control/virtualdomains:3: "lost.example" has no colon`},
		{"a host with a blank", func(h *house) error { h.write("control/locals", "test.example\n here.example\n"); return nil }, `/control/locals:2: " here.example" holds blanks`},
		{"a host with a control character", func(h *house) error { h.write("control/percenthack", "a.example\r\n"); return nil }, `/control/percenthack:1: "a.example\r" holds`},
		{"a number that is none", func(h *house) error { h.write("control/concurrencylocal", "many\n"); return nil }, `/control/concurrencylocal:1: "many" is no number`},
		{"nothing that says what is local", func(h *house) error {
			return errors.Join(os.Remove(filepath.Join(h.home, "control/me")), os.Remove(filepath.Join(h.home, "control/locals")))
		}, "neither control/locals nor control/me"},
		{"no queue", func(h *house) error { return os.RemoveAll(filepath.Join(h.home, "queue/journal")) }, "/queue/journal: does not exist"},
		{"a home that its group may write", func(h *house) error { return os.Chmod(h.home, 0o775) }, "/home: can be written by others (mode 0775)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t)
			if err := tt.prepare(h); err != nil {
				t.Fatal(err)
			}
			code := h.fail()
			log := h.read()
			if code != 111 || !strings.Contains(log, tt.want) || strings.Contains(log, "qmail-start: ready") {
				t.Errorf("exit code %d, and no %q in\n%s", code, tt.want, log)
			}
		})
	}
}

func TestAReloadThatFailsKeepsWhatWasBefore(t *testing.T) {
	h := newHouse(t)
	h.start()
	rcpt := func(address string) int {
		t.Helper()
		c, err := dial(h.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if code, err := c.say("MAIL FROM:<>\r\n"); err != nil || code != 250 {
			t.Fatal(code, err)
		}
		code, err := c.say("RCPT TO:<" + address + ">\r\n")
		if err != nil {
			t.Fatal(err)
		}
		return code
	}
	hup := func() {
		t.Helper()
		if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	h.write("control/locals", "test.example\nnew.example\n")
	h.write("control/rcpthosts", "test.example\nnew.example\n")
	h.write("control/relayclients", "not a network\n")
	hup()
	h.logged("/control/relayclients:1: ")
	if code := rcpt("alice@test.example"); code != 250 {
		t.Errorf("after a reload that failed alice is answered %d", code)
	}
	h.write("control/relayclients", "")
	h.write("control/rcpthosts", "test.example\n")
	hup()
	h.until("nobody relays any more", func() bool { return rcpt("alice@new.example") == 553 })
	h.write("control/rcpthosts", "test.example\nnew.example\n")
	hup()
	h.until("a new domain is taken", func() bool { return rcpt("alice@new.example") == 250 })
	if code := rcpt("nobody@new.example"); code != 550 {
		t.Errorf("nobody is answered %d", code)
	}
	h.stop()
}
