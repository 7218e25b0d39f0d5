// Package client is the sending half of SMTP (RFC 5321): a connection in, one message after another out, and
// for each the verdicts in the words of qmail-remote.
//
// EHLO, else HELO; STARTTLS (RFC 3207) or TLS at once, AUTH (RFC 4954), LIMITS (RFC 9422), PIPELINING (RFC 2920), SIZE (RFC 1870), 8BITMIME (RFC 6152), DSN (RFC 3461) and SMTPUTF8
// (RFC 6531) are used where the server offers them. 8-bit text goes as it is to a server without 8BITMIME, as qmail always
// did; an address or a header that needs SMTPUTF8 does not go to a server without it. What stands on the wire
// cannot smuggle: every CR and LF in a body is part of a CRLF, a dot after each of them is doubled, and
// addresses with control bytes are refused before anything is sent.
//
// The server is not trusted: replies are bounded in bytes and time, the first line's code counts, a code that
// RFC 5321 does not know means later, and bytes that come out of turn end the connection.
package client

import (
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// The waits of RFC 5321 4.5.3.2; Options.Timeout caps each.
const (
	waitGreeting = 5 * time.Minute
	waitCommand  = 5 * time.Minute // EHLO, MAIL, RCPT, RSET
	waitData     = 2 * time.Minute
	waitBlock    = 3 * time.Minute // to write one block of at most blockSize bytes
	waitFinal    = 10 * time.Minute
	// waitSession bounds one transaction up to DATA, however many commands it has.
	waitSession = 30 * time.Minute
)

const (
	// blockSize is how much of a body is encoded at once.
	blockSize = 32 << 10
	// groupSize is how many bytes of commands are sent before replies are read: what fits into anybody's
	// socket buffers, so that both sides cannot wait for each other (RFC 2920 3.1).
	groupSize = 4 << 10
)

// Options are the same for all connections.
type Options struct {
	Hello   string        // the name we go by
	Timeout time.Duration // caps every wait; control/timeoutremote
	Buffers *Buffers      // may be nil
	// Security may be nil: then TLS is not used.
	Security *Security
	// LMTP means RFC 2033: LHLO, and a verdict for each recipient after the message.
	LMTP bool
}

// Conn is one connection to one server. It is for one goroutine at a time.
type Conn struct {
	conn    net.Conn
	addr    string // of the server, for reports
	options Options
	in      reader
	out     []byte // commands

	offers
	secure          *tls.Conn // conn, once it is that
	verified        bool      // and the certificate is the right one
	handshakeFailed bool
	sent            int64 // transactions so far

	reset bool // RSET must come before the next MAIL
	dead  bool // of no further use
	tired bool // it puts senders off: not to be asked again at once
	gone  bool // the server has closed, or a QUIT would be out of place
}

// New takes a connected socket; it belongs to the Conn.
func New(conn net.Conn, o Options) *Conn {
	c := &Conn{conn: conn, options: o, addr: hostOf(conn)}
	c.in.conn = conn
	return c
}

// hostOf is the peer's address as reports show it.
func hostOf(conn net.Conn) string {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().String()
	}
	if a, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		return a.Addr().Unmap().String()
	}
	return conn.RemoteAddr().String()
}

// Usable reports whether another message may be sent.
func (c *Conn) Usable() bool {
	return !c.dead && !c.tired && c.in.empty() && (c.messages == 0 || c.sent < c.messages)
}

// Quit ends the connection; the server's answer is not awaited.
func (c *Conn) Quit() {
	if !c.gone && c.in.err == nil {
		if c.conn.SetWriteDeadline(time.Now().Add(min(time.Second, c.within(waitCommand)))) == nil {
			c.conn.Write([]byte("QUIT\r\n"))
		}
		if c.secure != nil {
			c.secure.CloseWrite()
		}
	}
	c.Close()
}

// Close drops the connection.
func (c *Conn) Close() {
	c.dead, c.gone = true, true
	if c.secure != nil {
		c.secure.NetConn().Close() // not to wait for whoever does not read our farewell
		return
	}
	c.conn.Close()
}

func (c *Conn) within(d time.Duration) time.Duration {
	if c.options.Timeout > 0 && c.options.Timeout < d {
		return c.options.Timeout
	}
	return d
}

// Hello reads the greeting, introduces us, and sees to what Options.Security asks for. A Report with a letter other
// than 0 is a refusal.
func (c *Conn) Hello() Report {
	s := c.options.Security
	if s != nil && s.AtOnce {
		if err := c.handshake(s.policy()); err != nil {
			c.gone = true
			return c.noTLS("the TLS handshake failed: " + visible(err.Error()) + ".")
		}
		c.in = reader{conn: c.conn}
	}
	code, err := c.read(waitGreeting, nil)
	if err != nil {
		return c.died("")
	}
	if code == 521 { // it never takes mail (RFC 7504 3)
		return c.refused('D', "Connected to "+c.addr+" but it takes no mail.\n")
	}
	if code != 220 {
		return c.refused('Z', "Connected to "+c.addr+" but greeting failed.\n")
	}
	if r := c.introduce(); r.Letter != 0 {
		return r
	}
	again, r := c.startTLS()
	if again {
		r = c.introduce()
	}
	if r.Letter == 0 && s != nil && s.Login != nil {
		r = c.authenticate(s.Login)
	}
	return r
}

