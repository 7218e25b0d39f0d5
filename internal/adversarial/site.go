package adversarial

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"qmail/internal/proto/admin"
)

const (
	// unprivileged is whom everything runs as if we are root.
	unprivileged = 7790
	// soon is how long something may take that nothing keeps from happening.
	soon = 30 * time.Second
	// glance is how often it is looked for.
	glance = 10 * time.Millisecond
)

// fixture are the control files of every home.
func fixture() map[string]string {
	return map[string]string{
		"me": "mx.test.example\n", "locals": "test.example\n", "virtualdomains": "virt.example:alice-virt\n", "localiphost": "test.example\n",
		"rcpthosts": "test.example\nvirt.example\n.sub.example\n", "relayclients": "", "defaultdomain": "test.example\n", "plusdomain": "test.example\n",
		"defaulthost": "test.example\n", "databytes": "1048576\n", "maxrecipients": "100\n", "timeoutsmtpd": "10\n", "timeoutremote": "40\n",
		"concurrencylocal": "0\n", "concurrencyremote": "0\n", "qmqpclients": "127.64.0.0/10\n", "resolvers": "127.0.0.1:9\n",
	}
}

// site is a home, with or without programs running in it.
type site struct {
	r       *Runner
	dir     string // the home is below it
	home    string
	log     string            // of what runs
	address map[string]string // by service
	cmd     *exec.Cmd
	ended   chan struct{}
	alone   sync.RWMutex // held by a case that must have the site to itself; others hold it for reading
	mu      sync.Mutex
	texts   map[uint64][]byte // of messages in the queue that another case has still to take
}

// newSite makes a home with the fixture, changed by control. A nil value is a file that is not there.
func (r *Runner) newSite(services ...string) (*site, error) {
	dir, err := os.MkdirTemp(r.scratch, "site-")
	if err != nil {
		return nil, err
	}
	s := &site{r: r, dir: dir, home: filepath.Join(dir, "home"), log: filepath.Join(dir, "log"), address: map[string]string{}, texts: map[uint64][]byte{}}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(s.home, 0o755), r.own(s.home)); err != nil {
		return nil, err
	}
	args := []string{"-home", s.home, "-user", "alice", "-user", "bob"}
	for _, service := range services {
		if s.address[service], err = freeAddress(); err != nil {
			return nil, err
		}
		args = append(args, "-listen", service+"="+s.address[service])
	}
	if out, err := r.command(s, "qmail-init", append(args, "test.example")...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("qmail-init: %v: %s", err, out)
	}
	control := fixture()
	if len(services) == 0 {
		control["listen"] = "" // and not what qmail-init thinks of
	}
	return s, s.control(control)
}

// freeAddress is one that nobody listens at. The port is not of those that connections get by themselves.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func (s *site) control(files map[string]string) error {
	for name, text := range files {
		if err := s.write(filepath.Join("control", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// write makes a file below the home, and gives it to whom the programs run as.
func (s *site) write(name string, text []byte, mode os.FileMode) error {
	path := filepath.Join(s.home, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(os.WriteFile(path, text, 0o600), s.r.own(path), os.Chmod(path, mode))
}

// prepare makes the control files of the case.
func (s *site) prepare(c *Case) error {
	path := func(name string) string { return filepath.Join(s.home, "control", name) }
	if err := s.control(c.Setup.WriteControl); err != nil {
		return err
	}
	for name, mode := range c.Setup.ChmodControl {
		n, err := strconv.ParseUint(mode, 8, 32)
		if err != nil {
			return err
		}
		if err := os.Chmod(path(name), os.FileMode(n)); err != nil {
			return err
		}
	}
	for _, name := range c.Setup.RemoveControl {
		if err := os.Remove(path(name)); err != nil {
			return err
		}
	}
	return nil
}

// command is a program, in the environment that a boot script gives it.
func (r *Runner) command(s *site, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(r.Bin, name), args...)
	cmd.Env = []string{"QMAILHOME=" + s.home, "PATH=" + r.Bin + ":/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: unprivileged, Gid: unprivileged}
	}
	return cmd
}

func (r *Runner) own(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, unprivileged, unprivileged)
}

// errRefused means that the programs do not run with these files.
var errRefused = errors.New("qmail-start does not start")

// start runs the site; vars are added to the environment.
func (s *site) start(vars ...string) error {
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd, s.ended = s.r.command(s, "qmail-start"), make(chan struct{})
	s.cmd.Stderr = log
	s.cmd.Env = append(s.cmd.Env, vars...)
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() { _ = s.cmd.Wait(); close(s.ended) }()
	for deadline := time.Now().Add(soon); ; time.Sleep(glance) {
		b, err := os.ReadFile(s.log)
		switch {
		case err != nil:
			return err
		case bytes.Contains(b, []byte("qmail-start: ready\n")):
			return nil
		case s.over():
			return fmt.Errorf("%w: %s", errRefused, b)
		case time.Now().After(deadline):
			return fmt.Errorf("it does not get ready: %s", b)
		}
	}
}

func (s *site) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// close stops what runs, and removes everything.
func (s *site) close() {
	if s.cmd != nil && s.ended != nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(soon):
			_ = s.cmd.Process.Kill()
			<-s.ended
		}
	}
	_ = os.RemoveAll(s.dir)
}

// role is the process of a role.
func (s *site) role(name string) int {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return 0
	}
	started := "started qmail-" + name + " pid="
	i := bytes.LastIndex(b, []byte(started))
	if i < 0 {
		return 0
	}
	digits, _, _ := strings.Cut(string(b[i+len(started):]), "\n")
	digits, _, _ = strings.Cut(digits, " ")
	pid, _ := strconv.Atoi(digits)
	return pid
}

// trouble is what the log says of a program that broke down.
func (s *site) trouble() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return brokeDown(b)
}

func brokeDown(log []byte) string {
	for _, word := range []string{"panic: ", "fatal error: ", "SIGSEGV", "[signal "} {
		if i := bytes.Index(log, []byte(word)); i >= 0 {
			return string(log[i:min(len(log), i+200)])
		}
	}
	return ""
}

// message is one that was taken.
type message struct {
	sender string
	rcpts  []string
	text   []byte // without what qmail-send puts above it
}

// taken takes the messages out of the queue whose trace names a client.
func (s *site) taken(ip string) (list []message, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := admin.Dial(s.home)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var ids []uint64
	messages := map[uint64]*message{}
	_, err = c.List(&admin.Filter{Recipients: true}, func(m *admin.Message) error {
		ids = append(ids, m.ID)
		messages[m.ID] = &message{sender: m.Sender}
		return nil
	}, func(r *admin.Recipient) error {
		m := messages[ids[len(ids)-1]]
		m.rcpts = append(m.rcpts, r.Address)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	for _, id := range ids {
		m := messages[id]
		if m.text = s.texts[id]; m.text == nil {
			var b bytes.Buffer
			if err := c.Copy(id, &b); err != nil {
				return nil, err
			}
			m.text = b.Bytes()
		}
		if !from(m.text, ip) {
			s.texts[id] = m.text
			continue
		}
		list = append(list, *m)
		delete(s.texts, id)
		if _, err := c.Order(&admin.Order{Verb: admin.Delete, ID: id}); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// from reports whether the first lines of a message name a client.
func from(text []byte, ip string) bool {
	n := 0
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte("("+ip+")")) || bytes.Contains(line, []byte("@"+ip+")")) {
			return true
		}
		if n++; n == 4 {
			break
		}
	}
	return false
}
