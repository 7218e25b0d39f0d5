// Package server is the receiving side of SMTP (RFC 5321), of submission (RFC 6409) and of LMTP (RFC 2033): PIPELINING,
// 8BITMIME, SIZE, ENHANCEDSTATUSCODES, DSN, CHUNKING, LIMITS, STARTTLS, AUTH and SMTPUTF8, with the codes and words of
// qmail-smtpd.
//
// Session is the protocol, pure: command lines and message blocks go in, replies and a Next come out, which
// says what the caller has to do. Serve is that caller over a connection: it frames lines, keeps deadlines,
// buffers replies, and asks Policy and Queue, which are the role's. Lines end in CRLF and nothing
// else; a stray CR, LF or NUL is refused and ends the session, so that nobody further on can read two
// messages where we read one.
//
// An idle session holds its goroutine, a 1 KiB input buffer and its state: 5,000 of them, each after a message,
// were seen to cost 7.7 KB apiece, stacks and the clients' ends in the same process counted
// (TestIdleSessionsAreSmall). A block of 32 KiB is borrowed while a message comes in. A message of 4 KiB costs
// 3 allocations, its addresses (BenchmarkMessages).
package server

import (
	"net/netip"
	"strconv"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/envelope"
	"qmail/internal/system/secure"
)

// Peer is who is at the other end, and under which name it found us. Empty means unknown.
type Peer struct {
	IP      string        // as it shall stand in Received and in the log
	Address netip.Addr    // the same, for lookups; the zero value where there is none
	Host    string        // its name, from the DNS
	Info    string        // what an ident server says of it
	Local   string        // our name or address on this connection
	Helo    string        // what it calls itself; the session sets it
	Relay   *string       // RELAYCLIENT: may send anywhere, and what to add to each recipient; nil if not set
	Kind    Kind          // of the listener
	Login   string        // who has logged in; the session sets it
	Trust   Trust         // what it may say of others
	Origin  string        // where a message comes from that it passes on, as XFORWARD says; for the log
	TLS     *secure.State // what the session runs in; nil outside TLS. StartTLS sets it; it is set from the start where TLS comes first
}

// Policy says which envelopes are welcome and gives addresses the form in which they are stored. Refusals are
// *reply.Error; any other error is temporary.
type Policy interface {
	Sender(p *Peer, path address.Path) (string, error)
	Recipient(p *Peer, sender string, path address.Path) (string, error)
}

// Config is what control files say; it is never changed, only replaced.
type Config struct {
	Greeting      string        // smtpgreeting: of the banner, HELO and QUIT
	Databytes     int64         // most stored bytes of a message; 0 means any number
	MaxRecipients int           // of a message
	MaxErrors     int           // refused commands since the last accepted message
	TarpitAfter   int           // refused commands, beyond which each further one is answered late,
	Tarpit        time.Duration // by so much; 0 is not at all
	MaxIdle       int           // commands that lead to no message, since the last accepted one
	StartTLS      func() bool   // whether it is offered outside TLS (RFC 3207); nil: never
	NoChunking    bool          // BDAT is no command
	// Mechanisms are those of AUTH to be offered to a peer now, and whether there would be some inside TLS; nil: never.
	Mechanisms func(p *Peer) (list []string, inTLS bool)
	// Moved gives a peer the rights of its Address, which XCLIENT has changed.
	Moved     func(p *Peer)
	IDHost    string // of message ids that submission adds
	ShowLogin bool   // in Received
	Policy    Policy
	Limits    Limits
}

// Next is what the caller of a step does next. Replies are due before it waits for input.
type Next int

const (
	More         Next = iota // read a command
	Verify                   // ask whether the queue takes Asked, then call Verified
	Open                     // open a message for Envelope, then call Opened
	Body                     // read the message: Feed, then Ended
	Chunk                    // read a chunk: FeedChunk, then Chunked
	Commit                   // the message is complete: put it into the queue, then Ended
	Authenticate             // pass on what the client said to whom it is for, then call Authenticated
	StartTLS                 // send what is due, shake hands, then call Secured; if there is input already, call Injected
	Close                    // send what is due and end the session
)

const (
	maxHelo       = 255  // a domain name's length
	maxOvershoot  = 1000 // 452 replies before they count as errors: a fair client may pipeline all of its list
	defaultErrors = 20
)

// state is where a session stands; commands lists where each command is allowed.
type state uint8

const (
	greeted state = 1 << iota // no HELO yet
	hello
	mail     // a sender
	rcpt     // a sender and a recipient
	chunked  // and a part of the message
	anywhere = greeted | hello | mail | rcpt | chunked
)

const maxVerb = len("STARTTLS")

type command struct {
	in    state
	order string // the reply elsewhere
	do    func(s *Session, dst, arg []byte) ([]byte, Next)
	idle  bool // leads to no message
}

