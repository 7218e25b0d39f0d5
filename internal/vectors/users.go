package vectors

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// OwnEtc puts a layer over /etc that only this process and its children see, and takes qmail's users and dave, whom
// tests make, out of it: on this machine they may have another home. The process must be alone in its mount namespace.
// layer is an empty directory.
func OwnEtc(layer string) error {
	for _, do := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("tmpfs", layer, "tmpfs", 0, "") },
		func() error { return errors.Join(os.Mkdir(layer+"/upper", 0o755), os.Mkdir(layer+"/work", 0o755)) },
		func() error {
			return unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+layer+"/upper,workdir="+layer+"/work")
		},
	} {
		if err := do(); err != nil {
			return fmt.Errorf("no /etc of our own: %w", err)
		}
	}
	for _, name := range []string{"passwd", "group", "shadow", "gshadow"} {
		if err := withoutUsers("/etc/" + name); err != nil {
			return err
		}
	}
	return nil
}

// withoutUsers rewrites a file of passwd(5)'s form in place.
func withoutUsers(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var kept strings.Builder
	for line := range strings.Lines(string(b)) {
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "alias", "qmaild", "qmaill", "qmailn", "qmailp", "qmailq", "qmailr", "qmails", "qmailk", "qmail", "nofiles", "dave":
		default:
			kept.WriteString(line)
		}
	}
	return os.WriteFile(path, []byte(kept.String()), 0o600)
}

// OwnUsers makes qmail's users in an /etc as OwnEtc makes it. scratch is a directory that everybody may enter, bin that
// of the programs.
func OwnUsers(bin, scratch string) error {
	layer := filepath.Join(scratch, "etc")
	if err := os.Mkdir(layer, 0o755); err != nil {
		return err
	}
	if err := OwnEtc(layer); err != nil {
		return err
	}
	init := exec.Command(filepath.Join(bin, "qmail-init"), "-home", filepath.Join(scratch, "home"), "send.example")
	init.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("qmail-init: %v: %s", err, out)
	}
	return nil
}

// DisownUsers takes away what OwnUsers has put over /etc.
func DisownUsers(scratch string) error {
	return errors.Join(unix.Unmount("/etc", unix.MNT_DETACH), unix.Unmount(filepath.Join(scratch, "etc"), unix.MNT_DETACH))
}
