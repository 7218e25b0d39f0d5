package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/netstring"
)

// server reads packages from the other end of a pipe and answers as it likes.
type server struct {
	conn net.Conn
	in   *bufio.Reader
}

// next reads a package: the message, the sender and the recipients in one string.
func (s *server) next() (string, error) {
	var parts []string
	for range 3 {
		b, err := s.netstring()
		if err != nil {
			return "", err
		}
		parts = append(parts, string(b))
	}
	var recipients []string
	for list := []byte(parts[2]); len(list) > 0; {
		val, rest, err := netstring.Cut(list, 1000)
		if err != nil {
			return "", err
		}
		recipients, list = append(recipients, string(val)), rest
	}
	return fmt.Sprintf("%s>%s:%q", parts[1], strings.Join(recipients, ","), parts[0]), nil
}

func (s *server) netstring() ([]byte, error) {
	var l netstring.Length
	for !l.Done() {
		b, err := s.in.ReadByte()
		if err != nil {
			return nil, err
		}
		if _, err := l.Read([]byte{b}, 1<<30); err != nil {
			return nil, err
		}
	}
	b := make([]byte, l.Value()+1)
	_, err := io.ReadFull(s.in, b)
	if err == nil && b[len(b)-1] != ',' {
		err = errors.New("no comma")
	}
	return b[:l.Value()], err
}

func (s *server) say(answers ...string) {
	var b []byte
	for _, a := range answers {
		b = netstring.Append(b, a)
	}
	s.conn.Write(b)
}

// halfPipe is a pipe whose writing side can be closed.
type halfPipe struct {
	net.Conn
	half func() error
}

func (p halfPipe) CloseWrite() error { return p.half() }

// connect makes a Conn and runs serve at its other end. The connection is closed after it.
func connect(t *testing.T, timeout time.Duration, serve func(s *server)) *Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		serve(&server{theirs, bufio.NewReader(theirs)})
	}()
	c := New(ours, timeout)
	t.Cleanup(c.Close)
	return c
}

func message(body string, recipients ...string) *Message {
	return &Message{Sender: "s@a", Recipients: recipients, Head: []byte(body), Size: int64(len(body))}
}

func TestPackages(t *testing.T) {
	var got []string
	c := connect(t, 0, func(s *server) {
		for {
			p, err := s.next()
			if err != nil {
				return
			}
			got = append(got, p)
			s.say(strings.Split(strings.Repeat("Kok|", strings.Count(p, ",")+1), "|")[:strings.Count(p, ",")+1]...)
		}
	})
	large := strings.Repeat("y", 100_000)
	for _, m := range []*Message{
		message("Subject: x\n\nhi\n", "u@b"),
		message("", "u@b", "v@c"),
		{Sender: "", Recipients: []string{"u@b"}, Head: []byte("head\n"), Rest: strings.NewReader(large), Size: int64(5 + len(large))},
	} {
		r := c.Send(m)
		if len(r.Answers) != len(m.Recipients) || r.Answers[0] != "Kok" || r.Err != nil || !r.Sent {
			t.Errorf("%+v", r)
		}
	}
	if r := c.Send(message("x")); r.Err != nil || len(r.Answers) != 0 {
		t.Errorf("nobody: %+v", r)
	}
	want := []string{`s@a>u@b:"\nSubject: x\n\nhi\n"`, `s@a>u@b,v@c:"\n"`, `>u@b:"\nhead\n` + large + `"`}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%.300q", got)
	}
}

// TestManyAtOnce: packages go out while those before wait, and each caller gets its own answers.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 50
		c := connect(t, 0, func(s *server) {
			var all []string
			for range n {
				p, err := s.next()
				if err != nil {
					t.Error(err)
					return
				}
				all = append(all, p)
			}
			time.Sleep(time.Minute) // none is answered before all are here
			for _, p := range all {
				s.say("K"+p, "D"+p)
			}
			io.Copy(io.Discard, s.in)
		})
		var callers sync.WaitGroup
		for i := range n {
			callers.Go(func() {
				r := c.Send(message(fmt.Sprint(i), "u@b", "v@c"))
				want := fmt.Sprintf(`s@a>u@b,v@c:"\n%d"`, i)
				if len(r.Answers) != 2 || r.Answers[0] != "K"+want || r.Answers[1] != "D"+want {
					t.Errorf("%d: %+v", i, r)
				}
			})
		}
		synctest.Wait()
		if load, usable := c.Load(); load != n || !usable {
			t.Errorf("load %d, %v", load, usable)
		}
		callers.Wait()
		c.Close()
	})
}

