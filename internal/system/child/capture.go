package child

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// linger is how long a program's children may keep its output open after it has ended.
	linger = 5 * time.Second
	// maxOutput is how much a program may print, in bytes, before nobody listens any more.
	maxOutput = 10 << 20
)

// Capture is a program that is run for what it prints: on descriptors 1 and 2, which are one.
type Capture struct {
	Argv, Vars []string
	Path       string              // what is executed, where that is not what Argv[0] names
	Dir        string              // where it runs, and where a relative path of it begins
	Stdin      *os.File            // passed on as it is
	Keep       int                 // bytes of output that are kept; more is read and dropped
	As         *syscall.Credential // whom it runs as; nil for us
}

// Run runs the program in a process group of its own, which is killed when ctx ends. The error is a *RunError,
// ErrCrashed for a program that a signal ended, or ctx's.
func (c *Capture) Run(ctx context.Context) (out []byte, code int, err error) {
	failed := error(syscall.ENOENT)
	for _, path := range c.paths() {
		kept := &beginning{limit: c.Keep}
		cmd := c.command(ctx, path, c.Argv, kept)
		err := cmd.Start()
		if errors.Is(err, syscall.ENOEXEC) {
			cmd = c.command(ctx, "/bin/sh", append([]string{"/bin/sh", path}, c.Argv[1:]...), kept)
			err = cmd.Start()
		}
		switch {
		case err == nil:
			_ = cmd.Wait() // what counts is how the program ended, not how its output did
			return kept.text, cmd.ProcessState.ExitCode(), ended(ctx, cmd.ProcessState)
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		case errors.Is(err, syscall.EACCES):
			failed = err
		default:
			return nil, 0, &RunError{c.Argv[0], err}
		}
	}
	return nil, 0, &RunError{c.Argv[0], failed}
}

func (c *Capture) paths() []string {
	if c.Path != "" {
		return []string{c.Path}
	}
	return candidates(c.Argv[0], c.Vars)
}

func ended(ctx context.Context, state *os.ProcessState) error {
	switch {
	case state.Exited():
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return ErrCrashed
}

func (c *Capture) command(ctx context.Context, path string, argv []string, out *beginning) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path) // it has a slash, so nothing is searched
	cmd.Args, cmd.Env, cmd.Dir = argv, c.Vars, c.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, out, out
	cmd.WaitDelay = linger
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.As}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// beginning keeps the beginning of what is written to it.
type beginning struct {
	text        []byte
	limit, seen int
}

var errFlood = errors.New("program prints too much")

func (b *beginning) Write(p []byte) (int, error) {
	if b.seen += len(p); b.seen > maxOutput {
		return 0, errFlood
	}
	b.text = append(b.text, p[:min(len(p), b.limit-len(b.text))]...)
	return len(p), nil
}
