package serve

import (
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Refusals writes a line of log for each thing refused, without a session ever waiting for the log, and no
// more than the disk can bear: neither of one client nor of all together. What is beyond is counted, and the counts are
// logged.
type Refusals struct {
	log     *slog.Logger
	lines   chan string
	dropped atomic.Int64
	// perClient is how many lines a minute a client may cause; nil and 0 mean refusalsOfOne.
	perClient func() int

	mu      sync.Mutex
	clients map[netip.Addr]*heard // of the minute at hand
}

// heard is what a client has caused in a minute.
type heard struct {
	lines      int
	suppressed int64
}

const (
	refusalBuffer = 256
	refusalRate   = 100  // lines per second
	refusalsOfOne = 60   // lines per minute and client, unless control files say otherwise
	refusalsKnown = 4096 // clients that are counted; what others cause is bounded by the rate alone
	refusalsTold  = 100  // clients whose count is logged by name
	refusalSpan   = time.Minute
	maxQuoted     = 200 // bytes of a stranger's line
)

// NewRefusals makes one; somebody has to Start it.
func NewRefusals(log *slog.Logger) *Refusals {
	return &Refusals{log: log, lines: make(chan string, refusalBuffer)}
}

// Note tells of an answer and of what it was an answer to. Both may hold any bytes. It never waits.
func (r *Refusals) Note(ip, command, answer string) {
	if !r.admit(ip) {
		return
	}
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

// admit counts a line of a client and reports whether it is to be logged.
func (r *Refusals) admit(ip string) bool {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return true // the rate bounds those of whom nothing is known
	}
	most := refusalsOfOne
	if r.perClient != nil && r.perClient() > 0 {
		most = r.perClient()
	}
	key := Network(addr.Unmap())
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.clients[key]
	if c == nil {
		if len(r.clients) >= refusalsKnown {
			return true
		}
		if r.clients == nil {
			r.clients = map[netip.Addr]*heard{}
		}
		c = new(heard)
		r.clients[key] = c
	}
	if c.lines < most {
		c.lines++
		return true
	}
	c.suppressed++
	return false
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
	left, span := refusalRate, time.Now()
	for {
		select {
		case line, open := <-r.lines:
			if !open {
				r.sum()
				r.sumClients()
				return
			}
			if left--; left < 0 {
				r.dropped.Add(1)
				continue
			}
			r.log.Info(line)
		case now := <-ticker.C:
			left = refusalRate
			r.sum()
			if now.Sub(span) >= refusalSpan {
				span = now
				r.sumClients()
			}
		}
	}
}

func (r *Refusals) sum() {
	if n := r.dropped.Swap(0); n > 0 {
		r.log.Info("refused " + strconv.FormatInt(n, 10) + " more that are not logged")
	}
}

// sumClients tells how much was not logged of each client in a minute, and begins a new one.
func (r *Refusals) sumClients() {
	r.mu.Lock()
	clients := r.clients
	r.clients = nil
	r.mu.Unlock()
	told, others, rest := 0, 0, int64(0)
	for ip, c := range clients {
		switch {
		case c.suppressed == 0:
		case told < refusalsTold:
			told++
			r.log.Info("refused " + ip.String() + ": " + strconv.FormatInt(c.suppressed, 10) + " more that are not logged")
		default:
			others++
			rest += c.suppressed
		}
	}
	if others > 0 {
		r.log.Info("refused " + strconv.Itoa(others) + " other clients: " + strconv.FormatInt(rest, 10) + " more that are not logged")
	}
}

// Close ends Write; no Note may come after it.
func (r *Refusals) Close() { close(r.lines) }
