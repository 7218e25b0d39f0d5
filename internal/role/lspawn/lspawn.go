// Package lspawn is qmail-lspawn: it says whose mail a local part is and starts qmail-local as that user. It
// is the one role that keeps the rights of root, so it reads nothing of a message: its input is a local part
// (proto/lookup), users/cdb, passwd, and the administrator's control/defaultdelivery and control/qmaillocal.
//
// A qmail-local gets one end of a socket pair as descriptor 0, the other end goes to qmail-send, and from
// then on lspawn is out of the way. The user's name and home, and the default delivery, are arguments that
// qmail-send has no say in: whoever takes qmail-send over cannot make a user run something of his choice.
// Started without root it delivers for its own user only.
//
// Started by something else than our qmail-start it is the classic program: orders come on descriptor 0, reports go to
// descriptor 1 (format/spawn), and each delivery is a qmail-local of its own, or what QMAILLOCAL or control/qmaillocal
// name, with a file below queue/mess as its descriptor 0.
package lspawn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/proto/lookup"
	"qmail/internal/store/control"
	"qmail/internal/store/users"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

const (
	passwdFile = "/etc/passwd"
	// maxWorkers bounds the qmail-locals alive at once: more than qmail-send has use for, so that those of
	// one that died do not keep the next one waiting.
	maxWorkers = 600
	// defaultDelivery is what qmail-start has always used.
	defaultDelivery = "./Mailbox"
	defaultPath     = "/usr/local/bin:/usr/bin:/bin"
)

// The refusals of this package; those of a lookup come from store/users.
var (
	errEmpty  = &lookup.Refusal{Report: "DSorry, no mailbox here by that name. (#5.1.1)\n"}
	errOther  = &lookup.Refusal{Report: "Zunable to become another user: started without root. (#4.3.0)\n"}
	errMany   = &lookup.Refusal{Report: "Ztoo many users have mail at once. (#4.3.0)\n"}
	errSpawn  = &lookup.Refusal{Report: "ZUnable to run qmail-local.\n"}
	errConfig = &lookup.Refusal{Report: "ZTemporary failure in qmail-lspawn.\n"}
)

// Main serves the qmail-send that the supervisor links us to. args may hold the default delivery, which else
// is read from control/defaultdelivery for each new worker.
func Main(ctx context.Context, e *env.Env, args []string) int {
	log := e.Log("qmail-lspawn")
	s := newSpawner(e, passwdFile, log)
	if len(args) == 1 {
		s.delivery = func() (string, error) { return args[0], nil }
	}
	if e.Orders == nil {
		if len(args) != 1 {
			log.Error("usage: qmail-lspawn defaultdelivery; to be started by qmail-start")
			return 100
		}
		return s.classic(ctx, e)
	}
	if len(args) > 1 {
		log.Error("to be started by qmail-start")
		return 111
	}
	if err := e.Ready(); err != nil {
		log.Error("supervisor lost", "cause", err)
		return 111
	}
	s.obey(ctx, e.Orders)
	return 0
}

// spawner finds accounts and starts workers.
type spawner struct {
	tables   *users.Tables
	delivery func() (string, error)
	module   func() (string, error) // what qmail-local shall run instead of itself; may be empty
	program  string                 // what is executed as qmail-local
	vars     []string
	uid      int
	log      *slog.Logger

	mu    sync.Mutex
	alive int
}

func newSpawner(e *env.Env, passwd string, log *slog.Logger) *spawner {
	path := e.Get("PATH")
	if path == "" {
		path = defaultPath
	}
	return &spawner{
		tables:   users.New(filepath.Join(e.Home, "users", "cdb"), passwd),
		delivery: func() (string, error) { return readDelivery(control.Open(e.Home)) },
		module:   func() (string, error) { return readModule(e) },
		program:  "/proc/self/exe", // survives a new version in its place, or none
		vars:     []string{"QMAILHOME=" + e.Home, "PATH=" + path},
		uid:      os.Geteuid(),
		log:      log,
	}
}

