package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// faults are what goes wrong.
type faults struct {
	server *server
	sink   *sink
	dice   *rand.Rand
	plan   plan
	counts map[string]int
}

func newFaults(s *server, k *sink, dice *rand.Rand, p plan) *faults {
	return &faults{server: s, sink: k, dice: dice, plan: p, counts: map[string]int{}}
}

func (f *faults) String() string {
	all := 0
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(f.counts)) {
		all += f.counts[what]
		parts = append(parts, fmt.Sprintf("%d %s", f.counts[what], what))
	}
	return fmt.Sprintf("%d: %s", all, strings.Join(parts, ", "))
}

// run lets things go wrong until ctx ends.
func (f *faults) run(ctx context.Context) {
	for {
		pause := time.Duration(f.dice.ExpFloat64() * float64(f.plan.every))
		select {
		case <-ctx.Done():
			f.server.alive()
			return
		case <-time.After(pause):
		}
		if err := f.server.alive(); err == nil {
			f.one()
		}
	}
}

func (f *faults) one() {
	roles := f.server.roles()
	name := ""
	if len(roles) > 0 {
		name = slices.Sorted(maps.Keys(roles))[f.dice.IntN(len(roles))]
	}
	switch n := f.dice.IntN(16); {
	case n < 2:
		if f.server.restart() == nil {
			f.counts["kills of all"]++
		}
	case n < 8 && name != "":
		pids := roles[name]
		if syscall.Kill(pids[f.dice.IntN(len(pids))], syscall.SIGKILL) == nil {
			f.counts["kills of "+name]++
		}
	case n < 10 && name != "":
		f.freeze(name, roles[name][0])
	case n < 12:
		f.counts["outages of the far server"]++
		f.sink.away(time.Duration(f.dice.Int64N(int64(2 * time.Second))))
	case n < 14 && name != "":
		f.starve(name, roles[name][0])
	case f.plan.full:
		f.fill()
	}
}

// freeze stops a process for a while.
func (f *faults) freeze(name string, pid int) {
	if syscall.Kill(pid, syscall.SIGSTOP) != nil {
		return
	}
	f.counts["stops of "+name]++
	time.Sleep(time.Duration(f.dice.Int64N(int64(2 * time.Second))))
	syscall.Kill(pid, syscall.SIGCONT)
}

// starve leaves a process no more descriptors than it has, for a while.
func (f *faults) starve(name string, pid int) {
	var before unix.Rlimit
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before) != nil {
		return
	}
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)), Max: before.Max}, nil) != nil {
		return
	}
	f.counts["times "+name+" had no descriptors"]++
	time.Sleep(time.Duration(f.dice.Int64N(int64(time.Second))))
	unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil)
}

// fill takes what room there is for the queue, for a while.
func (f *faults) fill() {
	name := filepath.Join(f.server.home, "queue", "journal", "filler")
	file, err := os.Create(name)
	if err != nil {
		return
	}
	defer os.Remove(name)
	defer file.Close()
	var st unix.Statfs_t
	if unix.Fstatfs(int(file.Fd()), &st) != nil || unix.Fallocate(int(file.Fd()), 0, 0, int64(st.Bavail)*int64(st.Bsize)-int64(f.dice.IntN(1<<20))) != nil {
		return
	}
	f.counts["times the disk was full"]++
	time.Sleep(time.Duration(f.dice.Int64N(int64(2 * time.Second))))
}
