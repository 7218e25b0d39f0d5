package local

import (
	"context"
	"os"
	"time"

	"qmail/internal/proto/enqueue"
	"qmail/internal/proto/jobs"
	"qmail/internal/store/maildir"
	"qmail/internal/system/ipc"
)

// World is what a worker needs of the machine besides the home of its user.
type World struct {
	Open   func(path string) (maildir.Disk, error)
	Queue  func() (*enqueue.Client, error) // a new connection to the queue, for forwards
	Now    func() time.Time
	Random func() uint64
}

// Serve carries out the jobs of one link for a user, as Main does for qmail-lspawn, in a world of the caller's making,
// until the link or ctx ends: so a whole server can run inside one process.
func Serve(ctx context.Context, link *ipc.Conn, user, home, fallback string, world World) error {
	queue := &door{dial: world.Queue}
	defer queue.close()
	w := &worker{
		site: &site{
			maildirs: maildir.New(maildir.Config{Open: world.Open, Now: world.Now, Random: world.Random, Host: "world", PID: os.Getpid()}),
			queue:    queue, now: world.Now, uid: os.Geteuid(), patience: patience, linger: linger,
		},
		door: queue, user: user, home: home, fallback: fallback,
		slots: make(chan struct{}, together),
	}
	return jobs.ServeAsked(ctx, link, w.handle, w.answer)
}
