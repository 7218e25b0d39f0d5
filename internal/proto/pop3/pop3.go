// Package pop3 is the server's side of POP3 (RFC 1939, CAPA of RFC 2449), cut in two where qmail cuts it: Login is
// the AUTHORIZATION state (qmail-popup), Transaction the TRANSACTION and UPDATE states (qmail-pop3d). Each takes a
// line and says what to answer; neither does any I/O of its own. Authorize and Serve play them over a connection.
//
// Where RFC 1939 and the original differ the RFC is followed, with one exception: a message's size is that of
// its file, whose lines end in LF, since to know more the server would have to read every message at every login.
package pop3

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"time"
)

const (
	// maxLine bounds a command line, in bytes. RFC 2449 has 255; passwords may be longer than that leaves.
	maxLine = 1024
	// maxErrors bounds the refused commands of a session.
	maxErrors = 100
	// Timeout is how long a client may do nothing. RFC 1939 3 wants ten minutes at least.
	Timeout = 1200 * time.Second
)

// ErrLine is a line longer than any command.
var ErrLine = errors.New("pop3: line too long")

// Conn is a connection to a client.
type Conn interface {
	io.Reader
	io.Writer
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// timed is a connection that waits for neither a read nor a write longer than patience, and for nothing beyond end.
type timed struct {
	Conn
	patience time.Duration
	end      time.Time // zero: no end
}

func (c timed) deadline() time.Time {
	t := time.Now().Add(c.patience)
	if !c.end.IsZero() && c.end.Before(t) {
		return c.end
	}
	return t
}

func (c timed) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(c.deadline()); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c timed) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(c.deadline()); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// split cuts a line into a command, in upper case, and its argument. A CR before the line's end is part of it.
func split(line string) (verb, arg string) {
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	verb, arg, _ = strings.Cut(line, " ")
	return upper(verb), strings.TrimLeft(arg, " ")
}

