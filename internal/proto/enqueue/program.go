package enqueue

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
)

// Program gives a message to a program in the place of qmail-queue (the variable QMAILQUEUE): the message on
// descriptor 0, the envelope on descriptor 1, and a pipe for a text of its own on descriptor 6. vars are its
// environment; stderr may be nil. pid is the program's, which is what callers print as "qp". The error, if
// any, is a *reply.Error with the words of qmail.c. ESMTP options are not passed on.
func Program(ctx context.Context, path string, vars []string, stderr *os.File, e *envelope.Envelope, body io.Reader) (pid int, err error) {
	if err := e.Check(); err != nil {
		return 0, refuse(err)
	}
	p := &program{}
	defer p.close()
	message, address, text := p.pipe(), p.pipe(), p.pipe()
	if p.err != nil {
		return 0, reply.Temporary("4.3.0", "unable to exec qq", p.err)
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Args, cmd.Env = []string{path}, vars
	cmd.Stdin, cmd.Stdout = message.r, address.r
	cmd.ExtraFiles = []*os.File{nil, nil, nil, text.w} // the fourth is descriptor 6
	if stderr != nil {
		cmd.Stderr = stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		return 0, reply.Temporary("4.3.0", "unable to exec qq", err)
	}
	message.r.Close()
	address.r.Close()
	text.w.Close()
	readErr := feed(message.w, address.w, e, body)
	waitErr := cmd.Wait()
	text.r.SetReadDeadline(time.Now().Add(time.Second)) // a child of the program's may keep it open
	said, _ := io.ReadAll(io.LimitReader(text.r, 255))
	if waitErr != nil && cmd.ProcessState == nil {
		return 0, reply.Temporary("4.3.0", "qq crashed", waitErr)
	}
	return cmd.ProcessState.Pid(), verdict(cmd.ProcessState, string(said), readErr)
}

// program is the pipes to a program.
type program struct {
	files []*os.File
	err   error
}

type ends struct{ r, w *os.File }

func (p *program) pipe() ends {
	if p.err != nil {
		return ends{}
	}
	var e ends
	if e.r, e.w, p.err = os.Pipe(); p.err == nil {
		p.files = append(p.files, e.r, e.w)
	}
	return e
}

func (p *program) close() {
	for _, f := range p.files {
		f.Close() // many are closed already
	}
}

// feed writes the message and then the envelope. A program that stops reading says why when it exits; only
// what we could not read is our own trouble, and then the envelope stays unfinished, so that nothing is queued.
func feed(message, address *os.File, e *envelope.Envelope, body io.Reader) (readErr error) {
	defer address.Close()
	in := &watched{r: body}
	_, _ = io.Copy(message, in)
	message.Close()
	if in.err != nil {
		return in.err
	}
	w := bufio.NewWriter(address)
	w.WriteString("F" + e.Sender + "\x00")
	for _, r := range e.Recipients {
		w.WriteString("T" + r + "\x00")
	}
	w.WriteByte(0)
	_ = w.Flush()
	return nil
}

// watched remembers why reading ended.
type watched struct {
	r   io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// verdict is what an exit code of qmail-queue means.
func verdict(state *os.ProcessState, said string, readErr error) error {
	if !state.Exited() {
		return reply.Temporary("4.3.0", "qq crashed", errors.New(state.String()))
	}
	code := state.ExitCode()
	if code == 82 && len(said) > 2 {
		said, _, _ = strings.Cut(said, "\x00")
		if strings.HasPrefix(said, "D") || strings.HasPrefix(said, "Z") {
			return reply.Parse(said)
		}
		return reply.Temporary("4.3.0", "qq temporary problem", fmt.Errorf("it says %q", said))
	}
	if code == 0 {
		if readErr != nil {
			return reply.Temporary("4.3.0", "qq read error", readErr)
		}
		return nil
	}
	if e, ok := exits[code]; ok {
		return e
	}
	if code >= 11 && code <= 40 {
		return reply.Permanent("5.3.0", "qq permanent problem", nil)
	}
	return reply.Temporary("4.3.0", "qq temporary problem", nil)
}

var (
	errLong  = reply.Permanent("5.1.3", "envelope address too long for qq", nil)
	errFiles = reply.Temporary("4.3.0", "qq trouble creating files in queue", nil)
	errBug   = reply.Temporary("4.3.0", "qq internal bug", nil)
)

// exits are the exit codes of qmail-queue(8) that have words of their own.
var exits = map[int]error{
	11: errLong, 115: errLong,
	31: reply.Permanent("5.3.0", "mail server permanently rejected message", nil),
	51: reply.Temporary("4.3.0", "qq out of memory", nil),
	52: reply.Temporary("4.3.0", "qq timeout", nil),
	53: reply.Temporary("4.3.0", "qq write error or disk full", nil),
	54: reply.Temporary("4.3.0", "qq read error", nil),
	55: reply.Temporary("4.3.0", "qq unable to read configuration", nil),
	56: reply.Temporary("4.3.0", "qq trouble making network connection", nil),
	61: reply.Temporary("4.3.0", "qq trouble in home directory", nil),
	62: errFiles, 63: errFiles, 64: errFiles, 65: errFiles, 66: errFiles,
	71: reply.Temporary("4.3.0", "mail server temporarily rejected message", nil),
	72: reply.Temporary("4.4.1", "connection to mail server timed out", nil),
	73: reply.Temporary("4.4.1", "connection to mail server rejected", nil),
	74: reply.Temporary("4.4.2", "communication with mail server failed", nil),
	81: errBug, 91: errBug,
	120: reply.Temporary("4.3.0", "unable to exec qq", nil),
}
