// Package pw2u is qmail-pw2u(8): passwd(5) lines come in, lines for users/assign go out.
//
// It reads users/include, exclude, mailnames, subusers and append of the home.
package pw2u

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"qmail/internal/format/address"
	"qmail/internal/format/getopt"
	"qmail/internal/system/env"
)

const (
	exitUsage = 100
	exitLater = 111
	// maxLine bounds a line of passwd, in bytes.
	maxLine = 1 << 20
	aliasID = "alias"
)

// Main runs the role and returns its exit code.
func Main(_ context.Context, e *env.Env, args []string) int {
	o, err := readOptions(args)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-pw2u: %v\n", err)
		return exitUsage
	}
	out := bufio.NewWriter(e.Stdout)
	err = convert(filepath.Join(e.Home, "users"), o, e.Stdin, out)
	if flushed := out.Flush(); err == nil && flushed != nil {
		err = fmt.Errorf("unable to write: %w", flushed)
	}
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-pw2u: fatal: %v\n", err)
		return exitLater
	}
	return 0
}

// strategy is what is asked of homes.
type strategy byte

const (
	owned    strategy = 'o' // they exist and are their user's, else the user is left out
	existing strategy = 'h' // one that is missing is an error
	ignored  strategy = 'H' // nothing
)

type options struct {
	homes     strategy
	upper     bool   // names may have capitals
	separator string // between a name and its extension; "" for no extensions
	dash      string // before the extension in the names of .qmail files
}

func readOptions(args []string) (options, error) {
	o := options{homes: owned, separator: "-", dash: "-"}
	parsed, _, err := getopt.Parse(args, "/ohHuUc:C")
	for _, p := range parsed {
		switch p.Letter {
		case '/':
			o.dash = "-/"
		case 'o', 'h', 'H':
			o.homes = strategy(p.Letter)
		case 'u':
			o.upper = true
		case 'U':
			o.upper = false
		case 'c':
			o.separator = p.Arg[:min(len(p.Arg), 1)]
		case 'C':
			o.separator = ""
		}
	}
	if err == nil && o.separator == ":" {
		err = errors.New("a colon cannot stand between name and extension")
	}
	return o, err
}

// tables are the files in users/.
type tables struct {
	include   map[string]bool // nil: everybody
	exclude   map[string]bool
	mailnames map[string]string
	subusers  []string
	appendix  []byte
}

func readTables(dir string) (*tables, error) {
	t := &tables{exclude: map[string]bool{}, mailnames: map[string]string{}}
	lists := map[string][]string{}
	for _, name := range []string{"include", "exclude", "mailnames", "subusers"} {
		list, present, err := lines(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("unable to read controls: %w", err)
		}
		if name == "include" && present {
			t.include = map[string]bool{}
		}
		lists[name] = list
	}
	for _, user := range lists["include"] {
		t.include[address.Lower(user)] = true
	}
	for _, user := range lists["exclude"] {
		t.exclude[address.Lower(user)] = true
	}
	for _, line := range lists["mailnames"] {
		if user, names, ok := strings.Cut(line, ":"); ok {
			t.mailnames[address.Lower(user)] = names
		}
	}
	t.subusers = lists["subusers"]
	var err error
	t.appendix, err = os.ReadFile(filepath.Join(dir, "append"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("unable to read users/append: %w", err)
	}
	return t, nil
}

// lines reads a list in the form of control files: trailing blanks, empty lines and comments left out.
func lines(path string) (list []string, present bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	for line := range bytes.Lines(b) {
		if text := string(bytes.TrimRight(line, " \t\n")); text != "" && text[0] != '#' {
			list = append(list, text)
		}
	}
	return list, true, err
}

// account is a line of passwd.
type account struct {
	user, uid, gid, home string
}

// fields are those of an assignment that do not depend on the address.
func (a account) fields() string { return a.user + ":" + a.uid + ":" + a.gid + ":" + a.home }

// converter turns accounts into assignments.
type converter struct {
	options
	*tables
	out   io.Writer // a bufio.Writer, which remembers its errors
	seen  map[string]account
	alias bool
}

func convert(dir string, o options, passwd io.Reader, out io.Writer) error {
	t, err := readTables(dir)
	if err != nil {
		return err
	}
	c := &converter{options: o, tables: t, out: out, seen: map[string]account{}}
	in := bufio.NewScanner(passwd)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		if a, ok := parse(in.Text()); ok {
			if err := c.account(a); err != nil {
				return err
			}
		}
	}
	if in.Err() != nil {
		return fmt.Errorf("unable to read input: %w", in.Err())
	}
	if !c.alias {
		return errors.New("unable to find alias user")
	}
	return c.finish()
}

