//go:build profile

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
)

// walls says that the roles of qmail start are walled in. A profile is a file that none of them may write.
const walls = false

// profile writes a processor profile of this program to the directory that QMAILPROFILE names, and at the end what it
// allocated. Only a build with the tag "profile" does so, since the profiler costs every program its start.
func profile(name string) (stop func()) {
	dir := os.Getenv("QMAILPROFILE")
	if dir == "" {
		return func() {}
	}
	base := filepath.Join(dir, fmt.Sprintf("%s.%d", name, os.Getpid()))
	cpu, err := os.Create(base + ".cpu")
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: profile: %v\n", name, err)
		return func() {}
	}
	runtime.MemProfileRate = 64 << 10
	if err := pprof.StartCPUProfile(cpu); err != nil {
		fmt.Fprintf(os.Stderr, "%s: profile: %v\n", name, err)
	}
	return func() {
		pprof.StopCPUProfile()
		cpu.Close()
		if heap, err := os.Create(base + ".heap"); err == nil {
			pprof.Lookup("allocs").WriteTo(heap, 0)
			heap.Close()
		}
	}
}
