package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmail/cmd/bench/internal/meter"
	"qmail/cmd/bench/internal/peer"
	"qmail/cmd/bench/internal/report"
	"qmail/cmd/bench/internal/sink"
)

// TestMain lets the test program play the programs that a run starts: itself, and a server.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "qmail" {
		if err := standIn(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && (os.Args[1] == "nest" || os.Args[1] == "sink" || os.Args[1] == "load") {
		main()
		return
	}
	os.Exit(m.Run())
}

// standIn is a server with the command line of ours that accepts everything and delivers nothing. What it is not
// told in our server's way is an error, so that the adapter is tested too.
func standIn(args []string) error {
	if len(args) == 8 && args[0] == "init" && args[1] == "-home" && args[3] == "-listen" && args[5] == "-user" {
		home := args[2]
		at, ok := strings.CutPrefix(args[4], "smtp=")
		if !ok {
			return fmt.Errorf("listen: %q", args[4])
		}
		for _, d := range []string{"control", "mail/" + args[6] + "/Maildir/new"} {
			if err := os.MkdirAll(filepath.Join(home, d), 0o755); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(home, "control/listen"), []byte(at), 0o644)
	}
	if len(args) != 1 || args[0] != "start" {
		return fmt.Errorf("unexpected %q", args)
	}
	home := os.Getenv("QMAILHOME")
	if _, err := os.Stat(filepath.Join(home, "control/smtproutes")); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(home, "control/listen"))
	if err != nil {
		return err
	}
	at := string(b)
	if os.Getenv("QMAILPROFILE") != "" {
		return errors.New("told to fail")
	}
	s, err := sink.Open(netip.MustParseAddrPort(at))
	if err != nil {
		return err
	}
	return s.Run(context.Background())
}

// fakeServer is a program that plays the server when it is copied under its name.
func fakeServer(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

func TestWholeRunAgainstAStandIn(t *testing.T) {
	out := filepath.Join(t.TempDir(), "result.json")
	err := compareMain(t.Context(), []string{"-only", "qmail", "-qmail", fakeServer(t), "-modes", "h,n,p,e", "-rounds", "1", "-messages", "50",
		"-generator", "own", "-held", "30", "-limits=false", "-json", out})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var r report.Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Samples) != 4 {
		t.Fatalf("%d samples", len(r.Samples))
	}
	for _, s := range r.Samples {
		if s.Count == 0 || s.Seconds <= 0 || s.Processes != 1 || s.PSS <= 0 || s.CPU <= 0 {
			t.Errorf("mode %s: %+v", s.Mode, s)
		}
	}
}

// The whole way through Debian's Postfix, where it is installed.
func TestPostfix(t *testing.T) {
	if err := (peer.Postfix{}).Missing(); err != nil {
		t.Skip(err)
	}
	out := filepath.Join(t.TempDir(), "result.json")
	err := compareMain(t.Context(), []string{"-only", "postfix", "-modes", "b", "-rounds", "1", "-messages", "20", "-limits=false", "-json", out})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || !strings.Contains(string(b), `"Postfix `) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestServerThatFailsIsExplained(t *testing.T) {
	err := compareMain(t.Context(), []string{"-only", "qmail", "-qmail", fakeServer(t), "-modes", "h", "-limits=false", "-profile", t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "told to fail") {
		t.Errorf("the error is %v", err)
	}
}

func TestServerThatDeliversNothingIsGivenUp(t *testing.T) {
	for _, mode := range []string{"a", "b", "c", "d"} {
		err := compareMain(t.Context(), []string{"-only", "qmail", "-qmail", fakeServer(t), "-modes", mode, "-generator", "own", "-messages", "10", "-limits=false",
			"-deadline", "300ms"})
		if err == nil || !strings.Contains(err.Error(), "not done after 300ms") {
			t.Errorf("mode %s: the error is %v", mode, err)
		}
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range []string{"-modes x", "-modes a,x", "-rounds 0", "-only sendmail", "-generator hope", "left over", "-only qmail -qmail /nowhere"} {
		if err := compareMain(t.Context(), strings.Fields(args)); err == nil {
			t.Errorf("%s was accepted", args)
		}
	}
}

// The server of this test ignores SIGHUP, leaves one child behind in its own session and one in another.
func TestNestLeavesNothing(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(self, "nest", "--", "/bin/sh", "-c", "(setsid sleep 1000 & sleep 1000 &); touch up; sleep 1000 & wait")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tree := meter.Tree(cmd.Process.Pid)
	var pids []int
	for end := time.Now().Add(10 * time.Second); len(pids) < 4; time.Sleep(time.Millisecond) {
		if pids, err = tree.Pids(); err != nil || time.Now().After(end) {
			t.Fatal(pids, err)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, p := range pids {
		if err := unix.Kill(p, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d: %v", p, err)
		}
	}
}

func TestMaildirArrivals(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"new", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m, err := watchMaildirs([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	put := func(i int) {
		tmp, name := fmt.Sprintf("%s/tmp/%d", dir, i), fmt.Sprintf("%s/new/%d", dir, i)
		if err := errors.Join(os.WriteFile(tmp, nil, 0o644), os.Link(tmp, name)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // some servers link, some rename
			if err := errors.Join(os.Remove(name), os.Rename(tmp, name)); err != nil {
				t.Fatal(err)
			}
			m.want++ // it was seen twice
		}
	}
	m.expect(3)
	put(1)
	put(3)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.wait(ctx); err == nil || !strings.Contains(err.Error(), "2 of 3") {
		t.Errorf("the error is %v", err)
	}
	put(4)
	if end, err := m.wait(t.Context()); err != nil || time.Since(end) > 10*time.Second {
		t.Errorf("wait = %v, %v", end, err)
	}
	m.want-- // what put added
	if err := m.check(); err != nil {
		t.Error(err)
	}
	put(5)
	if err := m.check(); err == nil {
		t.Error("one more than were sent, and no error")
	}
}

func TestCountersOfSMTPSink(t *testing.T) {
	for line, want := range map[string]int{"sess=    3 quit=    2 mesg=   12\r": 12, "sess=3 quit=2 mesg=\r": -1, "": -1, "mesg=x": -1} {
		n, ok := messages([]byte(line))
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("messages(%q) = %d, %v", line, n, ok)
		}
	}
}
