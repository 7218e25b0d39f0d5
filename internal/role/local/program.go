package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"qmail/internal/format/dotqmail"
	"qmail/internal/format/errstr"
	"qmail/internal/format/mbox"
	"qmail/internal/proto/jobs"
)

// program runs a command; stop says that the lines after it do not count.
func (w *work) program(ctx context.Context, command string) (stop bool, err error) {
	stdin, done, err := w.message.stdin()
	if err != nil {
		return false, later("Unable to rewind message. (#4.3.0)")
	}
	defer done()
	limited, cancel := context.WithTimeout(ctx, w.patience)
	defer cancel()
	cmd := exec.CommandContext(limited, "/bin/sh")
	cmd.Args = []string{"/bin/sh", "-c", command}
	cmd.Dir, cmd.Env = w.home, w.vars
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, w.out, w.errs
	cmd.WaitDelay = w.linger
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
			return false, later(fmt.Sprintf("Unable to fork: %s. (#4.3.0)", errstr.Text(err)))
		}
		return false, later(fmt.Sprintf("Unable to run /bin/sh: %s. (#4.3.0)", errstr.Text(err)))
	}
	_ = cmd.Wait() // what counts is how the program ended, not how its output did
	if limited.Err() != nil && !cmd.ProcessState.Exited() {
		return false, later("Program delivery took too long. (#4.3.0)")
	}
	return outcome(cmd.ProcessState)
}

// outcome reads an exit code as qmail-command(8) says. Of a program that fails only its own words remain.
func outcome(state *os.ProcessState) (stop bool, err error) {
	if !state.Exited() {
		return false, later("Aack, child crashed. (#4.3.0)")
	}
	switch state.ExitCode() {
	case 0:
		return false, nil
	case 99:
		return true, nil
	case 100, 64, 65, 70, 76, 77, 78, 112:
		return false, never("")
	}
	return false, later("")
}

// environment is what qmail-command(8) promises, on top of what we have. A value that a careless shell would
// take for a function cannot be passed on, and who sends one is not told to try again.
func (w *work) environment() ([]string, error) {
	ext, host := dotqmail.Exts(w.ext), dotqmail.Hosts(w.domain)
	vars := []string{
		"SENDER=" + w.sender, "NEWSENDER=" + w.newSender, "RECIPIENT=" + w.recipient(),
		"USER=" + w.user, "HOME=" + w.home, "LOCAL=" + w.local,
		"HOST=" + w.domain, "HOST2=" + host[0], "HOST3=" + host[1], "HOST4=" + host[2],
		"EXT=" + w.ext, "EXT2=" + ext[0], "EXT3=" + ext[1], "EXT4=" + ext[2],
		"DTLINE=" + string(w.deliveredTo()), "RPLINE=" + string(w.returnPath()),
		"UFLINE=" + string(mbox.FromLine(w.sender, w.now())),
	}
	if value, set := w.from.Default(w.ext); set {
		vars = append(vars, "DEFAULT="+value)
	}
	for _, v := range vars {
		if _, value, _ := strings.Cut(v, "="); strings.HasPrefix(value, "() {") {
			return nil, never("Sorry, I can't give such an address to a program. (#5.1.7)")
		}
	}
	for _, v := range w.site.vars {
		name, _, _ := strings.Cut(v, "=")
		if name != "DEFAULT" && !slices.ContainsFunc(vars, func(ours string) bool { return strings.HasPrefix(ours, name+"=") }) {
			vars = append(vars, v)
		}
	}
	return vars, nil
}

// message is the message of a delivery, and how programs get it.
type message struct {
	body *jobs.Body
	// own is descriptor 0 of the classic program: seekable, and passed on as it is. In a worker it is
	// nil, and copy is made for the first program.
	own, copy *os.File
}

// stdin returns an open file that holds the message and stands at its start.
func (m *message) stdin() (f *os.File, done func(), err error) {
	if m.own != nil {
		_, err := m.own.Seek(0, io.SeekStart)
		return m.own, func() {}, err
	}
	if m.copy == nil {
		if m.copy, err = m.body.Copy(); err != nil {
			return nil, nil, err
		}
	}
	f, err = jobs.Reopen(m.copy)
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close() }, nil
}

func (m *message) close() {
	if m.copy != nil {
		m.copy.Close()
		m.copy = nil
	}
}
