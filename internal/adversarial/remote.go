package adversarial

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// script is a server that plays a case to our client.
type script struct {
	ln   net.Listener
	busy sync.WaitGroup
	stop chan struct{}

	mu       sync.Mutex
	conns    int
	seen     map[string]int // commands
	wire     []byte
	bodies   int
	afterEnd string // what came behind an end of data, but QUIT
	data     bool   // we are inside a body
}

// remote plays a case against qmail-remote, with a server that does as the case wants.
func (r *Runner) remote(c *Case) error {
	if c.Setup.Role != "remote" {
		return fmt.Errorf("there is no client %q", c.Setup.Role)
	}
	s, err := r.newSite()
	if err != nil {
		return err
	}
	defer s.close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	h := &script{ln: ln, seen: map[string]int{}, stop: make(chan struct{})}
	h.busy.Go(func() { h.accept(c) })
	defer h.close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	route := map[string]string{"smtproutes": ":127.0.0.1:" + port + "\n"}
	route["timeoutremote"] = "10\n"
	for _, step := range c.Chunks {
		if step.Delay > 0 { // slow, but not too slow for a single byte
			route["timeoutremote"] = "40\n"
		}
		if step.DNS != "" {
			resolver, err := answering(step.DNS)
			if err != nil {
				return err
			}
			defer resolver.close()
			route = map[string]string{"resolvers": resolver.address + "\n"}
		}
	}
	if err := errors.Join(s.control(route), s.prepare(c)); err != nil {
		return err
	}
	rcpts := c.Setup.Rcpts
	if len(rcpts) == 0 {
		rcpts = []string{"box@remote.example"}
	}
	cmd := r.command(s, "qmail-remote", append([]string{"remote.example", "s@test.example"}, rcpts...)...)
	cmd.Stdin = io.MultiReader(bytes.NewReader(c.Setup.Message), bytes.NewReader(bytes.Repeat(c.Setup.MessageAppend, c.Setup.MessageAppendRepeat)))
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	cmd.WaitDelay = time.Second
	began := time.Now()
	memory, err := watched(cmd, most)
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("qmail-remote: %v: %.300q", err, log.Bytes())
	}
	took := time.Since(began)
	h.close()
	return c.judgeRemote(out.String(), log.String(), h, took, memory).err()
}

// letterClass is the class that a letter of a report stands for.
func letterClass(letter string) string {
	switch letter {
	case "K", "r":
		return "accept"
	case "D", "h":
		return "reject"
	}
	return "tempfail"
}

func (c *Case) judgeRemote(report, log string, h *script, took time.Duration, memory int64) (p problems) {
	records := strings.Split(strings.TrimSuffix(report, "\x00"), "\x00")
	if !strings.HasSuffix(report, "\x00") || slices.ContainsFunc(records, func(r string) bool { return r == "" || !strings.Contains("rhsKZD", r[:1]) }) {
		p.add("the report is %.300q", report)
		return p
	}
	last := records[len(records)-1]
	class := letterClass(last[:1])
	if class == "accept" && strings.Contains("hs", records[0][:1]) { // what counts is the recipient
		class = letterClass(records[0][:1])
	}
	if !slices.Contains(c.classes(), class) {
		p.add("%s, want %v: %.300q", class, c.classes(), report)
	}
	if trouble := brokeDown([]byte(log)); trouble != "" {
		p.add("broke down: %s", trouble)
	} else if log != "" {
		p.add("standard error has %.300q, which callers take for a report", log)
	}
	bare := bytes.ReplaceAll(h.wire, []byte("\r\n"), nil)
	for _, word := range c.Expect.MustNot {
		broken := false
		name, limit, isLimit := strings.Cut(word, ">")
		most := int64(0)
		if isLimit {
			var err error
			if most, err = number(limit); err != nil {
				p.add("%w", err)
				continue
			}
		}
		name, arg, _ := strings.Cut(name, ":")
		switch name {
		case "delivered":
			broken = class == "accept"
		case "bounced":
			broken = class == "reject"
		case "sent_body":
			broken = h.bodies > 0
		case "sink_msgs":
			broken = int64(h.bodies) > most
		case "sink_cmd_after_eod":
			broken = h.afterEnd != ""
		case "bare_cr_on_wire":
			broken = bytes.Contains(bare, []byte("\r"))
		case "bare_lf_on_wire":
			broken = bytes.Contains(bare, []byte("\n"))
		case "log_control_chars", "header_injected":
			broken = strings.ContainsAny(strings.Join(records, ""), "\r\x1b") || strings.Count(last, "\n") > 3
		case "queue_record_forged": // a report is records that end in NUL: one for each recipient, and the last
			broken = len(records) > 1+max(1, len(c.Setup.Rcpts))
		case "bounce_mime_broken": // the bounce is made of lines of the report
			broken = strings.Contains(strings.Join(records, "\n"), "\n--")
		case "wrong_recipient_status":
			broken = len(records) != 4 || records[0][0] != 'r' || records[1][0] != 'h' || records[2][0] != 's'
		case "connect":
			broken = strings.Contains(report, "Connected to "+arg) || h.conns > 0
		case "connects":
			broken = int64(h.conns) > most
		case "time":
			broken = took > time.Duration(most)
		case "rss":
			broken = memory > most
		case "sent", "sent_plaintext":
			broken = bytes.Contains(h.wire, []byte(arg))
		case "exec", "panic", "other_delivery_blocked": // looked at for all; it has a process of its own
		default:
			p.add("it must not %q, whatever that is", word)
		}
		if broken {
			p.add("%s: the server saw %.300q, the report is %.300q, %v, %d MiB", word, h.wire, report, took.Round(time.Second), memory>>20)
		}
	}
	return p
}