// introduce says EHLO, or to a server that does not know that, HELO.
func (c *Conn) introduce() Report {
	c.offers = offers{}
	if c.options.LMTP {
		return c.accepted(c.command("LHLO "+c.options.Hello, c.offer))
	}
	code, err := c.command("EHLO "+c.options.Hello, c.offer)
	if err == nil && code != 250 && code != 421 {
		c.offers = offers{}
		code, err = c.command("HELO "+c.options.Hello, nil)
	}
	return c.accepted(code, err)
}

func (c *Conn) accepted(code int, err error) Report {
	if err != nil {
		return c.died("")
	}
	if code != 250 {
		return c.refused('Z', "Connected to "+c.addr+" but my name was rejected.\n")
	}
	return Report{}
}

// refused is the report of a connection that ends because of what the server said last.
func (c *Conn) refused(letter byte, text string) Report {
	c.dead = true
	return Report{letter, text + c.remoteSaid()}
}

// offers are the extensions of a server.
type offers struct {
	pipelining, size, eightBit, utf8, dsn, starttls bool
	limit                                           int64    // of SIZE; 0 means none
	auth                                            []string // mechanisms
	recipients, messages                            int64    // of LIMITS; 0 means none
}

// offer takes one line of the EHLO reply.
func (c *Conn) offer(line []byte) {
	word, arg, _ := strings.Cut(string(line), " ")
	switch word = strings.ToUpper(word); word {
	case "PIPELINING":
		c.pipelining = true
	case "8BITMIME":
		c.eightBit = true
	case "SMTPUTF8":
		c.utf8 = true
	case "DSN":
		c.dsn = true
	case "STARTTLS":
		c.starttls = true
	case "AUTH":
		c.offersAuth(arg)
	case "LIMITS":
		c.limits(arg)
	case "SIZE":
		c.size, c.limit = true, parseSize(arg)
	default:
		if rest, old := strings.CutPrefix(word, "AUTH="); old {
			c.offersAuth(rest + " " + arg)
		}
	}
}

// limits takes those of RFC 9422 that concern us: MAILMAX, RCPTMAX and, since all recipients of a transaction are of one
// destination, nothing else.
func (c *Conn) limits(arg string) {
	for _, one := range strings.Fields(arg) {
		name, value, _ := strings.Cut(one, "=")
		switch strings.ToUpper(name) {
		case "RCPTMAX":
			c.recipients = parseSize(value)
		case "MAILMAX":
			c.messages = parseSize(value)
		}
	}
}

// parseSize reads the limit of RFC 1870; what is not a number of 63 bits is no limit.
func parseSize(arg string) int64 {
	var n int64
	for i := 0; i < len(arg); i++ {
		d := int64(arg[i]) - '0'
		if d < 0 || d > 9 || n > (1<<63-1-d)/10 {
			return 0
		}
		n = n*10 + d
	}
	return n
}

// command sends one line and reads its reply.
func (c *Conn) command(line string, each func(line []byte)) (int, error) {
	c.out = append(append(c.out[:0], line...), '\r', '\n')
	if err := c.write(c.out, waitCommand); err != nil {
		return 0, err
	}
	return c.read(waitCommand, each)
}

// read reads one reply within d.
func (c *Conn) read(d time.Duration, each func(line []byte)) (int, error) {
	code, err := c.in.reply(time.Now().Add(c.within(d)), each)
	if err != nil || code == 421 {
		c.dead, c.gone = true, true
	}
	return code, err
}

// write writes all of b within d. Bytes that the server sent before it was asked end the connection.
func (c *Conn) write(b []byte, d time.Duration) error {
	if !c.in.empty() {
		c.dead = true
		return errTurn
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.within(d))); err != nil {
		return err
	}
	if _, err := c.conn.Write(b); err != nil {
		c.dead, c.gone = true, true
		return err
	}
	return nil
}

// Buffers are what bodies are encoded in. Connections that share them need one each only while they send.
type Buffers struct{ pool sync.Pool }

// get returns an empty buffer that holds an encoded block; nil Buffers make a new one each time.
func (b *Buffers) get() *[]byte {
	if b != nil {
		if p, ok := b.pool.Get().(*[]byte); ok {
			return p
		}
	}
	p := make([]byte, 0, 2*blockSize+16)
	return &p
}

func (b *Buffers) put(p *[]byte) {
	if b != nil {
		b.pool.Put(p)
	}
}
