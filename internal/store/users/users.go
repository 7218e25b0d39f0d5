// Package users answers whose mail a local part is: users/cdb first, then the system's accounts.
//
// users/cdb is what qmail-newu makes of users/assign (qmail-users(5)): an exact name, else the longest
// wildcard. Without a hit the rules of qmail-getpw(8) apply to passwd, and what nobody wants is for alias.
// The answer says under which uid and from which home the mail is delivered, and which .qmail file is meant.
//
// cdb is opened for each question and passwd is read again when it changed, so a new assignment counts at
// once. Trouble of any kind, a damaged record included, is an Error that defers the mail.
package users

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
	"qmail/internal/format/reply"
)

// Account is where the mail for a local part goes. The .qmail files are .qmail Dash Ext and so on.
type Account struct {
	User     string
	UID, GID int
	Home     string
	Dash     string
	Ext      string
}

// maxID is the highest uid and gid; the one above means "leave it as it is" to the kernel.
const maxID = 1<<32 - 2

// Check refuses what nobody may be started with: missing parts, a home that is not absolute, numbers out of
// range, uid 0.
func (a Account) Check() error {
	switch {
	case a.User == "" || !strings.HasPrefix(a.Home, "/") || strings.IndexByte(a.Home, 0) >= 0:
		return bug(errors.New("incomplete account"))
	case a.UID < 0 || a.UID > maxID || a.GID < 0 || a.GID > maxID:
		return bug(errors.New("uid or gid out of range"))
	case a.UID == 0:
		return &Error{Exit: 113, Report: "ZNot allowed to perform deliveries as root.\n"}
	}
	return nil
}

// Error is why there is no answer. Report is what qmail-lspawn reports, its newline included, Exit the code by which
// qmail-getpw and qmail-lspawn name the same trouble, Err for our log only.
type Error struct {
	Exit   int
	Report string
	Err    error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return strings.TrimSuffix(e.Report, "\n") + ": " + e.Err.Error()
	}
	return strings.TrimSuffix(e.Report, "\n")
}

// Unwrap gives the refusal as package reply has it, and the cause.
func (e *Error) Unwrap() []error { return []error{reply.Parse(e.Report), e.Err} }

func bug(err error) *Error {
	return &Error{Exit: 112, Report: "ZInternal qmail-lspawn bug.\n", Err: err}
}

func troubleCDB(err error) *Error {
	return &Error{Exit: 117, Report: "ZTrouble reading users/cdb in qmail-lspawn.\n", Err: err}
}

// Tables are the sources of an answer. They may be used by several goroutines at once.
type Tables struct {
	cdb    string
	passwd passwd
}

// New names the sources: users/cdb, which may be missing, and passwd.
func New(cdb, passwdFile string) *Tables {
	t := &Tables{cdb: cdb}
	t.passwd.path = passwdFile
	return t
}

// Find looks local up in users/cdb, then by the rules of qmail-getpw. The account has passed Check.
func (t *Tables) Find(local string) (Account, error) {
	a, _, err := t.find(local)
	return a, err
}

// find also says where the account was found, even if it cannot be used.
func (t *Tables) find(local string) (Account, Source, error) {
	if strings.IndexByte(local, 0) >= 0 {
		return Account{}, Source{}, bug(errors.New("NUL in a local part"))
	}
	a, source, found, err := t.assigned(local)
	if !found && err == nil {
		a, source, err = t.getpw(local)
	}
	if err == nil {
		err = a.Check()
	}
	if err != nil {
		return Account{}, source, err
	}
	return a, source, nil
}

