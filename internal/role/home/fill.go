package home

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
	"qmail/internal/store/keys"
)

// dir is a directory of the home.
type dir struct {
	path  string
	owner account
	mode  os.FileMode
}

// file is a file of the home; it belongs to us.
type file struct{ path, text string }

func (p *plan) fill() error {
	if err := os.Chmod(p.home, 0o755); err != nil { // an empty directory may have come with any mode
		return err
	}
	for _, d := range p.dirs() {
		if err := p.makeDir(d); err != nil {
			return err
		}
	}
	for _, f := range p.files() {
		if err := os.WriteFile(filepath.Join(p.home, f.path), []byte(f.text), 0o644); err != nil {
			return err
		}
	}
	if err := p.makeKey(); err != nil {
		return err
	}
	if len(p.users) > 0 {
		if err := p.assign(); err != nil {
			return err
		}
	}
	return syncAll(p.home)
}

func (p *plan) dirs() []dir {
	o := p.owners
	list := []dir{
		{"control", o.us, 0o755},
		{"users", o.us, 0o755},
		{"alias", o.alias, 0o755},
		// Injectors have to reach the socket and drop/ in it; nobody may list it, and only we write to it.
		{"queue", o.us, 0o711},
		{"queue/journal", o.queue, 0o700},
		// Anybody may leave a message, nobody but the owner may see or touch those of others.
		{"queue/drop", o.queue, 0o733 | os.ModeSticky},
		// Private keys are for qmail-keyd alone.
		{"keys", o.keys, 0o700},
	}
	if o.root {
		return append(list, maildir("alias", o.alias)...)
	}
	list = append(list, dir{"mail", o.us, 0o755})
	for _, name := range p.users {
		list = append(list, dir{"mail/" + name, o.us, 0o700})
		list = append(list, maildir("mail/"+name, o.us)...)
	}
	return list
}

func maildir(home string, owner account) (list []dir) {
	for _, part := range []string{"", "/tmp", "/new", "/cur"} {
		list = append(list, dir{home + "/Maildir" + part, owner, 0o700})
	}
	return list
}

func (p *plan) makeDir(d dir) error {
	path := filepath.Join(p.home, d.path)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := p.machine.chown(path, d.owner); err != nil {
		return err
	}
	return os.Chmod(path, d.mode) // after the change of owner, which may clear bits
}

func (p *plan) files() []file {
	to := "./Maildir/"
	switch {
	case p.postmaster != "":
		to = "&" + p.postmaster
	case !p.owners.root:
		to = "&" + p.users[0] + "@" + p.domain
	}
	plus := p.domain
	if _, rest, ok := strings.Cut(p.domain, "."); ok && strings.Contains(rest, ".") {
		plus = rest
	}
	return []file{
		{"control/me", p.domain + "\n"},
		{"control/locals", p.domain + "\n"},
		{"control/rcpthosts", p.domain + "\n"},
		{"control/defaultdomain", p.domain + "\n"},
		{"control/plusdomain", plus + "\n"},
		{"control/defaultdelivery", "./Maildir/\n"},
		{"control/relayclients", "127.0.0.0/8\n::1/128\n"},
		{"control/listen", strings.Join(p.listen, "\n") + "\n"},
		{"alias/.qmail-postmaster", to + "\n"},
		{"alias/.qmail-mailer-daemon", to + "\n"},
		{"alias/.qmail-root", to + "\n"},
	}
}

// keyLife is that of the certificate which we sign ourselves: nobody believes in it anyway, so that it need not end
// before somebody gets a better one.
const keyLife = 10 * 365 * 24 * time.Hour

// makeKey makes a key and a certificate, so that there is TLS at once.
func (p *plan) makeKey() error {
	text, err := keys.SelfSigned(p.domain, p.machine.now(), keyLife)
	if err != nil {
		return err
	}
	path := filepath.Join(p.home, "keys", p.domain+".pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	return p.machine.chown(path, p.owners.keys)
}

func (p *plan) maildirHome(name string) string { return filepath.Join(p.home, "mail", name) }

// assign writes users/assign and, as qmail-newu would make it, users/cdb: each user's own name and what follows
// it after a hyphen, and for all other names the aliases (qmail-users(5)).
func (p *plan) assign() error {
	var text strings.Builder
	f, err := os.OpenFile(filepath.Join(p.home, "users/cdb"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	db := cdb.NewWriter(f)
	add := func(kind, local, user, home, dash string) {
		fields := []string{user, fmt.Sprint(p.owners.us.uid), fmt.Sprint(p.owners.us.gid), home, dash, ""}
		fmt.Fprintf(&text, "%s%s:%s:\n", kind, local, strings.Join(fields, ":"))
		key := "!" + address.Lower(local)
		if kind == "=" {
			key += "\x00"
		}
		err = errors.Join(err, db.Add([]byte(key), []byte(strings.Join(fields, "\x00"))))
	}
	for _, name := range p.users {
		add("=", name, name, p.maildirHome(name), "")
		add("+", name+"-", name, p.maildirHome(name), "-")
	}
	add("+", "", "alias", filepath.Join(p.home, "alias"), "-")
	text.WriteString(".\n")
	err = errors.Join(err, db.Add(nil, []byte("-")), db.Close(), f.Close())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.home, "users/assign"), []byte(text.String()), 0o644)
}

// syncAll makes the home durable: mail accepted a minute from now shall not hang on a directory that a power cut
// takes away. Files come first, since only they have data; then one commit of the file system does for all
// directories.
func syncAll(home string) error {
	var files, dirs []string
	err := filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path == filepath.Join(home, "bin"):
			return fs.SkipDir // not ours
		case d.IsDir():
			dirs = append(dirs, path)
		case d.Type().IsRegular():
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, path := range append(files, dirs...) {
		if err := syncPath(path); err != nil {
			return err
		}
	}
	if err := syncPath(filepath.Dir(home)); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil // we may not look at the directory; it was changed together with what is synced by now
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
