package adversarial

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// statusOf reads a number of /proc/PID/status; 0 if the process is gone.
func statusOf(pid int, line string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(b, []byte(line+":"))
	rest, _, _ = bytes.Cut(rest, []byte("\n"))
	rest = bytes.TrimSuffix(rest, []byte("kB"))
	n, err := strconv.ParseInt(string(bytes.TrimSpace(rest)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// peak is the most memory that a process had at a time.
func peak(pid int) int64 { return statusOf(pid, "VmHWM") << 10 }

// resetPeak makes what a process has now its peak (proc(5), clear_refs), and returns it.
func resetPeak(pid int) int64 {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) // without it the peak is too high
	return peak(pid)
}

// childrensPeak is the most memory that one of the children of a process had at a time.
func childrensPeak(parent int) (most int64) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err == nil && parent > 0 && statusOf(pid, "PPid") == int64(parent) {
			most = max(most, peak(pid))
		}
	}
	return most
}

// watched runs a program with all it starts, and returns the most memory that it had.
func watched(cmd *exec.Cmd, limit time.Duration) (most int64, err error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	deadline := time.After(limit)
	for {
		select {
		case err := <-done:
			return most, err
		case <-deadline:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
			return most, errors.New("it does not end")
		case <-time.After(glance):
			most = max(most, peak(cmd.Process.Pid))
		}
	}
}
