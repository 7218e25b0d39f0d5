package client

import (
	"bufio"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink is a server on 127.0.0.1 whose replies may be set by stage: greeting, ehlo, helo, mail, rcpt, data,
// body, rset. A stage may be numbered ("rcpt2"). "CLOSE" closes instead of a reply, "STALL" says nothing.
type sink struct {
	ln      net.Listener
	replies map[string]string

	mu       sync.Mutex
	commands []string
	bodies   [][]byte
	conns    int
	wg       sync.WaitGroup
}

func startSink(t testing.TB, replies map[string]string) *sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{ln: ln, replies: replies}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); s.wg.Wait() })
	return s
}

// client connects, and has said hello.
func (s *sink) client(t testing.TB) *Conn {
	t.Helper()
	c := s.connect(t, Options{Hello: "here.example", Timeout: 5 * time.Second})
	if r := c.Hello(); r.Letter != 0 {
		t.Fatalf("%+v", r)
	}
	return c
}

func (s *sink) connect(t testing.TB, o Options) *Conn {
	t.Helper()
	nc, err := net.Dial("tcp", s.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := New(nc, o)
	t.Cleanup(c.Close)
	return c
}

func (s *sink) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.bodies) == 0 {
		return nil
	}
	b := s.bodies[0]
	s.bodies = s.bodies[1:]
	return b
}

func (s *sink) saw() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.commands, "|")
}

// reply answers a stage and is false if the connection is to end.
func (s *sink) reply(c net.Conn, w *bufio.Writer, otherwise string, stages ...string) bool {
	text := otherwise
	for _, stage := range stages {
		if r, ok := s.replies[stage]; ok {
			text = r
			break
		}
	}
	switch text {
	case "CLOSE":
		w.Flush()
		return false
	case "RESET":
		w.Flush()
		c.(*net.TCPConn).SetLinger(0)
		return false
	case "STALL":
		return true
	}
	w.WriteString(text)
	return true
}

func (s *sink) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	s.mu.Lock()
	s.conns++
	s.mu.Unlock()
	rcpts, data := 0, 0
	ok := s.reply(c, w, "220 sink\r\n", "greeting")
	for ok {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		s.mu.Lock()
		s.commands = append(s.commands, strings.TrimSuffix(line, "\r\n"))
		s.mu.Unlock()
		verb := strings.ToLower(line[:min(4, len(line))])
		switch verb {
		case "ehlo":
			ok = s.reply(c, w, "502 no\r\n", verb)
		case "rcpt":
			rcpts++
			ok = s.reply(c, w, "250 ok\r\n", "rcpt"+string(rune('0'+rcpts)), verb)
		case "data":
			data++
			if ok = s.reply(c, w, "354 go\r\n", "data"+string(rune('0'+data)), verb); !ok {
				return
			}
			if text := s.replies[verb]; text != "" && text[0] != '3' {
				continue
			}
			if w.Flush() != nil {
				return
			}
			body, err := readData(r)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.bodies = append(s.bodies, body)
			s.mu.Unlock()
			ok = s.reply(c, w, "250 taken\r\n", "body")
		case "quit":
			w.WriteString("221 bye\r\n")
			ok = false
		case "mail", "helo", "lhlo", "rset":
			ok = s.reply(c, w, "250 ok\r\n", verb)
		default:
			w.WriteString("500 what\r\n")
		}
	}
	w.Flush()
}

// readData reads up to CRLF.CRLF, which is left out.
func readData(r *bufio.Reader) ([]byte, error) {
	var body []byte
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		if line == ".\r\n" {
			return body, nil
		}
		body = append(body, line...)
	}
}
