package super

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmail/internal/proto/admin"
	"qmail/internal/proto/enqueue"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// TestMain is also every program that the tests start: the supervisor, and the roles that it starts in turn.
func TestMain(m *testing.M) {
	program, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "qmail-")
	if !ok {
		os.Exit(m.Run())
	}
	if home := os.Getenv("QMAILHOME"); mood(home, program) == "chatter" || mood(home, program) == "pause" {
		os.Unsetenv("QMAILCONTROL") // it takes descriptor 3 into its own hands
	}
	e, err := env.Process()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
	if program == "start" {
		os.Exit(Main(context.Background(), e, os.Args[1:]))
	}
	os.Exit(pretend(program, e))
}

// mood is how a role shall behave.
func mood(home, role string) string {
	b, _ := os.ReadFile(filepath.Join(home, "mood-"+role))
	return string(b)
}

// pretend is a role that serves each connection to a socket of its own with one line: who it is, and what
// those it has links to answer to a question.
func pretend(name string, e *env.Env) int {
	log := e.Log("qmail-" + name)
	switch mood(e.Home, name) {
	case "tell":
		log.Info(fmt.Sprintf("%v %s %s", strings.ReplaceAll(fmt.Sprint(os.Args[1:]), "\n", "|"), e.Get("QMAILREMOTE"), e.Get("QMAILLOCAL")))
	case "refuse":
		log.Error("a file of mine is malformed")
		return 111
	case "chatter":
		conn, err := ipc.FromFile(os.NewFile(env.ControlFD, "control"))
		if err == nil {
			err = conn.Send('?', 0, make([]byte, ipc.MaxPayload))
		}
		log.Info("chatters", "err", err)
		time.Sleep(time.Hour)
	case "pause":
		time.Sleep(time.Hour)
	}
	var mu sync.Mutex
	links := map[string]*ipc.Conn{}
	if err := e.Ready(); err != nil {
		return 111
	}
	for o := range e.Orders {
		switch o.Kind {
		case env.Link:
			mu.Lock()
			if name == "smtpd" {
				links[o.Name] = o.Link
			} else {
				go answerAll(o.Link)
			}
			mu.Unlock()
		case env.Listen:
			go func() {
				for {
					c, err := o.Listener.Accept()
					if err != nil {
						log.Info("a socket is gone")
						return
					}
					mu.Lock()
					fmt.Fprintf(c, "%s=%d%s\n", name, os.Getpid(), askAll(links))
					mu.Unlock()
					c.Close()
				}
			}()
		case env.Reload:
			log.Info("reloads")
		case env.Stop:
			log.Info("stops")
			return 0
		}
	}
	return 0
}

func answerAll(link *ipc.Conn) {
	for {
		if _, err := link.Read(); err != nil {
			return
		}
		if link.Send('a', 0, []byte(strconv.Itoa(os.Getpid()))) != nil {
			return
		}
	}
}

func askAll(links map[string]*ipc.Conn) (answers string) {
	for name, link := range links {
		link.SetReadDeadline(time.Now().Add(5 * time.Second))
		err := link.Send('q', 0)
		if err == nil {
			var f ipc.Frame
			if f, err = link.Read(); err == nil {
				answers += fmt.Sprintf(" %s=%s", name, f.Payload)
			}
		}
		if err != nil {
			answers += fmt.Sprintf(" %s=gone", name)
		}
	}
	return answers
}