// readDelivery returns the whole of control/defaultdelivery: it may have several lines, like a .qmail file.
func readDelivery(dir control.Dir) (string, error) {
	b, present, err := dir.Read("defaultdelivery")
	if err != nil || !present {
		return defaultDelivery, err
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// readModule says what QMAILLOCAL or control/qmaillocal names.
func readModule(e *env.Env) (string, error) {
	if name := e.Get("QMAILLOCAL"); name != "" {
		return name, nil
	}
	name, _, err := control.Open(e.Home).Line("qmaillocal")
	return name, err
}

// obey serves one link after the other until it is told to stop.
func (s *spawner) obey(ctx context.Context, orders <-chan env.Order) {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	var last context.CancelFunc
	for {
		select {
		case <-ctx.Done():
			return
		case o, ok := <-orders:
			switch {
			case !ok || o.Kind == env.Stop:
				return
			case o.Kind == env.Link:
				if last != nil {
					last() // the qmail-send before this one is gone
				}
				link, end := context.WithCancel(ctx)
				last = end
				serving.Go(func() { defer end(); s.serve(link, o.Link) })
			case o.Kind == env.Listen:
				o.Listener.Close()
			}
		}
	}
}

func (s *spawner) serve(ctx context.Context, conn *ipc.Conn) {
	if err := lookup.ServeWhy(ctx, conn, s.answer, s.why); errors.Is(err, ipc.ErrFrame) {
		s.log.Warn("qmail-send sends garbage", "cause", err)
	}
}

// answer is the handler of lookup.Serve.
func (s *spawner) answer(ctx context.Context, local string, pipe bool) (users.Account, *os.File, error) {
	if local == "" {
		return users.Account{}, nil, errEmpty
	}
	a, err := s.tables.Find(local)
	if err != nil {
		s.log.Warn("lookup failed", "local", local, "cause", err)
		return users.Account{}, nil, err
	}
	if !pipe {
		return a, nil, nil
	}
	f, err := s.spawn(a)
	if err != nil {
		return users.Account{}, nil, err
	}
	return a, f, nil
}

// why is the explainer of lookup.ServeWhy.
func (s *spawner) why(_ context.Context, local string) (users.Account, users.Source, error) {
	if local == "" {
		return users.Account{}, users.Source{}, errEmpty
	}
	return s.tables.Explain(local)
}

// settings checks that we may become the account's user, and reads what a delivery depends on.
func (s *spawner) settings(a users.Account) (delivery, module string, err error) {
	if s.uid != 0 && a.UID != s.uid {
		return "", "", errOther
	}
	if err := a.Check(); err != nil { // also says no to root
		return "", "", err
	}
	delivery, err = s.delivery()
	if err != nil {
		s.log.Warn("unable to read control/defaultdelivery", "cause", err)
		return "", "", errConfig
	}
	module, err = s.module()
	if err != nil {
		s.log.Warn("unable to read control/qmaillocal", "cause", err)
		return "", "", errConfig
	}
	return delivery, module, nil
}

// credential is whom a delivery runs as: the account's user, with no other groups; nil for us.
func (s *spawner) credential(a users.Account) *syscall.Credential {
	if s.uid != 0 {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID)}
}

// spawn starts a qmail-local as the account's user and returns the other end of its pipe.
func (s *spawner) spawn(a users.Account) (*os.File, error) {
	delivery, module, err := s.settings(a)
	if err != nil {
		return nil, err
	}
	if !s.count(+1) {
		return nil, errMany
	}
	f, err := s.start(a, delivery, module)
	if err != nil {
		s.count(-1)
		s.log.Warn("unable to run qmail-local", "user", a.User, "cause", err)
		return nil, errSpawn
	}
	return f, nil
}

func (s *spawner) count(by int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if by > 0 && s.alive >= maxWorkers {
		return false
	}
	s.alive += by
	return true
}

// start executes qmail-local with nothing but its end of a socket pair, in a process group of its own, and
// sees it off when it ends.
func (s *spawner) start(a users.Account, delivery, module string) (*os.File, error) {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	said := &head{}
	vars := s.vars
	if module != "" {
		vars = append(vars[:len(vars):len(vars)], "QMAILLOCAL="+module)
	}
	cmd := &exec.Cmd{
		Path:  s.program,
		Args:  []string{"qmail-local", "--serve", a.User, a.Home, delivery},
		Env:   vars,
		Dir:   "/",
		Stdin: theirs, Stderr: said,
		WaitDelay:   time.Second, // for a program of the user's that keeps stderr
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: s.credential(a)},
	}
	if err := keepFiles(); err != nil {
		ours.Close()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	go func() {
		defer s.count(-1)
		err := cmd.Wait()
		if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
			s.log.Warn("qmail-local ended badly", "user", a.User, "cause", err, "said", said)
		}
	}()
	return ours, nil
}

// keepFiles has every descriptor but 0, 1 and 2 closed in those we start. Ours are anyway; what whoever started us left
// open shall not go further either.
func keepFiles() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	return nil
}

// head keeps the beginning of what a worker says on standard error. The worker belongs to the user, so this
// goes nowhere but into one line of our log.
type head struct{ text []byte }

func (h *head) Write(p []byte) (int, error) {
	const limit = 500
	h.text = append(h.text, p[:min(len(p), limit-len(h.text))]...)
	return len(p), nil
}

func (h *head) String() string { return fmt.Sprintf("%q", h.text) }
