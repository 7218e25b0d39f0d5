package serve

import (
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Refusals writes a line of log for each thing refused, without a session ever waiting for the log, and no
// more than the disk can bear: what is beyond the rate or the buffer is counted, and the count is logged.
type Refusals struct {
	log     *slog.Logger
	lines   chan string
	dropped atomic.Int64
}

const (
	refusalBuffer = 256
	refusalRate   = 100 // lines per second
	maxQuoted     = 200 // bytes of a stranger's line
)

// NewRefusals makes one; somebody has to Start it.
func NewRefusals(log *slog.Logger) *Refusals {
	return &Refusals{log: log, lines: make(chan string, refusalBuffer)}
}

// Note tells of an answer and of what it was an answer to. Both may hold any bytes. It never waits.
func (r *Refusals) Note(ip, command, answer string) {
	if len(r.lines) == cap(r.lines) {
		r.dropped.Add(1)
		return
	}
	select {
	case r.lines <- RefusalLine(ip, command, answer):
	default:
		r.dropped.Add(1)
	}
}

// Say tells of something else that is worth a line. The text is ours. It never waits.
func (r *Refusals) Say(line string) {
	select {
	case r.lines <- line:
	default:
		r.dropped.Add(1)
	}
}

// RefusalLine quotes what the stranger wrote, so that it cannot be taken for ours.
func RefusalLine(ip, command, answer string) string {
	if ip == "" {
		ip = "unknown"
	}
	if len(command) > maxQuoted {
		command = command[:maxQuoted] + "..."
	}
	answer, _, _ = strings.Cut(answer, "\r\n")
	return "refused " + ip + ": " + strconv.QuoteToASCII(command) + ": " + answer
}

// Start runs Write; the function that it returns ends that.
func (r *Refusals) Start() (end func()) {
	written := make(chan struct{})
	go func() { defer close(written); r.Write() }()
	return func() { r.Close(); <-written }
}

// Write logs until Close; its owner runs it in a goroutine.
func (r *Refusals) Write() {
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

func (r *Refusals) sum() {
	if n := r.dropped.Swap(0); n > 0 {
		r.log.Info("refused " + strconv.FormatInt(n, 10) + " more that are not logged")
	}
}

// Close ends Write; no Note may come after it.
func (r *Refusals) Close() { close(r.lines) }
