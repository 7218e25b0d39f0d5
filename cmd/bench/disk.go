package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/cmd/bench/internal/limit"
	"qmail/cmd/bench/internal/meter"
	"qmail/cmd/bench/internal/report"
)

// rest lets the disk come to rest, so that the next step does not pay for this one. The step's files stay until the end
// of the run: ext4 looks at every recently deleted inode before it takes a new one (recently_deleted in
// fs/ext4/ialloc.c), and after the removal of some thousand files that was a third of all CPU time of the next step.
func rest(dir string) {
	if f, err := os.Open(dir); err == nil {
		unix.Syncfs(int(f.Fd()))
		f.Close()
	}
}

// spread asks ext4 to put each directory in dir into another part of the disk, for the same reason: what one server
// deletes shall not slow the other down. Other file systems need no such help, so that a failure does not matter.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// room makes a directory in the scratch directory. Its name differs from run to run, since ext4 finds the part of the
// disk by the name, and would lead each run to where the one before has just deleted everything.
func (c *comparison) room(name string) (dir string, err error) {
	dir = filepath.Join(c.scratch, name+strings.TrimPrefix(filepath.Base(c.scratch), "bench"))
	return dir, os.Mkdir(dir, 0o755)
}

// topDir is FS_TOPDIR_FL of linux/fs.h, chattr(1)'s letter T.
const topDir = 0x00020000

// What the machine's limits are measured with: enough to last a second or so.
const (
	limitFiles, limitWriters            = 4000, 16
	limitCopies, limitStreams, copySize = 2000, 20, 100 << 10
)

// machine measures the machine's limits once, on the file system that holds the queues.
func (c *comparison) machine(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.deadline, fmt.Errorf("not done after %v", c.deadline))
	defer cancel()
	if c.report.Limits == nil {
		c.report.Limits = []report.Limit{
			{Title: fmt.Sprintf("files of %d bytes made, synced and linked by %d writers", c.size, limitWriters), Mode: "b"},
			{Title: fmt.Sprintf("messages of %d bytes copied from socket to file, synced, to socket by %d streams", copySize, limitStreams)},
		}
	}
	if err := becalm(ctx, c.calm); err != nil {
		return err
	}
	for i, rate := range []func(dir string) (float64, error){
		func(dir string) (float64, error) { return limit.Files(ctx, dir, limitWriters, limitFiles, c.size) },
		func(dir string) (float64, error) { return limit.Copy(ctx, dir, limitStreams, limitCopies, copySize) },
	} {
		dir, err := c.room(fmt.Sprintf("%d-limit-%d", len(c.report.Limits[i].Rates)+1, i))
		if err != nil {
			return err
		}
		r, err := rate(dir)
		rest(dir)
		if err != nil {
			return err
		}
		c.report.Limits[i].Rates = append(c.report.Limits[i].Rates, r)
	}
	return nil
}

// tooBusy is the share of the CPUs that others may have before the figures are worth little.
const tooBusy = 0.1

// becalm waits until the machine is idle but for us, or for as long as it may.
func becalm(ctx context.Context, patience time.Duration) error {
	const look = time.Second
	for end := time.Now().Add(patience); time.Now().Before(end); {
		before, err := meter.Machine()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
		after, err := meter.Machine()
		if err != nil {
			return err
		}
		if (after - before).Seconds() < tooBusy*look.Seconds()*float64(runtime.NumCPU()) {
			return nil
		}
	}
	return nil
}
