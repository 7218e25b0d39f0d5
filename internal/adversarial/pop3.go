package adversarial

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	password   = "correct horse"
	secretText = "text of a message"
)

// checker is a program of the checkpassword kind. It counts how often it is asked.
const checker = `#!/bin/sh
echo >>%[1]s/attempts
login=$(tr '\0\n' '\n_' <&3 | head -n 2)
[ "$login" = "alice
` + password + `" ] || [ "$login" = "alice@test.example
` + password + `" ] || exit 1
cd %[1]s || exit 111
exec "$@" 3<&-
`

// pop3 plays a case against qmail-popup and what it runs. Cases that were written for POP3 in TLS are played without.
func (r *Runner) pop3(c *Case) error {
	s, err := r.newSite("pop3")
	if err != nil {
		return err
	}
	defer s.close()
	maildir := filepath.Join(s.home, "mail", "alice", "Maildir")
	box := filepath.Dir(maildir)
	check := filepath.Join(s.home, "check")
	if err := s.write("check", fmt.Appendf(nil, checker, box), 0o755); err != nil {
		return err
	}
	if err := errors.Join(s.control(map[string]string{"pop3checkpassword": check + "\n"}), s.fill(c), s.start()); err != nil {
		return err
	}
	began := time.Now()
	seen := &popTalk{}
	for _, chunk := range c.Chunks {
		switch chunk.Gen {
		case "":
		case "pop3-brute":
			seen.guess(s.address["pop3"], chunk.Count)
		default:
			return fmt.Errorf("it wants to generate %s", chunk.Gen)
		}
	}
	if !seen.guessed {
		before := resetPeak(s.role("popup"))
		if err := seen.talk(c, s.address["pop3"]); err != nil {
			return err
		}
		seen.memory = peak(s.role("popup")) - before
	}
	took := time.Since(began)
	var p problems
	if !slices.ContainsFunc(c.classes(), seen.is) {
		p.add("want one of %v, but %s", c.classes(), seen)
	}
	if trouble := s.trouble(); trouble != "" {
		p.add("broke down: %s", trouble)
	}
	for _, word := range c.Expect.MustNot {
		broken, err := seen.broken(c, word, box, took)
		if err != nil {
			p.add("%w", err)
		} else if broken {
			p.add("%s: %s", word, seen)
		}
	}
	return p.err()
}

// fill puts the messages of the case into alice's Maildir.
func (s *site) fill(c *Case) error {
	texts := [][]byte{}
	for i := range c.Setup.MaildirMessages {
		texts = append(texts, fmt.Appendf(nil, "Subject: %d\n\n%s\n", i+1, secretText))
	}
	if c.Setup.MaildirMessage != nil {
		texts = append(texts, c.Setup.MaildirMessage)
	}
	for i, text := range texts {
		name := filepath.Join("mail/alice/Maildir/new", fmt.Sprintf("%d.%d.host", 1000000000+i, i))
		when := time.Unix(int64(1000000000+i), 0) // what has come this very second is not shown yet
		if err := errors.Join(s.write(name, text, 0o600), os.Chtimes(filepath.Join(s.home, name), when, when)); err != nil {
			return err
		}
	}
	odd := filepath.Join(s.home, "mail/alice/Maildir/new/2000000000.9.host")
	if c.Setup.MaildirSymlink != "" {
		if err := errors.Join(os.Symlink(c.Setup.MaildirSymlink, odd), s.r.own(odd)); err != nil {
			return err
		}
	}
	if c.Setup.MaildirFIFO {
		if err := errors.Join(syscall.Mkfifo(odd, 0o644), s.r.own(odd)); err != nil {
			return err
		}
	}
	return nil
}

// popTalk is what a POP3 client saw.
type popTalk struct {
	replies  *listener
	all      []byte
	statuses []string // the first lines of replies
	commands []string // that they answer; the greeting answers ""
	closed   bool     // by the server, before the client was done
	guessed  bool
	memory   int64
}

func (t *popTalk) String() string {
	return fmt.Sprintf("replies %.300q, closed %v", t.statuses, t.closed)
}

func (t *popTalk) is(class string) bool {
	refused := slices.ContainsFunc(t.statuses, func(s string) bool { return strings.HasPrefix(s, "-ERR") })
	switch class {
	case "reject":
		return refused
	case "accept":
		return !refused && !t.closed
	case "close":
		return t.closed
	}
	return false
}

