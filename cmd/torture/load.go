package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ways are the ways in: each gives a message to the server and says what is known of it then.
var ways = map[string]func(g *generator, m *mail, text string) state{
	"smtp": (*generator).smtp, "qmtp": (*generator).qmtp, "qmqp": (*generator).qmqp, "qmail-queue": (*generator).queue,
}

const (
	sender  = "sender@torture.example"
	timeout = 30 * time.Second
)

// generator sends one message after the other.
type generator struct {
	server  *server
	account *account
	way     string
	n       int
}

func (g *generator) run(ctx context.Context) {
	for ctx.Err() == nil {
		size := rand.IntN(6000)
		if rand.IntN(100) == 0 {
			size = rand.IntN(600_000)
		}
		m := g.account.write(size, 1+rand.IntN(15))
		s := ways[g.way](g, m, m.text(size))
		g.account.set(m, s)
		pause := 2 * time.Millisecond
		if s != accepted {
			pause = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func dial(address string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err == nil {
		c.SetDeadline(time.Now().Add(timeout))
	}
	return c, err
}

func (g *generator) smtp(m *mail, text string) state {
	c, err := dial(g.server.smtp)
	if err != nil {
		return refused
	}
	defer c.Close()
	in := bufio.NewReader(c)
	reply := func() string {
		for {
			line, err := in.ReadString('\n')
			if err != nil || len(line) < 4 {
				return ""
			}
			if line[3] != '-' {
				return line[:1]
			}
		}
	}
	if reply() != "2" {
		return refused
	}
	commands := []string{"HELO torture", "MAIL FROM:<" + sender + ">"}
	for _, to := range m.to {
		commands = append(commands, "RCPT TO:<"+to+">")
	}
	for _, line := range commands {
		io.WriteString(c, line+"\r\n")
		if reply() != "2" {
			return refused
		}
	}
	io.WriteString(c, "DATA\r\n")
	if reply() != "3" {
		return refused
	}
	io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n")+".\r\n")
	return stateOf(reply(), "2")
}

func stateOf(reply, good string) state {
	switch reply {
	case "":
		return unknown
	case good:
		return accepted
	}
	return refused
}

func netstring(s string) string { return strconv.Itoa(len(s)) + ":" + s + "," }

// readNetstring reads one.
func readNetstring(r *bufio.Reader) (string, error) {
	head, err := r.ReadString(':')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(head, ":"))
	if err != nil || n > 10_000 {
		return "", errors.New("no netstring")
	}
	b := make([]byte, n+1)
	_, err = io.ReadFull(r, b)
	return string(b[:n]), err
}

func (g *generator) qmtp(m *mail, text string) state {
	c, err := dial(g.server.qmtp)
	if err != nil {
		return refused
	}
	defer c.Close()
	var to strings.Builder
	for _, r := range m.to {
		to.WriteString(netstring(r))
	}
	io.WriteString(c, netstring("\n"+text)+netstring(sender)+netstring(to.String()))
	in := bufio.NewReader(c)
	s := accepted
	for range m.to {
		answer, err := readNetstring(in)
		if err != nil || answer == "" {
			return unknown
		}
		s = min(s, stateOf(answer[:1], "K"))
	}
	return s
}

func (g *generator) qmqp(m *mail, text string) state {
	c, err := dial(g.server.qmqp)
	if err != nil {
		return refused
	}
	defer c.Close()
	b := netstring(text) + netstring(sender)
	for _, r := range m.to {
		b += netstring(r)
	}
	io.WriteString(c, netstring(b))
	answer, err := readNetstring(bufio.NewReader(c))
	if err != nil || answer == "" {
		return unknown
	}
	return stateOf(answer[:1], "K")
}

// queue runs qmail-queue.
func (g *generator) queue(m *mail, text string) state {
	cmd := g.server.command("qmail-queue")
	r, w, err := os.Pipe()
	if err != nil {
		return refused
	}
	cmd.Stdin = strings.NewReader(text)
	cmd.Stdout = nil
	cmd.ExtraFiles = nil
	// qmail-queue reads the envelope from descriptor 1.
	cmd.Stdout = r
	if err := cmd.Start(); err != nil {
		r.Close()
		w.Close()
		return refused
	}
	r.Close()
	fmt.Fprintf(w, "F%s\x00T%s\x00\x00", sender, strings.Join(m.to, "\x00T"))
	w.Close()
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if exit.ExitCode() == 91 || !exit.Exited() { // 91: nobody knows
			return unknown
		}
		return unknownOr(exit.ExitCode())
	}
	if err != nil {
		return unknown
	}
	return accepted
}

// unknownOr: a temporary failure of qmail-queue may come after the message was given away; the others do not.
func unknownOr(code int) state {
	switch code {
	case 51, 54, 61, 62, 63, 64, 65, 66: // before
		return refused
	}
	return unknown
}

// sink is another machine's server.
type sink struct {
	mu      sync.Mutex
	ln      net.Listener
	address string
	conns   map[net.Conn]bool
	account *account
	down    bool
}

func newSink() (*sink, error) {
	k := &sink{conns: map[net.Conn]bool{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k.ln, k.address = ln, ln.Addr().String()
	go k.accept()
	return k, nil
}

func (k *sink) port() int { return k.ln.Addr().(*net.TCPAddr).Port }

func (k *sink) accept() {
	for {
		c, err := k.ln.Accept()
		if err != nil {
			return
		}
		k.mu.Lock()
		down := k.down
		k.conns[c] = true
		k.mu.Unlock()
		if down {
			c.Close()
		}
		go k.serve(c)
	}
}

// away cuts all connections and takes no others for a while.
func (k *sink) away(d time.Duration) {
	k.mu.Lock()
	k.down = true
	for c := range k.conns {
		c.Close()
	}
	k.mu.Unlock()
	time.Sleep(d)
	k.mu.Lock()
	k.down = false
	k.mu.Unlock()
}

func (k *sink) close() {
	k.ln.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		c.Close()
	}
}

func (k *sink) serve(c net.Conn) {
	defer func() {
		c.Close()
		k.mu.Lock()
		delete(k.conns, c)
		k.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	say := func(text string) { io.WriteString(c, text+"\r\n") }
	say("220 sink")
	var to []string
	for {
		c.SetDeadline(time.Now().Add(time.Minute))
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(line[:min(4, len(line))]); verb {
		case "EHLO":
			say("250-sink\r\n250 PIPELINING")
		case "MAIL", "RSET":
			to = nil
			say("250 ok")
		case "RCPT":
			if rand.IntN(100) == 0 {
				say("451 not now")
				continue
			}
			_, addr, _ := strings.Cut(line, "<")
			addr, _, _ = strings.Cut(addr, ">")
			to = append(to, addr)
			say("250 ok")
		case "DATA":
			if len(to) == 0 {
				say("503 whom?")
				continue
			}
			say("354 go")
			if !k.take(in, to) {
				return
			}
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

// take reads a message and notes it.
func (k *sink) take(in *bufio.Reader, to []string) bool {
	var b bytes.Buffer
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		b.WriteString(strings.TrimPrefix(strings.TrimSuffix(line, "\r\n"), "."))
		b.WriteByte('\n')
	}
	if b.Len() == 0 {
		return true // DATA after recipients that were refused (RFC 2920 3.1)
	}
	for _, addr := range to {
		k.account.arrived(addr, b.Bytes(), true)
	}
	return true
}
