// Package meter reads from /proc what a server's processes cost: all descendants of one process, now or since then
// ended.
//
// Time is exact to the nanosecond for living processes (their CPU clocks) and to the tick of 10 ms for the sum of
// those that have ended, which the kernel keeps with the parent that waited for them (proc(5): cutime, cstime).
// Memory is the resident set (RSS, which counts shared pages once for each process) and the proportional one (PSS,
// which counts each page once in all).
package meter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is everything below the process with this id, without itself.
type Tree int

// Memory is what the processes of a tree hold.
type Memory struct {
	Processes int
	RSS, PSS  int64 // bytes
}

// tick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every architecture of Linux that Go knows.
const tick = 10 * time.Millisecond

// process is what /proc/PID/stat says.
type process struct {
	pid, parent int
	reaped      time.Duration // CPU of its children that have ended
}

// Pids lists the processes of the tree.
func (t Tree) Pids() ([]int, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range t.below(all) {
		pids = append(pids, p.pid)
	}
	return pids, nil
}

// CPU is the time all processes of the tree have used so far, those that have ended included.
func (t Tree) CPU() (time.Duration, error) {
	all, err := processes()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, p := range t.below(all) {
		sum += p.reaped + Process(p.pid)
	}
	if root, ok := all[int(t)]; ok {
		sum += root.reaped
	}
	return sum, nil
}

// Memory adds up what the processes hold. It takes some milliseconds for a hundred processes, and holds each one's
// memory map while it looks.
func (t Tree) Memory() (Memory, error) {
	pids, err := t.Pids()
	if err != nil {
		return Memory{}, err
	}
	var m Memory
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if gone(err) {
			continue
		}
		if err != nil {
			return Memory{}, err
		}
		m.Processes++
		m.RSS += kilobytes(b, "Rss:")
		m.PSS += kilobytes(b, "Pss:")
	}
	return m, nil
}

// Machine is the time all CPUs together have spent on processes and interrupts since the machine started, to the tick.
// What it grows by and the measured processes do not account for is the work of others, which makes figures worthless.
func Machine() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return busy(b)
}

// busy reads the first line of proc(5) stat: user, nice, system, idle, iowait, irq, softirq, steal and more.
func busy(b []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 8 || string(f[0]) != "cpu" {
		return 0, errors.New("meter: /proc/stat is not as proc(5) says")
	}
	var sum time.Duration
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(string(f[i]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("meter: /proc/stat: %w", err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// gone reports that a process ended while it was looked at.
func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// below picks the descendants of the root.
func (t Tree) below(all map[int]process) []process {
	children := map[int][]process{}
	for _, p := range all {
		children[p.parent] = append(children[p.parent], p)
	}
	found := slices.Clone(children[int(t)])
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

// Process is the CPU clock of a living process with all its threads (clock_getcpuclockid(3)); 0 when it has ended.
func Process(pid int) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func processes() (map[int]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make(map[int]process, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/stat")
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if p, ok := parseStat(b); ok {
			all[pid] = p
		}
	}
	return all, nil
}

// parseStat reads a line of proc(5) stat. The name in parentheses may hold anything, parentheses too.
func parseStat(b []byte) (p process, ok bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return p, false
	}
	// Of the fields after the name the first is the third of the line: parent is 4, cutime 16, cstime 17.
	f := bytes.Fields(b[end+1:])
	if len(f) < 15 {
		return p, false
	}
	var errs [4]error
	var user, system int
	p.pid, errs[0] = strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	p.parent, errs[1] = strconv.Atoi(string(f[1]))
	user, errs[2] = strconv.Atoi(string(f[13]))
	system, errs[3] = strconv.Atoi(string(f[14]))
	p.reaped = time.Duration(user+system) * tick
	return p, errors.Join(errs[:]...) == nil
}

// kilobytes finds a line such as "Pss:  1234 kB" and gives bytes.
func kilobytes(b []byte, name string) int64 {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) == 3 && string(f[0]) == name {
			n, err := strconv.ParseInt(string(f[1]), 10, 64)
			if err == nil {
				return n << 10
			}
		}
	}
	return 0
}
