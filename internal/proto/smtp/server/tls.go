package server

import (
	"qmail/internal/system/secure"
)

const (
	inTLS      = "503 5.5.1 this is TLS already (#5.5.1)\r\n"
	ready      = "220 2.0.0 ready for TLS\r\n"
	outOfTurn  = "503 5.5.0 wait for the answer to STARTTLS (#5.5.0)\r\n"
	noStartTLS = "502 5.5.1 no TLS here (#5.5.1)\r\n"
)

func (s *Session) offersTLS() bool {
	return s.peer.TLS == nil && s.config.StartTLS != nil && s.config.StartTLS()
}

// startTLS is RFC 3207.
func (s *Session) startTLS(dst, arg []byte) ([]byte, Next) {
	switch {
	case s.peer.TLS != nil:
		return append(dst, inTLS...), More
	case !s.offersTLS():
		return append(dst, noStartTLS...), More
	case len(arg) > 0:
		return append(dst, noArgument...), More
	}
	return append(dst, ready...), StartTLS
}

// Secured continues after StartTLS, once hands are shaken: all that was said before is forgotten (RFC 3207 4.2).
func (s *Session) Secured(state *secure.State) {
	s.tx = transaction{}
	s.at, s.extended, s.login = greeted, false, login{}
	s.peer.Helo, s.peer.Login, s.peer.TLS = "", "", state
}

// Injected is the end of a session that has sent more after STARTTLS without waiting: whoever put it there, it is not
// to be taken for something said inside TLS. dst holds the reply to STARTTLS from from on, which is not given.
func (s *Session) Injected(dst []byte, from int) ([]byte, Next) {
	return append(dst[:from], outOfTurn...), Close
}

// secure says that we are ready, and shakes hands. The client's end of it begins only after our word: the input was
// empty when it went out.
func (c *conversation) secure() error {
	if err := c.flush(); err != nil {
		return err
	}
	stream, state, err := c.server.StartTLS(c.ctx, c.wire)
	if err != nil {
		c.tell("STARTTLS", err.Error())
		return err
	}
	c.stream = stream
	c.session.Secured(state)
	if c.server.Secured != nil {
		c.server.Secured(c.peer)
	}
	return nil
}
