package server

import (
	"strconv"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/received"
	"qmail/internal/format/reply"
)

func (s *Session) data(dst, arg []byte) ([]byte, Next) {
	if len(arg) > 0 {
		return append(dst, noArgument...), More
	}
	return dst, Open
}

// Held is about how many bytes of memory the recipients so far hold, Asked included.
func (s *Session) Held() int { return s.tx.size + s.tx.askedFor }

// Envelope is what Open is about. It is valid until Ended.
func (s *Session) Envelope() *envelope.Envelope { return &s.tx.envelope }

// Opened continues after Open: err nil means that the queue is ready for the message.
func (s *Session) Opened(dst []byte, err error) ([]byte, Next) {
	if s.tx.complete.on = s.peer.Kind == Submission; s.chunk.open {
		if err != nil { // the chunk comes all the same
			s.chunk.refusal = string(appendError(nil, err))
			s.reset()
		}
		return dst, Chunk
	}
	if err != nil {
		s.reset()
		return s.judge(appendError(dst, err), len(dst), More)
	}
	return append(dst, "354 go ahead\r\n"...), Body
}

// Received adds the trace field that stands above the message.
func (s *Session) Received(dst []byte, now time.Time) []byte {
	with := "SMTP"
	switch {
	case s.tx.utf8 && s.peer.Kind == LMTP:
		with = "UTF8LMTP"
	case s.tx.utf8:
		with = "UTF8SMTP" // RFC 6531 4.3
	case s.peer.Kind == LMTP:
		with = "LMTP"
	case s.extended:
		with = "ESMTP"
	}
	if s.peer.TLS != nil && with != "SMTP" { // RFC 3848; there is no SMTPS
		with += "S"
	}
	if s.peer.Login != "" && with != "SMTP" {
		with += "A"
	}
	p := s.peer
	if s.config.ShowLogin && p.Login != "" {
		shown := *p
		shown.Info = p.Login
		p = &shown
	}
	return appendReceived(dst, p, p.Helo, with, now)
}

// Feed takes a block of the message and returns what the queue shall get, in b's memory, and how much of b
// was the message's: after end the rest is the next commands.
func (s *Session) Feed(b []byte) (stored []byte, n int, end bool) {
	stored, n, end = s.tx.body.Decode(b)
	if s.Refusal() != nil {
		stored = nil
	}
	return stored, n, end
}

// Fail notes that the queue cannot take the message. It is read to its end all the same, and then refused.
func (s *Session) Fail(err error) {
	if s.tx.failure == nil {
		s.tx.failure = err
	}
}

// Refusal is why the message, as far as it was fed, cannot be queued; nil if it can.
func (s *Session) Refusal() error {
	b := &s.tx.body
	switch {
	case b.Bare:
		return errBare
	case b.Hops >= received.MaxHops:
		return errHops
	case s.config.Databytes > 0 && b.Size > s.config.Databytes:
		return errSize
	}
	return s.tx.failure
}

// Ended replies to the end of a message: with id if the queue has it (err nil), else with the refusal. A
// message with stray control bytes ends the session: its sender may mean something else by what follows.
func (s *Session) Ended(dst []byte, id uint64, err error, now time.Time) ([]byte, Next) {
	next := More
	if s.tx.body.Bare {
		err, next = errBare, Close
	}
	replies := 1
	if s.peer.Kind == LMTP { // RFC 2033 4.2
		replies = len(s.tx.envelope.Recipients)
	}
	s.reset()
	from := len(dst)
	if err != nil {
		for range replies {
			dst = appendError(dst, err)
		}
		return s.judge(dst, from, next)
	}
	s.counted = counts{}
	for range replies {
		dst = append(dst, "250 2.0.0 ok "...)
		dst = strconv.AppendInt(dst, now.Unix(), 10)
		dst = append(dst, " qp "...)
		dst = append(strconv.AppendUint(dst, id, 10), "\r\n"...)
	}
	return dst, next
}

// Refusals of messages; shared, never changed.
var (
	errBare = &reply.Error{Code: 550, Status: "5.6.0", Text: "bare CR, bare LF or NUL in the message, see https://cr.yp.to/docs/smtplf.html (#5.6.0)"}
	errHops = &reply.Error{Code: 554, Status: "5.4.6", Text: "too many hops, this message is looping (#5.4.6)"}
	errSize = &reply.Error{Code: 552, Status: "5.3.4", Text: "sorry, that message size exceeds my databytes limit (#5.3.4)"}
)