func (t *popTalk) talk(c *Case, to string) error {
	conn, err := dialFrom("127.0.0.1", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	t.replies = listen(conn)
	defer func() { t.all, _ = t.replies.all() }()
	if !t.reply("") {
		return nil
	}
	alive := func() bool { _, ended := t.replies.all(); return !ended }
	for _, chunk := range c.Chunks {
		times := max(1, chunk.Repeat)
		write(conn, chunk.B64, times, time.Duration(chunk.Delay)*time.Millisecond, alive)
		switch chunk.Await {
		case "none":
		case "close":
			conn.(*net.TCPConn).CloseWrite()
			t.closed = t.replies.wait(patience, func(l *listener) bool { return l.ended })
			return nil
		case "", "reply":
			for range times {
				for command := range strings.Lines(string(chunk.B64)) {
					if !t.reply(strings.TrimSpace(command)) {
						return nil
					}
				}
			}
		default:
			return fmt.Errorf("it wants to await %s", chunk.Await)
		}
	}
	return nil
}

// reply waits for the reply to a command; false at the end of the session.
func (t *popTalk) reply(command string) bool {
	line := func() (s string, ok bool) {
		ok = t.replies.wait(patience, func(l *listener) bool {
			text, _, whole := bytes.Cut(l.said[l.seen:], []byte("\n"))
			if whole {
				s = string(bytes.TrimSuffix(text, []byte("\r")))
				l.seen += len(text) + 1
			}
			return whole
		})
		return s, ok
	}
	status, ok := line()
	if !ok {
		t.closed = true
		return false
	}
	t.statuses, t.commands = append(t.statuses, status), append(t.commands, command)
	verb, arg, _ := strings.Cut(strings.ToUpper(command), " ")
	many := slices.Contains([]string{"RETR", "TOP", "CAPA"}, verb) || arg == "" && slices.Contains([]string{"LIST", "UIDL"}, verb)
	for text := ""; many && strings.HasPrefix(status, "+OK") && text != "."; {
		if text, ok = line(); !ok {
			t.closed = true
			return false
		}
	}
	return true
}

// guess tries passwords, each on a connection of its own.
func (t *popTalk) guess(to string, count int) {
	t.guessed = true
	for i := range count {
		conn, err := dialFrom("127.0.0.1", to)
		if err != nil {
			t.closed = true
			continue
		}
		said := listen(conn)
		fmt.Fprintf(conn, "USER alice@test.example\r\nPASS guess%d\r\n", i)
		t.closed = said.wait(patience, func(l *listener) bool { return l.ended }) || t.closed
		conn.Close()
		b, _ := said.all()
		t.all = append(t.all, b...)
		t.statuses = append(t.statuses, strings.Split(string(b), "\r\n")...)
	}
}

// broken reports whether something came true that must not.
func (t *popTalk) broken(c *Case, word, box string, took time.Duration) (bool, error) {
	name, arg, _ := strings.Cut(word, ":")
	limited, limit, isLimit := strings.Cut(word, ">")
	var most int64
	if isLimit {
		var err error
		if most, err = number(limit); err != nil {
			return false, err
		}
		name = limited
	}
	switch name {
	case "panic": // looked for already
		return false, nil
	case "leak", "file": // a name is never a path: it is not even opened
		return bytes.Contains(t.all, []byte(arg)), nil
	case "other_message":
		return !slices.Contains(c.classes(), "accept") && bytes.Contains(t.all, []byte(secretText)), nil
	case "message_removed":
		left, err := filepath.Glob(filepath.Join(box, "Maildir", "*", "*"))
		return len(left) != c.Setup.MaildirMessages, err
	case "auth_ok":
		for i, command := range t.commands {
			if strings.HasPrefix(strings.ToUpper(command), "PASS") && strings.HasPrefix(t.statuses[i], "+OK") {
				return true, nil
			}
		}
		return false, nil
	case "auth_attempts":
		b, err := os.ReadFile(filepath.Join(box, "attempts"))
		n := int64(bytes.Count(b, []byte("\n")))
		return n > most || n == 0, err
	case "rss":
		return t.memory > most, nil
	case "time":
		return took > time.Duration(most), nil
	case "reply":
		pattern, err := regexp.Compile(arg)
		return err == nil && slices.ContainsFunc(t.statuses, pattern.MatchString), err
	case "bare_lf_on_wire":
		return bytes.Contains(bytes.ReplaceAll(t.all, []byte("\r\n"), nil), []byte("\n")), nil
	}
	return false, fmt.Errorf("it must not %q, whatever that is", word)
}
