package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"qmail/internal/store/passwd"
)

// inside runs the test again in a mount namespace of its own, and reports whether this is that run.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become others")
	}
	if os.Getenv(inPrivate) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inPrivate+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("this root may not have a mount namespace")
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// As root, users/passwd belongs to qmailk and nobody else may read it; the process that has it is qmailk's, and a
// checkpassword program runs as root, as it would by itself.
func TestAsRootOnlyTheirKeeperCanReadPasswords(t *testing.T) {
	if !inside(t) {
		return
	}
	ownEtc(t)
	h := newPrivilegedHouse(t)
	o := &office{h, freeAddress(t), freeAddress(t)}
	program := filepath.Join(filepath.Dir(h.home), "checkpassword")
	script := "#!/bin/sh\nrecord=$(tr '\\000' '|' <&3)\n[ \"$record:$(id -u)\" = 'carol|" + secret + "||:0' ] && exec \"$@\"\nexit 1\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"listen": fmt.Sprintf("smtp %s\nsubmissions %s\n", h.address, o.submissions), "checkpassword": program + "\n"} {
		if err := os.WriteFile(filepath.Join(h.home, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o.passwd(secret+"\n", "add", login)
	keeper, err := user.Lookup("qmailk")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(passwd.Path(h.home))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); strconv.Itoa(int(st.Uid)) != keeper.Uid || info.Mode().Perm() != 0o600 {
		t.Errorf("it is %v of user %d", info.Mode(), st.Uid)
	}
	o.start()
	for role, want := range map[string][2]string{"authd": {"qmailk", "nofiles"}, "checkpw": {"root", "root"}, "smtpd": {"qmaild", "nofiles"}} {
		if got := h.owner(role); got != want {
			t.Errorf("qmail-%s is %v, not %v", role, got, want)
		}
	}
	for who, want := range map[string]int{login: 235, "carol": 235, "nobody": 535} {
		if code := o.enter().auth(t, who, secret); code != want {
			t.Errorf("%s is answered %d\n%s", who, code, o.tail())
		}
	}
	o.passwd("other\n", "set", login)
	o.until("another password counts", func() bool { c := o.enter(); defer c.Close(); return c.auth(t, login, "other") == 235 })
	o.stop()
}
