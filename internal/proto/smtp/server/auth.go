package server

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"time"
)

// Auth is where the messages of a SASL exchange (RFC 4422, 4954) go: to somebody who knows passwords. We pass them on.
type Auth interface {
	// Begin starts an exchange; initial is nil if there is no initial response. The Exchange counts only if the answer
	// is Challenged.
	Begin(ctx context.Context, p *Peer, mechanism string, initial []byte) (Exchange, Answer)
}

// Exchange is one that goes on after its first answer. It ends with another answer than Challenged, or with Abort.
type Exchange interface {
	Next(ctx context.Context, response []byte) Answer
	Abort()
}

// Outcome is what an answer means.
type Outcome int

// The outcomes.
const (
	Unknown    Outcome = iota // nobody can say now
	Challenged                // go on
	Accepted
	Rejected  // a wrong name or password
	Malformed // no message of that mechanism
)

// Answer is what an Auth says.
type Answer struct {
	Outcome   Outcome
	Challenge []byte // of Challenged
	Login     string // of Accepted
	Text      string // of Unknown: one line for the client, or nothing
}

const (
	// maxAuthLine is the longest line of an exchange, its CRLF counted (RFC 4954 4).
	maxAuthLine = 12288 + 2
	// maxLogins is how many times a session may be refused.
	maxLogins = 3
	// authTime is how long an answer may take; clients wait longer.
	authTime = time.Minute
)

const (
	authFirst   = "530 5.7.0 authentication required (#5.7.0)\r\n"
	tlsFirst    = "530 5.7.0 STARTTLS and authentication required (#5.7.0)\r\n"
	authInMail  = "503 5.5.1 no AUTH within a mail transaction (#5.5.1)\r\n"
	authTwice   = "503 5.5.1 you have logged in already (#5.5.1)\r\n"
	authInClear = "538 5.7.11 encryption is required for AUTH, say STARTTLS first (#5.7.11)\r\n"
	noMechanism = "504 5.5.4 no such mechanism here (#5.5.4)\r\n"
	badResponse = "501 5.5.2 that is no answer in base64, or none of this mechanism (#5.5.2)\r\n"
	cancelled   = "501 5.7.0 AUTH cancelled (#5.7.0)\r\n"
	wrongLogin  = "535 5.7.8 authentication failed (#5.7.8)\r\n"
	welcome     = "235 2.7.0 welcome (#2.7.0)\r\n"
	tooManyAuth = "421 4.7.0 too many failed logins, goodbye (#4.7.0)\r\n"
	laterAuth   = "454 4.7.0 unable to check passwords now, try again later (#4.7.0)\r\n"
)

// login is the part of a session that is about who the client is.
type login struct {
	tried     bool // there was an AUTH
	open      bool // the next line is a response
	mechanism string
	response  []byte // of the client, for Authenticate; nil for no initial response
	refused   int
}

// mechanisms are those that are offered now, and whether there would be some inside TLS.
func (s *Session) mechanisms() (list []string, inTLS bool) {
	if s.config.Mechanisms == nil || s.peer.Login != "" {
		return nil, false
	}
	return s.config.Mechanisms(s.peer)
}

// knowsAuth reports whether AUTH is an extension of this session.
func (s *Session) knowsAuth() bool {
	list, _ := s.mechanisms()
	return s.peer.Login != "" || len(list) > 0
}

// auth is AUTH (RFC 4954 4).
func (s *Session) auth(dst, arg []byte) ([]byte, Next) {
	s.login.tried = true
	offered, inTLS := s.mechanisms()
	name, initial, given := strings.Cut(string(arg), " ")
	name = string(upper(make([]byte, 0, len(name)), []byte(name)))
	switch {
	case s.peer.Login != "":
		return append(dst, authTwice...), More
	case len(offered) == 0 && !inTLS:
		return append(dst, unknown...), More
	case s.at == greeted:
		return append(dst, heloFirst...), More
	case s.at != hello:
		return append(dst, authInMail...), More
	case len(offered) == 0:
		return append(dst, authInClear...), More
	case !slices.Contains(offered, name):
		return append(dst, noMechanism...), More
	}
	var response []byte
	if given {
		ok := initial == "="
		if response = []byte{}; !ok {
			response, ok = unbase64([]byte(initial))
		}
		if !ok {
			return append(dst, badResponse...), More
		}
	}
	s.login.mechanism, s.login.response = name, response
	return dst, Authenticate
}

