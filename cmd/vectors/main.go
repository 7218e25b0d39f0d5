// Command vectors replays recordings of the classic programs (internal/vectors) against a directory of programs.
//
//	vectors -bin DIR [-v] FILE|DIR...   run the cases; exit 1 if one failed or none was run
//	vectors -queue HOME                 print the messages waiting in a home as JSON, and remove them
//
// Run by root it has an /etc of its own, in which qmail's users are made for the cases that need them; nobody else sees that.
//
// Cases tagged as warts are left out: what we do there is up to us. Where the original loses mail we differ on purpose, and
// must (vectors.Exception); each of these is named with its reason.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"qmail/internal/vectors"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the programs")
	queue := flag.String("queue", "", "home whose waiting messages are printed and removed")
	verbose := flag.Bool("v", false, "name the cases that passed, too")
	only := flag.String("only", "", "run only cases whose names begin with this")
	flag.Parse()
	if *queue != "" {
		os.Exit(printQueue(*queue))
	}
	done, err := withUsers(*bin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vectors: cases that need qmail's users may be left out:", err)
	}
	code := replay(*bin, *only, flag.Args(), *verbose)
	if done != nil {
		done()
	}
	os.Exit(code)
}

// alone says that this process has a mount namespace of its own.
const alone = "VECTORS_ALONE"

// withUsers sees to it that there are qmail's users, without a trace in the system: root runs this program again where
// it has mounts of its own. Others have the users that there are.
func withUsers(bin string) (done func(), err error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if os.Getenv(alone) == "" {
		runtime.LockOSThread() // the death of this thread would be that of its child
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Args[0], cmd.Env = os.Args[0], append(os.Environ(), alone+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return nil, err // it goes on here, with the users that there are
		}
		_ = cmd.Wait() // what it says and its code are ours
		if code := cmd.ProcessState.ExitCode(); code >= 0 {
			os.Exit(code)
		}
		fmt.Fprintln(os.Stderr, "vectors:", cmd.ProcessState)
		os.Exit(1)
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp("", "vectors-")
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.Chmod(scratch, 0o755), vectors.OwnUsers(bin, scratch))
	return func() {
		if err := errors.Join(vectors.DisownUsers(scratch), os.RemoveAll(scratch)); err != nil {
			fmt.Fprintln(os.Stderr, "vectors:", err)
		}
	}, err
}

func printQueue(home string) int {
	list, err := vectors.Dropped(home)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(list)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vectors:", err)
		return 1
	}
	return 0
}

// count is how the cases went.
type count struct {
	passed, skipped, differ int
	failed                  []string
}

func replay(bin, only string, paths []string, verbose bool) int {
	bin, err := filepath.Abs(bin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vectors:", err)
		return 1
	}
	r := &vectors.Runner{Bin: bin, ReadQueue: vectors.Dropped, Loose: true}
	var n count
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			files, _ = filepath.Glob(filepath.Join(path, "*.jsonl")) // none is no case, and told as such
		}
		for _, file := range files {
			cases, err := vectors.Load(file)
			if err != nil {
				fmt.Fprintln(os.Stderr, "vectors:", err)
				return 1
			}
			for _, c := range cases {
				if !c.Wart && strings.HasPrefix(c.Name, only) {
					n.one(&c, r.Run(&c), verbose)
				}
			}
		}
	}
	fmt.Printf("%d passed, %d failed, %d skipped, %d differ on purpose\n", n.passed, len(n.failed), n.skipped, n.differ)
	if len(n.failed) > 0 {
		fmt.Println("failing:", strings.Join(n.failed, " "))
	}
	if len(n.failed) > 0 || n.passed == 0 {
		return 1
	}
	return 0
}

func (n *count) one(c *vectors.Case, err error, verbose bool) {
	reason, differs := vectors.Exception(c.Name)
	switch {
	case errors.Is(err, vectors.ErrSkip):
		n.skipped++
		fmt.Printf("skip %s: %v\n", c.Name, err)
	case differs && err != nil:
		n.differ++
		fmt.Printf("differs on purpose: %s: %s\n", c.Name, reason)
	case differs:
		n.fail(c, "is as recorded, but should not be: "+reason)
	case err != nil:
		n.fail(c, err)
	default:
		n.passed++
		if verbose {
			fmt.Println("ok  ", c.Name)
		}
	}
}

func (n *count) fail(c *vectors.Case, why any) {
	n.failed = append(n.failed, c.Name)
	fmt.Printf("FAIL %s: %v\n", c.Name, why)
}
