package popup

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/role/pop3d"
	"qmail/internal/system/env"
)

// TestMain is also the programs that run after a login.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "qmail-popup":
		os.Exit(classicMain())
	case "checkpassword":
		os.Exit(checkpassword(os.Args[1:]))
	case "qmail-pop3d":
		e, err := env.Process()
		if err != nil {
			panic(err)
		}
		os.Exit(pop3d.Main(context.Background(), e, os.Args[1:]))
	}
	os.Exit(m.Run())
}

const (
	nobody   = 7790 // whom alice is, if we are root
	password = "correct horse"
	exitNo   = 1
	// shortGrace is how long these listeners wait for sessions when they are told to stop.
	shortGrace = 300 * time.Millisecond
)

// checkpassword lets alice in, and root, whom qmail-pop3d must turn away. It counts what it is asked.
func checkpassword(argv []string) int {
	b, err := io.ReadAll(io.LimitReader(os.NewFile(3, "credentials"), 512))
	if err != nil {
		return 111
	}
	dir := filepath.Dir(os.Args[0])
	f, err := os.OpenFile(filepath.Join(dir, "attempts"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return 111
	}
	fmt.Fprintf(f, "%q\n", b)
	f.Close()
	fields := strings.Split(string(b), "\x00")
	if len(fields) < 4 {
		return 2
	}
	root := fields[0] == "root" && fields[1] == "rootpw" && os.Getuid() == 0
	switch {
	case fields[0] == "busy":
		return 111
	case fields[0] == "crash":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case fields[0] == "alice" && fields[1] == password:
		if os.Getuid() == 0 && (syscall.Setgroups(nil) != nil || syscall.Setgid(nobody) != nil || syscall.Setuid(nobody) != nil) {
			return 111
		}
	case !root:
		return exitNo
	}
	if os.Chdir(filepath.Join(dir, "alice")) != nil {
		return 111
	}
	syscall.Exec("/proc/self/exe", argv, append(os.Environ(), "GORACE=atexit_sleep_ms=0")) // else it takes a second to end
	return 111
}

// site is a listener with a user.
type site struct {
	dir     string
	address string
	orders  chan env.Order
	done    chan struct{}
	log     *os.File
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newSite starts a listener. Alice has messages, the first the oldest.
func newSite(t testing.TB, messages ...string) *site {
	t.Helper()
	dir := t.TempDir()
	if os.Getuid() == 0 {
		for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
			must(t, os.Chmod(d, 0o755))
		}
	}
	self, err := os.Executable()
	must(t, err)
	for _, name := range []string{"checkpassword", "qmail-pop3d"} {
		must(t, os.Symlink(self, filepath.Join(dir, name)))
	}
	for _, d := range []string{"control", "alice", "alice/Maildir", "alice/Maildir/tmp", "alice/Maildir/new", "alice/Maildir/cur"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	for name, text := range map[string]string{"me": "mx.test.example\n", "pop3checkpassword": filepath.Join(dir, "checkpassword") + "\n"} {
		must(t, os.WriteFile(filepath.Join(dir, "control", name), []byte(text), 0o644))
	}
	for i, m := range messages {
		deliver(t, dir, fmt.Sprintf("%d.%d.host", 1000000000+i, i), m, int64(1000000000+i))
	}
	s := &site{dir: dir, orders: make(chan env.Order), done: make(chan struct{})}
	s.own(t)
	s.log, err = os.Create(filepath.Join(dir, "log"))
	must(t, err)
	e := &env.Env{
		Home: dir, Stderr: s.log, Now: time.Now, Orders: s.orders, Ready: func() error { return nil },
		Vars: []string{"PATH=" + dir + ":/usr/bin:/bin"},
	}
	c, err := readConfig(dir)
	must(t, err)
	l := newListener(e, c)
	l.grace = shortGrace
	go func() {
		l.Run(context.WithoutCancel(t.Context()))
		close(s.done)
	}()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.address = ln.Addr().String()
	s.orders <- env.Order{Kind: env.Listen, Name: "pop3", Listener: ln}
	t.Cleanup(func() { s.stop(t) })
	return s
}

func (s *site) stop(t testing.TB) {
	if s.orders == nil {
		return
	}
	s.orders <- env.Order{Kind: env.Stop}
	s.orders = nil
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		t.Error("does not stop")
	}
	s.log.Close()
}

func deliver(t testing.TB, dir, name, text string, when int64) {
	t.Helper()
	path := filepath.Join(dir, "alice/Maildir/new", name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	must(t, os.Chtimes(path, time.Unix(when, 0), time.Unix(when, 0)))
}

// own gives alice what is hers.
func (s *site) own(t testing.TB) {
	if os.Getuid() != 0 {
		return
	}
	must(t, filepath.WalkDir(filepath.Join(s.dir, "alice"), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nobody, nobody)
	}))
}

