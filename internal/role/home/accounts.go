package home

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/system/env"
)

// account is whom something belongs to.
type account struct{ uid, gid int }

// owners are those who own parts of a home.
type owners struct {
	root                   bool // there are different ones
	us, alias, queue, keys account
}

// machine is what of the system a home needs. Tests have their own.
type machine struct {
	root       bool
	us         account
	findUser   func(name string) (*user.User, error)
	findGroup  func(name string) (*user.Group, error)
	run        func(program string, args ...string) error
	chown      func(path string, owner account) error
	complaints func(text string)
	now        func() time.Time
}

func newMachine(e *env.Env) machine {
	m := machine{
		root: os.Geteuid() == 0, us: account{os.Geteuid(), os.Getegid()},
		findUser: user.Lookup, findGroup: user.LookupGroup,
		chown:      func(path string, a account) error { return os.Chown(path, a.uid, a.gid) },
		complaints: func(text string) { fmt.Fprintln(e.Stderr, "qmail-init: warning: "+text) },
	}
	m.run, m.now = run, e.Now
	return m
}

// run runs a program of the administrator's.
func run(program string, args ...string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program) // not in everybody's PATH
	}
	if err != nil {
		return fmt.Errorf("%s is not installed (Debian has it in the package passwd)", program)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// groups and members are qmail's, as INSTALL.ids has them, and two that it had no use
// for: qmailk, who holds the keys, and qmailn, who asks for names.
var groups = [...]string{"qmail", "nofiles"}

var members = [...]struct{ name, group, home string }{
	{"alias", "nofiles", "alias"},
	{"qmaild", "nofiles", ""},
	{"qmaill", "nofiles", ""},
	{"qmailn", "nofiles", ""},
	{"qmailp", "nofiles", ""},
	{"qmailk", "nofiles", ""},
	{"qmailq", "qmail", ""},
	{"qmailr", "qmail", ""},
	{"qmails", "qmail", ""},
}

// owners finds, and as root makes, those who own parts of a home.
func (m machine) owners(home string) (owners, error) {
	if !m.root {
		return owners{us: m.us, alias: m.us, queue: m.us, keys: m.us}, nil
	}
	for _, name := range groups {
		var unknown user.UnknownGroupError
		if _, err := m.findGroup(name); errors.As(err, &unknown) {
			err = m.run("groupadd", "--system", name)
			if err != nil {
				return owners{}, err
			}
		} else if err != nil {
			return owners{}, err
		}
	}
	all := map[string]account{}
	for _, u := range members {
		a, err := m.member(u.name, u.group, filepath.Join(home, u.home))
		if err != nil {
			return owners{}, err
		}
		all[u.name] = a
	}
	return owners{root: true, us: m.us, alias: all["alias"], queue: all["qmails"], keys: all["qmailk"]}, nil
}

// member finds or makes one user.
func (m machine) member(name, group, home string) (account, error) {
	u, err := m.findUser(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		err = m.run("useradd", "--system", "--no-create-home", "--gid", group, "--home-dir", home, "--shell", "/usr/sbin/nologin", name)
		if err != nil {
			return account{}, err
		}
		u, err = m.findUser(name)
	}
	if err != nil {
		return account{}, err
	}
	if u.HomeDir != home {
		m.complaints(fmt.Sprintf("the home of %s is %s and not %s", name, u.HomeDir, home))
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return account{}, fmt.Errorf("%s: %w", name, err)
	}
	if uid == 0 {
		return account{}, fmt.Errorf("%s is another name of root", name)
	}
	return account{uid, gid}, nil
}

// loginName is the caller's name, or one made up where there is none that mail could have.
func loginName() string {
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
		if name := address.Lower(u.Username); goodUser(name) {
			return name
		}
	}
	return "user" + strconv.Itoa(os.Geteuid())
}
