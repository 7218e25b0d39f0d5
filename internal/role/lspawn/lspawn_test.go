package lspawn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/cdb"
	"qmail/internal/proto/lookup"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// facts is what a worker sees of the world.
type facts struct {
	Args, Env, Files []string
	UID, GID         int
	Groups           []int
	Dir              string
	Session          bool // leads one of its own
}

// TestMain is also the qmail-local of these tests: it tells what it sees and waits for the end of its pipe.
func TestMain(m *testing.M) {
	if os.Args[0] != "qmail-local" {
		os.Exit(m.Run())
	}
	if os.Args[1] == "--" {
		os.Exit(classicLocal())
	}
	if os.Args[2] == "crash" {
		fmt.Fprintln(os.Stderr, "I give up\nalert: forged")
		os.Exit(3)
	}
	f := facts{Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid()}
	f.Groups, _ = os.Getgroups()
	f.Dir, _ = os.Getwd()
	sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	f.Session = int(sid) == os.Getpid()
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/proc/") || strings.HasPrefix(target, "/sys/fs/cgroup/") {
			continue // the Go runtime's own, and the directory just read
		}
		f.Files = append(f.Files, e.Name())
	}
	conn, err := ipc.FromFile(os.Stdin)
	if err != nil {
		os.Exit(4)
	}
	b, _ := json.Marshal(f)
	if conn.Send('F', 0, b) != nil {
		os.Exit(5)
	}
	conn.Read()
}

// home makes a home whose users/cdb knows the given accounts, one "name uid gid" each.
func home(t *testing.T, accounts ...string) string {
	t.Helper()
	dir := t.TempDir()
	os.MkdirAll(dir+"/users", 0o755)
	os.MkdirAll(dir+"/control", 0o755)
	f, err := os.Create(dir + "/users/cdb")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := cdb.NewWriter(f)
	for _, a := range accounts {
		p := strings.Fields(a)
		w.Add([]byte("!"+p[0]+"\x00"), []byte(strings.Join([]string{p[0], p[1], p[2], "/home/" + p[0], "", ""}, "\x00")))
	}
	w.Add(nil, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// world is a spawner at work, with the log it writes and a client of it.
type world struct {
	*spawner
	client *lookup.Client
	log    *bytes.Buffer
}

func start(t *testing.T, dir string, change func(*spawner)) world {
	t.Helper()
	log := &bytes.Buffer{}
	e := &env.Env{Home: dir, Vars: []string{"PATH=/bin", "SECRET=x", "LD_PRELOAD=/evil.so"}, Now: time.Now}
	s := newSpawner(e, filepath.Join(dir, "passwd"), slog.New(slog.NewTextHandler(log, nil)))
	if change != nil {
		change(s)
	}
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	orders := make(chan env.Order)
	over := make(chan struct{})
	go func() { s.obey(context.WithoutCancel(t.Context()), orders); close(over) }()
	orders <- env.Order{Kind: env.Link, Name: "send", Link: b}
	w := world{s, lookup.NewClient(a), log}
	t.Cleanup(func() {
		w.client.Close()
		orders <- env.Order{Kind: env.Stop}
		<-over
		w.await(t, 0)
	})
	return w
}

// await waits until n workers are alive.
func (w world) await(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		alive := w.alive
		w.mu.Unlock()
		if alive == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d workers alive, want %d", alive, n)
		}
	}
}

// own is an account that this process may start workers for: somebody else if we are root, else ourselves.
func own() string {
	if os.Getuid() == 0 {
		return "ann 7790 7791"
	}
	return fmt.Sprintf("ann %d %d", os.Getuid(), os.Getgid())
}