// attempts is how often the checker was asked.
func (s *site) attempts() int {
	b, _ := os.ReadFile(filepath.Join(s.dir, "attempts"))
	return bytes.Count(b, []byte("\n"))
}

// client is one end of a session.
type client struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func (s *site) dial(t testing.TB) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	must(t, err)
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { conn.Close() })
	c := &client{t, conn, bufio.NewReader(conn)}
	return c
}

// line reads one line, "" at the end.
func (c *client) line() string {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(line, "\r\n")
}

func (c *client) say(line string) string {
	c.t.Helper()
	_, err := io.WriteString(c.conn, line+"\r\n")
	must(c.t, err)
	return c.line()
}

func (s *site) login(t testing.TB) *client {
	t.Helper()
	c := s.dial(t)
	if greeting := c.line(); !strings.HasPrefix(greeting, "+OK <") || !strings.HasSuffix(greeting, "@mx.test.example>") {
		t.Fatalf("greeting %q", greeting)
	}
	c.say("USER alice")
	if got := c.say("PASS " + password); !strings.HasPrefix(got, "+OK") {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		t.Fatalf("login: %q; log %s", got, log)
	}
	return c
}

func TestASession(t *testing.T) {
	s := newSite(t, "Subject: 1\n\nx\n", "Subject: 2\n\ny\n")
	c := s.login(t)
	for _, step := range [][2]string{{"STAT", "+OK 2 28"}, {"DELE 1", "+OK "}, {"QUIT", "+OK "}} {
		if got := c.say(step[0]); got != step[1] {
			t.Errorf("%s: %q", step[0], got)
		}
	}
	if got := c.line(); got != "" {
		t.Errorf("after QUIT: %q", got)
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "alice/Maildir/*/*"))
	if err != nil || len(left) != 1 || !strings.HasSuffix(left[0], "/cur/1000000001.1.host:2,") {
		t.Errorf("left %v %v", left, err)
	}
}

func TestCommandsSentAheadReachTheNextProgram(t *testing.T) {
	s := newSite(t, "Subject: 1\n\nx\n")
	c := s.dial(t)
	_, err := io.WriteString(c.conn, "USER alice\r\nPASS "+password+"\r\nSTAT\r\nQUIT\r\n")
	must(t, err)
	var got []string
	for line := c.line(); line != ""; line = c.line() {
		got = append(got, line)
	}
	if len(got) != 5 || got[3] != "+OK 1 14" {
		t.Errorf("%q", got)
	}
}

func TestRefusals(t *testing.T) {
	s := newSite(t)
	for _, tt := range []struct{ name, user, pass, want string }{
		{"a wrong password", "alice", "wrong", "-ERR authorization failed"},
		{"an unknown user", "eve", password, "-ERR authorization failed"},
		{"root, with the right password", "root", "rootpw", "-ERR authorization failed"},
		{"trouble that may pass", "busy", "x", "-ERR temporary problem, try again later"},
		{"a checker that crashes", "crash", "x", "-ERR aack, child crashed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := s.dial(t)
			c.line()
			c.say("USER " + tt.user)
			if got := c.say("PASS " + tt.pass); got != tt.want {
				t.Errorf("%q", got)
			}
			if got := c.line(); got != "" {
				t.Errorf("the session goes on: %q", got)
			}
		})
	}
	s.stop(t)
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil || !strings.Contains(string(log), `"login alice": authorization failed`) || strings.Contains(string(log), "wrong") {
		t.Errorf("log %s %v", log, err)
	}
}

