package qq

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/format/text0"
)

// wordsFD is the descriptor on which a queue program may say in its own words why it refuses. Programs of
// other forks look for the number in ERROR_FD.
const wordsFD = 6

// program is a message on its way through another program.
type program struct {
	queue   *Queue
	process *os.Process
	message *os.File // its descriptor 0
	records *os.File // its descriptor 1
	words   *os.File // its descriptor 6
	failed  bool     // not everything could be written
	startup error    // it could not be run at all: known now, told at the end
	ctx     context.Context
	release func() bool
}

// start runs the program.
func (q *Queue) start(ctx context.Context) (*program, error) {
	var pipes [3]struct{ r, w *os.File }
	closeAll := func() {
		for _, p := range pipes {
			if p.r != nil {
				p.r.Close()
				p.w.Close()
			}
		}
	}
	for i := range pipes {
		var err error
		if pipes[i].r, pipes[i].w, err = os.Pipe(); err != nil {
			closeAll()
			return nil, cannotRun(err)
		}
	}
	vars, fd := q.environment()
	files := make([]*os.File, max(fd, wordsFD)+1)
	files[0], files[1], files[2], files[wordsFD] = pipes[0].r, pipes[1].r, os.Stderr, pipes[2].w
	files[fd] = pipes[2].w
	process, err := os.StartProcess(q.Program, []string{q.Program}, &os.ProcAttr{Dir: q.Home, Env: vars, Files: files})
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
		closeAll()
		return nil, cannotRun(err)
	}
	p := &program{
		queue: q, ctx: ctx, process: process, startup: err,
		message: pipes[0].w, records: pipes[1].w, words: pipes[2].r,
	}
	pipes[0].r.Close()
	pipes[1].r.Close()
	pipes[2].w.Close()
	p.release = context.AfterFunc(ctx, p.cut)
	return p, nil
}

func cannotRun(err error) error {
	return reply.Temporary("4.3.0", "unable to run qmail-queue", err)
}

// environment is the program's, and the descriptor that ERROR_FD names. Values that old shells took for
// functions are left out.
func (q *Queue) environment() (vars []string, fd int) {
	fd = wordsFD
	named := false
	for _, v := range q.Vars {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(value, "() {") {
			continue
		}
		if n, err := strconv.Atoi(value); name == "ERROR_FD" && !named && err == nil && 2 <= n && n < 10 {
			named, fd = true, n
		}
		vars = append(vars, v)
	}
	if !named {
		vars = append([]string{"ERROR_FD=" + strconv.Itoa(wordsFD)}, vars...)
	}
	return vars, fd
}

// cut ends all waiting when the time is up.
func (p *program) cut() {
	if p.process != nil {
		p.process.Kill() // it may be gone already
	}
	past := time.Unix(1, 0)
	p.message.SetDeadline(past)
	p.records.SetDeadline(past)
	p.words.SetDeadline(past)
}

// Write gives the program more of the message. It may end without reading it: then its exit code says why.
func (p *program) Write(b []byte) (int, error) {
	if p.failed || p.startup != nil {
		return 0, errStopped
	}
	n, err := p.message.Write(b)
	if err != nil {
		p.failed = true
		return n, errStopped
	}
	return n, nil
}

func (p *program) commit(e *envelope.Envelope) (Accepted, error) {
	defer p.close()
	if err := e.Check(); err != nil { // nothing else may end a record
		p.abort()
		return Accepted{}, Outcome(CodeTooLong)
	}
	if p.message.Close() != nil {
		p.failed = true
	}
	records := append(records(e), 0)
	if p.startup == nil {
		if _, err := p.records.Write(records); err != nil {
			p.failed = true
		}
	}
	if p.records.Close() != nil {
		p.failed = true
	}
	return p.wait()
}

// records is the envelope as qmail-queue takes it: without options, which it does not know.
func records(e *envelope.Envelope) []byte {
	b := text0.Append(nil, 'F', e.Sender)
	for _, r := range e.Recipients {
		b = text0.Append(b, 'T', r)
	}
	return b
}

func (p *program) wait() (Accepted, error) {
	if p.startup != nil {
		return Accepted{}, because(codeExec, p.startup)
	}
	words := make([]byte, maxWords)
	n, _ := io.ReadFull(p.words, words)
	io.Copy(io.Discard, p.words) // until it and its children have closed it, or the time is up
	state, err := p.process.Wait()
	switch {
	case p.ctx.Err() != nil:
		return Accepted{}, Outcome(CodeTimeout)
	case err != nil:
		return Accepted{}, reply.Temporary("4.3.0", "qq waitpid surprise", err)
	case !state.Exited():
		return Accepted{}, reply.Temporary("4.3.0", "qq crashed", nil)
	}
	switch code := state.ExitCode(); {
	case code == codeCustom || code == codeCustom2:
		return Accepted{}, custom(words[:n])
	case code == 0 && p.failed:
		return Accepted{}, Outcome(CodeRead)
	case code == 0:
		return Accepted{uint64(p.process.Pid), p.queue.Now()}, nil
	default:
		return Accepted{}, Outcome(code)
	}
}

// abort ends both pipes: without an envelope the program must throw the message away.
func (p *program) abort() {
	p.message.Close()
	p.records.Close()
	if p.startup == nil {
		io.Copy(io.Discard, p.words)
		p.process.Wait() // whatever it says, it has no envelope
	}
	p.close()
}

func (p *program) close() {
	p.release()
	p.message.Close()
	p.records.Close()
	p.words.Close()
}
