package super

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"sync"
	"syscall"
	"time"

	"qmail/internal/system/env"
)

const (
	// loggerUser is whom the logger runs as.
	loggerUser = "qmaill"
	// loggerPause is the time between the end of a logger and the start of the next.
	loggerPause = time.Second
	// loggerEnd is how long a logger may take to end when there is nothing more for it.
	loggerEnd = 5 * time.Second
)

// classic is what the arguments of qmail-start say: qmail-start [defaultdelivery [logger arg ...]]. Who calls it
// so has a boot script from before control/listen: without that file nothing is listened to, since tcpserver does
// that; the log goes to standard output, or to the logger's standard input; and the supervisor tells of trouble only.
type classic struct {
	on       bool
	delivery string
	logger   []string
}

func parseArgs(args []string) classic {
	if len(args) == 0 {
		return classic{}
	}
	return classic{on: true, delivery: args[0], logger: args[1:]}
}

// quiet is a log without what is no trouble: qmail-start says nothing where boot scripts do not expect it.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && q.Handler.Enabled(ctx, level)
}

// logger keeps a program running that reads the log from a pipe. Nothing is lost between one and the next, since
// the reading end stays open.
type logger struct {
	argv    []string
	vars    []string
	stdout  *os.File
	stderr  *os.File
	cred    *syscall.Credential
	log     *slog.Logger
	r, w    *os.File
	stop    chan struct{}
	stopped sync.WaitGroup
}

// startLogger starts a logger as qmaill, if we are root.
func startLogger(argv []string, e *env.Env, root bool, log *slog.Logger) (*logger, error) {
	stdout, ok := e.Stdout.(*os.File)
	stderr, ok2 := e.Stderr.(*os.File)
	if !ok || !ok2 {
		return nil, fmt.Errorf("standard output is not a file")
	}
	l := &logger{argv: argv, vars: e.Vars, stdout: stdout, stderr: stderr, log: log, stop: make(chan struct{})}
	if root {
		u, err := user.Lookup(loggerUser)
		if err != nil {
			return nil, fmt.Errorf("the logger has to run as %s: %w", loggerUser, err)
		}
		uid, err := number(u.Uid)
		if err != nil {
			return nil, err
		}
		gid, err := number(u.Gid)
		if err != nil {
			return nil, err
		}
		l.cred = &syscall.Credential{Uid: uid, Gid: gid}
	}
	var err error
	if l.r, l.w, err = os.Pipe(); err != nil {
		return nil, err
	}
	cmd, err := l.start()
	if err != nil {
		l.r.Close()
		l.w.Close()
		return nil, fmt.Errorf("unable to run the logger: %w", err)
	}
	l.stopped.Go(func() { l.keep(cmd) })
	return l, nil
}

func (l *logger) start() (*exec.Cmd, error) {
	cmd := exec.Command(l.argv[0], l.argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", l.vars, l.r, l.stdout, l.stderr
	// It hears neither the terminal's ^C nor a signal to our group: there is more to log until all others are gone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: l.cred}
	return cmd, cmd.Start()
}

// keep waits for the logger and starts another, until close; then what is in the pipe is read to its end.
func (l *logger) keep(cmd *exec.Cmd) {
	defer l.r.Close()
	for stopping := false; ; {
		var err error
		if cmd != nil {
			err = cmd.Wait()
		}
		if stopping {
			return
		}
		select {
		case <-l.stop:
			return // it has read all there was
		default:
			l.log.Warn("the logger ended; starting another", "err", err)
		}
		select {
		case <-l.stop:
			stopping = true
		case <-time.After(loggerPause):
		}
		if cmd, err = l.start(); err != nil {
			l.log.Warn("unable to run the logger", "err", err)
			cmd = nil
		}
	}
}

// close lets the logger read what is left, and end.
func (l *logger) close() {
	close(l.stop)
	l.w.Close()
	done := make(chan struct{})
	go func() { l.stopped.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(loggerEnd):
		l.log.Warn("the logger does not end")
	}
}
