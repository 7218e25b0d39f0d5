package load

import (
	"bytes"
	"fmt"
	"time"

	"qmail/cmd/bench/internal/poll"
)

// stage is what the next reply answers.
type stage int

const (
	connecting stage = iota
	greeting
	ehlo
	mail
	rcpt
	data
	dot
	quit
)

var stageName = [...]string{"connecting", "greeting", "EHLO", "MAIL", "RCPT", "DATA", "the message", "QUIT"}

// maxReply bounds a reply without its end.
const maxReply = 64 << 10

// session is one connection. With Pipeline several replies may be owed at once; they come in the order of stages.
type session struct {
	wire
	at   stage
	n    int // recipients answered
	rcpt [][]byte
	owes int // messages taken and not yet answered: this one, and the next when its group has been sent already
}

func (s *session) Tick(now time.Time) {
	if now.Sub(s.last) > s.run.cfg.Timeout {
		s.fail(fmt.Sprintf("no reply to %s in %v", stageName[s.at], s.run.cfg.Timeout))
	}
}

func (s *session) Ready() {
	if s.at == connecting {
		if err := poll.Failure(s.fd); err != nil {
			s.fail("connecting: " + err.Error())
			return
		}
		s.at, s.waits = greeting, true
	}
	if s.waits {
		s.flush()
	}
	if s.ended {
		return
	}
	n, eof, err := poll.Read(s.fd, s.run.buf)
	switch {
	case err != nil:
		s.fail(stageName[s.at] + ": " + err.Error())
	case eof:
		s.fail(stageName[s.at] + ": connection closed")
	case n > 0:
		s.last = time.Now()
		s.take(s.run.buf[:n])
	}
}

// take eats replies. What is left of an unfinished one is kept.
func (s *session) take(b []byte) {
	if len(s.in) > 0 {
		s.in = append(s.in, b...)
		b = s.in
	}
	for !s.ended {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			break
		}
		b = rest
		if len(line) < 3 {
			s.fail(fmt.Sprintf("%s: not a reply: %q", stageName[s.at], line))
			return
		}
		if len(line) == 3 || line[3] != '-' {
			s.reply(line)
		}
	}
	if s.in = append(s.in[:0], b...); len(s.in) > maxReply {
		s.fail(stageName[s.at] + ": endless reply")
	}
	if !s.ended {
		s.flush()
	}
}

// expected is the first digit of a good reply at each stage.
var expected = [...]byte{greeting: '2', ehlo: '2', mail: '2', rcpt: '2', data: '3', dot: '2', quit: '2'}

// reply takes the last line of one reply and goes on.
func (s *session) reply(line []byte) {
	if line[0] != expected[s.at] {
		if s.at == quit {
			s.end()
			return
		}
		s.fail(fmt.Sprintf("%s: %s", stageName[s.at], bytes.TrimRight(line, "\r")))
		return
	}
	switch s.at {
	case greeting:
		s.say(ehlo, "EHLO load.example\r\n")
	case ehlo:
		s.message()
	case mail:
		s.n = 0
		s.recipient()
	case rcpt:
		s.n++
		s.recipient()
	case data:
		s.body()
	case dot:
		s.accepted()
	case quit:
		s.end()
	}
}

// message begins a message, as one group or as MAIL alone.
func (s *session) message() {
	if s.run.cfg.Pipeline {
		s.at, s.rcpt = mail, s.run.rcpt
		s.out = append(s.out, s.run.group...)
		return
	}
	s.at, s.rcpt = mail, s.run.recipients()
	s.out = append(s.out, s.run.mail...)
}

// recipient goes on after MAIL or an RCPT.
func (s *session) recipient() {
	s.at = rcpt
	if s.n == len(s.rcpt) {
		s.at = data
	}
	if s.run.cfg.Pipeline {
		return
	}
	if s.at == data {
		s.out = append(s.out, "DATA\r\n"...)
		return
	}
	s.out = append(s.out, s.rcpt[s.n]...)
}

// body sends the message, and with Pipeline what follows it.
func (s *session) body() {
	s.at = dot
	s.out = append(s.out, s.run.body...)
	if !s.run.cfg.Pipeline {
		return
	}
	if s.run.cfg.Keep && s.run.next() {
		s.owes++
		s.out = append(s.out, s.run.group...)
		return
	}
	s.out = append(s.out, "QUIT\r\n"...)
}

// accepted counts a message and goes on to the next, or to the end.
func (s *session) accepted() {
	s.run.res.Sent++
	s.owes--
	switch {
	case s.run.cfg.Pipeline && s.owes > 0:
		s.at = mail
	case s.run.cfg.Pipeline:
		s.at = quit
	case s.run.cfg.Keep && s.run.next():
		s.owes++
		s.message()
	default:
		s.say(quit, "QUIT\r\n")
	}
}

func (s *session) say(at stage, line string) {
	s.at = at
	s.out = append(s.out, line...)
}

func (s *session) flush() {
	if err := s.write(); err != nil {
		s.fail(stageName[s.at] + ": " + err.Error())
	}
}

// fail ends the session; the messages it still owed have failed.
func (s *session) fail(reason string) {
	if s.at == quit {
		// Everything was accepted: how the server takes its leave is its own affair.
		s.end()
		return
	}
	for range s.owes {
		s.run.failed(reason)
	}
	s.end()
}
