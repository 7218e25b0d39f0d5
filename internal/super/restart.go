package super

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/system/env"
)

// inheritVariable has the listening sockets that one qmail-start leaves to the next in its place: "FD SERVICE ADDRESS",
// or "FD DOOR", with semicolons between.
const inheritVariable = "QMAILSOCKETS"

// again is the signal for it: all roles are stopped in order, and the program as it now is on the disk takes our place.
// Whoever connects meanwhile waits, since the sockets stay open.
const again = unix.SIGUSR2

// execute puts the program at path in our place, with the sockets. It returns only an error.
func (l *listeners) execute(path string, e *env.Env) error {
	var words []string
	for _, k := range append(l.doors[:len(l.doors):len(l.doors)], l.sockets...) {
		if _, err := unix.FcntlInt(k.file.Fd(), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		words = append(words, strings.TrimSpace(fmt.Sprintf("%d %s %s", k.file.Fd(), k.service, k.address)))
	}
	var vars []string
	for _, v := range e.Vars {
		if !strings.HasPrefix(v, inheritVariable+"=") {
			vars = append(vars, v)
		}
	}
	return os.NewSyscallError("exec", unix.Exec(path, os.Args, append(vars, inheritVariable+"="+strings.Join(words, ";"))))
}

// inherit takes the sockets that are left to us. Whatever is none is closed: it is nothing that we could use.
func (l *listeners) inherit(value string) {
	for word := range strings.SplitSeq(value, ";") {
		number, name, _ := strings.Cut(word, " ")
		fd, err := strconv.Atoi(number)
		if err != nil || fd <= 2 {
			continue
		}
		listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil || listens == 0 {
			continue
		}
		if l.left == nil {
			l.left = map[string]*os.File{}
		}
		l.left[name] = os.NewFile(uintptr(fd), "inherited")
	}
}

// take returns the socket that was left to us under a name, if there is one.
func (l *listeners) take(name string) *os.File {
	f := l.left[name]
	delete(l.left, name)
	return f
}

// disown closes what nobody wants any more.
func (l *listeners) disown() {
	for _, f := range l.left {
		f.Close()
	}
	l.left = nil
}

// restartTime is how long a restart may take: an orderly stop, and a start.
const restartTime = time.Minute

// Restart is qmail-restart: it has the qmail-start of the home put the program that is now on the disk in its own place,
// and returns when that has begun.
func Restart(ctx context.Context, e *env.Env, args []string) int {
	if len(args) != 0 {
		fmt.Fprintln(e.Stderr, "qmail-restart: usage: qmail-restart (it takes no arguments)")
		return exitUsage
	}
	if err := restart(ctx, filepath.Join(e.Home, "queue", "start.lock")); err != nil {
		fmt.Fprintf(e.Stderr, "qmail-restart: %v\n", err)
		return exitLater
	}
	return 0
}

func restart(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return errors.New("no qmail-start serves this home")
	}
	before, err := f.Stat()
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(f, 20))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return fmt.Errorf("%s: no number of a process", path)
	}
	if err := unix.Kill(pid, again); err != nil {
		return fmt.Errorf("qmail-start (pid %d): %w", pid, err)
	}
	for deadline := time.Now().Add(restartTime); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		after, err := f.Stat()
		if err == nil && !after.ModTime().Equal(before.ModTime()) && after.Size() > 0 { // the next one has written its number
			return nil
		}
		if unix.Kill(pid, 0) != nil {
			return errors.New("qmail-start has ended")
		}
	}
	return errors.New("qmail-start does not restart; its log says why")
}
