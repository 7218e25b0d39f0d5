package vectors

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OwnUsers makes qmail's users in an /etc that only this process and its children see. The process must be alone in its
// mount namespace. scratch is a directory that everybody may enter, bin that of the programs.
func OwnUsers(bin, scratch string) error {
	layer := filepath.Join(scratch, "etc")
	for _, err := range []error{
		os.Mkdir(layer, 0o755),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", layer, "tmpfs", 0, ""),
		os.Mkdir(layer+"/upper", 0o755), os.Mkdir(layer+"/work", 0o755),
		unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+layer+"/upper,workdir="+layer+"/work"),
	} {
		if err != nil {
			return fmt.Errorf("no /etc of our own: %w", err)
		}
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
