package peer

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"qmail/internal/format/cdb"
)

// Qmail is this server, in unprivileged mode: one uid for all roles, which is nobody's when we are root.
type Qmail struct {
	// Binary is bin/qmail.
	Binary string

	// Profile, if set, is a directory in which the roles leave CPU profiles.
	Profile string
}

func (Qmail) Name() string { return "qmail" }

func (q Qmail) Missing() error {
	if _, err := os.Stat(q.Binary); err != nil {
		return fmt.Errorf("%s is not built: make build", q.Binary)
	}
	return nil
}

func (q Qmail) Version(ctx context.Context) string { return "this server" }

// Start makes a home in the directory, sets its control files and runs it in the foreground.
func (q Qmail) Start(ctx context.Context, s Setup) (*Running, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	// A copy: the user it runs as need not be able to reach the original.
	binary := filepath.Join(s.Dir, "qmail")
	if err := install(binary, q.Binary); err != nil {
		return nil, err
	}
	home, user := filepath.Join(s.Dir, "home"), filepath.Join(s.Dir, "user")
	if _, err := quickly(ctx, s.Dir, binary, "init", "-home", home, LocalDomain); err != nil {
		return nil, err
	}
	if err := write(home, control(addr, s)); err != nil {
		return nil, err
	}
	if err := assign(home, user); err != nil {
		return nil, err
	}
	box := filepath.Join(user, "Maildir")
	if err := maildir(box); err != nil {
		return nil, err
	}
	if err := write(user, map[string]string{".qmail": "./Maildir/\n"}); err != nil {
		return nil, err
	}
	uid := os.Getuid()
	if uid == 0 {
		uid = Mailowner
		if err := give(s.Dir); err != nil {
			return nil, err
		}
	}
	env := []string{"QMAILHOME=" + home}
	if q.Profile != "" {
		env = append(env, "QMAILPROFILE="+q.Profile)
	}
	r, err := nest(ctx, s, uid, env, []string{binary, "start"})
	if err != nil {
		return nil, err
	}
	r.Addr, r.Maildir = addr, box
	if err := r.greets(ctx); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

// control is what differs from the home that init makes.
func control(addr netip.AddrPort, s Setup) map[string]string {
	routes := ""
	for domain, to := range s.Routes {
		routes += fmt.Sprintf("%s:%v:%d\n", domain, to.Addr(), to.Port())
	}
	if s.Relay.IsValid() {
		routes += fmt.Sprintf(":%v:%d\n", s.Relay.Addr(), s.Relay.Port())
	}
	local, remote := "120\n", "120\n"
	if s.Hold {
		local, remote = "0\n", "0\n" // qmail-send(8): deliveries on hold
	}
	return map[string]string{
		"control/listen":            fmt.Sprintf("smtp %v\n", addr),
		"control/me":                "qmail." + LocalDomain + "\n",
		"control/locals":            LocalDomain + "\n",
		"control/rcpthosts":         LocalDomain + "\n",
		"control/relayclients":      "127.0.0.0/8\n",
		"control/smtproutes":        routes,
		"control/concurrencylocal":  local,
		"control/concurrencyremote": remote,
		"control/maxrecipients":     "100000\n",
	}
}

// assign gives the local user its account, in both forms that users have.
func assign(home, user string) error {
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = Mailowner, Mailowner
	}
	text := fmt.Sprintf("=%s:%s:%d:%d:%s:::\n.\n", LocalUser, LocalUser, uid, gid, user)
	if err := write(home, map[string]string{"users/assign": text}); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(home, "users/cdb"))
	if err != nil {
		return err
	}
	defer f.Close()
	// As qmail-newu(8) writes it: no wildcards, so the set of their last characters is empty.
	w := cdb.NewWriter(f)
	record := fmt.Sprintf("%s\x00%d\x00%d\x00%s\x00\x00", LocalUser, uid, gid, user)
	if err := w.Add([]byte("!"+LocalUser+"\x00"), []byte(record)); err != nil {
		return err
	}
	if err := w.Add(nil, nil); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// install copies a program.
func install(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// give makes the mail owner the owner of a whole directory.
func give(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, "/output") {
			return nil
		}
		return os.Lchown(path, Mailowner, Mailowner)
	})
}