func TestStopEndsSessions(t *testing.T) {
	s := newSite(t, "Subject: 1\n\nx\n")
	waiting, inside := s.dial(t), s.login(t)
	waiting.line()
	inside.say("DELE 1")
	began := time.Now()
	s.stop(t)
	if waiting.line() != "" || inside.line() != "" {
		t.Error("a session goes on")
	}
	if d := time.Since(began); d < shortGrace || d > shortGrace+10*time.Second {
		t.Errorf("took %v", d)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "alice/Maildir/new/*")); len(left) != 1 {
		t.Errorf("without QUIT mail was removed or moved: %v", left)
	}
}

func TestSessionsAtOnce(t *testing.T) {
	s := newSite(t, "Subject: 1\n\nx\n", "Subject: 2\n\ny\n", "Subject: 3\n\nz\n")
	a, b := s.login(t), s.login(t)
	a.say("DELE 1")
	b.say("DELE 1")
	b.say("DELE 2")
	if got := a.say("QUIT"); got != "+OK " {
		t.Errorf("%q", got)
	}
	if got := b.say("RETR 3"); got != "+OK " { // moved to cur meanwhile
		t.Errorf("%q", got)
	}
	for line := b.line(); line != "."; line = b.line() {
		if line == "" && b.in.Buffered() == 0 {
			t.Fatal("no end")
		}
	}
	if got := b.say("QUIT"); got != "+OK " { // message 1 is gone already
		t.Errorf("%q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "alice/Maildir/*/*")); len(left) != 1 || !strings.HasSuffix(left[0], "cur/1000000002.2.host:2,") {
		t.Errorf("left %v", left)
	}
}

func TestConfigWantsAProgram(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "control"), 0o755))
	var said bytes.Buffer
	e := &env.Env{Home: dir, Stderr: &said, Orders: make(chan env.Order)}
	if code := Main(t.Context(), e, nil); code != 111 || !strings.Contains(said.String(), "pop3checkpassword") {
		t.Errorf("%d %s", code, said.String())
	}
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var th throttle
		guess := func(ip string) bool { return th.take(netip.MustParseAddr(ip), time.Now()) }
		for i := range maxGuesses {
			if !guess("192.0.2.1") {
				t.Fatalf("guess %d refused", i+1)
			}
		}
		if guess("192.0.2.1") {
			t.Error("one more was allowed")
		}
		if !guess("192.0.2.2") {
			t.Error("another client pays for it")
		}
		th.give(netip.MustParseAddr("192.0.2.1"))
		if !guess("192.0.2.1") || guess("192.0.2.1") {
			t.Error("a guess given back counts once")
		}
		time.Sleep(refill)
		if !guess("192.0.2.1") || guess("192.0.2.1") {
			t.Error("time gives one back")
		}
		for range maxGuesses {
			guess("2001:db8::1")
		}
		if guess("2001:db8::2") || !guess("2001:db8:0:1::2") {
			t.Error("an IPv6 client is its /64")
		}
		for i := range 3 * maxClients {
			guess(fmt.Sprintf("10.%d.%d.1", i>>8&255, i&255))
		}
		if len(th.clients) > maxClients {
			t.Errorf("%d clients are remembered", len(th.clients))
		}
	})
}

// TestManyAtOnce: each session is its own, and no guess is counted against the right password.
func TestManyAtOnce(t *testing.T) {
	s := newSite(t, "Subject: 1\n\nx\n")
	var wg sync.WaitGroup
	for range 2 * perClient {
		wg.Go(func() {
			conn, err := net.Dial("tcp", s.address)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			io.WriteString(conn, "USER alice\r\nPASS "+password+"\r\nSTAT\r\nQUIT\r\n")
			b, _ := io.ReadAll(conn)
			if got := string(b); !strings.Contains(got, "+OK 1 14\r\n") && got != tooMany {
				t.Errorf("%q", got)
			}
		})
	}
	wg.Wait()
}
