package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmail/cmd/bench/internal/meter"
)

// grace is how long a server may take to stop in order before it and all its processes are killed.
const grace = 20 * time.Second

// nestMain runs a server as its child and takes over what the server orphans, so that the whole tree has one root to
// be counted from and none of it outlives us. It stops the server at the end of its own standard input: also when the
// program that started it is gone.
func nestMain(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench nest", flag.ContinueOnError)
	uid := fs.Int("uid", os.Getuid(), "uid and gid of the server")
	etc := fs.String("etc", "", "an empty `directory` for what the server changes in /etc; for a mount namespace of our own")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return errors.New("nest: no command")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("nest: subreaper: %w", err)
	}
	if *etc != "" {
		if err := cover(*etc); err != nil {
			return fmt.Errorf("nest: %w", err)
		}
	}
	pid, err := hatch(*uid, fs.Args())
	if err != nil {
		return fmt.Errorf("nest: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		io.Copy(io.Discard, os.Stdin)
	}()
	gone := make(chan unix.WaitStatus, 1)
	empty := make(chan struct{})
	go reap(pid, gone, empty)
	return tend(ctx, pid, gone, empty)
}

// cover lays a directory in memory over /etc, so that what is made there is gone with us.
func cover(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	return nil
}

// hatch starts the server in a session of its own.
func hatch(uid int, argv []string) (pid int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	attr := &os.ProcAttr{Files: []*os.File{null, os.Stdout, os.Stderr}, Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}}
	if os.Getuid() == 0 && uid != 0 {
		attr.Sys.Credential = credential(uid)
	}
	p, err := os.StartProcess(argv[0], argv, attr)
	if err != nil {
		return 0, err
	}
	return p.Pid, nil
}

// reap waits for every child, also the adopted ones, until there are none.
func reap(pid int, gone chan<- unix.WaitStatus, empty chan<- struct{}) {
	defer close(empty)
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		if got == pid {
			gone <- status
		}
	}
}

// tend waits for the order to stop or the server's end, then makes sure that nothing is left.
func tend(ctx context.Context, pid int, gone <-chan unix.WaitStatus, empty <-chan struct{}) error {
	var died error
	select {
	case <-ctx.Done():
		unix.Kill(pid, unix.SIGTERM)
		select {
		case <-gone:
		case <-time.After(grace):
		}
	case status := <-gone:
		died = fmt.Errorf("nest: the server ended: exit %d, signal %d", status.ExitStatus(), status.Signal())
	}
	return errors.Join(died, sweep(empty))
}

// sweep ends what the server has left behind.
func sweep(empty <-chan struct{}) error {
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{0, time.Second / 2}, {unix.SIGTERM, 5 * time.Second}, {unix.SIGKILL, 5 * time.Second}} {
		pids, err := meter.Tree(os.Getpid()).Pids()
		if err != nil {
			return err
		}
		for _, p := range pids {
			unix.Kill(p, step.signal)
		}
		select {
		case <-empty:
			return nil
		case <-time.After(step.wait):
		}
	}
	return errors.New("nest: processes that cannot be killed")
}

func credential(id int) *syscall.Credential {
	return &syscall.Credential{Uid: uint32(id), Gid: uint32(id), Groups: []uint32{uint32(id)}}
}