func (h *script) accept(c *Case) {
	for {
		conn, err := h.ln.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		h.conns++
		first := h.conns == 1
		h.mu.Unlock()
		if !first { // a second try meets nobody
			conn.Close()
			continue
		}
		h.busy.Go(func() {
			defer conn.Close()
			go func() { <-h.stop; conn.Close() }()
			h.play(c, conn)
		})
	}
}

func (h *script) close() {
	select {
	case <-h.stop:
		return
	default:
	}
	close(h.stop)
	h.ln.Close()
	h.busy.Wait()
}

func (h *script) play(c *Case, conn net.Conn) {
	r := bufio.NewReader(conn)
	for i, step := range c.Chunks {
		switch {
		case step.Sink != "":
			h.sink(conn, r, i == 0)
			return
		case step.After != "" && !h.await(r, step.After):
			return
		case step.Close:
			return
		case step.Reset:
			conn.(*net.TCPConn).SetLinger(0)
			return
		case step.Stop:
			<-h.stop
			return
		}
		if bytes.HasPrefix(step.Server, []byte("354")) {
			h.data = true
		}
		if !h.say(conn, step) {
			return
		}
	}
	for h.line(r) != "" { // the client ends it
	}
}

func (h *script) say(conn net.Conn, step Chunk) bool {
	open := func() bool {
		select {
		case <-h.stop:
			return false
		default:
			return true
		}
	}
	if step.Segment > 0 {
		for out := step.Server; len(out) > 0; {
			n := min(step.Segment, len(out))
			select {
			case <-h.stop:
				return false
			case <-time.After(time.Duration(step.Delay) * time.Millisecond):
			}
			if _, err := conn.Write(out[:n]); err != nil {
				return false
			}
			out = out[n:]
		}
		return true
	}
	for _, part := range []struct {
		unit  []byte
		times int
	}{{step.Server, 1}, {step.Again, step.Repeat}, {step.Tail, 1}} {
		if len(part.unit) > 0 && part.times > 0 && !write(conn, part.unit, part.times, 0, open) {
			return false
		}
	}
	return true
}

// await reads until the command was seen: "RCPT#2" is the second RCPT, EOD the end of the data.
func (h *script) await(r *bufio.Reader, what string) bool {
	verb, count, _ := strings.Cut(what, "#")
	want, err := strconv.Atoi(count)
	if err != nil {
		want = 1
	}
	for h.seen[verb] < want {
		if h.line(r) == "" {
			return false
		}
	}
	return true
}

func (h *script) line(r *bufio.Reader) string {
	line, err := r.ReadString('\n')
	if err != nil {
		return ""
	}
	if len(h.wire) < keep {
		h.wire = append(h.wire, line...)
	}
	if h.data {
		if line == ".\r\n" {
			h.data = false
			h.bodies++
			h.seen["EOD"]++
		}
		return line
	}
	if h.bodies > 0 && !strings.HasPrefix(line, "QUIT") {
		h.afterEnd += line
	}
	h.seen[strings.ToUpper(line[:min(4, len(line))])]++
	return line
}

// sink is an obliging server; greet is false if the script has greeted and answered EHLO already.
func (h *script) sink(conn net.Conn, r *bufio.Reader, greet bool) {
	if greet {
		io.WriteString(conn, "220 mx.remote.example ESMTP\r\n")
	}
	for {
		line := h.line(r)
		reply := "250 ok\r\n"
		switch {
		case line == "":
			return
		case h.data:
			continue
		case strings.HasPrefix(line, "EHLO"):
			reply = "250-mx.remote.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
		case strings.HasPrefix(line, "DATA"):
			h.data, reply = true, "354 go\r\n"
		case strings.HasPrefix(line, "QUIT"):
			return
		}
		if _, err := io.WriteString(conn, reply); err != nil {
			return
		}
	}
}
