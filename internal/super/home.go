package super

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkHome refuses a home whose files a stranger could put there: what we read and bind in it, we read and
// bind as root. It belongs to us or to root; the queue's own directories belong to who runs qmail-send.
func checkHome(home string, us, sender int) error {
	for _, d := range []struct {
		path   string
		uid    int
		orRoot bool
		shared bool // may be written by others
		hint   string
	}{
		{home, us, true, false, "qmail init makes a home"},
		{filepath.Join(home, "control"), us, true, false, "this is not a home of qmail's"},
		{filepath.Join(home, "queue"), us, false, false, "this is not a home of qmail's"},
		{filepath.Join(home, "queue/journal"), sender, false, false, "this is not a home of qmail's"},
		{filepath.Join(home, "queue/drop"), sender, false, true, "this is not a home of qmail's"},
	} {
		info, err := os.Stat(d.path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: does not exist (%s)", d.path, d.hint)
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s: not a directory (%s)", d.path, d.hint)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || int(st.Uid) != d.uid && (st.Uid != 0 || !d.orRoot) {
			return fmt.Errorf("%s: belongs to uid %d and not to uid %d", d.path, st.Uid, d.uid)
		}
		if info.Mode()&0o022 != 0 && !d.shared {
			return fmt.Errorf("%s: can be written by others (mode %04o)", d.path, info.Mode().Perm())
		}
	}
	return nil
}

// takeLock makes us the only qmail-start of a home for as long as the file is open.
func takeLock(home string) (*os.File, error) {
	path := filepath.Join(home, "queue", "start.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		return nil, fmt.Errorf("%s: another qmail-start (pid %s) serves this home", home, strings.TrimSpace(string(holder)))
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}
