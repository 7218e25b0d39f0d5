package smtpd

import (
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// refusals writes a line of log for each thing refused, without a session ever waiting for the log, and no
// more than the disk can bear: what is beyond the rate or the buffer is counted, and the count is logged.
type refusals struct {
	log     *slog.Logger
	lines   chan string
	dropped atomic.Int64
}

const (
	refusalBuffer = 256
	refusalRate   = 100 // lines per second
	maxQuoted     = 200 // bytes of a stranger's line
)

func newRefusals(log *slog.Logger) *refusals {
	return &refusals{log: log, lines: make(chan string, refusalBuffer)}
}

// note never waits.
func (r *refusals) note(ip, command, answer string) {
	if len(r.lines) == cap(r.lines) {
		r.dropped.Add(1)
		return
	}
	select {
	case r.lines <- refusalLine(ip, command, answer):
	default:
		r.dropped.Add(1)
	}
}

// refusalLine quotes what the stranger wrote, so that it cannot be taken for ours.
func refusalLine(ip, command, answer string) string {
	if ip == "" {
		ip = "unknown"
	}
	if len(command) > maxQuoted {
		command = command[:maxQuoted] + "..."
	}
	answer, _, _ = strings.Cut(answer, "\r\n")
	return "refused " + ip + ": " + strconv.QuoteToASCII(command) + ": " + answer
}

// write logs until close; its owner runs it in a goroutine.
func (r *refusals) write() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	left := refusalRate
	for {
		select {
		case line, open := <-r.lines:
			if !open {
				r.sum()
				return
			}
			if left--; left < 0 {
				r.dropped.Add(1)
				continue
			}
			r.log.Info(line)
		case <-ticker.C:
			left = refusalRate
			r.sum()
		}
	}
}

func (r *refusals) sum() {
	if n := r.dropped.Swap(0); n > 0 {
		r.log.Info("refused " + strconv.FormatInt(n, 10) + " more that are not logged")
	}
}

// close ends write; no note may come after it.
func (r *refusals) close() { close(r.lines) }
