package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmail/cmd/bench/internal/peer"
	"qmail/cmd/bench/internal/report"
)

// comparison is one run: every mode in every round, by each server in turn.
type comparison struct {
	self    string // this program
	scratch string

	binary, profile, only, json, dir       string
	generator, sinkKind                    string
	modes                                  []mode
	rounds, messages, size, sessions       int
	posts, recipients, domains             int
	held, heldTheirs                       int
	deadline, calm                         time.Duration
	keep, install, quiet, oneRelay, limits bool
	untold                                 bool // it has been said that processes cannot be counted

	report report.Report
}

const (
	ours   = "qmail"
	theirs = "postfix"
)

// compareMain is the whole comparison.
func compareMain(ctx context.Context, args []string) error {
	c := &comparison{}
	if err := c.flags(args); err != nil {
		return err
	}
	peers, err := c.peers(ctx)
	if err != nil {
		return err
	}
	if err := raiseFiles(); err != nil {
		return err
	}
	if c.scratch, err = os.MkdirTemp(c.dir, "bench-"); err != nil {
		return err
	}
	if !c.keep {
		defer os.RemoveAll(c.scratch)
	}
	// Postfix and nobody must be able to reach their own directories in it.
	if err := os.Chmod(c.scratch, 0o755); err != nil {
		return err
	}
	spread(c.scratch)
	c.describe(ctx, peers)
	err = c.run(ctx, peers)
	return errors.Join(err, c.print())
}

// flags reads the command line.
func (c *comparison) flags(args []string) (err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	keys := fs.String("modes", usualModes(), "which modes, by their letters:\n"+describeModes())
	fs.IntVar(&c.rounds, "rounds", 3, "how often each server does each mode; they take turns")
	fs.IntVar(&c.messages, "messages", 3000, "messages for each measurement of the modes that count messages")
	fs.IntVar(&c.size, "size", 4096, "bytes of each message's body")
	fs.IntVar(&c.sessions, "sessions", 20, "SMTP sessions at once")
	fs.IntVar(&c.posts, "posts", 5, "list posts for each measurement, one after the other")
	fs.IntVar(&c.recipients, "recipients", 1000, "recipients of a list post")
	fs.IntVar(&c.domains, "domains", 100, "domains of a list post")
	fs.IntVar(&c.held, "held", 5000, "idle sessions")
	fs.IntVar(&c.heldTheirs, "held-postfix", 500, "idle sessions for Postfix, where each is a process of its own: 5000 take 6 GiB")
	fs.BoolVar(&c.limits, "limits", true, "also measure what the machine does without any server: files made, messages copied")
	fs.StringVar(&c.sinkKind, "sink", "own", "where relayed messages end in mode c: own, or Postfix's smtp-sink")
	fs.BoolVar(&c.oneRelay, "one-relay", false, "send list posts by way of one relay, not to one host for each domain")
	fs.StringVar(&c.only, "only", "", "measure only `qmail` or postfix")
	fs.StringVar(&c.generator, "generator", "auto", "load generator of the modes without pipelining: smtp-source, own, or auto: smtp-source if it is there")
	fs.StringVar(&c.binary, "qmail", "bin/qmail", "the `program` to measure")
	fs.StringVar(&c.profile, "profile", "", "let our server, built with -tags profile and named by -qmail, write profiles into this `directory`")
	fs.StringVar(&c.json, "json", "", "also write the results into this `file`")
	fs.StringVar(&c.dir, "scratch", "", "where to make the scratch `directory` that holds all queues (default: that for temporary files)")
	fs.BoolVar(&c.keep, "keep", false, "leave the scratch directory behind, with every server's files and logs")
	fs.BoolVar(&c.install, "install", false, "let apt install Postfix if it is missing and we are root")
	fs.BoolVar(&c.quiet, "postfix-unlogged", false, "give Postfix no log to write, which makes it faster")
	fs.DurationVar(&c.calm, "calm", 0, "before each measurement wait, at most so long, until others take less than a tenth of the CPUs")
	fs.DurationVar(&c.deadline, "deadline", 2*time.Minute, "how long one measurement may take")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if min(c.rounds, c.messages, c.size, c.sessions, c.posts, c.recipients, c.domains, c.held, c.heldTheirs) < 1 {
		return errors.New("every count must be at least 1")
	}
	if !slices.Contains([]string{"", ours, "ours", theirs}, c.only) {
		return fmt.Errorf("-only %s: there is %s and %s", c.only, ours, theirs)
	}
	if c.sinkKind != "own" && c.sinkKind != "smtp-sink" {
		return fmt.Errorf("-sink %s: there is own and smtp-sink", c.sinkKind)
	}
	if c.modes, err = pickModes(*keys); err != nil {
		return err
	}
	if c.self, err = os.Executable(); err != nil {
		return err
	}
	if c.profile != "" {
		if c.profile, err = filepath.Abs(c.profile); err != nil {
			return err
		}
	}
	return c.pickGenerator()
}

// pickGenerator decides about auto.
func (c *comparison) pickGenerator() error {
	_, err := exec.LookPath("smtp-source")
	switch c.generator {
	case "own":
		return nil
	case "smtp-source":
		return err
	case "auto":
		// Asked again after an installation; see peers.
		c.generator = "own"
		if err == nil {
			c.generator = "smtp-source"
		}
		return nil
	}
	return fmt.Errorf("-generator %s: there is smtp-source, own and auto", c.generator)
}