// unbase64 reads strict base64 (RFC 4648 4): one spelling for each value. An empty line is an empty response.
func unbase64(b []byte) ([]byte, bool) {
	dst := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	for _, c := range b {
		if c == '\r' || c == '\n' { // which the decoder would pass over
			return nil, false
		}
	}
	n, err := base64.StdEncoding.Strict().Decode(dst, b)
	return dst[:n], err == nil
}

// response takes a line within an exchange.
func (s *Session) respond(dst, line []byte) ([]byte, Next) {
	s.login.open = false
	if len(line) == 1 && line[0] == '*' {
		return append(dst, cancelled...), More
	}
	response, ok := unbase64(line)
	if !ok {
		return append(dst, badResponse...), More
	}
	s.login.response = response
	return dst, Authenticate
}

// Authenticated continues after Authenticate.
func (s *Session) Authenticated(dst []byte, a Answer) ([]byte, Next) {
	from := len(dst)
	s.login.response = nil
	switch a.Outcome {
	case Challenged:
		s.login.open = true
		dst = base64.StdEncoding.AppendEncode(append(dst, "334 "...), a.Challenge)
		return append(dst, "\r\n"...), More
	case Accepted:
		s.peer.Login = a.Login
		return append(dst, welcome...), More
	case Rejected:
		if s.login.refused++; s.login.refused >= maxLogins {
			return append(dst, tooManyAuth...), Close
		}
		dst = append(dst, wrongLogin...)
	case Malformed:
		dst = append(dst, badResponse...)
	default:
		if a.Text == "" {
			dst = append(dst, laterAuth...)
			break
		}
		dst = append(dst, "454 4.7.0 "...)
		for i := 0; i < min(len(a.Text), maxText); i++ {
			c := a.Text[i]
			if c < ' ' || c > '~' {
				c = '?'
			}
			dst = append(dst, c)
		}
		dst = append(dst, "\r\n"...)
	}
	return s.judge(dst, from, More)
}

// Private reports whether a line may hold a secret, and so is not for the log: AUTH and what belongs to it, POP3's PASS
// of a client that has lost its way, and whatever is no command in a session that has tried to log in, for some clients
// go on with the password when their exchange has failed.
func (s *Session) Private(line []byte) bool {
	if s.login.open || isAuth(line) || len(line) >= 4 && equalFold(line[:4], "pass") {
		return true
	}
	if !s.login.tried {
		return false
	}
	verb, _ := cutVerb(line)
	var name [maxVerb]byte
	_, known := commands[string(upper(name[:0], verb))]
	return !known
}

func isAuth(line []byte) bool {
	return len(line) >= 4 && equalFold(line[:4], "auth") && (len(line) == 4 || line[4] <= ' ')
}

// maxLine is how long the line that begins with b may be, its CRLF counted.
func (s *Session) maxLine(b []byte) int {
	if s.login.open || s.config.Mechanisms != nil && isAuth(b) {
		return maxAuthLine
	}
	return maxLine
}

// authenticate asks for an answer to what the client has said.
func (c *conversation) authenticate() (Answer, error) {
	if err := c.flush(); err != nil { // it may take long
		return Answer{}, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, authTime)
	defer cancel()
	l := &c.session.login
	var answer Answer
	if c.exchange != nil {
		answer = c.exchange.Next(ctx, l.response)
	} else {
		c.exchange, answer = c.server.Auth.Begin(ctx, c.peer, l.mechanism, l.response)
	}
	if answer.Outcome != Challenged {
		c.exchange = nil
	}
	return answer, nil
}

// giveUp ends an exchange that the client has left.
func (c *conversation) giveUp() {
	if c.exchange != nil && !c.session.login.open {
		c.exchange.Abort()
		c.exchange = nil
	}
}
