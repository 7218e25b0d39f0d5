// Package local is qmail-local: it delivers messages to one user, as that user, by the instructions of the
// .qmail files in the user's home (dot-qmail(5), qmail-command(8)).
//
// There are two ways in, with one meaning. As a worker ("--serve", started by qmail-lspawn) it takes jobs from
// qmail-send over descriptor 0, several at once, until that ends. As the classic program it delivers the
// message on descriptor 0 and says by its exit code what became of it: 0 done, 100 never, 111 later.
//
// A worker whose environment has QMAILLOCAL runs that program for each recipient, with the classic arguments and
// descriptors, and does nothing else.
//
// The text of a .qmail file is understood as a whole before anything is done about it. All deliveries of a
// worker into one maildir share its syncs.
package local

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"qmail/internal/proto/jobs"
	"qmail/internal/proto/qq"
	"qmail/internal/store/maildir"
	"qmail/internal/system/disk"
	"qmail/internal/system/env"
)

const (
	// patience is how long one program may take.
	patience = time.Hour
	// linger is how long a program's children may keep its output open after it has ended.
	linger = 5 * time.Second
	// deliveryTime is how long one message may take.
	deliveryTime = 24 * time.Hour
)

const usage = "qmail-local: usage: qmail-local [ -nN ] user homedir local dash ext domain sender aliasempty"

// Main is both ways in.
func Main(ctx context.Context, e *env.Env, args []string) int {
	syscall.Umask(0o077)
	if len(args) == 4 && args[0] == "--serve" {
		env.Settle(2)
		return serve(ctx, e, newWorker(e, args[1], args[2], args[3]))
	}
	return classic(ctx, e, args)
}

// newSite is the machine as it is.
func newSite(e *env.Env, queue submitter) *site {
	host, err := os.Hostname()
	if err != nil {
		host = "" // only part of file names
	}
	return &site{
		maildirs: maildir.New(maildir.Config{
			Open: openMaildir, Now: e.Now, Random: rand.Uint64, Host: host, PID: os.Getpid(),
		}),
		queue: queue, vars: e.Vars, now: e.Now, uid: os.Geteuid(), patience: patience, linger: linger,
	}
}

func openMaildir(path string) (maildir.Disk, error) {
	d, err := disk.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// classic delivers the message on descriptor 0.
func classic(ctx context.Context, e *env.Env, args []string) int {
	d, ok := parseArgs(args)
	if !ok {
		fmt.Fprintln(e.Stderr, usage)
		return exitNever
	}
	info, err := e.Stdin.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = syscall.ESPIPE
	}
	if err != nil {
		fmt.Fprintln(e.Stderr, "Unable to rewind message. (#4.3.0)")
		return exitLater
	}
	d.message = &message{body: jobs.NewFileBody(e.Stdin, 0, info.Size()), own: e.Stdin}
	ctx, cancel := context.WithTimeout(ctx, deliveryTime)
	defer cancel()
	return newSite(e, classicQueue{qq.New(e)}).run(ctx, d, e.Stdout, e.Stderr)
}

// parseArgs reads options and the eight arguments.
func parseArgs(args []string) (*delivery, bool) {
	d := &delivery{}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		option := args[0][1:]
		args = args[1:]
		if option == "-" {
			break
		}
		for _, c := range option {
			switch c {
			case 'n':
				d.dry = true
			case 'N':
				d.dry = false
			default:
				return nil, false
			}
		}
	}
	if len(args) != 8 || !strings.HasPrefix(args[1], "/") {
		return nil, false
	}
	d.user, d.home, d.local, d.dash, d.ext = args[0], args[1], args[2], args[3], args[4]
	d.domain, d.sender, d.fallback = args[5], args[6], args[7]
	return d, true
}
