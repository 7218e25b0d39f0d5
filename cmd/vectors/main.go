// Command vectors replays recordings of the classic programs (internal/vectors) against a directory of programs.
//
//	vectors -bin DIR [-v] FILE|DIR...   run the cases; exit 1 if one failed or none was run
//	vectors -queue HOME                 print the messages waiting in a home as JSON, and remove them
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
	"path/filepath"
	"strings"

	"qmail/internal/vectors"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the programs")
	queue := flag.String("queue", "", "home whose waiting messages are printed and removed")
	verbose := flag.Bool("v", false, "name the cases that passed and those that were skipped too")
	only := flag.String("only", "", "run only cases whose names begin with this")
	flag.Parse()
	if *queue != "" {
		os.Exit(printQueue(*queue))
	}
	os.Exit(replay(*bin, *only, flag.Args(), *verbose))
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
		if verbose {
			fmt.Printf("skip %s: %v\n", c.Name, err)
		}
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
