package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// by runs a tool as another user, with all his groups.
func (h *house) by(name, input string, argv ...string) (out, errs string, code int) {
	h.t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		h.t.Fatal(err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	ids, err := u.GroupIds()
	if err != nil {
		h.t.Fatal(err)
	}
	var groups []uint32
	for _, id := range ids {
		n, _ := strconv.ParseUint(id, 10, 32)
		groups = append(groups, uint32(n))
	}
	cmd := h.command(argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	var status *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &status) {
		h.t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// rights tries the queue tools as different users: dave has a message in the queue, erin is in group qmail, mallory is
// nobody in particular.
func (h *house) rights() {
	t := h.t
	t.Helper()
	for _, argv := range [][]string{{"useradd", "-G", "qmail", "erin"}, {"useradd", "mallory"}} {
		if out, err := exec.Command("/usr/sbin/"+argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	dave, err := user.Lookup("dave")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dave.HomeDir, ".qmail-secret"), []byte("|a-secret-of-dave\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, errs, code := h.by("dave", "Subject: x\n\nx\n", "qmail-inject", "someone@held.example"); code != 0 {
		t.Fatalf("%d %s%s", code, out, errs)
	}
	list, errs, _ := h.by("erin", "", "qmail", "queue", "list", "-recipient", "someone@held.example")
	m := regexp.MustCompile(`^(\d+)  `).FindStringSubmatch(list)
	if m == nil {
		t.Fatalf("erin sees %q %s", list, errs)
	}
	id := m[1]
	tests := []struct {
		who   string
		argv  string
		code  int
		shows string // part of what is printed; empty for nothing at all
	}{
		{"dave", "qmail queue list", 0, id},
		{"dave", "qmail-qread", 0, "#" + id},
		{"dave", "qmail queue cat " + id, 0, "Subject: x"},
		{"dave", "qmail queue delete " + id, 100, "only root and the owners of the queue may do that"},
		{"dave", "qmail-qstat", 100, "only root and the owners"},
		{"dave", "qmail explain dave-secret@test.example", 0, "a-secret-of-dave"},
		{"mallory", "qmail queue list", 0, ""},
		{"mallory", "qmail-qread", 0, ""},
		{"mallory", "qmail queue show " + id, 100, "no such message"},
		{"mallory", "qmail queue cat " + id, 100, "no such message"},
		{"mallory", "qmail explain " + id, 100, "no such message"},
		{"mallory", "qmail queue hold -all", 0, "0 messages held"},
		{"mallory", "qmail-tcpok", 111, "only root and the owners"},
		{"mallory", "qmail explain dave-secret@test.example", 0, "it would be taken"},
		{"qmailr", "qmail queue list", 0, ""}, // in group qmail, but it talks to strangers
		{"qmailr", "qmail queue delete " + id, 100, "only root and the owners"},
		{"qmails", "qmail queue list", 0, id},
		{"erin", "qmail-qstat", 0, "messages in queue: "},
		{"erin", "qmail-tcpto", 0, ""},
		{"erin", "qmail-tcpok", 0, ""},
		{"erin", "qmail explain dave-secret@test.example", 0, "a-secret-of-dave"},
		{"erin", "qmail queue delete " + id, 0, "deleted"},
	}
	for _, tt := range tests {
		out, errs, code := h.by(tt.who, "", strings.Fields(tt.argv)...)
		said := out + errs
		if code != tt.code || !strings.Contains(said, tt.shows) || tt.shows == "" && said != "" {
			t.Errorf("%s: %s: exit %d\n%s", tt.who, tt.argv, code, said)
		}
		if tt.who == "mallory" && strings.Contains(said, "a-secret-of-dave") {
			t.Errorf("mallory reads what dave does with his mail:\n%s", said)
		}
	}
	if want := regexp.MustCompile(`qmail-send: msg ` + id + `: deleted by uid \d+ `); !want.MatchString(h.read()) {
		t.Errorf("the log does not say who deleted the message")
	}
}
