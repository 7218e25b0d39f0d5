package adversarial

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"qmail/internal/format/netstring"
)

const (
	// patience is how long a client waits for a reply that is due.
	patience = 20 * time.Second
	// most is how long one session may take.
	most = 15 * time.Minute
	// keep is how much of what a server says is looked at.
	keep = 8 << 20
)

// listener collects what the other side says.
type listener struct {
	mu     sync.Mutex
	change sync.Cond
	said   []byte
	seen   int // of said, by next
	ended  bool
	reset  bool
}

func listen(conn net.Conn) *listener {
	l := &listener{}
	l.change.L = &l.mu
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := conn.Read(b)
			l.mu.Lock()
			if len(l.said)+n <= keep {
				l.said = append(l.said, b[:n]...)
			}
			if err != nil {
				l.ended, l.reset = true, errors.Is(err, syscall.ECONNRESET)
			}
			l.change.Broadcast()
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return l
}

// wait waits until ok is true of what was said, or nothing more will come of it. It reports whether it is true.
func (l *listener) wait(limit time.Duration, ok func(l *listener) bool) bool {
	late := false
	timer := time.AfterFunc(limit, func() {
		l.mu.Lock()
		late = true
		l.change.Broadcast()
		l.mu.Unlock()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for !ok(l) {
		if l.ended || late {
			return false
		}
		l.change.Wait()
	}
	return true
}

// next takes one reply of SMTP or POP3 status line; false if none comes.
func (l *listener) next(limit time.Duration) (code string, ok bool) {
	ok = l.wait(limit, func(l *listener) bool {
		rest := l.said[l.seen:]
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				return false
			}
			rest = after
			if len(line) < 4 || line[3] != '-' {
				code = string(line[:min(3, len(line))])
				l.seen = len(l.said) - len(rest)
				return true
			}
		}
	})
	return code, ok
}

func (l *listener) all() (said []byte, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.said), l.ended
}

// talk is an SMTP client that knows which of its lines are commands, so that it can wait for their replies.
type talk struct {
	conn    net.Conn
	replies *listener
	data    bool   // inside a message
	rest    []byte // of a line that is not ended
	due     int    // replies that were not waited for
	skip    int64  // bytes of a BDAT chunk that are still to come
	chunked bool   // CHUNKING was offered
}

// account goes through what was sent, and waits for the reply to each command, or only counts those that are due. It
// reports whether to go on.
func (t *talk) account(sent []byte, wait bool) bool {
	in := append(t.rest, sent...)
	for {
		if t.skip > 0 {
			n := min(t.skip, int64(len(in)))
			in, t.skip = in[n:], t.skip-n
			if t.skip > 0 {
				break
			}
			if _, ok := t.reply(wait); !ok {
				return t.alive()
			}
		}
		line, after, whole := bytes.Cut(in, []byte("\r\n"))
		if !whole {
			break
		}
		in = after
		if t.data && string(line) != "." {
			continue
		}
		verb, arg, _ := strings.Cut(strings.ToUpper(string(line)), " ")
		size, _, _ := strings.Cut(arg, " ")
		if n, err := strconv.ParseInt(size, 10, 64); !t.data && verb == "BDAT" && t.chunked && err == nil && n > 0 {
			t.skip = n
			continue
		}
		code, ok := t.reply(wait || !t.data && verb == "DATA")
		if !ok {
			return t.alive()
		}
		t.data = !t.data && code == "354"
		if verb == "EHLO" {
			said, _ := t.replies.all()
			t.chunked = bytes.Contains(said, []byte("CHUNKING"))
		}
	}
	t.rest = bytes.Clone(in)
	return true
}

// reply waits for the reply to the last command, and those that are due before it.
func (t *talk) reply(wait bool) (code string, ok bool) {
	t.due++
	for ; wait && t.due > 0; t.due-- {
		if code, ok = t.replies.next(patience); !ok {
			return "", false
		}
	}
	return code, true
}

// alive reports whether the server still is there, though it does not answer.
func (t *talk) alive() bool {
	_, ended := t.replies.all()
	return !ended
}

// smtp plays a case as an SMTP client from one address to another.
func (c *Case) smtp(from, to string) (*session, error) {
	conn, err := dialFrom(from, to)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return &session{ended: true, refused: true}, nil
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	began := time.Now()
	reads := c.Setup.ClientReads == nil || *c.Setup.ClientReads
	t := &talk{conn: conn, replies: &listener{}}
	t.replies.change.L = &t.replies.mu
	if reads {
		t.replies = listen(conn)
	}
	greeted := false
	greet := func() bool {
		if !greeted && reads {
			greeted = true
			_, ok := t.replies.next(patience)
			return ok
		}
		return true
	}
	for _, chunk := range c.Chunks {
		if !chunk.Before && !greet() {
			break
		}
		ok, err := c.send(t, chunk)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
	}
	greet()
	return c.end(conn, t.replies, began), nil
}

