package adversarial

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// user is alice's world for one delivery.
type user struct {
	c            *Case
	s            *site
	home, canary string
	bobs         string   // a file that is not hers
	elsewhere    string   // a directory that is not hers
	vars         []string // of the daemon
	class, said  string
	took         time.Duration
	memory       int64
	left         []message // in the queue, when all local deliveries are over
}

// dotqmail plays instructions to the qmail-local of a running home.
func (r *Runner) dotqmail(c *Case) error {
	if c.Setup.Patrn != "" && c.Setup.Patrn != "002" {
		return fmt.Errorf("what bits are forbidden is built in: %w", ErrSkip)
	}
	s, err := r.newSite()
	if err != nil {
		return err
	}
	defer s.close()
	u := &user{c: c, s: s, home: filepath.Join(s.home, "mail", "alice"), canary: filepath.Join(s.dir, "canary"),
		bobs: filepath.Join(s.dir, "bobs"), elsewhere: filepath.Join(s.dir, "elsewhere")}
	if err := u.setUp(r); err != nil {
		return err
	}
	u.vars = []string{"PATH=/usr/bin:/bin"}
	for name, value := range c.Setup.DaemonEnv {
		u.vars = append(u.vars, name+"="+value)
	}
	if err := errors.Join(s.control(map[string]string{"concurrencylocal": "10\n"}), s.start(u.vars...)); err != nil {
		return err
	}
	sender, rcpt := "s@remote.example", "alice@test.example"
	if c.Setup.Sender != nil {
		sender = strings.ReplaceAll(string(*c.Setup.Sender), "/tmp/canary", u.canary)
	}
	if c.Setup.Ext != "" {
		rcpt = "alice-" + c.Setup.Ext + "@test.example"
	}
	if err := r.enqueue(s, sender, []string{rcpt}, []byte("Subject: x\n\nhi\n")); err != nil {
		return err
	}
	if err := u.await(); err != nil {
		return err
	}
	if u.class != "tempfail" {
		if u.left, err = s.quiet(); err != nil {
			return err
		}
	}
	var p problems
	if !slices.Contains(c.classes(), u.class) {
		p.add("%s, want %v: %.300q", u.class, c.classes(), u.said)
	}
	if trouble := s.trouble(); trouble != "" {
		p.add("broke down: %s", trouble)
	}
	for _, word := range c.Expect.MustNot {
		broken, err := u.broken(word)
		if err != nil {
			p.add("%w", err)
		} else if broken {
			p.add("%s: %s, %.300q, %v, %d MiB", word, u.class, u.said, u.took.Round(time.Second), u.memory>>20)
		}
	}
	p.limits(c, u.took, u.memory)
	return p.err()
}

// classOf is the class of the result of a delivery on the log of qmail-send.
func classOf(word string) string {
	switch word {
	case "success":
		return "accept"
	case "failure":
		return "reject"
	}
	return "tempfail"
}

// await waits for the result of the first delivery.
func (u *user) await() error {
	began := time.Now()
	for deadline := began.Add(3 * time.Minute); ; time.Sleep(glance) {
		u.memory = max(u.memory, childrensPeak(u.s.role("lspawn")))
		b, err := os.ReadFile(u.s.log)
		if err != nil {
			return err
		}
		if _, rest, ok := strings.Cut(string(b), "\ndelivery 1: "); ok && strings.Contains(rest, "\n") {
			u.took = time.Since(began)
			line, _, _ := strings.Cut(rest, "\n")
			word, text, _ := strings.Cut(line, ": ")
			u.class, u.said = classOf(word), text
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the delivery does not end")
		}
	}
}

