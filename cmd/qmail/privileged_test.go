package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"qmail/internal/vectors"
)

// inPrivate says that a test runs in a mount namespace of its own.
const inPrivate = "QMAIL_TEST_PRIVATE"

// TestAsRootEachRoleIsItsOwnUser makes the users, and mail for them, in an /etc that is this test's own.
func TestAsRootEachRoleIsItsOwnUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become others")
	}
	if os.Getenv(inPrivate) == "" {
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
		return
	}
	ownEtc(t)
	h := newPrivilegedHouse(t)
	if err := os.WriteFile(filepath.Join(h.home, "control/smtproutes"), []byte("held.example:127.0.0.1:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.start()
	for role, want := range map[string][2]string{
		"send": {"qmails", "qmail"}, "smtpd": {"qmaild", "nofiles"}, "rspawn": {"qmailr", "qmail"}, "resolve": {"qmailn", "nofiles"}, "lspawn": {"root", "qmail"},
	} {
		if got := h.owner(role); got != want {
			t.Errorf("qmail-%s is %v, not %v", role, got, want)
		}
	}
	c, err := dial(h.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, step := range []struct {
		say  string
		want int
	}{
		{"MAIL FROM:<someone@far.example>\r\n", 250},
		{"RCPT TO:<dave@test.example>\r\n", 250},
		{"RCPT TO:<dave-unknown@test.example>\r\n", 550},
		{"RCPT TO:<root@test.example>\r\n", 250},
		{"RCPT TO:<nobodyhere@test.example>\r\n", 550},
		{"DATA\r\n", 354},
		{body("one") + ".\r\n", 250},
	} {
		if code, err := c.say(step.say); code != step.want {
			t.Errorf("%q is answered %d %v", step.say, code, err)
		}
	}
	h.arrives(filepath.Join(filepath.Dir(h.home), "dave"), "dave")
	h.arrives(filepath.Join(h.home, "alias"), "alias")
	h.rights()
	h.stop()
	h.inspect()
}

// ownEtc puts a layer over /etc that only this process and its children see.
func ownEtc(t *testing.T) {
	t.Helper()
	layer := t.TempDir()
	if err := vectors.OwnEtc(layer); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		for _, path := range []string{"/etc", layer} {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
}

func newPrivilegedHouse(t *testing.T) *house {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmail-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &house{t: t, home: filepath.Join(dir, "home"), log: filepath.Join(dir, "log"), address: freeAddress(t), root: true}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	init := h.command("qmail-init", "-home", h.home, "-listen", "smtp="+h.address, "test.example")
	init.Env = append(init.Env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	dave := filepath.Join(dir, "dave")
	if out, err := exec.Command("/usr/sbin/useradd", "--no-create-home", "--home-dir", dave, "dave").CombinedOutput(); err != nil {
		t.Fatalf("useradd: %v\n%s", err, out)
	}
	u, err := user.Lookup("dave")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for _, name := range []string{"", "Maildir", "Maildir/tmp", "Maildir/new", "Maildir/cur"} {
		path := filepath.Join(dave, name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chown(path, uid, gid)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// owner is whom a role runs as, by all four of its uids and gids, and with no other groups.
func (h *house) owner(role string) (names [2]string) {
	h.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.pid(role)))
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch f[0] {
		case "Uid:", "Gid:":
			if f[1] != f[2] || f[1] != f[3] || f[1] != f[4] {
				h.t.Errorf("qmail-%s: %s", role, line)
			}
			if u, err := user.LookupId(f[1]); err == nil && f[0] == "Uid:" {
				names[0] = u.Username
			}
			if g, err := user.LookupGroupId(f[1]); err == nil && f[0] == "Gid:" {
				names[1] = g.Name
			}
		case "Groups:":
			if len(f) > 1 {
				h.t.Errorf("qmail-%s: %s", role, line)
			}
		}
	}
	return names
}

// arrives waits for a message in a home's Maildir and looks at whose it is.
func (h *house) arrives(home, name string) {
	h.t.Helper()
	var found []string
	h.until("mail is in "+home, func() bool {
		found, _ = filepath.Glob(filepath.Join(home, "Maildir/new/*"))
		return len(found) == 1
	})
	info, err := os.Stat(found[0])
	if err != nil {
		h.t.Fatal(err)
	}
	u, err := user.Lookup(name)
	if err != nil {
		h.t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; strconv.Itoa(int(uid)) != u.Uid || info.Mode() != 0o600 {
		h.t.Errorf("%s belongs to uid %d with mode %v", found[0], uid, info.Mode())
	}
}

// inspect looks at every file of the home: none is setuid, and the queue's are for qmails alone.
func (h *house) inspect() {
	h.t.Helper()
	u, err := user.Lookup("qmails")
	if err != nil {
		h.t.Fatal(err)
	}
	seen := 0
	err = filepath.WalkDir(h.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			h.t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.Contains(path, "/queue/journal") {
			seen++
			if uid := info.Sys().(*syscall.Stat_t).Uid; strconv.Itoa(int(uid)) != u.Uid || info.Mode().Perm()&0o077 != 0 {
				h.t.Errorf("%s belongs to uid %d with mode %v", path, uid, info.Mode())
			}
		}
		return nil
	})
	if err != nil || seen < 3 {
		h.t.Errorf("%d files of the queue, %v", seen, err)
	}
}