// send sends a chunk, and waits as it says. It reports whether to go on.
func (c *Case) send(t *talk, chunk Chunk) (bool, error) {
	unit, times := chunk.B64, max(chunk.Repeat, 1)
	switch chunk.Gen {
	case "":
	case "rcpt-dictionary":
		unit = []byte("EHLO client.example\r\nMAIL FROM:<s@client.example>\r\n")
		for i := range max(chunk.Count, 1) {
			unit = append(unit, "RCPT TO:<user"+strconv.Itoa(i)+"@test.example>\r\n"...)
		}
	case "rcpt-existing-extensions":
		unit = []byte("EHLO client.example\r\nMAIL FROM:<s@client.example>\r\n")
		for i := range max(chunk.Count, 1) {
			unit = append(unit, "RCPT TO:<alice-"+strconv.Itoa(i)+"@test.example>\r\n"...)
		}
	default:
		return false, errors.New("it wants to generate " + chunk.Gen)
	}
	large := len(unit)*times > 4<<20
	sent := write(t.conn, unit, times, time.Duration(chunk.Delay)*time.Millisecond, func() bool { return t.alive() })
	switch chunk.Await {
	case "none":
		if !large { // of what is large it is not the lines that count
			t.account(bytes.Repeat(unit, times), false)
		}
		return sent, nil
	case "", "reply":
		if large {
			return sent, nil
		}
		return t.account(bytes.Repeat(unit, times), true) && sent, nil
	case "half-close":
		t.conn.(*net.TCPConn).CloseWrite()
		return true, nil
	case "close":
		t.replies.wait(most, func(l *listener) bool { return l.ended })
		return false, nil
	case "reset":
		t.conn.(*net.TCPConn).SetLinger(0)
		t.conn.Close()
		return false, nil
	}
	return false, errors.New("it wants to await " + chunk.Await)
}

// write sends unit so many times, in large pieces, or one by one with pauses. It reports whether all of it went.
func write(conn net.Conn, unit []byte, times int, pause time.Duration, alive func() bool) bool {
	each := 1
	if pause == 0 && len(unit) > 0 {
		each = min(times, max(1, 256<<10/len(unit)))
	}
	block := bytes.Repeat(unit, each)
	for ; times > 0 && alive(); times -= each {
		if pause > 0 {
			time.Sleep(pause)
		}
		conn.SetWriteDeadline(time.Now().Add(2 * time.Minute))
		if _, err := conn.Write(block[:min(times, each)*len(unit)]); err != nil {
			return false
		}
	}
	return times <= 0
}

// session is what came of a conversation.
type session struct {
	said    []byte
	ended   bool // by the server, before the client had said all or QUIT
	refused bool // there was no server
	took    time.Duration
	trouble string // of a process that broke down
	log     []byte // of a process for this connection alone
	grown   int64  // memory, in bytes
	queued  []message
}

// end waits for the end of a session. The client has said what it had to say.
func (c *Case) end(conn net.Conn, replies *listener, began time.Time) *session {
	s := &session{}
	quit := func(l *listener) bool { return l.ended }
	if tcp, ok := conn.(*net.TCPConn); ok && c.Setup.ClientReads != nil && !*c.Setup.ClientReads {
		s.ended = !stillOpen(tcp, 2*time.Minute)
		s.took = time.Since(began)
		return s
	}
	// What was sent in lockstep is answered by now; a server that hangs up does it within a moment.
	s.ended = replies.wait(200*time.Millisecond, quit)
	s.took = time.Since(began)
	if !s.ended {
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.CloseWrite()
		}
		replies.wait(patience, quit)
	}
	s.said, _ = replies.all()
	return s
}

// stillOpen waits until a connection that we do not read from is closed by the other side.
func stillOpen(conn *net.TCPConn, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(glance) {
		conn.SetWriteDeadline(time.Now().Add(glance))
		if _, err := conn.Write([]byte("NOOP\r\n")); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
	}
	return true
}

func dialFrom(from, to string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	return d.Dial("tcp", to)
}

// netstrings plays a case as a client of QMTP or QMQP.
func (c *Case) netstrings(from, to string) (*session, error) {
	conn, err := dialFrom(from, to)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return &session{ended: true, refused: true}, nil
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	began := time.Now()
	answers := listen(conn)
	alive := func() bool { _, ended := answers.all(); return !ended }
	if len(c.Input) > 0 {
		write(conn, c.Input, 1, 0, alive)
	}
	for _, chunk := range c.Chunks {
		unit := chunk.B64
		switch chunk.Gen {
		case "":
		case "qmtp-recipients":
			var list []byte
			for i := range chunk.Count {
				list = netstring.Append(list, "alice-"+strconv.Itoa(i)+"@test.example")
			}
			unit = netstring.Append([]byte("19:\nSubject: s\n\nhello\n,16:s@client.example,"), list)
		default:
			return nil, errors.New("it wants to generate " + chunk.Gen)
		}
		write(conn, unit, max(1, chunk.Repeat), time.Duration(chunk.Delay)*time.Millisecond, alive)
	}
	s := &session{}
	// The server need not hang up before the client does: what is cut short is cut short then.
	s.ended = answers.wait(200*time.Millisecond, func(l *listener) bool { return l.ended })
	s.took = time.Since(began)
	if tcp, ok := conn.(*net.TCPConn); ok && !s.ended {
		tcp.CloseWrite()
		answers.wait(patience, func(l *listener) bool { return l.ended })
	}
	s.said, _ = answers.all()
	return s, nil
}