// house is a home with a supervisor in it.
type house struct {
	t       *testing.T
	home    string
	address string
	args    []string // of the supervisor
	vars    []string
	stdout  *os.File
	log     string
	cmd     *exec.Cmd
	ended   chan struct{}
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, home: t.TempDir(), address: freeAddress(t)}
	h.log = filepath.Join(t.TempDir(), "log")
	dirs := []string{"control", "queue", "queue/journal", "queue/drop"}
	for _, dir := range dirs {
		if err := os.Mkdir(filepath.Join(h.home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(h.home, 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("control/listen", "# where we listen\nsmtp "+h.address+"\n")
	if os.Geteuid() == 0 { // not as root here: the users of the table need not exist
		if err := os.Chmod(filepath.Dir(h.home), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range append(dirs, "", "control/listen") {
			if err := os.Chown(filepath.Join(h.home, name), 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
	}
	return h
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (h *house) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.home, name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// start starts a supervisor; several may be tried.
func (h *house) start() {
	h.t.Helper()
	log, err := os.OpenFile(h.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	h.cmd = exec.Command("/proc/self/exe")
	h.cmd.Args = append([]string{"qmail-start"}, h.args...)
	h.cmd.Env = append([]string{"QMAILHOME=" + h.home, "SECRET=1"}, h.vars...)
	h.cmd.Stdout, h.cmd.Stderr, h.cmd.Dir = h.stdout, log, "/"
	if os.Geteuid() == 0 {
		h.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	cmd, ended := h.cmd, make(chan struct{})
	h.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }()
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
}

func (h *house) signal(sig os.Signal) {
	h.t.Helper()
	if err := h.cmd.Process.Signal(sig); err != nil {
		h.t.Fatal(err)
	}
}

// end waits until the supervisor has ended and returns its exit code.
func (h *house) end() int {
	h.t.Helper()
	select {
	case <-h.ended:
		return h.cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		h.t.Fatalf("the supervisor does not end; log:\n%s", h.read())
		return -1
	}
}

func (h *house) read() string {
	b, err := os.ReadFile(h.log)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

// until waits for a condition.
func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("it never came true that %s; log:\n%s", what, h.read())
		}
	}
}

func (h *house) logged(text string, times int) {
	h.t.Helper()
	h.until(fmt.Sprintf("%q is on the log %d times", text, times), func() bool { return strings.Count(h.read(), text) == times })
}

// ask connects to the mail port and returns who is there.
func (h *house) ask(address string) (map[string]string, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return nil, nil // it died while we were connected
	}
	answers := map[string]string{}
	for _, f := range strings.Fields(line) {
		name, pid, _ := strings.Cut(f, "=")
		answers[name] = pid
	}
	return answers, nil
}

// pids are the processes that the log names last.
func (h *house) pids() map[string]int {
	all := map[string]int{}
	for _, m := range regexp.MustCompile(`started qmail-(\w+) pid=(\d+)`).FindAllStringSubmatch(h.read(), -1) {
		all[m[1]], _ = strconv.Atoi(m[2])
	}
	return all
}

func TestARoleThatIsKilledComesBackWithItsLinks(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.logged("qmail-start: ready\n", 1)
	for i, name := range []string{"send", "smtpd", "send", "lspawn", "resolve", "rspawn"} {
		before := h.pids()
		if before[name] <= 0 { // 0 would be all of us
			t.Fatalf("%s does not run", name)
		}
		if err := syscall.Kill(before[name], syscall.SIGKILL); err != nil {
			t.Fatalf("%s %d: %v", name, before[name], err)
		}
		h.logged("died: signal: killed; restarting", i+1)
		h.until(name+" is back and linked", func() bool {
			answers, err := h.ask(h.address)
			if err != nil {
				t.Fatalf("nobody may be refused while %s is away: %v", name, err)
			}
			now := h.pids()
			return now[name] != before[name] && answers["smtpd"] == strconv.Itoa(now["smtpd"]) &&
				answers["send"] == strconv.Itoa(now["send"])
		})
	}
	h.signal(syscall.SIGTERM)
	if code := h.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	log := h.read()
	at := -1
	for _, line := range []string{"qmail-smtpd: stops", "qmail-send: stops", "qmail-lspawn: stops", "qmail-start: stopped"} {
		next := strings.Index(log, line)
		if next <= at {
			t.Errorf("%q is missing or out of order:\n%s", line, log)
		}
		at = next
	}
	if strings.Count(log, "qmail-start: not root: all roles run as uid ") != 1 {
		t.Errorf("it is not said once that no users are switched:\n%s", log)
	}
}

func TestARoleHasNothingButItsOrders(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.logged("qmail-start: ready\n", 1)
	pid := h.pids()["lspawn"]
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range strings.Split(strings.TrimSuffix(string(environ), "\x00"), "\x00") {
		name, _, _ := strings.Cut(v, "=")
		if name != "QMAILHOME" && name != "QMAILCONTROL" && name != "PATH" {
			t.Errorf("the environment has %q", v)
		}
	}
	for fd, want := range []string{"/dev/null", h.log, h.log} {
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		if err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("descriptor %d is %q (%v), not %s", fd, got, err, want)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	sockets := 0
	for _, fd := range fds {
		n, _ := strconv.Atoi(fd.Name())
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, n))
		switch {
		case n < 3 || err != nil: // seen above, or closed in the meantime
		case strings.HasPrefix(got, "socket:"):
			sockets++ // its orders, and its link to send
		case strings.HasPrefix(got, "anon_inode:") || strings.HasPrefix(got, "/sys/fs/cgroup/"): // the runtime's own
		default:
			t.Errorf("descriptor %d is %s", n, got)
		}
	}
	if sockets > 2 {
		t.Errorf("%d sockets, which is more than the orders and a link", sockets)
	}
}

func TestReload(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.logged("qmail-start: ready\n", 1)
	second := freeAddress(t)

	h.write("control/listen", "smtp "+h.address+"\nsmtp not-an-address\n")
	h.signal(syscall.SIGHUP)
	h.logged("qmail-smtpd: reloads\n", 1)
	h.logged(`control/listen:2: malformed address "not-an-address"`, 1)
	if _, err := h.ask(h.address); err != nil {
		t.Errorf("a malformed line must leave the sockets alone: %v", err)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.write("control/listen", "smtp "+second+"\nsmtp "+taken.Addr().String()+"\n")
	h.signal(syscall.SIGHUP)
	h.logged("qmail-smtpd: reloads\n", 2)
	h.logged("address already in use", 1)
	if _, err := h.ask(h.address); err != nil {
		t.Errorf("a socket that cannot be bound must leave the others alone: %v", err)
	}
	if _, err := h.ask(second); err == nil {
		t.Error("half of a change was made")
	}
	taken.Close()

	h.write("control/listen", "smtp "+second+"\n")
	h.signal(syscall.SIGHUP)
	h.logged("qmail-smtpd: reloads\n", 3)
	h.logged("qmail-smtpd: a socket is gone\n", 1)
	if answers, err := h.ask(second); err != nil || answers["smtpd"] == "" {
		t.Errorf("%v %v", answers, err)
	}
	if _, err := h.ask(h.address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a socket that is no longer listed is still served: %v", err)
	}
}

func TestASecondInstanceIsRefusedByName(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.logged("qmail-start: ready\n", 1)
	first, ended := h.cmd, h.ended
	h.start()
	if code := h.end(); code != 111 {
		t.Errorf("exit code %d", code)
	}
	h.logged(fmt.Sprintf("qmail-start: alert: %s: another qmail-start (pid %d) serves this home\n", h.home, first.Process.Pid), 1)
	if answers, err := h.ask(h.address); err != nil || answers["send"] == "" {
		t.Errorf("the first instance suffers: %v %v", answers, err)
	}

	// A killed supervisor leaves no roles behind, and the next one can start at once.
	before := h.pids()
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	h.start()
	h.logged("qmail-start: ready\n", 2)
	for name, pid := range before {
		h.until(name+" is gone", func() bool { return !alive(pid) })
	}
}

func TestAnAddressThatIsTakenForGoodIsNamed(t *testing.T) {
	h := newHouse(t)
	ln, err := net.Listen("tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h.start()
	if code := h.end(); code != 111 {
		t.Errorf("exit code %d", code)
	}
	h.logged("qmail-start: alert: smtp: listen tcp "+h.address+": bind: address already in use\n", 1)
}

// alive reports whether a process still does anything. What is dead and not yet buried does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func TestARoleThatRefusesItsFilesIsHeard(t *testing.T) {
	h := newHouse(t)
	h.write("mood-rspawn", "refuse")
	h.start()
	if code := h.end(); code != 111 {
		t.Errorf("exit code %d", code)
	}
	h.logged("qmail-rspawn: alert: a file of mine is malformed\n", 1)
	h.logged("qmail-start: alert: qmail-rspawn refuses to start: exit status 111\n", 1)
	h.logged("qmail-send: stops\n", 1)
}

func TestARoleThatSaysAnythingButReadyIsKilled(t *testing.T) {
	h := newHouse(t)
	h.write("mood-rspawn", "chatter")
	h.start()
	h.logged("qmail-rspawn: chatters", 1)
	h.logged("qmail-start: warning: qmail-rspawn died: signal: killed; restarting at once\n", 1)
	h.write("mood-rspawn", "")
	h.logged("qmail-start: ready\n", 1)
}

func TestARoleThatDoesNotTakeItsOrdersIsKilled(t *testing.T) {
	h := newHouse(t)
	h.write("mood-pause", "pause")
	log, err := os.Create(h.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	x, err := newExecutor(&env.Env{Home: h.home, Stderr: log}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	ended := make(chan exit, 1)
	c, err := x.start(process{name: "pause"}, func() { t.Error("it is ready") }, func(e exit) { ended <- e })
	if err != nil {
		t.Fatal(err)
	}
	for orders := 0; ; orders++ { // until the socket and then the room for orders are full
		select {
		case e := <-ended:
			if e.text != "signal: killed" || orders < maxOrders {
				t.Errorf("%s after %d orders", e.text, orders)
			}
			return
		default:
			c.order(env.Reload, strings.Repeat("x", 1000), nil)
		}
	}
}

func TestAHomeThatOthersCouldChangeIsRefused(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(h *house) error
		want    string
	}{
		{"a home that is not there", func(h *house) error { h.home += "/none"; return nil }, "/none: does not exist (qmail init makes a home)"},
		{"a group-writable home", func(h *house) error { return os.Chmod(h.home, 0o775) }, ": can be written by others (mode 0775)"},
		{"a world-writable queue", func(h *house) error { return os.Chmod(h.home+"/queue", 0o777) }, "/queue: can be written by others (mode 0777)"},
		{"a directory that is no home", func(h *house) error { return os.RemoveAll(h.home + "/control") }, "/control: does not exist (this is not a home of qmail's)"},
		{"a file for a queue", func(h *house) error {
			return errors.Join(os.RemoveAll(h.home+"/queue"), os.WriteFile(h.home+"/queue", nil, 0o644))
		}, "/queue: not a directory"},
		{"a malformed control/listen", func(h *house) error {
			return os.WriteFile(h.home+"/control/listen", []byte("\n# fine\nsmtp 127.0.0.1:0\n"), 0o644)
		}, `/control/listen:3: malformed address "127.0.0.1:0": not a port number`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t)
			if err := tt.prepare(h); err != nil {
				t.Fatal(err)
			}
			h.start()
			if code := h.end(); code != 111 {
				t.Errorf("exit code %d", code)
			}
			if log := h.read(); !strings.Contains(log, tt.want) || strings.Contains(log, "started") {
				t.Errorf("the log does not say %q, or says more:\n%s", tt.want, log)
			}
		})
	}
	for _, name := range []string{"", "/control", "/queue", "/queue/journal", "/queue/drop"} {
		t.Run("somebody else's home"+name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give files away")
			}
			h := newHouse(t)
			if err := checkHome(h.home, 65534, 65534); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(h.home+name, 12345, 12345); err != nil {
				t.Fatal(err)
			}
			if err := checkHome(h.home, 65534, 65534); err == nil || err.Error() != h.home+name+": belongs to uid 12345 and not to uid 65534" {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestTheDoorIsWhereInjectorsLookForIt(t *testing.T) {
	for name, want := range map[string]string{"enqueue": enqueue.SocketPath("/home"), "admin": admin.SocketPath("/home")} {
		if got := doorPath("/home", name); got != want {
			t.Errorf("%s, and others look at %s", got, want)
		}
	}
	h := newHouse(t)
	h.start()
	h.logged("qmail-start: ready\n", 1)
	for _, path := range []string{enqueue.SocketPath(h.home), admin.SocketPath(h.home)} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != os.ModeSocket|0o666 {
			t.Errorf("%v %v", info.Mode(), err)
		}
		u, err := ipc.Dial(path, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if line, err := bufio.NewReader(u).ReadString('\n'); err != nil || !strings.HasPrefix(line, "send=") {
			t.Errorf("at the door is %q %v", line, err)
		}
	}
}

func TestListenFile(t *testing.T) {
	tests := []struct {
		name, file string
		want       string // addresses, or the end of an error
		bad        bool
	}{
		{"a line per socket", "smtp :25\nsmtp 127.0.0.1:2525\nsmtp [::1]:2525\n", ":25 127.0.0.1:2525 [::1]:2525", false},
		{"comments, blanks and DOS line ends", "# x\n\n  \nsmtp\t:26 \r\n", ":26", false},
		{"an empty file listens nowhere", "", "", false},
		{"a service nobody serves", "smtp :25\ngopher :70\n", `:2: unknown service "gopher" (there are: smtp)`, true},
		{"a name", "smtp localhost:25\n", `:1: malformed address "localhost:25": not an IP address`, true},
		{"no port", "smtp 127.0.0.1\n", `:1: malformed address "127.0.0.1"`, true},
		{"a port too large", "smtp :65536\n", `:1: malformed address ":65536": not a port number`, true},
		{"a port by name", "smtp :smtp\n", `:1: malformed address ":smtp": not a port number`, true},
		{"too many words", "smtp :25 tls\n", `:1: not of the form SERVICE ADDRESS:PORT: "smtp :25 tls"`, true},
		{"a socket twice", "smtp :25\nsmtp :25\n", ":2: the same socket twice", true},
		{"an endless file", strings.Repeat("#\n", maxListen), fmt.Sprintf("larger than %d bytes", maxListen), true},
	}
	home := t.TempDir()
	if list, err := readListen(home, []string{"smtp"}); err != nil || len(list) != 1 || list[0].address != ":25" {
		t.Errorf("without a file it is not smtp :25: %v %v", list, err)
	}
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(home, "control/listen"), []byte(tt.file), 0o644); err != nil {
				t.Fatal(err)
			}
			list, err := readListen(home, []string{"smtp"})
			if tt.bad {
				if err == nil || !strings.HasSuffix(err.Error(), tt.want) {
					t.Errorf("error %v, wanted %s", err, tt.want)
				}
				return
			}
			var got []string
			for _, k := range list {
				got = append(got, k.address)
			}
			if err != nil || strings.Join(got, " ") != tt.want {
				t.Errorf("%v %v, wanted %s", got, err, tt.want)
			}
		})
	}
}

func TestListenersAreNotMultipath(t *testing.T) {
	f, err := bind(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	proto, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || proto != unix.IPPROTO_TCP {
		t.Errorf("protocol %d %v", proto, err)
	}
}