// assigned looks local up in users/cdb.
func (t *Tables) assigned(local string) (a Account, source Source, found bool, err error) {
	f, err := os.OpenFile(t.cdb, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO in its place must not stop us
	if errors.Is(err, fs.ErrNotExist) {
		return Account{}, Source{}, false, nil
	}
	source.File = t.cdb
	if err != nil {
		return Account{}, source, false, troubleCDB(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Account{}, source, false, troubleCDB(err)
	}
	if !info.Mode().IsRegular() {
		return Account{}, source, false, troubleCDB(errors.New("not a regular file"))
	}
	db, err := cdb.NewReaderAt(f, info.Size())
	if err != nil {
		return Account{}, source, false, troubleCDB(err)
	}
	record, key, tail, found, err := search(db, local)
	if err != nil {
		return Account{}, source, false, troubleCDB(err)
	}
	if !found {
		return Account{}, Source{}, false, nil
	}
	source.key, source.record = key, record
	a, ok := parse(record)
	if !ok {
		return Account{}, source, false, bug(errors.New("malformed record in users/cdb"))
	}
	a.Ext += tail
	return a, source, true, nil
}

var errNoWild = errors.New("no record of wildcard ends")

// search finds the exact name, else the longest wildcard; tail is what the wildcard left, in its own case.
func search(db *cdb.DB, local string) (record, key []byte, tail string, found bool, err error) {
	wild, ok, err := db.Find(nil) // the bytes in which wildcards end
	if err != nil {
		return nil, nil, "", false, err
	}
	if !ok {
		return nil, nil, "", false, errNoWild
	}
	key = []byte("!" + address.Lower(local) + "\x00")
	if record, found, err = db.Find(key); found || err != nil {
		return record, key, "", found, err
	}
	for i := len(key) - 1; i >= 1; i-- {
		if i > 1 && bytes.IndexByte(wild, key[i-1]) < 0 {
			continue
		}
		if record, found, err = db.Find(key[:i]); found || err != nil {
			return record, key[:i], local[i-1:], found, err
		}
	}
	return nil, nil, "", false, nil
}

// parse reads the six fields of a record in users/cdb. qmail-newu puts NULs between them; some other makers
// of assignments end the last one with a NUL too.
func parse(record []byte) (a Account, ok bool) {
	f := strings.Split(string(record), "\x00")
	if len(f) != 6 && (len(f) != 7 || f[6] != "") {
		return Account{}, false
	}
	uid, ok1 := id(f[1])
	gid, ok2 := id(f[2])
	return Account{User: f[0], UID: uid, GID: gid, Home: f[3], Dash: f[4], Ext: f[5]}, ok1 && ok2
}

// id reads a uid or gid: digits alone, in range.
func id(s string) (n int, ok bool) {
	if s == "" || s[0] == '+' || s[0] == '-' {
		return 0, false
	}
	v, err := strconv.ParseUint(s, 10, 32)
	return int(v), err == nil && v <= maxID
}

const (
	breakChar = '-'
	maxName   = 31 // longer names are not looked for
)

// Getpw applies the rules of qmail-getpw(8) alone; the account has not passed Check.
func (t *Tables) Getpw(local string) (Account, error) {
	a, _, err := t.getpw(local)
	return a, err
}

func (t *Tables) getpw(local string) (Account, Source, error) {
	source := Source{File: t.passwd.path}
	accounts, err := t.passwd.load()
	if err != nil {
		return Account{}, source, &Error{Exit: 118, Report: "ZTemporary failure in qmail-lspawn.\n", Err: err}
	}
	for i := len(local); i > 0; i-- {
		if i > maxName || i < len(local) && local[i] != breakChar {
			continue
		}
		a, ok := accounts[address.Lower(local[:i])]
		if !ok || a.UID == 0 {
			continue
		}
		owned, err := ownsHome(a)
		if err != nil {
			return Account{}, source, &Error{Exit: 115, Report: "ZNFS failure in qmail-local.\n", Err: err}
		}
		if !owned {
			continue
		}
		if i < len(local) {
			a.Dash, a.Ext = string(breakChar), local[i+1:]
		}
		source.key = []byte(a.User)
		return a, source, nil
	}
	a, ok := accounts["alias"]
	if !ok {
		return Account{}, source, &Error{Exit: 116, Report: "ZUnable to find alias user!\n"}
	}
	a.Dash, a.Ext = string(breakChar), local
	source.key = []byte("alias")
	return a, source, nil
}

// ownsHome reports whether an account owns its home. A home that is not there is not owned; any other
// trouble may pass.
func ownsHome(a Account) (bool, error) {
	info, err := os.Stat(a.Home)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == a.UID, nil
}

// passwd is the accounts of a passwd file, read again whenever the file is another than before.
type passwd struct {
	path     string
	mu       sync.Mutex
	seen     stamp
	accounts map[string]Account
}

// stamp tells one state of a file from another.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func (p *passwd) load() (map[string]Account, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := os.Stat(p.path)
	if err != nil {
		return nil, err
	}
	now := stampOf(info)
	if p.accounts != nil && now == p.seen {
		return p.accounts, nil
	}
	b, err := os.ReadFile(p.path)
	if err != nil {
		return nil, err
	}
	p.accounts, p.seen = parsePasswd(b), now
	return p.accounts, nil
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino, s.mtime, s.ctime = st.Dev, st.Ino, st.Mtim, st.Ctim
	}
	return s
}

// parsePasswd reads passwd(5) lines; of equal names the first counts, and what is no account is skipped.
func parsePasswd(b []byte) map[string]Account {
	accounts := map[string]Account{}
	for line := range bytes.Lines(b) {
		f := strings.Split(string(bytes.TrimSuffix(line, []byte("\n"))), ":")
		if len(f) != 7 || f[0] == "" {
			continue
		}
		uid, ok1 := id(f[2])
		gid, ok2 := id(f[3])
		if _, again := accounts[f[0]]; again || !ok1 || !ok2 {
			continue
		}
		accounts[f[0]] = Account{User: f[0], UID: uid, GID: gid, Home: f[5]}
	}
	return accounts
}
