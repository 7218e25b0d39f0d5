package load

import (
	"time"

	"qmail/cmd/bench/internal/poll"
)

// wire is the connection of a session: what is to be written, and its end.
type wire struct {
	run   *run
	fd    int
	last  time.Time
	in    []byte // what came and has not been used
	out   []byte
	waits bool // for room to write
	ended bool
}

// write writes what can be written now; the loop says when the rest can.
func (w *wire) write() error {
	if w.ended || len(w.out) == 0 && !w.waits {
		return nil
	}
	n := 0
	if len(w.out) > 0 {
		var err error
		if n, err = poll.Write(w.fd, w.out); err != nil {
			return err
		}
	}
	w.out = w.out[:copy(w.out, w.out[n:])]
	if waits := len(w.out) > 0; waits != w.waits {
		w.waits = waits
		return w.run.loop.Want(w.fd, waits)
	}
	return nil
}

// end closes the session and lets another take its place.
func (w *wire) end() {
	if w.ended {
		return
	}
	w.ended = true
	w.run.loop.Drop(w.fd)
	w.run.open--
	if w.run.fatal == nil {
		w.run.dial()
	}
}
