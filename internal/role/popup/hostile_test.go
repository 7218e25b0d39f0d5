package popup

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hostile is a case of hostile input.
type hostile struct {
	Name  string
	Setup struct {
		Messages int    `json:"maildir_messages"`
		Message  []byte `json:"maildir_message_b64"`
		Symlink  string `json:"maildir_symlink"`
		FIFO     bool   `json:"maildir_fifo"`
	}
	Chunks []struct {
		B64    []byte
		Repeat int
		Await  string
		Gen    string
		Count  int
	}
	Expect struct {
		Class   string
		Or      []string
		MustNot []string `json:"must_not"`
	}
}

// notYet are cases for which there is no TLS yet.
var notYet = map[string]string{
	"pop3/stls-injection":  "needs STLS",
	"pop3/pass-before-tls": "needs STLS: until then an administrator who listens for POP3 lets passwords pass in the clear",
}

// TestHostileClients plays them against a listener, a checker and a qmail-pop3d. Those written for POP3 in TLS
// are played without the TLS.
func TestHostileClients(t *testing.T) {
	f, err := os.Open("testdata/adversarial.jsonl")
	must(t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	played := 0
	for lines.Scan() {
		var c hostile
		must(t, json.Unmarshal(lines.Bytes(), &c))
		played++
		t.Run(c.Name, func(t *testing.T) {
			if why := notYet[c.Name]; why != "" {
				t.Skip(why)
			}
			t.Parallel()
			c.play(t)
		})
	}
	must(t, lines.Err())
	if played < 35 {
		t.Errorf("only %d cases", played)
	}
}

const secretText = "text of a message"

func (c *hostile) play(t *testing.T) {
	var messages []string
	for i := range c.Setup.Messages {
		messages = append(messages, fmt.Sprintf("Subject: %d\n\n%s\n", i+1, secretText))
	}
	if c.Setup.Message != nil {
		messages = append(messages, string(c.Setup.Message))
	}
	s := newSite(t, messages...)
	odd := filepath.Join(s.dir, "alice/Maildir/new/2000000000.9.host")
	if c.Setup.Symlink != "" {
		must(t, os.Symlink(c.Setup.Symlink, odd))
	}
	if c.Setup.FIFO {
		must(t, syscall.Mkfifo(odd, 0o644))
	}
	s.own(t)
	began := time.Now()
	var seen transcript
	for _, chunk := range c.Chunks {
		if chunk.Gen == "pop3-brute" {
			seen = s.guess(t, chunk.Count)
		}
	}
	if seen.all == "" {
		seen = c.talk(t, s)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	classes := append([]string{c.Expect.Class}, c.Expect.Or...)
	if !slices.ContainsFunc(classes, seen.is) {
		t.Errorf("wanted %v, but %s", classes, seen)
	}
	for _, word := range c.Expect.MustNot {
		if s.violates(t, word, &seen, slices.Contains(classes, "accept")) {
			t.Errorf("%s: %s", word, seen)
		}
	}
}

// transcript is what a client saw.
type transcript struct {
	all      string
	statuses []string // the first lines of replies
	commands []string // that they answer; the greeting answers ""
	closed   bool     // by the server, before the client was done
	sent     int64    // bytes, where nothing was waited for
}

func (s transcript) String() string {
	return fmt.Sprintf("replies %.300q, closed %v", s.statuses, s.closed)
}

func (s transcript) is(class string) bool {
	refused := slices.ContainsFunc(s.statuses, func(r string) bool { return strings.HasPrefix(r, "-ERR") })
	switch class {
	case "reject":
		return refused
	case "accept":
		return !refused && !s.closed
	case "close":
		return s.closed
	}
	return false
}

// talk says what a case says, and waits for the replies as it wants.
func (c *hostile) talk(t *testing.T, s *site) (seen transcript) {
	conn, err := net.Dial("tcp", s.address)
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(25 * time.Second))
	var all strings.Builder
	in := bufio.NewReader(io.TeeReader(conn, &all))
	defer func() { seen.all = all.String() }()
	if !seen.reply(in, "") {
		return seen
	}
	for _, chunk := range c.Chunks {
		data := chunk.B64
		sent := make(chan int64, 1)
		go func() {
			n, _ := io.Copy(conn, &repeated{data, max(chunk.Repeat, 1)}) // the server may have had enough
			sent <- n
			if chunk.Await == "close" {
				conn.(*net.TCPConn).CloseWrite()
			}
		}()
		if chunk.Await == "none" {
			seen.sent += <-sent
			continue
		}
		if chunk.Await == "close" {
			for seen.reply(in, "?") {
			}
			seen.sent += <-sent
			return seen
		}
		for range max(chunk.Repeat, 1) {
			for command := range strings.Lines(string(data)) {
				if !seen.reply(in, strings.TrimSpace(command)) {
					return seen
				}
			}
		}
	}
	return seen
}

// repeated is data so many times.
type repeated struct {
	data  []byte
	times int
}

func (r *repeated) Read(p []byte) (n int, err error) {
	if r.times == 0 {
		return 0, io.EOF
	}
	for r.times > 0 && n+len(r.data) <= len(p) {
		n += copy(p[n:], r.data)
		r.times--
	}
	return n, nil
}

// reply reads one; false at the end of the session.
func (s *transcript) reply(in *bufio.Reader, command string) bool {
	line, err := in.ReadString('\n')
	if err != nil {
		s.closed = true
		return false
	}
	s.statuses = append(s.statuses, strings.TrimSuffix(line, "\r\n"))
	s.commands = append(s.commands, command)
	verb, arg, _ := strings.Cut(strings.ToUpper(command), " ")
	if !strings.HasPrefix(line, "+OK") || verb != "RETR" && verb != "TOP" && verb != "CAPA" && (arg != "" || verb != "LIST" && verb != "UIDL") {
		return true
	}
	for line != ".\r\n" {
		if line, err = in.ReadString('\n'); err != nil {
			s.closed = true
			return false
		}
	}
	return true
}

// guess tries passwords, each on a connection of its own.
func (s *site) guess(t *testing.T, count int) (seen transcript) {
	for i := range count {
		conn, err := net.Dial("tcp", s.address)
		must(t, err)
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "USER alice\r\nPASS guess%d\r\n", i)
		b, _ := io.ReadAll(conn)
		conn.Close()
		seen.all += string(b)
		seen.closed = true
		seen.statuses = append(seen.statuses, strings.Split(string(b), "\r\n")...)
	}
	return seen
}

