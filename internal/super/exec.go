package super

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// present leaves out those who can be spared and whose user there is not.
func present(table []process, ids map[string]identity, log *slog.Logger) (list []process) {
	for _, p := range table {
		if _, known := ids[p.name]; !known && ids != nil {
			log.Warn(fmt.Sprintf("qmail-%s does not run: there is no user %s (as root, qmail init makes the users)", p.name, p.user))
			continue
		}
		list = append(list, p)
	}
	return list
}

// identity is whom a role runs as.
type identity struct{ uid, gid uint32 }

// identities finds the users of the table; it returns nil if we are not root and cannot become anybody.
func identities(table []process, log *slog.Logger) (map[string]identity, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	ids := map[string]identity{}
	for _, p := range table {
		u, err := user.Lookup(p.user)
		_, unknown := errors.AsType[user.UnknownUserError](err)
		if unknown && p.spare {
			continue
		}
		if unknown && p.instead != "" {
			log.Warn(fmt.Sprintf("qmail-%s runs as %s: there is no user %s (as root, qmail init makes the users)", p.name, p.instead, p.user))
			u, err = user.Lookup(p.instead)
		}
		if err != nil {
			return nil, fmt.Errorf("qmail-%s has to run as %s: %w (as root, qmail init makes the users)", p.name, p.user, err)
		}
		gid := u.Gid
		if p.group != "" {
			g, err := user.LookupGroup(p.group)
			if err != nil {
				return nil, fmt.Errorf("qmail-%s has to run in group %s: %w (as root, qmail init makes the groups)", p.name, p.group, err)
			}
			gid = g.Gid
		}
		var id identity
		if id.uid, err = number(u.Uid); err == nil {
			id.gid, err = number(gid)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.user, err)
		}
		if id.uid == 0 && p.user != "root" {
			return nil, fmt.Errorf("%s is another name of root", p.user)
		}
		ids[p.name] = id
	}
	return ids, nil
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

// executor starts roles by executing this very program again under the role's name.
type executor struct {
	null, log *os.File
	vars      []string
	ours      *env.Env            // our own environment
	args      map[string][]string // of roles by name
	ids       map[string]identity
	logger    *logger // may be nil
}

func newExecutor(e *env.Env, ids map[string]identity) (*executor, error) {
	log, ok := e.Stderr.(*os.File)
	if !ok {
		return nil, errors.New("standard error is not a file")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	x := &executor{null: null, log: log, ours: e, ids: ids, vars: []string{
		"QMAILHOME=" + e.Home,
		"QMAILCONTROL=" + strconv.Itoa(env.ControlFD),
		"PATH=" + filepath.Dir(self) + ":/usr/local/bin:/usr/bin:/bin",
	}}
	for _, name := range []string{"QMAILPROFILE", "QMAILWALLS"} {
		if v, ok := e.Lookup(name); ok {
			x.vars = append(x.vars, name+"="+v)
		}
	}
	return x, nil
}

// oldWays makes roles start as the classic arguments say.
func (x *executor) oldWays(e *env.Env, old classic, log *slog.Logger) error {
	x.args = map[string][]string{"lspawn": {old.delivery}}
	if len(old.logger) > 0 {
		l, err := startLogger(old.logger, e, x.ids != nil, log)
		if err != nil {
			return err
		}
		x.logger, x.log = l, l.w
		return nil
	}
	out, ok := e.Stdout.(*os.File)
	if !ok {
		return errors.New("standard output is not a file")
	}
	x.log = out
	return nil
}

func (x *executor) close() {
	if x.logger != nil {
		x.logger.close()
	}
	x.null.Close()
}

// environment is that of a role.
func (x *executor) environment(p process) []string {
	vars := x.vars
	for _, name := range p.keeps {
		if value, set := x.ours.Lookup(name); set {
			vars = append(vars[:len(vars):len(vars)], name+"="+value)
		}
	}
	return vars
}

// start is a starter.
func (x *executor) start(p process, ready func(), gone func(exit)) (child, error) {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := ipc.FromFile(ours)
	if err != nil {
		return nil, err
	}
	// In a session of its own a role does not hear the terminal's ^C, so that we can stop all in order.
	attr := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if x.ids != nil {
		id := x.ids[p.name]
		attr.Credential = &syscall.Credential{Uid: id.uid, Gid: id.gid} // and no other groups
	}
	proc, err := os.StartProcess("/proc/self/exe", append([]string{"qmail-" + p.name}, x.args[p.name]...), &os.ProcAttr{
		Dir: "/", Env: x.environment(p), Sys: attr,
		Files: []*os.File{x.null, x.log, x.log, theirs}, // theirs is env.ControlFD
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &roleProcess{proc: proc, conn: conn, orders: make(chan order, maxOrders)}
	go c.write()
	go c.listen(ready)
	go c.wait(gone)
	return c, nil
}

// maxOrders bounds the orders that a role has not taken yet. One that lets them pile up is out of order.
const maxOrders = 64

type order struct {
	kind env.Kind
	name string
	file *os.File
}

// roleProcess is a role in a process of its own.
type roleProcess struct {
	proc *os.Process
	conn *ipc.Conn

	mu     sync.Mutex
	orders chan order // nil once the process is gone
}

func (c *roleProcess) pid() int { return c.proc.Pid }

func (c *roleProcess) kill() { _ = c.proc.Kill() } // the one error is that it is gone already

func (c *roleProcess) alarm() { _ = c.proc.Signal(syscall.SIGALRM) }

func (c *roleProcess) order(kind env.Kind, name string, f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orders == nil {
		closeFile(f)
		return
	}
	select {
	case c.orders <- order{kind, name, f}:
	default:
		closeFile(f)
		c.kill()
	}
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}

// write sends the orders as the role takes them. A role that cannot get one is of no use.
func (c *roleProcess) write() {
	for o := range c.orders {
		var err error
		if o.file != nil {
			err = c.conn.SendFile(byte(o.kind), 0, o.file, []byte(o.name))
		} else {
			err = c.conn.Send(byte(o.kind), 0, []byte(o.name))
		}
		closeFile(o.file)
		if err != nil {
			c.kill()
		}
	}
}

// listen waits for the one frame that a role has to say. Nothing after it is read, so that nothing can keep us
// busy.
func (c *roleProcess) listen(ready func()) {
	f, err := c.conn.Read()
	if err != nil {
		return // it is gone, or will be found so by write
	}
	closeFile(f.File)
	if f.Kind != 'R' {
		c.kill()
		return
	}
	ready()
}

func (c *roleProcess) wait(gone func(exit)) {
	state, err := c.proc.Wait()
	c.conn.Close() // ends listen and write
	c.mu.Lock()
	close(c.orders)
	c.orders = nil
	c.mu.Unlock()
	if err != nil {
		gone(exit{-1, err.Error()})
		return
	}
	gone(exit{state.ExitCode(), state.String()})
}