func TestAWorkerHasTheRightsOfItsUserAndNothingElse(t *testing.T) {
	dir := home(t, own())
	if err := os.WriteFile(dir+"/control/defaultdelivery", []byte("./Maildir/\n|second line\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	inherited, err := syscall.Open(dir, syscall.O_RDONLY, 0) // without O_CLOEXEC, as if we had been started with it
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(inherited)
	w := start(t, dir, nil)
	a, conn, err := w.client.Pipe(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	f := read(t, conn)
	w.await(t, 1)
	conn.Close()
	w.await(t, 0) // it ends with its pipe
	want := strings.Fields(own())
	if strconv.Itoa(f.UID) != want[1] || strconv.Itoa(f.GID) != want[2] || a.UID != f.UID || a.Home != "/home/ann" {
		t.Errorf("uid %d gid %d, account %+v", f.UID, f.GID, a)
	}
	if os.Getuid() == 0 && len(f.Groups) != 0 {
		t.Errorf("groups %v", f.Groups)
	}
	if !slices.Equal(f.Args, []string{"qmail-local", "--serve", "ann", "/home/ann", "./Maildir/\n|second line"}) {
		t.Errorf("args %q", f.Args)
	}
	if !slices.Equal(f.Env, []string{"QMAILHOME=" + dir, "PATH=/bin"}) {
		t.Errorf("environment %q", f.Env)
	}
	if !slices.Equal(f.Files, []string{"0", "1", "2"}) {
		t.Errorf("open files %q", f.Files)
	}
	if f.Dir != "/" || !f.Session {
		t.Errorf("directory %q, session %v", f.Dir, f.Session)
	}
}

func TestAWorkerIsToldWhatRunsInItsPlace(t *testing.T) {
	dir := home(t, own())
	for _, tt := range []struct{ file, variable, want string }{
		{"", "", ""}, {"/opt/local\n", "", "QMAILLOCAL=/opt/local"}, {"/opt/local\n", "/opt/other", "QMAILLOCAL=/opt/other"},
	} {
		if tt.file != "" {
			if err := os.WriteFile(dir+"/control/qmaillocal", []byte(tt.file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		w := start(t, dir, func(s *spawner) {
			e := &env.Env{Home: dir}
			if tt.variable != "" {
				e.Vars = []string{"QMAILLOCAL=" + tt.variable}
			}
			s.module = func() (string, error) { return readModule(e) }
		})
		_, conn, err := w.client.Pipe(t.Context(), "ann")
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(read(t, conn).Env[2:], " ")
		conn.Close()
		if got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
	os.Remove(dir + "/control/qmaillocal")
	if err := os.Mkdir(dir+"/control/qmaillocal", 0o755); err != nil {
		t.Fatal(err)
	}
	w := start(t, dir, nil)
	if _, _, err := w.client.Pipe(t.Context(), "ann"); err == nil || !strings.Contains(err.Error(), "Temporary failure") {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

func read(t *testing.T, conn *ipc.Conn) facts {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	frame, err := conn.Read()
	if err != nil {
		t.Fatal(err)
	}
	var f facts
	if err := json.Unmarshal(frame.Payload, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRefusals(t *testing.T) {
	dir := home(t, own(), "root 0 0", "other 12345 12345")
	os.WriteFile(dir+"/passwd", nil, 0o644)
	me := func(uid int) func(*spawner) { return func(s *spawner) { s.uid = uid } }
	broken := func(s *spawner) { s.program = "/nonexistent" }
	full := func(s *spawner) { s.alive = maxWorkers }
	unreadable := func(s *spawner) { s.delivery = func() (string, error) { return "", io.ErrUnexpectedEOF } }
	tests := []struct {
		name, local string
		change      func(*spawner)
		want        string
	}{
		{"nobody has the empty name", "", nil, "DSorry, no mailbox here by that name. (#5.1.1)\n"},
		{"root gets no mail", "root", nil, "ZNot allowed to perform deliveries as root.\n"},
		{"without root there is nobody but us", "other", me(54321), "Zunable to become another user: started without root. (#4.3.0)\n"},
		{"no alias", "who", nil, "ZUnable to find alias user!\n"},
		{"a program that is gone defers, it does not bounce", "ann", broken, "ZUnable to run qmail-local.\n"},
		{"too many at once", "ann", full, "Ztoo many users have mail at once. (#4.3.0)\n"},
		{"settings that cannot be read", "ann", unreadable, "ZTemporary failure in qmail-lspawn.\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t, dir, tt.change)
			_, _, err := w.client.Pipe(t.Context(), tt.local)
			if r, ok := errors.AsType[*lookup.Refusal](err); !ok || r.Report != tt.want {
				t.Errorf("%v, want %q", err, tt.want)
			}
			w.mu.Lock()
			w.alive = 0
			w.mu.Unlock()
		})
	}
}

func TestWithoutRootALookupStillAnswersForEverybody(t *testing.T) {
	w := start(t, home(t, "other 12345 12345"), func(s *spawner) { s.uid = 54321 })
	if a, err := w.client.Find(t.Context(), "other"); err != nil || a.UID != 12345 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestTheDeathOfAWorkerIsOneLineInTheLog(t *testing.T) {
	w := start(t, home(t, strings.Replace(own(), "ann", "crash", 1)), nil)
	_, conn, err := w.client.Pipe(t.Context(), "crash")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(); err != io.EOF {
		t.Errorf("pipe of a dead worker: %v", err)
	}
	w.await(t, 0)
	text := w.log.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, "exit status 3") || !strings.Contains(text, "I give up") {
		t.Errorf("log %q", text)
	}
}

func TestANewLinkReplacesTheOld(t *testing.T) {
	dir := home(t, own())
	e := &env.Env{Home: dir, Now: time.Now}
	s := newSpawner(e, dir+"/passwd", slog.New(slog.DiscardHandler))
	orders := make(chan env.Order)
	over := make(chan struct{})
	go func() { s.obey(t.Context(), orders); close(over) }()
	link := func() *lookup.Client {
		a, b, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		orders <- env.Order{Kind: env.Link, Link: b}
		return lookup.NewClient(a)
	}
	first := link()
	if _, err := first.Find(t.Context(), "ann"); err != nil {
		t.Error(err)
	}
	second := link()
	<-first.Done()
	if _, err := second.Find(t.Context(), "ann"); err != nil {
		t.Error(err)
	}
	close(orders) // a lost supervisor
	<-over
	<-second.Done()
}

// A qmail-send that was taken over may send anything. It loses its own link and nothing else.
func TestGarbageEndsItsOwnLinkOnly(t *testing.T) {
	s := newSpawner(&env.Env{Home: home(t, own()), Now: time.Now}, "/nonexistent", slog.New(slog.DiscardHandler))
	orders := make(chan env.Order)
	over := make(chan struct{})
	go func() { s.obey(context.WithoutCancel(t.Context()), orders); close(over) }()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		ours, theirs, err := ipc.Pair()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := ipc.FromFile(theirs)
		if err != nil {
			t.Fatal(err)
		}
		orders <- env.Order{Kind: env.Link, Link: conn}
		junk := make([]byte, rnd.IntN(200))
		for j := range junk {
			junk[j] = byte(rnd.Uint32())
		}
		if i%2 == 0 { // something that looks like a frame
			junk = append([]byte{0, 0, 0, byte(len(junk)), "LPXK"[i/2%4], byte(i / 8 % 3), 0, 0, 0, 1}, junk...)
		}
		ours.Write(junk) // it may be gone already
		ours.Close()
	}
	a, b, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	orders <- env.Order{Kind: env.Link, Link: b}
	c := lookup.NewClient(a)
	defer c.Close()
	if a, err := c.Find(t.Context(), "ann"); err != nil || a.User != "ann" {
		t.Errorf("%+v, %v", a, err)
	}
	close(orders)
	<-over
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.alive != 0 {
		t.Errorf("garbage started %d workers", s.alive)
	}
}

func TestMainWantsADefaultDelivery(t *testing.T) {
	var said strings.Builder
	e := &env.Env{Home: t.TempDir(), Stderr: &said, Now: time.Now}
	if code := Main(t.Context(), e, nil); code != 100 || !strings.Contains(said.String(), "usage: qmail-lspawn defaultdelivery") {
		t.Errorf("exit %d, %q", code, said.String())
	}
}
