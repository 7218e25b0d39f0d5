// Package child runs a program for a program: found as execvp(3) finds it, with our descriptors and environment,
// waited for, and judged by its exit code as qmail's delivery helpers do (qmail-command(8)).
package child

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
)

// Exit codes of a program that could not be run.
const (
	Never = 100
	Later = 111
)

// ErrCrashed is a program that a signal ended.
var ErrCrashed = errors.New("child crashed")

// RunError is a program that could not be run at all.
type RunError struct {
	Name string
	Err  error
}

func (e *RunError) Error() string { return "unable to run " + e.Name + ": " + e.Err.Error() }
func (e *RunError) Unwrap() error { return e.Err }

// Code is the exit code that says the same: Later if the trouble may pass.
func (e *RunError) Code() int {
	for _, passing := range []error{
		syscall.ENOMEM, syscall.EAGAIN, syscall.EIO, syscall.ETXTBSY, syscall.EMFILE, syscall.ENFILE,
		syscall.EBUSY, syscall.ENOSPC, syscall.EDQUOT, syscall.ETIMEDOUT, syscall.ESTALE, syscall.EINTR,
	} {
		if errors.Is(e.Err, passing) {
			return Later
		}
	}
	return Never
}

const defaultPath = "/usr/local/bin:/usr/bin:/bin"

// Start runs argv with files as its descriptors 0, 1 and so on. A name without a slash is searched in PATH of
// vars; a file that is executable but of no known format is a shell script. The error is a *RunError.
func Start(argv, vars []string, files ...*os.File) (*os.Process, error) {
	attr := &os.ProcAttr{Env: vars, Files: files}
	failed := error(syscall.ENOENT)
	for _, path := range candidates(argv[0], vars) {
		p, err := os.StartProcess(path, argv, attr)
		if errors.Is(err, syscall.ENOEXEC) {
			p, err = os.StartProcess("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), attr)
		}
		if err == nil {
			return p, nil
		}
		switch {
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		case errors.Is(err, syscall.EACCES):
			failed = err // perhaps another directory has one that we may run
		default:
			return nil, &RunError{argv[0], err}
		}
	}
	return nil, &RunError{argv[0], failed}
}

// Exec becomes argv, found as Start finds it, with the descriptors that we have. It returns only if that fails; the
// error is a *RunError.
func Exec(argv, vars []string) error {
	failed := error(syscall.ENOENT)
	for _, path := range candidates(argv[0], vars) {
		err := syscall.Exec(path, argv, vars)
		if errors.Is(err, syscall.ENOEXEC) {
			err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), vars)
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) {
			failed = err
			if !errors.Is(err, syscall.EACCES) {
				break
			}
		}
	}
	return &RunError{argv[0], failed}
}

// candidates are the paths under which a program may be.
func candidates(name string, vars []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	if name == "" {
		return nil
	}
	path := defaultPath
	for _, v := range vars {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			path = value
			break
		}
	}
	var list []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		list = append(list, dir+"/"+name)
	}
	return list
}

// Wait waits for p until ctx ends; then it is killed. The error is ErrCrashed, or trouble with waiting.
func Wait(ctx context.Context, p *os.Process) (code int, err error) {
	defer context.AfterFunc(ctx, func() { p.Kill() })() // it may be gone already
	state, err := p.Wait()
	if err != nil {
		return 0, err
	}
	if !state.Exited() {
		return 0, ErrCrashed
	}
	return state.ExitCode(), nil
}

// Run is Start and Wait. For a program that could not be run it returns the exit code that says so.
func Run(ctx context.Context, argv, vars []string, files ...*os.File) (code int, err error) {
	p, err := Start(argv, vars, files...)
	if failed, ok := errors.AsType[*RunError](err); ok {
		return failed.Code(), nil
	}
	return Wait(ctx, p)
}

// RunFed is Run for a program whose input is head and then message. Should that not be readable the program is
// killed, so that it cannot take a part of a message for all of it.
func RunFed(ctx context.Context, argv, vars []string, head string, message io.Reader, out, errs *os.File) (code int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	p, err := Start(argv, vars, r, out, errs)
	r.Close()
	if err != nil {
		w.Close()
		return 0, err
	}
	go feed(w, head, message, func() { p.Kill() }) // it ends with the program, at the latest with us
	return Wait(ctx, p)
}

// feed writes until the program wants no more.
func feed(w io.WriteCloser, head string, message io.Reader, stop func()) {
	defer w.Close()
	if _, err := io.WriteString(w, head); err != nil {
		return
	}
	b := make([]byte, 32<<10)
	for {
		n, err := message.Read(b)
		if _, failed := w.Write(b[:n]); failed != nil || err == io.EOF {
			return
		}
		if err != nil {
			stop()
			return
		}
	}
}

// Verdict judges the exit code of a delivery (qmail-command(8)): 'K' done, 'S' done and nothing more is to be done
// for this message, 'D' never, 'Z' later.
func Verdict(code int) byte {
	switch code {
	case 0:
		return 'K'
	case 99:
		return 'S'
	case 100, 64, 65, 70, 76, 77, 78, 112:
		return 'D'
	}
	return 'Z'
}
