// Package passwdtool is qmail-passwd(8), also known as qmail passwd: it manages users/passwd, who may log in by AUTH and
// POP3. It adds users, changes their passwords, deletes and lists them, and imports the hashes that other programs have
// made. A running qmail-authd takes a change over within a second.
//
// Passwords come from the terminal, without being shown, or from standard input; never from arguments, which everybody
// on the machine can see. What is kept of them are an argon2id hash and what SCRAM needs in their place.
package passwdtool

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"qmail/internal/format/getopt"
	"qmail/internal/proto/sasl"
	"qmail/internal/store/passwd"
	"qmail/internal/system/env"
)

const (
	exitNo    = 1 // of check: it is not the password
	exitUsage = 100
	exitLater = 111

	// iterations are those of SCRAM: more than RFC 7677 asks for, and little enough for telephones.
	iterations = 16384
	saltSize   = 16
)

const usage = `usage: qmail passwd add [-n] LOGIN      a new user; the password is read from the terminal or standard input
       qmail passwd set [-n] LOGIN      another password
       qmail passwd delete LOGIN
       qmail passwd list
       qmail passwd check LOGIN         whether a password is right
       qmail passwd import [-f] [-d DOMAIN] FILE
                                        users of an htpasswd or shadow file, of Dovecot, or of vpopmail (vpasswd, vpasswd.cdb)
-n keeps a hash alone, nothing for SCRAM; -d appends @DOMAIN to names without one; -f replaces users that are there
`

var (
	errUsage  = errors.New("usage")
	errThere  = errors.New("there is such a user already (qmail passwd set changes the password)")
	errNobody = errors.New("there is no such user")
)

// tool is one call.
type tool struct {
	env   *env.Env
	plain bool   // -n
	force bool   // -f
	add   string // -d
}

// Main runs qmail-passwd. It returns 0, 1 if check was told a wrong password, 100 for mistakes of the caller, 111 for
// others.
func Main(_ context.Context, e *env.Env, args []string) int {
	t := &tool{env: e}
	err := t.run(args)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		io.WriteString(e.Stderr, usage)
		return exitUsage
	case errors.Is(err, errWrong):
		fmt.Fprintln(e.Stderr, "qmail-passwd: that is not the password")
		return exitNo
	}
	fmt.Fprintf(e.Stderr, "qmail-passwd: fatal: %v\n", err)
	if errors.Is(err, errThere) || errors.Is(err, errNobody) || errors.Is(err, errBad) {
		return exitUsage
	}
	return exitLater
}

func (t *tool) run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	verb := args[0]
	rest, err := t.flags(args[1:])
	if err != nil {
		return err
	}
	if verb == "list" && len(rest) == 0 {
		return t.list()
	}
	if len(rest) != 1 {
		return errUsage
	}
	switch verb {
	case "add":
		return t.put(rest[0], true)
	case "set":
		return t.put(rest[0], false)
	case "delete":
		return passwd.Change(t.env.Home, func(b *passwd.Book) error {
			if !b.Delete(rest[0]) {
				return errNobody
			}
			return nil
		})
	case "check":
		return t.check(rest[0])
	case "import":
		return t.load(rest[0])
	}
	return errUsage
}

func (t *tool) flags(args []string) ([]string, error) {
	options, rest, err := getopt.Parse(args, "nfd:")
	if err != nil {
		return nil, errUsage
	}
	for _, o := range options {
		switch o.Letter {
		case 'n':
			t.plain = true
		case 'f':
			t.force = true
		case 'd':
			t.add = o.Arg
		}
	}
	return rest, nil
}

// put adds a user or changes a password.
func (t *tool) put(login string, fresh bool) error {
	if !passwd.GoodLogin(login) || !sasl.GoodLogin(login) {
		return fmt.Errorf("%w: a login is up to %d bytes of text, without blanks and colons", errBad, sasl.MaxLogin)
	}
	book, _, err := passwd.Read(t.env.Home) // so that nobody types a password in vain
	if err != nil {
		return err
	}
	if _, there := book.Find(login); there == fresh {
		if fresh {
			return errThere
		}
		return errNobody
	}
	password, err := t.ask(true)
	if err != nil {
		return err
	}
	u, err := t.user(login, password)
	if err != nil {
		return err
	}
	return passwd.Change(t.env.Home, func(b *passwd.Book) error {
		if _, there := b.Find(login); there && fresh {
			return errThere
		} else if !there && !fresh {
			return errNobody
		}
		b.Put(u)
		return nil
	})
}