// upper folds ASCII letters.
func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// UID is the unique-id (RFC 1939 7) of a message by the name of its file: the name up to its flags, or if that
// is no unique-id, a hash of it.
func UID(name string) string {
	const longest = 70
	name, _, _ = strings.Cut(name, ":")
	fit := name != "" && len(name) <= longest
	for i := 0; i < len(name) && fit; i++ {
		fit = '!' <= name[i] && name[i] <= '~'
	}
	if fit {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// Credentials are what a client shows to be let in.
type Credentials struct {
	User   string
	Secret string // the password, or with APOP the digest
	APOP   bool
}

// Login is the AUTHORIZATION state.
type Login struct {
	Banner string // the timestamp of the greeting, "<process.time@host>"
	STLS   bool   // is offered
	user   string
	errors int
}

// Answer is what a line leads to.
type Answer struct {
	Text string       // the reply, without its line end; "" for none yet
	List []string     // more lines of it
	Try  *Credentials // are to be checked: the reply depends on them
	TLS  bool         // begins after the reply
	End  bool         // the session is over after the reply
}

// Greeting is the first line of a session.
func (l *Login) Greeting() string { return "+OK " + l.Banner }

// Step takes one line.
func (l *Login) Step(line string) Answer {
	a := l.step(split(line))
	if strings.HasPrefix(a.Text, "-ERR") {
		l.errors++
		a.End = a.End || l.errors >= maxErrors
	}
	return a
}

func (l *Login) step(verb, arg string) Answer {
	switch verb {
	case "USER":
		return l.userName(arg)
	case "PASS":
		if l.user == "" {
			return refuse("USER first")
		}
		if !clean(arg) {
			return refuse(syntax)
		}
		return Answer{Try: &Credentials{User: l.user, Secret: arg}}
	case "APOP":
		user, digest, _ := strings.Cut(arg, " ")
		if digest = strings.TrimLeft(digest, " "); !clean(user) || !clean(digest) {
			return refuse(syntax)
		}
		return Answer{Try: &Credentials{User: user, Secret: digest, APOP: true}}
	case "CAPA":
		return Answer{Text: ok, List: l.capabilities()}
	case "STLS":
		if l.STLS {
			l.user = ""
			return Answer{Text: "+OK begin TLS", TLS: true}
		}
	case "NOOP":
		return Answer{Text: ok}
	case "QUIT":
		return Answer{Text: ok, End: true}
	}
	return refuse("authorization first")
}

const (
	ok     = "+OK "
	syntax = "syntax error"
)

func refuse(text string) Answer { return Answer{Text: "-ERR " + text} }

func (l *Login) userName(name string) Answer {
	if !clean(name) {
		return refuse(syntax)
	}
	l.user = name
	return Answer{Text: ok}
}

// clean reports whether s can be handed to a program that reads up to a NUL.
func clean(s string) bool { return s != "" && strings.IndexByte(s, 0) < 0 }

func (l *Login) capabilities() []string {
	list := append(capabilities(), "USER")
	if l.STLS {
		list = append(list, "STLS")
	}
	return list
}

// capabilities are those of both states (RFC 2449 6).
func capabilities() []string { return []string{"TOP", "UIDL", "EXPIRE NEVER"} }

// Rules are those of an AUTHORIZATION state.
type Rules struct {
	Patience time.Duration // with a client that does nothing; 0: Timeout
	Total    time.Duration // for all of it; 0: no bound
	// StartTLS begins TLS on a connection, of which nothing has been read that was not asked for.
	StartTLS func(ctx context.Context, conn Conn) (Conn, error)
}

// Authorize plays l over conn until the client shows credentials, or is gone; then the error says why, and is nil
// after QUIT. The connection returned takes the place of conn: nothing beyond the client's last line has been read
// from it, and the reply to that line is the caller's.
func Authorize(ctx context.Context, conn Conn, l *Login, r Rules) (*Credentials, Conn, error) {
	if r.Patience == 0 {
		r.Patience = Timeout
	}
	c := timed{Conn: conn, patience: r.Patience}
	if r.Total > 0 {
		c.end = time.Now().Add(r.Total)
	}
	l.STLS = l.STLS && r.StartTLS != nil
	if err := say(c, l.Greeting()); err != nil {
		return nil, conn, err
	}
	for {
		line, err := readLine(c)
		if errors.Is(err, ErrLine) {
			err = errors.Join(err, say(c, "-ERR line too long"))
		}
		if err != nil {
			return nil, c.Conn, err
		}
		a := l.Step(line)
		if a.Try != nil {
			return a.Try, c.Conn, nil
		}
		if err := say(c, a.Text, a.List...); err != nil || a.End {
			return nil, c.Conn, err
		}
		if a.TLS {
			if c.Conn, err = r.StartTLS(ctx, c.Conn); err != nil {
				return nil, conn, err
			}
			l.STLS = false
		}
	}
}

// say writes a reply; with a list it has more than one line.
func say(w io.Writer, text string, list ...string) error {
	var b strings.Builder
	b.WriteString(text)
	b.WriteString("\r\n")
	for _, line := range list {
		b.WriteString(line)
		b.WriteString("\r\n")
	}
	if list != nil {
		b.WriteString(".\r\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Refuse tells a client that it is not let in.
func Refuse(conn Conn, text string) error {
	return say(timed{Conn: conn, patience: time.Minute}, "-ERR "+text)
}

// readLine reads a line byte by byte: who takes the connection over, another program perhaps, finds the rest.
func readLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		line = append(line, b[0])
		if b[0] == '\n' {
			return string(line), nil
		}
		if len(line) >= maxLine {
			return "", ErrLine
		}
	}
}

// Serve plays t over conn until the client is gone; the error says why, and is nil after QUIT.
func Serve(conn Conn, t *Transaction) error {
	c := timed{Conn: conn, patience: Timeout}
	in, out := bufio.NewReaderSize(c, maxLine), bufio.NewWriterSize(c, 16<<10)
	out.WriteString(ok + "\r\n")
	for {
		if in.Buffered() == 0 { // a client that sends commands ahead gets its replies together
			if err := out.Flush(); err != nil {
				return err
			}
		}
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			out.WriteString("-ERR line too long\r\n")
			return errors.Join(ErrLine, out.Flush())
		}
		if err != nil {
			return err
		}
		end, err := t.Step(out, string(line))
		if err != nil {
			return err
		}
		if end {
			return out.Flush()
		}
	}
}
