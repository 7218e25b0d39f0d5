package popup

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmail/internal/system/env"
)

// classicMain is what TestMain runs as qmail-popup.
func classicMain() int {
	e, err := env.Process()
	if err != nil {
		panic(err)
	}
	return Main(context.Background(), e, os.Args[1:])
}

// startClassic runs qmail-popup on one end of a socket pair, with standard error there too if asked.
func startClassic(t *testing.T, withErrors bool, script string) (conn net.Conn, wait func() int) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	theirs, ours := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours")
	conn, err = net.FileConn(ours)
	must(t, err)
	ours.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { conn.Close() })
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"qmail-popup", "pop.example", "/bin/sh", "-c", script}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if withErrors {
		cmd.Stderr = theirs
	}
	must(t, cmd.Start())
	theirs.Close()
	return conn, func() int {
		err := cmd.Wait()
		if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode()
	}
}

// TestTheProgramHasAnOrdinaryConnection: it blocks, all of it that was not read is there, and errors of the program
// are not for the client.
func TestTheProgramHasAnOrdinaryConnection(t *testing.T) {
	for _, withErrors := range []bool{false, true} {
		conn, wait := startClassic(t, withErrors, `cat <&3 >/dev/null; echo oops >&2; read line; sleep 0.1; read more; echo "$line $more"`)
		io.WriteString(conn, "USER joe\r\nPASS x\r\nSTAT\n")
		go func() {
			time.Sleep(300 * time.Millisecond) // the program waits by then; if not, it finds the line
			io.WriteString(conn, "QUIT\n")
		}()
		b, err := io.ReadAll(conn)
		lines := strings.Split(string(b), "\n")
		if code := wait(); code != 0 || err != nil || len(lines) != 4 || lines[2] != "STAT QUIT" {
			t.Errorf("exit %d, %q %v", code, b, err)
		}
	}
}

func TestClassicRefusals(t *testing.T) {
	conn, wait := startClassic(t, false, "exit 111")
	io.WriteString(conn, "APOP joe 0123\r\n")
	b, err := io.ReadAll(conn)
	if code := wait(); code != 1 || err != nil || !strings.HasSuffix(string(b), "\r\n-ERR temporary problem, try again later\r\n") {
		t.Errorf("exit %d, %q %v", code, b, err)
	}
	conn, wait = startClassic(t, false, "exit 0")
	conn.Close()
	if code := wait(); code != 1 {
		t.Errorf("a client that goes away: exit %d", code)
	}
}

func TestClassicReadsWhatTheCheckerIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "told")
	conn, wait := startClassic(t, false, "cat <&3 >"+path)
	io.WriteString(conn, "USER joe\r\nPASS a  b \r\n")
	greeting, _, _ := strings.Cut(func() string { b, _ := io.ReadAll(conn); return string(b) }(), "\r\n")
	if code := wait(); code != 0 {
		t.Errorf("exit %d", code)
	}
	b, err := os.ReadFile(path)
	if want := "joe\x00a  b \x00" + strings.TrimPrefix(greeting, "+OK ") + "\x00"; err != nil || string(b) != want {
		t.Errorf("%q, want %q (%v)", b, want, err)
	}
}
