// Package home is "qmail init": it makes a home with the directories, control files, aliases and users that a
// working installation needs.
//
// As root it makes the classic users and groups by groupadd(8) and useradd(8), where they are missing, and gives each
// directory to its owner. Nothing is setuid. Otherwise everything belongs to the caller, and users/assign leads
// the mail of the caller, and of those named by -user, to Maildirs below mail/, so that mail can be tried out
// without accounts.
//
// An existing home is never touched: besides bin, man and doc there must be nothing in the directory. What
// fails halfway is taken away again.
package home

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"qmail/internal/format/address"
	"qmail/internal/system/env"
)

const (
	exitUsage = 100
	exitLater = 111
)

// Main makes a home. It returns 0, 100 for wrong arguments, or 111.
func Main(_ context.Context, e *env.Env, args []string) int {
	p, err := parse(e, args, os.Geteuid() == 0)
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(e.Stderr, "qmail-init: %v\n", err)
		}
		return exitUsage
	}
	unix.Umask(0o022)
	p.machine = newMachine(e)
	if err := p.make(); err != nil {
		fmt.Fprintf(e.Stderr, "qmail-init: fatal: %v\n", err)
		return exitLater
	}
	p.tell(e.Stdout)
	return 0
}

// plan is the home to be made.
type plan struct {
	home       string
	domain     string
	listen     []string // lines of control/listen
	users      []string // without root: who has a Maildir; the first gets the postmaster's mail
	postmaster string   // address, or "" for the default
	machine    machine
	owners     owners
}

// words collects the values of a flag that may be given several times.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

func parse(e *env.Env, args []string, root bool) (*plan, error) {
	p := &plan{home: e.Home}
	var listen, users words
	flags := flag.NewFlagSet("qmail init", flag.ContinueOnError)
	flags.SetOutput(e.Stderr)
	flags.Usage = func() {
		fmt.Fprintln(e.Stderr, "usage: qmail init [options] DOMAIN")
		flags.PrintDefaults()
	}
	flags.StringVar(&p.home, "home", p.home, "make the home in `DIR`")
	flags.Var(&listen, "listen", "listen at `SERVICE=ADDRESS:PORT`, such as smtp=127.0.0.1:2525; services are smtp, submission, submissions, lmtp, qmtp, qmtps, qmqp, qmqps, pop3 and pop3s; may be given several times")
	flags.Var(&users, "user", "give `NAME` a Maildir below mail/ (not as root); may be given several times")
	flags.StringVar(&p.postmaster, "postmaster", "", "forward the mail for postmaster to `ADDRESS`")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp // flags has said what is wrong
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return nil, flag.ErrHelp
	}
	p.domain, p.users = address.Lower(flags.Arg(0)), users
	return p, p.check(listen, root)
}

// check refuses what would not work, and fills in what was not said.
func (p *plan) check(listen []string, root bool) error {
	if !goodDomain(p.domain) {
		return fmt.Errorf("not a domain name: %q (labels of letters, digits and hyphens; others in their xn-- form)", p.domain)
	}
	if !filepath.IsAbs(p.home) || filepath.Clean(p.home) == "/" {
		return fmt.Errorf("the home must be an absolute path: %q", p.home)
	}
	p.home = filepath.Clean(p.home)
	if strings.ContainsAny(p.home, ":\n\x00") {
		return fmt.Errorf("the home's path must not hold colons or line ends: %q", p.home) // users/assign has no quoting
	}
	if p.postmaster != "" {
		if path, rest, err := address.CutPath("<" + p.postmaster + ">"); err != nil || rest != "" || path.Bare || path.Address == "" {
			return fmt.Errorf("not an address: %q", p.postmaster)
		}
	}
	for _, v := range listen {
		service, where, ok := strings.Cut(v, "=")
		if !ok || service == "" || where == "" || strings.ContainsAny(v, " \t\r\n#") {
			return fmt.Errorf("not of the form SERVICE=ADDRESS:PORT: %q", v)
		}
		p.listen = append(p.listen, service+" "+where)
	}
	if root {
		if len(p.users) > 0 {
			return errors.New("-user is for those who are not root; here users are those of the system")
		}
		if p.listen == nil {
			p.listen = []string{"smtp :25"}
		}
		return nil
	}
	if p.listen == nil {
		p.listen = []string{"smtp 127.0.0.1:2525"}
	}
	return p.checkUsers()
}

func (p *plan) checkUsers() error {
	if len(p.users) == 0 {
		p.users = []string{loginName()}
	}
	for i, name := range p.users {
		p.users[i] = address.Lower(name)
		if !goodUser(p.users[i]) {
			return fmt.Errorf("not a user name: %q (letters, digits, dot, hyphen and underscore, at most 31)", name)
		}
	}
	return nil
}

// goodDomain holds a name to RFC 1123 2.1.
func goodDomain(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || !only(label, "-") {
			return false
		}
	}
	return true
}

func goodUser(s string) bool {
	return s != "" && len(s) <= 31 && only(s, "-_.") && strings.IndexByte("-.", s[0]) < 0
}

// only reports whether s has nothing but small letters, digits and the given bytes.
func only(s, more string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(more, c) < 0 {
			return false
		}
	}
	return true
}

// belongings are what may be in a home before it is made: what "make install" puts there.
var belongings = [...]string{"bin", "man", "doc"}

// parts are the directories of a home that we make.
var parts = [...]string{"control", "users", "alias", "queue", "mail", "keys"}

// make makes the home, or nothing.
func (p *plan) make() error {
	if err := empty(p.home); err != nil {
		return err
	}
	var err error
	if p.owners, err = p.machine.owners(p.home); err != nil {
		return err
	}
	existed := true
	if err := os.Mkdir(p.home, 0o755); err == nil {
		existed = false
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := p.fill(); err != nil {
		for _, part := range parts {
			os.RemoveAll(filepath.Join(p.home, part)) // what is left over will be named by the next try
		}
		if !existed {
			os.Remove(p.home)
		}
		return err
	}
	return nil
}

func empty(home string) error {
	entries, err := os.ReadDir(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
next:
	for _, entry := range entries {
		for _, name := range belongings {
			if entry.Name() == name {
				continue next
			}
		}
		return fmt.Errorf("%s is not empty: it has %s", home, entry.Name())
	}
	return nil
}

func (p *plan) tell(w io.Writer) {
	fmt.Fprintf(w, "%s is a home for mail to %s.\n", p.home, p.domain)
	for _, line := range p.listen {
		fmt.Fprintf(w, "It listens at: %s (control/listen).\n", line)
	}
	for _, name := range p.users {
		fmt.Fprintf(w, "Mail for %s@%s goes to %s/.\n", name, p.domain, filepath.Join(p.maildirHome(name), "Maildir"))
	}
	switch {
	case p.postmaster != "":
		fmt.Fprintf(w, "Mail for postmaster goes to %s", p.postmaster)
	case p.owners.root:
		fmt.Fprintf(w, "Mail for postmaster and root goes to %s/", filepath.Join(p.home, "alias", "Maildir"))
	default:
		fmt.Fprintf(w, "Mail for postmaster goes to %s@%s", p.users[0], p.domain)
	}
	fmt.Fprintf(w, " (alias/.qmail-postmaster).\nStart it: QMAILHOME=%s qmail start\n", p.home)
}
