// Command adversarial plays hostile input (internal/adversarial) against a directory of programs.
//
//	adversarial -bin DIR [-v] FILE|DIR...   play the cases; exit 1 if one failed or none was played
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"qmail/internal/adversarial"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the programs")
	verbose := flag.Bool("v", false, "name the cases that passed, too")
	only := flag.String("only", "", "play only cases whose names begin with this")
	atOnce := flag.Int("at-once", 16, "how many cases are played at a time; most of them wait")
	flag.Parse()
	os.Exit(play(*bin, *only, *atOnce, *verbose, flag.Args()))
}

// load reads the cases of files and of directories of files. A name that comes twice is the same case.
func load(paths []string, only string) (cases []adversarial.Case, err error) {
	seen := map[string]bool{}
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			files, _ = filepath.Glob(filepath.Join(path, "*.jsonl")) // none is no case, and told as such
		}
		for _, file := range files {
			list, err := adversarial.Load(file)
			if err != nil {
				return nil, err
			}
			for _, c := range list {
				if !seen[c.Name] && strings.HasPrefix(c.Name, only) {
					seen[c.Name] = true
					cases = append(cases, c)
				}
			}
		}
	}
	// Those that wait long come first, so that nobody waits for them alone.
	slices.SortStableFunc(cases, func(a, b adversarial.Case) int { return int(b.Waits().Seconds()) - int(a.Waits().Seconds()) })
	return cases, nil
}

// tally is how the cases went.
type tally struct {
	mu             sync.Mutex
	verbose        bool
	passed         int
	failed, leftTo []string
}

func play(bin, only string, atOnce int, verbose bool, paths []string) int {
	cases, err := load(paths, only)
	if err == nil {
		bin, err = filepath.Abs(bin)
	}
	var r *adversarial.Runner
	if err == nil {
		r, err = adversarial.New(bin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "adversarial:", err)
		return 1
	}
	t := &tally{verbose: verbose}
	queue := make(chan *adversarial.Case)
	var players sync.WaitGroup
	for range max(1, atOnce) {
		players.Go(func() {
			for c := range queue {
				began := time.Now()
				t.one(c, r.Run(c), time.Since(began))
			}
		})
	}
	for i := range cases {
		queue <- &cases[i]
	}
	close(queue)
	players.Wait()
	if err := r.Close(); err != nil {
		fmt.Println("FAIL", err)
		t.failed = append(t.failed, "afterwards")
	}
	return t.print()
}

func (t *tally) one(c *adversarial.Case, err error, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, adversarial.ErrSkip):
		t.leftTo = append(t.leftTo, c.Name)
		fmt.Printf("skip %s: %v\n", c.Name, err)
	case err != nil:
		t.failed = append(t.failed, c.Name)
		fmt.Printf("FAIL %s: %s\n", c.Name, strings.ReplaceAll(err.Error(), "\n", "\n     "))
	default:
		t.passed++
		if t.verbose {
			fmt.Printf("ok   %s (%.1fs)\n", c.Name, took.Seconds())
		}
	}
}

func (t *tally) print() int {
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, len(t.failed), len(t.leftTo))
	if len(t.failed) > 0 {
		slices.Sort(t.failed)
		fmt.Println("failing:", strings.Join(t.failed, " "))
	}
	if len(t.failed) > 0 || t.passed == 0 {
		return 1
	}
	return 0
}
