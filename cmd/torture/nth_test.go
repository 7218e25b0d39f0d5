package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// calls are the system calls by which the queue is kept.
var calls = []string{
	"pwrite64", "pwritev", "fdatasync", "fsync", "openat", "renameat", "linkat", "unlinkat", "fallocate", "ftruncate", "pread64", "fstat", "getdents64",
}

// TestEachSystemCallOfTheQueueFails lets strace fail the first, second, ... of each, in a qmail-send that works. Whatever
// was accepted arrives, whatever was refused does not, and the account comes out even.
func TestEachSystemCallOfTheQueueFails(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not there")
	}
	program := filepath.Join(t.TempDir(), "qmail")
	if out, err := exec.Command("go", "build", "-o", program, "qmail/cmd/qmail").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sink, err := newSink()
	if err != nil {
		t.Fatal(err)
	}
	defer sink.close()
	s, err := newServer(plan{program: program}, sink.port())
	if err != nil {
		t.Fatal(err)
	}
	defer s.remove()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	a := newAccount()
	sink.account = a
	g := &generator{server: s, account: a}
	send := func(size int) state {
		m := a.write(size, 1+a.last%15)
		x := g.smtp(m, m.text(size))
		a.set(m, x)
		return x
	}
	for deadline := time.Now().Add(20 * time.Second); send(100) != accepted; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not begin to work\n%s", s.tail())
		}
	}
	most, err := strconv.Atoi(os.Getenv("QMAIL_TEST_NTH")) // 60 for a release
	if err != nil {
		most = 2
	}
	failed := map[string]int{}
	for _, call := range calls {
		for nth := 1; nth <= most; nth++ {
			if !injected(t, s, call, nth, func() {
				for i := range 4 {
					send(300_000 * (i & 1)) // one in memory, one by a file
				}
			}) {
				continue
			}
			failed[call]++
			for deadline := time.Now().Add(10 * time.Second); send(100) != accepted; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("after %s failed it does not recover\n%s", call, s.tail())
				}
			}
		}
	}
	t.Log("failed:", failed)
	for _, call := range []string{"pwritev", "fdatasync", "linkat"} {
		if failed[call] == 0 {
			t.Errorf("%s never failed: what does the queue use instead?", call)
		}
	}
	if err := s.drain(context.Background()); err != nil {
		t.Fatalf("%v\n%s", err, s.tail())
	}
	sink.close()
	if err := a.collect(s); err != nil {
		t.Fatal(err)
	}
	text, wrong := a.judge()
	t.Log(text)
	for _, line := range wrong {
		t.Error(line)
	}
	if balance, err := s.verify(); err != nil {
		t.Errorf("%v\n%s", err, balance)
	}
}

// injected runs do while strace fails a call of qmail-send, and tells whether it did.
func injected(t *testing.T, s *server, call string, nth int, do func()) bool {
	t.Helper()
	pids := s.roles()["qmail-send"]
	if len(pids) != 1 {
		t.Fatalf("qmail-send is %v", pids)
	}
	var out bytes.Buffer
	log := filepath.Join(t.TempDir(), "strace")
	cmd := exec.Command("strace", "-f", "-qq", "-p", fmt.Sprint(pids[0]), "-o", log, "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:error=EIO:when=%d+5", call, nth))
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(5 * time.Second); !traced(pids[0]); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-ended:
			if strings.Contains(out.String(), "Operation not permitted") {
				t.Skipf("strace may not: %s", out.String())
			}
			t.Fatalf("strace: %v\n%s", err, out.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("strace does not begin")
		}
	}
	do()
	cmd.Process.Signal(syscall.SIGTERM) // it lets go
	select {
	case <-ended:
	case <-time.After(5 * time.Second): // or waits for a thread that is no more
		cmd.Process.Kill()
		<-ended
		syscall.Kill(pids[0], syscall.SIGCONT) // should it have been stopped to be let go
	}
	text, err := os.ReadFile(log)
	return err == nil && bytes.Contains(text, []byte("(INJECTED)"))
}

// traced tells whether somebody traces all threads of a process.
func traced(pid int) bool {
	text, err := exec.Command("sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/status", pid)).Output()
	return err == nil && bytes.Contains(text, []byte("TracerPid:")) && !bytes.Contains(text, []byte("TracerPid:\t0\n"))
}