// user is what is kept of a password.
func (t *tool) user(login, password string) (passwd.User, error) {
	u := passwd.User{Login: login, Hash: passwd.Hash(sasl.Prepare(password))}
	if t.plain {
		return u, nil
	}
	for _, mechanism := range [...]string{sasl.ScramSHA256, sasl.ScramSHA1} {
		salt := make([]byte, saltSize)
		rand.Read(salt)
		v, err := sasl.NewVerifier(mechanism, password, salt, iterations)
		if err != nil {
			return u, err
		}
		u.Verifiers = append(u.Verifiers, passwd.Verifier{
			Mechanism: mechanism, Salt: v.Salt, Iterations: v.Iterations, StoredKey: v.StoredKey, ServerKey: v.ServerKey,
		})
	}
	return u, nil
}

var (
	errWrong = errors.New("wrong password")
	errBad   = errors.New("unusable")
)

// check compares a password with what is kept of it.
func (t *tool) check(login string) error {
	book, _, err := passwd.Read(t.env.Home)
	if err != nil {
		return err
	}
	u, there := book.Find(login)
	if !there {
		return errNobody
	}
	password, err := t.ask(false)
	if err != nil {
		return err
	}
	right := u.Hash == "" || passwd.Match(u.Hash, sasl.Prepare(password))
	for _, v := range u.Verifiers {
		got, err := sasl.NewVerifier(v.Mechanism, password, v.Salt, v.Iterations)
		right = right && err == nil && string(got.StoredKey) == string(v.StoredKey)
	}
	if !right {
		return errWrong
	}
	return nil
}

// list shows who there is, and what is kept of them: kinds, not the hashes.
func (t *tool) list() error {
	book, _, err := passwd.Read(t.env.Home)
	if err != nil {
		return err
	}
	for _, login := range book.Logins() {
		u, _ := book.Find(login)
		kinds := []string{passwd.Kind(u.Hash)}
		for _, v := range u.Verifiers {
			kinds = append(kinds, v.Mechanism)
		}
		fmt.Fprintf(t.env.Stdout, "%s %s\n", u.Login, strings.Join(kinds, " "))
	}
	return nil
}

// ask reads a password: from a terminal without an echo, and twice if it is new; else the first line of the input.
func (t *tool) ask(fresh bool) (string, error) {
	fd := int(t.env.Stdin.Fd())
	state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	in := bufio.NewReader(t.env.Stdin)
	if err != nil { // no terminal
		return password(in)
	}
	silent := *state
	silent.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &silent); err != nil {
		return "", err
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETSF, state) }() // there is no more to be done about it
	fmt.Fprint(t.env.Stderr, "Password: ")
	first, err := password(in)
	fmt.Fprintln(t.env.Stderr)
	if err != nil || !fresh {
		return first, err
	}
	fmt.Fprint(t.env.Stderr, "Again: ")
	second, err := password(in)
	fmt.Fprintln(t.env.Stderr)
	if err == nil && first != second {
		err = fmt.Errorf("%w: the two differ", errBad)
	}
	return first, err
}

// password reads a line.
func password(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	if line == "" || len(line) > sasl.MaxPassword || strings.IndexByte(line, 0) >= 0 {
		return "", fmt.Errorf("%w: a password is 1 to %d bytes", errBad, sasl.MaxPassword)
	}
	return line, nil
}

// load imports the users of a file.
func (t *tool) load(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	lines, err := linesOf(path, b)
	if err != nil {
		return err
	}
	var taken, left int
	err = passwd.Change(t.env.Home, func(book *passwd.Book) error {
		for _, line := range lines {
			u, err := t.convert(line)
			if err == nil {
				if _, there := book.Find(u.Login); there && !t.force {
					err = errThere
				}
			}
			if err != nil {
				left++
				login, _, _ := strings.Cut(line, ":")
				fmt.Fprintf(t.env.Stderr, "qmail-passwd: warning: left out %q: %v\n", login, err)
				continue
			}
			book.Put(u)
			taken++
		}
		return nil
	})
	if err == nil {
		fmt.Fprintf(t.env.Stdout, "%d users, %d left out\n", taken, left)
	}
	return err
}