// violates reports whether something has happened that must not.
func (s *site) violates(t *testing.T, word string, seen *transcript, mayAccept bool) bool {
	name, arg, _ := strings.Cut(word, ":")
	switch {
	case name == "panic":
		log, err := os.ReadFile(filepath.Join(s.dir, "log"))
		return err != nil || strings.Contains(string(log), "panic")
	case name == "leak":
		return strings.Contains(seen.all, arg)
	case name == "other_message":
		return !mayAccept && strings.Contains(seen.all, secretText)
	case name == "message_removed":
		left, err := filepath.Glob(filepath.Join(s.dir, "alice/Maildir/*/*"))
		return err != nil || len(left) != 3
	case name == "auth_ok":
		for i, command := range seen.commands {
			if strings.HasPrefix(command, "PASS") && strings.HasPrefix(seen.statuses[i], "+OK") {
				return true
			}
		}
		return false
	case name == "file": // a name is never a path: it is not even opened
		return strings.Contains(seen.all, arg)
	case name == "auth_attempts>20":
		return s.attempts() > 20 || s.attempts() == 0
	case name == "rss>32MiB":
		return seen.sent > 16<<20 // what the system's buffers hold, and nobody here
	case name == "time>20s":
		return false // is looked at for all
	case name == "reply":
		return slices.ContainsFunc(seen.statuses, regexp.MustCompile(arg).MatchString)
	case name == "bare_lf_on_wire":
		return strings.ContainsAny(strings.ReplaceAll(seen.all, "\r\n", ""), "\r\n")
	}
	t.Errorf("unknown condition %q", word)
	return false
}
