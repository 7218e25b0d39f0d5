package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Qmail is this server, in unprivileged mode: one uid for all roles, which is nobody's when we are root.
type Qmail struct {
	// Binary is bin/qmail.
	Binary string

	// Profile, if set, is a directory in which the roles leave profiles, those of each start in a directory of their own.
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
	uid := os.Getuid()
	if uid == 0 {
		uid = Mailowner
		if err := os.Chown(s.Dir, uid, uid); err != nil {
			return nil, err
		}
	}
	// A copy: the user it runs as need not be able to reach the original.
	binary, home := filepath.Join(s.Dir, "qmail"), filepath.Join(s.Dir, "home")
	if err := install(binary, q.Binary); err != nil {
		return nil, err
	}
	init := []string{binary, "init", "-home", home, "-listen", "smtp=" + addr.String(), "-user", LocalUser}
	other := addr
	if s.Protocol != "" {
		if other, err = freePort(); err != nil {
			return nil, err
		}
		init = append(init, "-listen", s.Protocol+"="+other.String())
	}
	if _, err := quickly(ctx, s.Dir, uid, append(init, LocalDomain)...); err != nil {
		return nil, err
	}
	if err := write(home, control(s)); err != nil {
		return nil, err
	}
	env := []string{"QMAILHOME=" + home}
	if q.Profile != "" {
		dir := filepath.Join(q.Profile, filepath.Base(s.Dir))
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, uid, -1)); err != nil {
			return nil, err
		}
		env = append(env, "QMAILPROFILE="+dir)
	}
	r, err := nest(ctx, s, uid, env, []string{binary, "start"})
	if err != nil {
		return nil, err
	}
	r.Addr, r.Home, r.Maildir = addr, home, filepath.Join(home, "mail", LocalUser, "Maildir")
	if err := r.greets(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	r.Addr = other
	return r, nil
}

// control is what differs from the home that init makes.
func control(s Setup) map[string]string {
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
		"control/smtproutes":        routes,
		"control/concurrencylocal":  local,
		"control/concurrencyremote": remote,
		// No limits on the client, who is one for all its sessions.
		"control/concurrencyincoming": fmt.Sprintln(s.Sessions + 100),
		"control/maxperclient":        fmt.Sprintln(s.Sessions + 100),
		"control/maxrecipients":       "100000\n",
		"control/qmqpclients":         "127.0.0.0/8\n",
	}
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
