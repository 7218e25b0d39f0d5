package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// submit sends one message by SMTP and returns the server's last word on it.
func submit(address, sender, recipient, subject string) (string, error) {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	message := fmt.Sprintf("From: %s\r\nTo: %s\r\nSubject: %s\r\n\r\nHello.\r\n.\r\n", sender, recipient, subject)
	for _, step := range []struct{ say, want string }{
		{"", "220"},
		{"EHLO client." + remote + "\r\n", "250"},
		{"MAIL FROM:<" + sender + ">\r\n", "250"},
		{"RCPT TO:<" + recipient + ">\r\n", "250"},
		{"DATA\r\n", "354"},
		{message, "250"},
	} {
		if _, err := c.Write([]byte(step.say)); err != nil {
			return "", err
		}
		reply, err := readReply(r)
		if err != nil {
			return "", err
		}
		if !strings.HasPrefix(reply, step.want) || step.want == "250" && step.say == message {
			_, err := c.Write([]byte("QUIT\r\n"))
			return reply, err
		}
	}
	return "", nil // not reached: the last step returns
}

// readReply returns the last line of a reply.
func readReply(r *bufio.Reader) (string, error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("in the middle of SMTP: %w", err)
		}
		if len(line) < 4 || line[3] != '-' {
			return strings.TrimRight(line, "\r\n"), nil
		}
	}
}

// sink is the other machine: an SMTP server that keeps what it gets. It knows everybody but nobody.
type sink struct {
	ln net.Listener

	mu      sync.Mutex
	records []record
}

// record is one message that reached the sink.
type record struct {
	sender, recipients string
	body               string
}

func newSink() (*sink, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{ln: ln}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			go s.serve(c)
		}
	}()
	return s, nil
}

func (s *sink) port() int { return s.ln.Addr().(*net.TCPAddr).Port }

func (s *sink) close() { s.ln.Close() }

// find returns the message that has text in it.
func (s *sink) find(text string) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if strings.Contains(r.body, text) {
			return r, true
		}
	}
	return record{}, false
}

func (s *sink) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	var now record
	say := func(text string) bool {
		_ = c.SetDeadline(time.Now().Add(time.Minute)) // a closed connection shows in the next write
		_, err := c.Write([]byte(text + "\r\n"))
		return err == nil
	}
	ok := say("220 " + remote + " ESMTP")
	for ok {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			ok = say("250-" + remote + "\r\n250-PIPELINING\r\n250 8BITMIME")
		case "MAIL":
			now = record{sender: path(arg)}
			ok = say("250 ok")
		case "RCPT":
			if strings.HasPrefix(path(arg), "nobody@") {
				ok = say("550 5.1.1 there is no such person here")
				break
			}
			now.recipients += path(arg) + " "
			ok = say("250 ok")
		case "DATA":
			if now.recipients == "" {
				ok = say("554 nobody to give it to")
				break
			}
			if ok = say("354 go ahead"); ok {
				ok = s.data(r, now) && say("250 thank you")
			}
		case "QUIT":
			say("221 bye")
			return
		default:
			ok = say("250 ok")
		}
	}
}

// data reads a message.
func (s *sink) data(r *bufio.Reader, now record) bool {
	for {
		line, err := r.ReadString('\n')
		if err != nil || len(now.body) > 1<<20 {
			return false
		}
		if line == ".\r\n" {
			break
		}
		now.body += strings.TrimPrefix(line, ".")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, now)
	return true
}

// path is what stands between angle brackets.
func path(arg string) string {
	_, rest, _ := strings.Cut(arg, "<")
	inner, _, _ := strings.Cut(rest, ">")
	return inner
}