func TestTrouble(t *testing.T) {
	tests := []struct {
		name  string
		serve func(s *server)
		m     *Message
		sent  bool
		after time.Duration
	}{
		{"closed before anything", func(*server) {}, message(strings.Repeat("x", 100000), "u@b"), false, 0},
		{"closed in the middle", func(s *server) { io.CopyN(io.Discard, s.in, 50000) }, message(strings.Repeat("x", 200000), "u@b"), false, 0},
		{"closed without an answer", func(s *server) { s.next() }, message("x", "u@b"), true, 0},
		{"closed after half of the answers", func(s *server) { s.next(); s.say("Kok") }, message("x", "u@b", "v@c"), true, 0},
		{"an answer that is none", func(s *server) { s.next(); s.say("hello"); io.Copy(io.Discard, s.in) }, message("x", "u@b"), true, 0},
		{"an empty answer", func(s *server) { s.next(); s.say(""); io.Copy(io.Discard, s.in) }, message("x", "u@b"), true, 0},
		{"an endless answer", func(s *server) { s.next(); s.conn.Write([]byte("99999:K")); io.Copy(io.Discard, s.in) }, message("x", "u@b"), true, 0},
		{"no netstring", func(s *server) { s.next(); s.conn.Write([]byte("550 no\r\n")); io.Copy(io.Discard, s.in) }, message("x", "u@b"), true, 0},
		{"no answer", func(s *server) { s.next(); io.Copy(io.Discard, s.in) }, message("x", "u@b"), true, answerTime},
		{"a server that does not read", func(*server) { time.Sleep(time.Hour) }, message(strings.Repeat("x", 200000), "u@b"), false, blockTime},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := connect(t, 0, tt.serve)
				began := time.Now()
				r := c.Send(tt.m)
				if r.Answers != nil || r.Err == nil || r.Sent != tt.sent || time.Since(began) != tt.after {
					t.Errorf("%+v after %v", r, time.Since(began))
				}
				if _, usable := c.Load(); usable {
					t.Error("still usable")
				}
				if r := c.Send(message("x", "u@b")); r.Err == nil || r.Sent {
					t.Errorf("a second one: %+v", r)
				}
				c.Close()
				time.Sleep(time.Hour) // the server ends, too
			})
		})
	}
}

func TestAnswersThatNobodyAskedForEndTheConnection(t *testing.T) {
	c := connect(t, 0, func(s *server) { s.say("Kok"); io.Copy(io.Discard, s.in) })
	<-c.Done()
	if _, usable := c.Load(); usable {
		t.Error("still usable")
	}
}

// TestAMessageThatCannotBeRead: it is cut short on the wire, so that it is never taken, and those before it get
// their answers.
func TestAMessageThatCannotBeRead(t *testing.T) {
	for _, m := range []*Message{
		{Recipients: []string{"u@b"}, Head: []byte("head"), Rest: strings.NewReader("short"), Size: 1000},
		{Recipients: []string{"u@b"}, Head: []byte("head"), Rest: io.MultiReader(strings.NewReader("xx"), failing{}), Size: 1000},
		{Recipients: []string{"u@b"}, Head: []byte("head"), Rest: strings.NewReader("longer"), Size: 6},
		{Recipients: []string{"u@b"}, Head: []byte("head"), Size: 1000},
	} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			half := make(chan struct{})
			c := New(halfPipe{ours, func() error { close(half); return nil }}, 0)
			s := &server{theirs, bufio.NewReader(theirs)}
			before := make(chan Result, 1)
			go func() { before <- c.Send(message("first", "u@b")) }()
			if _, err := s.next(); err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, s.in)
			if r := c.Send(m); r.Err != ErrUnreadable || r.Sent {
				t.Errorf("%+v", r)
			}
			<-half
			s.say("Kfirst")
			if r := <-before; len(r.Answers) != 1 || r.Answers[0] != "Kfirst" {
				t.Errorf("the one before: %+v", r)
			}
			<-c.Done()
			theirs.Close()
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("disk") }

func TestFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, 0, func(s *server) {
			s.next()
			time.Sleep(time.Minute)
			s.say("Kok")
			io.Copy(io.Discard, s.in)
		})
		result := make(chan Result, 1)
		go func() { result <- c.Send(message("x", "u@b")) }()
		synctest.Wait()
		c.Finish()
		if r := c.Send(message("y", "u@b")); r.Err == nil || r.Sent {
			t.Errorf("%+v", r)
		}
		if r := <-result; len(r.Answers) != 1 {
			t.Errorf("%+v", r)
		}
		<-c.Done()
		idle := connect(t, 0, func(s *server) { io.Copy(io.Discard, s.in) })
		idle.Finish()
		<-idle.Done()
	})
}

func TestTheTimeoutCapsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, 20*time.Second, func(s *server) { s.next(); io.Copy(io.Discard, s.in) })
		began := time.Now()
		if r := c.Send(message("x", "u@b")); r.Err == nil || time.Since(began) != 20*time.Second {
			t.Errorf("%+v after %v", r, time.Since(began))
		}
	})
}

// FuzzAnswer: an answer is one netstring that begins with K, Z or D, and bounded.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("3:Kok,"))
	f.Add([]byte("99999:K"))
	f.Fuzz(func(t *testing.T, in []byte) {
		answer, err := readAnswer(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(in, netstring.Append(nil, answer)) || len(answer) > maxAnswer || !strings.ContainsAny(answer[:1], "KZD") {
			t.Errorf("%q from %q", answer, in)
		}
	})
}