// commands is RFC 5321 4.1.4 as data.
var commands = map[string]command{
	"HELO":     {anywhere, "", (*Session).helo, true},
	"EHLO":     {anywhere, "", (*Session).ehlo, true},
	"MAIL":     {hello, "", (*Session).mailFrom, false},
	"RCPT":     {mail | rcpt, mailFirst, (*Session).rcptTo, false},
	"DATA":     {rcpt, "", (*Session).data, false},
	"RSET":     {anywhere, "", (*Session).rset, true},
	"NOOP":     {anywhere, "", (*Session).noop, true},
	"VRFY":     {anywhere, "", (*Session).vrfy, true},
	"HELP":     {anywhere, "", (*Session).help, true},
	"QUIT":     {anywhere, "", (*Session).quit, false},
	"STARTTLS": {anywhere, "", (*Session).startTLS, true},
	"AUTH":     {anywhere, "", (*Session).auth, true},
	"BDAT":     {anywhere, "", (*Session).bdat, false},
	"LHLO":     {anywhere, "", (*Session).lhlo, true},
	"XCLIENT":  {anywhere, "", (*Session).xclient, true},
	"XFORWARD": {anywhere, "", (*Session).xforward, true},
	// What follows these is no list of commands, and must not be read as one.
	"GET": {anywhere, "", (*Session).foreign, false}, "POST": {anywhere, "", (*Session).foreign, false},
	"PUT": {anywhere, "", (*Session).foreign, false}, "CONNECT": {anywhere, "", (*Session).foreign, false},
}

const (
	heloFirst   = "503 5.5.1 HELO first (#5.5.1)\r\n"
	mailFirst   = "503 5.5.1 MAIL first (#5.5.1)\r\n"
	rcptFirst   = "503 5.5.1 RCPT first (#5.5.1)\r\n"
	mailOpen    = "503 5.5.1 one MAIL at a time (#5.5.1)\r\n"
	inChunks    = "503 5.5.1 a message is coming in: BDAT or RSET (#5.5.1)\r\n"
	unknown     = "502 5.5.1 unimplemented (#5.5.1)\r\n"
	noArgument  = "501 5.5.4 no argument here (#5.5.4)\r\n"
	badLine     = "500 5.5.2 lines end in CRLF, have no other control bytes, and 2000 bytes at most (#5.5.2)\r\n"
	tooManyBad  = "421 4.7.0 too many errors, goodbye (#4.7.0)\r\n"
	tooManyIdle = "421 4.7.0 too many commands without a message, goodbye (#4.7.0)\r\n"
	timedOut    = "421 4.4.2 timeout (#4.4.2)\r\n"
	stopping    = "421 4.3.2 service is stopping, try again later (#4.3.2)\r\n"
)

// Session is one connection's state. It is not safe for use by several goroutines.
type Session struct {
	settings func() *Config
	config   *Config // of the transaction at hand
	peer     *Peer

	at       state
	extended bool // EHLO, not HELO
	counted  counts
	pardoned bool // the reply at hand does not count as an error
	login    login
	chunk    chunk
	tx       transaction
}

// transaction is everything that HELO, RSET and the end of a message forget.
type transaction struct {
	envelope     envelope.Envelope
	utf8         bool // the client said SMTPUTF8
	asked        string
	askedFor     int // bytes that asked holds, about
	askedOptions []string
	size         int // bytes that the recipients hold
	over         int // recipients beyond the limit
	body         Decoder
	complete     completer
	failure      error // of the queue, while the message was coming in
}

// counts begin anew with each accepted message.
type counts struct{ errors, idle int }

// New begins a session. settings is asked at its start and at each MAIL, so that a transaction sees one
// configuration.
func New(settings func() *Config, peer *Peer) Session {
	return Session{settings: settings, config: settings(), peer: peer, at: greeted}
}

// Banner is the first reply.
func (s *Session) Banner(dst []byte) []byte {
	name := " ESMTP\r\n"
	if s.peer.Kind == LMTP {
		name = " LMTP\r\n"
	}
	return append(append(append(dst, "220 "...), s.config.Greeting...), name...)
}

// Step takes one command line, without its CRLF, and adds the reply to dst: none if Next is Verify or Open.
func (s *Session) Step(dst, line []byte) ([]byte, Next) {
	from := len(dst)
	if s.login.open {
		dst, next := s.respond(dst, line)
		return s.judge(dst, from, next)
	}
	verb, arg := cutVerb(line)
	var name [maxVerb]byte
	c, ok := commands[string(upper(name[:0], verb))]
	if !ok {
		return s.judge(append(dst, unknown...), from, More)
	}
	if s.at&c.in == 0 {
		return s.judge(append(dst, s.order(c)...), from, More)
	}
	if c.idle {
		if s.counted.idle++; s.config.MaxIdle > 0 && s.counted.idle > s.config.MaxIdle {
			return append(dst, tooManyIdle...), Close
		}
	}
	dst, next := c.do(s, dst, arg)
	return s.judge(dst, from, next)
}