// finish writes what does not come from passwd. An appendix whose last line is not ended does not swallow the
// end of the file.
func (c *converter) finish() error {
	for _, line := range c.subusers {
		if err := c.subuser(line); err != nil {
			return err
		}
	}
	c.out.Write(c.appendix)
	if n := len(c.appendix); n > 0 && c.appendix[n-1] != '\n' {
		fmt.Fprintln(c.out)
	}
	fmt.Fprintln(c.out, ".")
	return nil
}

// parse reads a line of passwd; root and what is no account are left out.
func parse(line string) (a account, ok bool) {
	f := strings.Split(line, ":")
	if len(f) < 6 || strings.IndexByte(line, 0) >= 0 || f[0] == "" {
		return account{}, false
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 32)
	gid, err2 := strconv.ParseUint(f[3], 10, 32)
	if err1 != nil || err2 != nil || uid == 0 {
		return account{}, false
	}
	return account{f[0], strconv.FormatUint(uid, 10), strconv.FormatUint(gid, 10), f[5]}, true
}

func (c *converter) account(a account) error {
	key := address.Lower(a.user)
	if !c.upper && key != a.user || c.include != nil && !c.include[key] || c.exclude[key] {
		return nil
	}
	if ok, err := c.home(a); !ok {
		return err
	}
	c.seen[a.user] = a
	if a.user == aliasID {
		c.alias = true
		fmt.Fprintf(c.out, "+:%s:%s::\n", a.fields(), c.dash)
	}
	names, given := c.mailnames[key]
	if !given {
		names = a.user
	}
	for name := range strings.SplitSeq(names, ":") {
		if name != "" {
			c.assign(name, a, "", "")
		}
	}
	return nil
}

// home reports whether an account's home is as the options want it.
func (c *converter) home(a account) (bool, error) {
	if c.homes == ignored {
		return true, nil
	}
	info, err := os.Stat(a.home)
	missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
	switch {
	case err == nil:
		st, ok := info.Sys().(*syscall.Stat_t)
		return ok && strconv.FormatUint(uint64(st.Uid), 10) == a.uid, nil
	case missing && c.homes == owned:
		return false, nil
	}
	return false, fmt.Errorf("unable to stat %s", a.home)
}

// assign writes what a name, and its extensions, lead to: the account's own .qmail files, or those with pre.
func (c *converter) assign(name string, a account, dash, pre string) {
	fmt.Fprintf(c.out, "=%s:%s:%s:%s:\n", name, a.fields(), dash, pre)
	if c.separator == "" {
		return
	}
	if pre != "" {
		pre += "-"
	}
	fmt.Fprintf(c.out, "+%s%s:%s:%s:%s:\n", name, c.separator, a.fields(), c.dash, pre)
}

// subuser handles a line "sub:user:pre:".
func (c *converter) subuser(line string) error {
	f := strings.Split(line, ":")
	if len(f) < 3 || f[0] == "" {
		return nil
	}
	a, ok := c.seen[f[1]]
	if !ok {
		return fmt.Errorf("unable to find %s user for subuser %s", f[1], f[0])
	}
	c.assign(f[0], a, c.dash, f[2])
	return nil
}
