// Package load sends messages over SMTP, QMTP or QMQP as fast as a server takes them, and holds idle sessions.
//
// All sessions run on one thread (see package poll). A session waits for each reply before the next command, or,
// with Pipeline, sends whole groups (RFC 2920): MAIL, the RCPTs and DATA in one write, then the message together with the
// next group. With Keep it sends message after message, without it one, as most senders on the net do.
package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"qmail/cmd/bench/internal/poll"
)

// Config says what to send.
type Config struct {
	Addr     netip.AddrPort
	Sessions int // at once
	Messages int // in all
	Keep     bool
	Pipeline bool
	Protocol string // "" is SMTP

	From   string   // reverse path without brackets
	Params string   // after MAIL FROM:<...>, such as " SIZE=4096"
	To     []string // every message goes to all of these
	InTurn bool     // but to one of them each, in turn; not with Pipeline or another Protocol

	// Body is the content with LF or CRLF line ends; dots are doubled here. Without it a message is a header and Size bytes.
	Body []byte
	Size int

	// Timeout is how long any single reply may take; 0 means 60 s.
	Timeout time.Duration
}

// Result is what became of it.
type Result struct {
	Sent    int      // messages answered 2yz after the final dot
	Failed  int      // messages not accepted
	Reasons []string // of the first failures
	Elapsed time.Duration
}

// maxReasons bounds what Result keeps of failures, maxFailed how long Run goes on among them.
const (
	maxReasons = 5
	maxFailed  = 100
)

// run is one Run in progress.
type run struct {
	cfg    Config
	loop   *poll.Loop
	buf    []byte // one read buffer for all sessions
	mail   []byte // MAIL, the first command of a group
	rcpt   [][]byte
	group  []byte // MAIL, RCPTs and DATA
	body   []byte // dot-stuffed, with its final dot
	packet []byte // a message as QMTP or QMQP has it
	begun  int    // messages given to sessions
	turn   int    // whose it is, with InTurn
	open   int    // sessions
	res    Result
	fatal  error
}

// Run sends all messages. Its error is one of the generator's surroundings, or that too many messages failed; a single
// failed message is only counted.
func Run(ctx context.Context, cfg Config) (Result, error) {
	r, err := prepare(cfg)
	if err != nil {
		return Result{}, err
	}
	defer r.loop.Close()
	start := time.Now()
	for range min(cfg.Sessions, cfg.Messages) {
		r.dial()
	}
	err = r.loop.Run(ctx, func() bool { return r.open == 0 || r.fatal != nil })
	r.res.Elapsed = time.Since(start)
	return r.res, errors.Join(err, r.fatal)
}

func prepare(cfg Config) (*run, error) {
	if cfg.Sessions < 1 || len(cfg.To) == 0 {
		return nil, errors.New("load: no sessions or no recipients")
	}
	if cfg.InTurn && (cfg.Pipeline || cfg.Protocol != "") {
		return nil, errors.New("load: recipients in turn need SMTP without pipelining")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	loop, err := poll.New()
	if err != nil {
		return nil, err
	}
	r := &run{cfg: cfg, loop: loop, buf: make([]byte, 64<<10)}
	r.mail = fmt.Appendf(nil, "MAIL FROM:<%s>%s\r\n", cfg.From, cfg.Params)
	r.group = append(r.group, r.mail...)
	for _, to := range cfg.To {
		line := fmt.Appendf(nil, "RCPT TO:<%s>\r\n", to)
		r.rcpt = append(r.rcpt, line)
		r.group = append(r.group, line...)
	}
	r.group = append(r.group, "DATA\r\n"...)
	body := cfg.Body
	if body == nil {
		body = Message(cfg.From, cfg.To[0], cfg.Size)
	}
	r.body = Stuff(body)
	if cfg.Protocol != "" {
		if r.packet, err = request(cfg.Protocol, cfg.From, cfg.To, body); err != nil {
			loop.Close()
			return nil, err
		}
	}
	return r, nil
}

// Message is a header and size bytes of lines.
func Message(from, to string, size int) []byte {
	b := fmt.Appendf(nil, "From: <%s>\nTo: <%s>\nSubject: a message of %d bytes\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n"+
		"Message-Id: <bench@load.example>\n\n", from, to, size)
	line := bytes.Repeat([]byte("benchmark "), 8)
	line[len(line)-1] = '\n'
	for size > 0 {
		n := min(size, len(line))
		b = append(b, line[len(line)-n:]...)
		size -= n
	}
	return b
}

// Stuff is content as DATA wants it: CRLF line ends, leading dots doubled, and the final dot (RFC 5321 4.5.2).
func Stuff(content []byte) []byte {
	out := make([]byte, 0, len(content)+len(content)/16+8)
	for len(content) > 0 {
		line, rest, _ := bytes.Cut(content, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) > 0 && line[0] == '.' {
			out = append(out, '.')
		}
		out = append(append(out, line...), "\r\n"...)
		content = rest
	}
	return append(out, ".\r\n"...)
}

// next takes a message for a session to send.
func (r *run) next() bool {
	if r.begun >= r.cfg.Messages {
		return false
	}
	r.begun++
	return true
}

// recipients are those of the next message, as commands.
func (r *run) recipients() [][]byte {
	if !r.cfg.InTurn {
		return r.rcpt
	}
	r.turn++
	i := (r.turn - 1) % len(r.rcpt)
	return r.rcpt[i : i+1]
}

// dial opens a session for one more message, if there is one.
func (r *run) dial() {
	if !r.next() {
		return
	}
	fd, err := poll.Connect(r.cfg.Addr)
	if err != nil {
		r.failed(err.Error())
		r.fatal = err
		return
	}
	w := wire{run: r, fd: fd, last: time.Now()}
	var s poll.Source = &session{wire: w, at: connecting, owes: 1}
	if r.packet != nil {
		s = &packets{wire: w}
	}
	if err = r.loop.Add(fd, s); err == nil {
		err = r.loop.Want(fd, true)
	}
	if err != nil {
		r.loop.Drop(fd)
		r.fatal = err
		return
	}
	r.open++
}

func (r *run) failed(reason string) {
	r.res.Failed++
	if len(r.res.Reasons) < maxReasons {
		r.res.Reasons = append(r.res.Reasons, reason)
	}
	if r.res.Failed >= maxFailed && r.fatal == nil {
		r.fatal = fmt.Errorf("load: %d messages failed, the first: %s", r.res.Failed, r.res.Reasons[0])
	}
}
