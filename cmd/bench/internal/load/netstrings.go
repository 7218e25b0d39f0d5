package load

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"qmail/cmd/bench/internal/poll"
	"qmail/internal/format/netstring"
)

// The protocols besides SMTP, which is "".
const (
	QMTP = "qmtp"
	QMQP = "qmqp"
)

// window is how many packages of a QMTP session may wait for their answers with Pipeline.
const window = 16

var errProtocol = errors.New("load: there is qmtp and qmqp besides SMTP")

// request is a message as QMTP or QMQP has it.
func request(protocol, from string, to []string, body []byte) ([]byte, error) {
	var list []byte
	for _, r := range to {
		list = netstring.Append(list, r)
	}
	switch protocol {
	case QMTP:
		b := netstring.Append(nil, append([]byte{'\n'}, body...))
		return netstring.Append(netstring.Append(b, from), list), nil
	case QMQP:
		b := netstring.Append(netstring.Append(nil, body), from)
		return netstring.Append(nil, append(b, list...)), nil
	}
	return nil, errProtocol
}

// packets is a session of QMTP or QMQP: requests go out, and for each a number of answers comes back. A QMQP session
// has one request.
type packets struct {
	wire
	open bool
	owed int // answers
	done int // answers to the oldest request
}

func (s *packets) Tick(now time.Time) {
	if now.Sub(s.last) > s.run.cfg.Timeout {
		s.fail(fmt.Sprintf("no answer in %v", s.run.cfg.Timeout))
	}
}

func (s *packets) Ready() {
	if !s.open {
		if err := poll.Failure(s.fd); err != nil {
			s.fail("connecting: " + err.Error())
			return
		}
		s.open, s.waits = true, true
		s.request() // dial has taken it
		s.fill()
	}
	s.flush()
	if s.ended {
		return
	}
	n, eof, err := poll.Read(s.fd, s.run.buf)
	switch {
	case err != nil:
		s.fail(err.Error())
	case eof:
		s.fail("connection closed")
	case n > 0:
		s.last = time.Now()
		s.take(s.run.buf[:n])
	}
}

// answersTo is how many answers a request has.
func (s *packets) answersTo() int {
	if s.run.cfg.Protocol == QMQP {
		return 1
	}
	return len(s.run.cfg.To)
}

func (s *packets) request() {
	s.out = append(s.out, s.run.packet...)
	s.owed += s.answersTo()
}

// fill asks for as much as may be under way at once.
func (s *packets) fill() {
	most := 1
	if s.run.cfg.Pipeline {
		most = window
	}
	for s.run.cfg.Protocol == QMTP && s.run.cfg.Keep && s.owed < most*s.answersTo() && s.run.next() {
		s.request()
	}
}

func (s *packets) take(b []byte) {
	s.in = append(s.in, b...)
	for !s.ended && s.owed > 0 {
		answer, rest, err := netstring.Cut(s.in, maxReply)
		if err != nil {
			if len(s.in) > maxReply || errors.Is(err, netstring.ErrSyntax) {
				s.fail(fmt.Sprintf("not an answer: %.60q", s.in))
			}
			break
		}
		if !bytes.HasPrefix(answer, []byte("K")) {
			s.fail(string(answer))
			return
		}
		s.in = s.in[:copy(s.in, rest)]
		s.owed--
		if s.done++; s.done == s.answersTo() {
			s.done = 0
			s.run.res.Sent++
			s.fill()
		}
	}
	if s.owed == 0 && !s.ended {
		s.end()
		return
	}
	s.flush()
}

func (s *packets) flush() {
	if err := s.write(); err != nil {
		s.fail(err.Error())
	}
}

// fail ends the session; the messages it still owed have failed.
func (s *packets) fail(reason string) {
	for range max(1, (s.owed+s.answersTo()-1)/s.answersTo()) {
		s.run.failed(reason)
	}
	s.end()
}
