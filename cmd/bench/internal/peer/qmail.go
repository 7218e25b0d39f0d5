package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Qmail is this server, in unprivileged mode: one uid for all roles, which is nobody's when we are root. Only where
// mailboxes belong to many users it runs as root, each role as its own user, in an /etc that nobody else sees.
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
	if s.Users && uid != 0 {
		return nil, errors.New("only root can deliver to many users")
	}
	if uid == 0 && !s.Users {
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
	init := []string{binary, "init", "-home", home, "-listen", "smtp=" + addr.String()}
	if !s.Users {
		init = append(init, "-user", LocalUser)
	}
	other := addr
	if s.Protocol != "" {
		if other, err = freePort(); err != nil {
			return nil, err
		}
		init = append(init, "-listen", s.Protocol+"="+other.String())
	}
	init = append(init, LocalDomain)
	if s.Users {
		return q.privileged(ctx, s, binary, home, addr, init)
	}
	if _, err := quickly(ctx, s.Dir, uid, init...); err != nil {
		return nil, err
	}
	if err := write(home, control(s)); err != nil {
		return nil, err
	}
	boxes, count, err := q.furnish(ctx, s, binary, home, uid)
	if err != nil {
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
	r.Addr, r.Home, r.Maildirs, r.Count = addr, home, boxes, count
	r.Program = func(name string, args ...string) *exec.Cmd {
		return &exec.Cmd{Path: binary, Args: append([]string{name}, args...), Env: []string{"QMAILHOME=" + home}}
	}
	if err := r.greets(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	r.Addr = other
	return r, nil
}

// furnish makes mailboxes, or the program, in a home that init has made.
func (q Qmail) furnish(ctx context.Context, s Setup, binary, home string, uid int) (boxes []string, count string, err error) {
	user := filepath.Join(home, "mail", LocalUser)
	if s.Program {
		file, command, err := counter(s.Dir)
		return nil, file, errors.Join(err, write(user, map[string]string{".qmail": "|" + command + "\n"}))
	}
	if s.Boxes == 0 {
		return []string{filepath.Join(user, "Maildir")}, "", nil
	}
	// A virtual domain: one user, and a .qmail file for each box.
	dir := filepath.Join(home, "boxes")
	boxes, err = mailboxes(dir, s)
	files := map[string]string{
		"control/virtualdomains": LocalDomain + ":boxes\n", "control/locals": "\n",
		"users/assign": fmt.Sprintf("+boxes-:boxes:%d:%d:%s:-::\n.\n", uid, uid, dir),
	}
	for i := range s.Boxes {
		files["boxes/.qmail-"+box(i)] = "./" + box(i) + "/Maildir/\n"
	}
	if err := errors.Join(err, own(dir, uid), write(home, files)); err != nil {
		return nil, "", err
	}
	_, err = quickly(ctx, home, 0, "env", "QMAILHOME="+home, binary, "newu")
	return boxes, "", err
}

// privileged starts it as root. The boxes' users need no accounts; those that the roles run as get theirs in an /etc of the
// server's own.
func (q Qmail) privileged(ctx context.Context, s Setup, binary, home string, addr netip.AddrPort, init []string) (*Running, error) {
	extra := filepath.Join(s.Dir, "extra")
	s.etc = filepath.Join(s.Dir, "etc")
	files := control(s)
	files["control/defaultdelivery"] = "./Maildir/\n"
	var assign strings.Builder
	for i := range s.Boxes {
		fmt.Fprintf(&assign, "=%s:%s:%d:%d:%s/boxes/%s:::\n", box(i), box(i), s.uid(i), s.uid(i), s.Dir, box(i))
	}
	files["users/assign"] = assign.String() + ".\n"
	boxes, err := mailboxes(filepath.Join(s.Dir, "boxes"), s)
	if err := errors.Join(err, write(extra, files), os.Mkdir(s.etc, 0o755)); err != nil {
		return nil, err
	}
	script := strings.Join(init, " ") + " && cp -R " + extra + "/. " + home + " && " + binary + " newu && exec " + binary + " start"
	r, err := nest(ctx, s, 0, []string{"QMAILHOME=" + home}, []string{"/bin/sh", "-c", script})
	if err != nil {
		return nil, err
	}
	r.Addr, r.Home, r.Maildirs = addr, home, boxes
	if err := r.greets(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
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