// peers are the servers that can be measured here; what is missing is said by name.
func (c *comparison) peers(ctx context.Context) ([]peer.Peer, error) {
	q, p := peer.Qmail{Binary: c.binary, Profile: c.profile}, peer.Postfix{Quiet: c.quiet}
	var peers []peer.Peer
	if c.only != theirs {
		if err := q.Missing(); err != nil {
			return nil, err
		}
		peers = append(peers, q)
	}
	if c.only == "" || c.only == theirs {
		if c.install && p.Missing() != nil && os.Geteuid() == 0 {
			fmt.Fprintln(os.Stderr, "installing Debian's package postfix")
			if err := p.Install(ctx); err != nil {
				c.note(err.Error())
			}
			if c.generator == "own" {
				c.generator = "auto"
			}
			if err := c.pickGenerator(); err != nil {
				return nil, err
			}
		}
		if err := p.Missing(); err != nil {
			c.note(fmt.Sprintf("without Postfix there are no ratios: %v", err))
		} else {
			peers = append(peers, p)
		}
	}
	if len(peers) == 0 {
		return nil, errors.New("there is nothing to measure: " + strings.Join(c.report.Notes, "; "))
	}
	return peers, nil
}

func (c *comparison) note(s string) {
	fmt.Fprintln(os.Stderr, "bench:", s)
	c.report.Notes = append(c.report.Notes, s)
}

// describe says on what and with what the run is made.
func (c *comparison) describe(ctx context.Context, peers []peer.Peer) {
	var u unix.Utsname
	unix.Uname(&u)
	c.report.Begun = time.Now()
	c.report.Machine = fmt.Sprintf("%d CPUs, Linux %s, queues in %s (%s)", runtime.NumCPU(), unix.ByteSliceToString(u.Release[:]),
		c.scratch, fileSystem(c.scratch))
	c.report.Versions = map[string]string{}
	for _, p := range peers {
		c.report.Versions[p.Name()] = p.Version(ctx)
	}
	c.report.Settings = map[string]string{
		"generator": c.generator, "messages": fmt.Sprint(c.messages), "size": fmt.Sprint(c.size), "sessions": fmt.Sprint(c.sessions),
		"posts": fmt.Sprint(c.posts), "recipients": fmt.Sprint(c.recipients), "domains": fmt.Sprint(c.domains), "held": fmt.Sprint(c.held), "held-postfix": fmt.Sprint(c.heldTheirs),
		"rounds": fmt.Sprint(c.rounds), "one-relay": fmt.Sprint(c.oneRelay), "postfix-unlogged": fmt.Sprint(c.quiet),
	}
	c.report.Notes = append(c.report.Notes, "without pipelining, messages come from "+c.generator)
}

// run does all rounds. In every second one the servers come in the other order.
func (c *comparison) run(ctx context.Context, peers []peer.Peer) error {
	for round := range c.rounds {
		turn := slices.Clone(peers)
		if round%2 == 1 {
			slices.Reverse(turn)
		}
		if c.limits {
			if err := c.machine(ctx); err != nil {
				return fmt.Errorf("round %d, the machine's limits: %w", round+1, err)
			}
		}
		for _, m := range c.modes {
			for _, p := range turn {
				if (m.protocol != "" || m.calls == "qmail-queue") && p.Name() != ours {
					continue
				}
				if err := becalm(ctx, c.calm); err != nil {
					return err
				}
				s, err := c.measure(ctx, m, p, round)
				if err != nil {
					return fmt.Errorf("round %d, mode %s, %s: %w", round+1, m.Key, p.Name(), err)
				}
				c.report.Samples = append(c.report.Samples, s)
				fmt.Fprintf(os.Stderr, "round %d  %s  %-8s %8.0f/s  %6.0f us CPU each  %5.1f MiB in %d processes%s\n", round+1, m.Key, p.Name(), s.Rate(),
					s.Cost(), float64(s.PSS)/(1<<20), s.Processes, s.Started())
			}
		}
	}
	return nil
}

// print writes what has been measured, also when the run could not be finished.
func (c *comparison) print() error {
	if len(c.report.Samples) == 0 {
		return nil
	}
	c.report.Took = time.Since(c.report.Begun).Seconds()
	var modes []report.Mode
	var busiest float64
	for _, m := range c.modes {
		modes = append(modes, m.Mode)
	}
	for _, s := range c.report.Samples {
		busiest = max(busiest, s.Others)
	}
	if busiest > tooBusy {
		c.note(fmt.Sprintf("the machine was busy with other work: up to %.0f %% of all CPUs", 100*busiest))
	}
	c.report.Summarize(modes, ours, theirs)
	for _, pair := range [][2]string{{"t", "h"}, {"T", "p"}, {"q", "n"}, {"q", "h"}} {
		if x, ok := c.report.Times(ours, pair[0], pair[1]); ok {
			c.note(fmt.Sprintf("%s: mode %s is %.1f times as fast as mode %s", ours, pair[0], x, pair[1]))
		}
	}
	if err := c.report.Table(os.Stdout, ours, theirs); err != nil || c.json == "" {
		return err
	}
	f, err := os.Create(c.json)
	if err != nil {
		return err
	}
	if err := c.report.JSON(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// raiseFiles lets us and the servers we start open as many files as thousands of sessions need.
func raiseFiles() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	if more := (unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}); lim.Max < more.Max && unix.Setrlimit(unix.RLIMIT_NOFILE, &more) == nil {
		return nil // only a root with all its capabilities may raise the hard limit
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("open files: %w", err)
	}
	return nil
}

// fileSystem names the type of the file system that holds a path.
func fileSystem(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "unknown file system"
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs: a sync costs nothing here"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	}
	return fmt.Sprintf("file system type %#x", st.Type)
}
