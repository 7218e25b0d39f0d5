package vectors

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server is a scripted server that a case talks to.
type Server struct {
	IP     string
	Port   int
	Proto  string
	Script map[string]json.RawMessage
}

// answer is a reply of a script: bytes, or bytes and what becomes of the connection.
type answer struct {
	bytes        []byte
	pieces       []Value
	close, stall bool
}

// UnmarshalJSON takes a plain value for the bytes.
func (a *answer) UnmarshalJSON(in []byte) error {
	var form struct {
		Reply        *Value
		Pieces       []Value
		Close, Stall bool
	}
	if err := json.Unmarshal(in, &form); err == nil && (form.Reply != nil || form.Close || form.Stall || form.Pieces != nil) {
		*a = answer{pieces: form.Pieces, close: form.Close, stall: form.Stall}
		if form.Reply != nil {
			a.bytes = *form.Reply
		}
		return nil
	}
	var v Value
	err := json.Unmarshal(in, &v)
	a.bytes = v
	return err
}

func privilegedServer(c *Case) bool {
	for _, s := range c.Servers {
		if s.Port > 0 && s.Port < 1024 {
			return true
		}
	}
	return false
}

// servers are the listening servers of a case.
type servers struct {
	list []*scripted
	once sync.Once
}

type scripted struct {
	Server
	ln   net.Listener
	busy sync.WaitGroup
	mu   sync.Mutex
	saw  []*Seen
}

func (x *run) startServers() (*servers, error) {
	all := &servers{}
	for i, s := range x.c.Servers {
		down := string(s.Script["down"]) == "true"
		sc := &scripted{Server: s}
		all.list = append(all.list, sc)
		ip := s.IP
		if ip == "" {
			ip = "127.0.0.1"
		}
		port := s.Port
		if !down {
			ln, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
			if err != nil {
				all.close()
				return nil, fmt.Errorf("%v: %w", err, ErrSkip)
			}
			sc.ln, port = ln, ln.Addr().(*net.TCPAddr).Port
			sc.busy.Go(sc.accept)
		} else if port == 0 {
			port = refusing()
		}
		name := "PORT"
		if i > 0 {
			name += strconv.Itoa(i)
		}
		x.vars[name] = strconv.Itoa(port)
	}
	x.vars["CLOSEDPORT"] = strconv.Itoa(refusing())
	return all, nil
}

// refusing is a port on which nobody listened a moment ago.
func refusing() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func (s *servers) close() {
	s.once.Do(func() {
		for _, sc := range s.list {
			if sc.ln != nil {
				sc.ln.Close()
				sc.busy.Wait()
			}
		}
	})
}

func (s *servers) saw() (all [][]*Seen) {
	for _, sc := range s.list {
		all = append(all, sc.saw)
	}
	return all
}

func (s *scripted) accept() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		seen := &Seen{}
		s.mu.Lock()
		s.saw = append(s.saw, seen)
		s.mu.Unlock()
		s.busy.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(timeout))
			if s.Proto == "qmqp" {
				s.qmqp(conn, seen)
			} else {
				s.smtp(conn, seen)
			}
		})
	}
}

func (s *scripted) script(stage, otherwise string) answer {
	a := answer{bytes: []byte(otherwise)}
	if raw, ok := s.Script[stage]; ok {
		if err := json.Unmarshal(raw, &a); err != nil {
			a = answer{close: true}
		}
	}
	return a
}

// say gives an answer; false means that it was the last.
func say(conn net.Conn, a answer) bool {
	if a.pieces != nil {
		for _, p := range a.pieces {
			conn.Write(p)
			time.Sleep(20 * time.Millisecond) // so that they are packets of their own
		}
	} else if _, err := conn.Write(a.bytes); err != nil {
		return false
	}
	if a.close {
		conn.(*net.TCPConn).CloseWrite()
	}
	if a.close || a.stall {
		io.Copy(io.Discard, conn)
		return false
	}
	return true
}

func (s *scripted) qmqp(conn net.Conn, seen *Seen) {
	var raw bytes.Buffer
	defer func() { seen.Raw = raw.Bytes() }()
	r := bufio.NewReader(io.TeeReader(conn, &raw))
	digits, err := r.ReadString(':')
	n, _ := strconv.Atoi(strings.TrimSuffix(digits, ":"))
	if err == nil {
		_, err = io.CopyN(io.Discard, r, int64(n)+1)
	}
	if err == nil {
		say(conn, s.script("reply", "16:Kok 1 qp 2 fake.,"))
	}
}

func (s *scripted) smtp(conn net.Conn, seen *Seen) {
	r := bufio.NewReader(conn)
	if !say(conn, s.script("greeting", "220 fake.example ESMTP\r\n")) {
		return
	}
	var rcpt []json.RawMessage
	json.Unmarshal(s.Script["rcpt"], &rcpt)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		seen.Commands = append(seen.Commands, Value(line))
		var a answer
		switch verb := strings.ToUpper(line[:min(4, len(line))]); verb {
		case "EHLO":
			a = s.script("ehlo", "502 unimplemented\r\n")
		case "HELO":
			a = s.script("helo", "250 fake.example\r\n")
		case "MAIL":
			a = s.script("mail", "250 sender ok\r\n")
		case "RCPT":
			a = answer{bytes: []byte("250 recipient ok\r\n")}
			if len(rcpt) > 0 {
				json.Unmarshal(rcpt[0], &a)
				rcpt = rcpt[1:]
			}
		case "RSET":
			a = s.script("rset", "250 ok\r\n")
		case "QUIT":
			say(conn, s.script("quit", "221 bye\r\n"))
			return
		case "DATA":
			a = s.script("data", "354 go ahead\r\n")
			if !say(conn, a) {
				return
			}
			if a.bytes[0] != '3' && a.bytes[0] != '2' {
				continue
			}
			for {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				seen.Body = append(seen.Body, line...)
			}
			a = s.script("body", "250 accepted\r\n")
		default:
			a = s.script("other", "500 what\r\n")
		}
		if !say(conn, a) {
			return
		}
	}
}