// setUp makes the files of the case, with names of ours for those that it names.
func (u *user) setUp(r *Runner) error {
	set := &u.c.Setup
	text := bytes.ReplaceAll(u.c.input(), []byte("/tmp/canary"), []byte(u.canary))
	text = bytes.ReplaceAll(text, []byte("sleep 1000"), []byte("sleep 40"))
	name := set.File
	if name == "" {
		name = ".qmail"
		if set.Ext != "" {
			name = ".qmail-default"
		}
	}
	mode := os.FileMode(0o644)
	if set.Mode != "" {
		n, err := strconv.ParseUint(set.Mode, 8, 32)
		if err != nil {
			return err
		}
		mode = fileMode(n)
	}
	path := filepath.Join(u.home, name)
	var todo []error
	switch set.Type {
	case "":
		todo = append(todo, os.WriteFile(path, text, 0o600), r.own(path), os.Chmod(path, mode))
	case "fifo":
		todo = append(todo, syscall.Mkfifo(path, 0o644), r.own(path))
	case "dir":
		todo = append(todo, os.Mkdir(path, 0o755), r.own(path))
	case "chardev-zero":
		todo = append(todo, os.Symlink("/dev/zero", path))
	case "symlink":
		todo = append(todo, os.WriteFile(u.bobs, text, 0o644), os.Symlink(u.bobs, path))
		if os.Geteuid() == 0 {
			todo = append(todo, os.Chown(u.bobs, unprivileged+1, unprivileged+1))
		}
	default:
		return fmt.Errorf("there is no type %q", set.Type)
	}
	if set.MailboxLink != "" {
		todo = append(todo, os.Symlink(u.canary, filepath.Join(u.home, "Mailbox")))
	}
	if set.MailboxHard != "" {
		todo = append(todo, os.WriteFile(u.bobs, []byte("bob's\n"), 0o600), os.Link(u.bobs, filepath.Join(u.home, "Mailbox")))
	}
	if set.MailboxFIFO {
		todo = append(todo, syscall.Mkfifo(filepath.Join(u.home, "fifo"), 0o666), r.own(filepath.Join(u.home, "fifo")))
	}
	if set.MaildirTmp != "" {
		tmp := filepath.Join(u.home, "Maildir", "tmp")
		todo = append(todo, os.Mkdir(u.elsewhere, 0o755), os.Chmod(u.elsewhere, 0o777), os.Remove(tmp), os.Symlink(u.elsewhere, tmp))
	}
	switch set.Home {
	case "":
	case "absent", "file":
		todo = append(todo, os.Rename(u.home, filepath.Join(u.s.dir, "gone")))
		if set.Home == "file" {
			todo = append(todo, os.WriteFile(u.home, nil, 0o644))
		}
	default:
		return fmt.Errorf("there is no home %q", set.Home)
	}
	if set.HomeMode != "" {
		n, err := strconv.ParseUint(set.HomeMode, 8, 32)
		if err != nil {
			return err
		}
		todo = append(todo, os.Chmod(u.home, fileMode(n)))
	}
	return errors.Join(todo...)
}

func fileMode(n uint64) os.FileMode {
	mode := os.FileMode(n & 0o777)
	if n&0o1000 != 0 {
		mode |= os.ModeSticky
	}
	return mode
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// copies counts the messages that were sent on; a bounce is none.
func (u *user) copies() (n int) {
	for _, m := range u.left {
		if m.sender != "" {
			n++
		}
	}
	return n
}

func (u *user) maildir() int {
	names, _ := filepath.Glob(filepath.Join(u.home, "Maildir", "new", "*"))
	return len(names)
}

// broken reports whether something came true that must not.
func (u *user) broken(word string) (bool, error) {
	lines := func(name string) ([]string, error) {
		b, err := os.ReadFile(filepath.Join(u.home, name))
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"), err
	}
	name, arg, _ := strings.Cut(word, ":")
	switch {
	case word == "exec", word == "file:/tmp/canary":
		return there(u.canary), nil
	case word == "delivered":
		return u.c.Setup.MailboxLink == "" && u.c.Setup.MailboxHard == "" && there(filepath.Join(u.home, "Mailbox")) || u.maildir() > 0 || u.copies() > 0, nil
	case word == "file:Maildir/new/*":
		return u.maildir() > 0, nil
	case word == "file:Maildir/\r":
		return there(filepath.Join(u.home, "Maildir\r")) || there(filepath.Join(u.home, "Maildir", "\r")), nil
	case word == "file:/tmp/":
		entries, err := os.ReadDir(u.elsewhere)
		return len(entries) > 0, err
	case word == "file:../": // a name of a file is made without dots
		return there(filepath.Join(filepath.Dir(u.home), "Mailbox")), nil
	case name == "file":
		return there(arg), nil
	case word == "log_control_chars":
		return strings.ContainsFunc(u.said, func(r rune) bool { return r < ' ' || r > '~' }), nil
	case name == "env":
		list, err := lines("env-out")
		return slices.ContainsFunc(list, func(v string) bool { return strings.HasPrefix(v, arg+"=") }), err
	case word == "fd>2": // ls has the directory open as 3
		list, err := lines("fds")
		return !slices.Equal(list, []string{"0", "1", "2", "3"}), err
	case word == "uid:0", word == "gid:0", word == "groups:extra":
		list, err := lines("id-out")
		if os.Geteuid() != 0 || err != nil {
			return false, err
		}
		want := fmt.Sprintf("uid=%d gid=%d groups=%d", unprivileged, unprivileged, unprivileged)
		return list[0] != want, nil
	case word == "append:bob":
		b, err := os.ReadFile(u.bobs)
		return string(b) != "bob's\n", err
	case word == "header_injected":
		return slices.ContainsFunc(u.left, func(m message) bool { return strings.ContainsAny(strings.Join(m.rcpts, ""), "\r\n") }), nil
	case word == "loops":
		b, err := os.ReadFile(u.s.log)
		return bytes.Count(b, []byte("\nstarting delivery ")) > 3, err
	case word == "panic":
		return u.s.trouble() != "", nil
	case strings.HasPrefix(word, "time>"), strings.HasPrefix(word, "rss>"):
		return false, nil // looked at for all
	}
	return false, fmt.Errorf("it must not %q, whatever that is", word)
}