// order says what should have come before.
func (s *Session) order(c command) string {
	switch {
	case s.at == chunked:
		return inChunks
	case c.order != "" || s.at == greeted && c.in != hello:
		return mailFirst
	case s.at == greeted:
		return heloFirst
	case c.in == hello:
		return mailOpen
	case s.at == hello:
		return mailFirst
	}
	return rcptFirst
}

// judge counts refusals; the one beyond the limit ends the session.
func (s *Session) judge(dst []byte, from int, next Next) ([]byte, Next) {
	if next == Close || len(dst) == from || dst[from] < '4' {
		return dst, next
	}
	if s.pardoned {
		s.pardoned = false
		return dst, next
	}
	if s.counted.errors++; s.counted.errors > s.maxErrors() {
		return append(dst[:from], tooManyBad...), Close
	}
	return dst, next
}

func (s *Session) maxErrors() int {
	if s.config.MaxErrors > 0 {
		return s.config.MaxErrors
	}
	return defaultErrors
}

// reset forgets the transaction, as one value.
func (s *Session) reset() {
	s.tx = transaction{}
	if s.at != greeted {
		s.at = hello
	}
}

func (s *Session) helo(dst, arg []byte) ([]byte, Next) {
	if s.peer.Kind == LMTP {
		return append(dst, unknown...), More
	}
	return s.hello(dst, arg, false)
}

func (s *Session) ehlo(dst, arg []byte) ([]byte, Next) {
	if s.peer.Kind == LMTP {
		return append(dst, unknown...), More
	}
	return s.hello(dst, arg, true)
}

// lhlo is LMTP's EHLO (RFC 2033 4.1).
func (s *Session) lhlo(dst, arg []byte) ([]byte, Next) {
	if s.peer.Kind != LMTP {
		return append(dst, unknown...), More
	}
	return s.hello(dst, arg, true)
}

func (s *Session) hello(dst, arg []byte, extended bool) ([]byte, Next) {
	if len(arg) == 0 || len(arg) > maxHelo || !printable(arg) {
		return append(dst, "501 5.5.4 HELO needs a host name (#5.5.4)\r\n"...), More
	}
	s.reset()
	s.at, s.extended = hello, extended
	if s.peer.Helo != string(arg) {
		s.peer.Helo = string(arg)
	}
	if !extended {
		return append(append(append(dst, "250 "...), s.config.Greeting...), "\r\n"...), More
	}
	dst = append(append(append(dst, "250-"...), s.config.Greeting...), "\r\n"...)
	dst = append(dst, "250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE "...)
	dst = strconv.AppendInt(dst, s.config.Databytes, 10)
	dst = append(dst, "\r\n250-ENHANCEDSTATUSCODES\r\n250-DSN\r\n"...)
	if !s.config.NoChunking {
		dst = append(dst, "250-CHUNKING\r\n"...)
	}
	if s.config.MaxRecipients > 0 { // RFC 9422
		dst = append(dst, "250-LIMITS RCPTMAX="...)
		dst = append(strconv.AppendInt(dst, int64(s.config.MaxRecipients), 10), "\r\n"...)
	}
	if s.offersTLS() {
		dst = append(dst, "250-STARTTLS\r\n"...)
	}
	if list, _ := s.mechanisms(); len(list) > 0 {
		dst = append(dst, "250-AUTH"...)
		for _, m := range list {
			dst = append(append(dst, ' '), m...)
		}
		dst = append(dst, "\r\n"...)
	}
	if s.peer.Trust.XClient {
		dst = append(dst, "250-XCLIENT NAME ADDR PORT PROTO HELO\r\n"...)
	}
	if s.peer.Trust.XForward {
		dst = append(dst, "250-XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE\r\n"...)
	}
	return append(dst, "250 SMTPUTF8\r\n"...), More
}

func (s *Session) rset(dst, arg []byte) ([]byte, Next) {
	if len(arg) > 0 {
		return append(dst, noArgument...), More
	}
	s.reset()
	return append(dst, "250 2.0.0 flushed\r\n"...), More
}

func (s *Session) noop(dst, _ []byte) ([]byte, Next) {
	return append(dst, "250 2.0.0 ok\r\n"...), More
}

func (s *Session) vrfy(dst, _ []byte) ([]byte, Next) {
	return append(dst, "252 2.0.0 send some mail, i'll try my best\r\n"...), More
}

func (s *Session) help(dst, _ []byte) ([]byte, Next) {
	return append(dst, "214 2.0.0 qmail: HELO EHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP AUTH STARTTLS QUIT; see RFC 5321\r\n"...), More
}

func (s *Session) quit(dst, _ []byte) ([]byte, Next) {
	return append(append(append(dst, "221 2.0.0 "...), s.config.Greeting...), "\r\n"...), Close
}

func (s *Session) foreign(dst, _ []byte) ([]byte, Next) { return append(dst, unknown...), Close }
