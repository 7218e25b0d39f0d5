package adversarial

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qmail/internal/proto/admin"
	"qmail/internal/proto/enqueue"
)

// address plays an address, as a client of SMTP or a message to qmail-inject has it.
func (r *Runner) address(c *Case) error {
	switch c.Setup.Kind {
	case "path":
		return r.path(c)
	case "header":
		return r.list(c)
	}
	return fmt.Errorf("there is no address of kind %q", c.Setup.Kind)
}

// path says an address to qmail-smtpd, as that of a sender, or if it is none as that of a recipient.
func (r *Runner) path(c *Case) error {
	in := string(c.input())
	began := time.Now()
	var last *outcome
	for _, dialogue := range []string{
		"MAIL FROM:" + in + "\r\nRCPT TO:<alice@test.example>\r\n",
		"MAIL FROM:<s@client.example>\r\nRCPT TO:" + in + "\r\n",
	} {
		asked := &Case{Name: c.Name, Protocol: "smtp"}
		asked.Setup.Env = map[string]string{"RELAYCLIENT": ""}
		for _, text := range []string{"EHLO client.example\r\n", dialogue, "DATA\r\n", "Subject: s\r\n\r\nhello\r\n.\r\n", "QUIT\r\n"} {
			asked.Chunks = append(asked.Chunks, Chunk{B64: []byte(text)})
		}
		s, _, err := r.siteFor(&Case{})
		if err != nil {
			return err
		}
		if last, err = r.playServer(asked, s, classic, true); err != nil {
			return err
		}
		if last.trouble != "" {
			return fmt.Errorf("broke down: %s", last.trouble)
		}
		if len(last.queued) == 1 {
			break
		}
	}
	var p problems
	class := "reject"
	if len(last.queued) > 0 {
		class = "accept"
	}
	if !slices.Contains(c.classes(), class) {
		p.add("%s, want %v: %.300q", class, c.classes(), last.said)
	}
	var want *struct{ Local, Domain string }
	if err := json.Unmarshal(orNull(c.Expect.Value), &want); err != nil {
		p.add("%w", err)
	}
	if class == "accept" && want != nil {
		m := last.queued[0]
		address := want.Local
		if want.Domain != "" {
			address += "@" + want.Domain
		}
		if m.sender != address && !slices.Contains(m.rcpts, address) {
			p.add("it became <%s> and %q, want %q", m.sender, m.rcpts, address)
		}
	}
	p.limits(c, time.Since(began), last.grown)
	return p.err()
}

func orNull(value json.RawMessage) json.RawMessage {
	if value == nil {
		return json.RawMessage("null")
	}
	return value
}

// limits checks time and memory.
func (p *problems) limits(c *Case, took time.Duration, memory int64) {
	for _, word := range c.Expect.MustNot {
		name, limit, ok := strings.Cut(word, ">")
		most, err := number(limit)
		if !ok || err != nil {
			continue // not about a limit, or another kind of number
		}
		if name == "time" && int64(took) > most || name == "rss" && memory > most {
			p.add("%s: %v, %d MiB", word, took, memory>>20)
		}
	}
}

// list gives a list of addresses to qmail-inject, as a field.
func (r *Runner) list(c *Case) error {
	in := c.input()
	got, err := r.inject(c, slices.Concat([]byte("To: "), in, []byte("\nSubject: s\n\nhello\n")))
	if err != nil {
		return err
	}
	var want, other []string
	if err := errors.Join(json.Unmarshal(orNull(c.Expect.Value), &want), json.Unmarshal(orNull(c.Expect.QmailValue), &other)); err != nil {
		return err
	}
	var p problems
	class := "reject"
	if got.exit == 0 && (len(got.rcpts) > 0 || c.Expect.Class == "accept" && len(want) == 0) {
		class = "accept"
	}
	if !slices.Contains(c.classes(), class) {
		p.add("%s, want %v: exit %d, recipients %.300q, %s", class, c.classes(), got.exit, got.rcpts, got.said)
	}
	if class != c.Expect.Class {
		want = other
	}
	slices.Sort(want)
	if class == "accept" && want != nil && !slices.Equal(got.rcpts, want) {
		p.add("recipients %.300q, want %q", got.rcpts, want)
	}
	p.limits(c, got.took, got.memory)
	return p.err()
}

// injected is what came of an injection.
type injected struct {
	exit   int
	said   string
	took   time.Duration
	memory int64
	rcpts  []string // sorted
	text   []byte
	count  int // of messages
}

// inject runs qmail-inject in a home where nothing else runs.
func (r *Runner) inject(c *Case, text []byte) (*injected, error) {
	s, err := r.newSite()
	if err != nil {
		return nil, err
	}
	defer s.close()
	cmd := r.command(s, "qmail-inject", "-h")
	cmd.Env = append(cmd.Env, "USER=alice")
	for name, value := range c.Setup.Env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdin = bytes.NewReader(text)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, time.Second
	began := time.Now()
	got := &injected{}
	got.memory, err = watched(cmd, 2*time.Minute)
	if cmd.ProcessState == nil {
		return nil, err
	}
	got.exit, got.said, got.took = cmd.ProcessState.ExitCode(), out.String(), time.Since(began)
	if trouble := brokeDown(out.Bytes()); trouble != "" || got.exit < 0 {
		return nil, fmt.Errorf("broke down: %v %.300q", cmd.ProcessState, out.Bytes())
	}
	return got, s.dropped(func(m message) {
		got.count++
		got.rcpts, got.text = append(got.rcpts, m.rcpts...), m.text
		slices.Sort(got.rcpts)
	})
}

// dropped calls f for what was left in queue/drop.
func (s *site) dropped(f func(message)) error {
	paths, err := enqueue.ListDropped(s.home)
	for _, path := range paths {
		d, err := enqueue.OpenDropped(path)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(d.Body)
		if err := errors.Join(err, d.Done()); err != nil {
			return err
		}
		f(message{d.Envelope.Sender, d.Envelope.Recipients, text})
	}
	return err
}

// header plays a message to the program that makes or reads its header.
func (r *Runner) header(c *Case) error {
	text := c.input()
	if b := c.Setup.BodyRepeat; b != nil {
		text = append(text, strings.Repeat(b.line, b.times)...)
	}
	switch c.Setup.Role {
	case "inject":
		return r.headerInject(c, text)
	case "smtpd":
		return r.headerServer(c, text)
	case "local-mbox":
		return r.headerLocal(c, "./Mailbox", text)
	case "local-maildir":
		return r.headerLocal(c, "./Maildir/", text)
	case "bounce":
		return r.headerBounce(c, text)
	}
	return fmt.Errorf("there is no role %q", c.Setup.Role)
}

// fields are the lines of a header.
func fields(text []byte) (list []string) {
	for line := range bytes.Lines(text) {
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
		list = append(list, string(line))
	}
	return list
}

func hasField(text []byte, name string) bool {
	return slices.ContainsFunc(fields(text), func(f string) bool {
		return len(f) > len(name) && strings.EqualFold(f[:len(name)+1], name+":")
	})
}

func (r *Runner) headerInject(c *Case, text []byte) error {
	got, err := r.inject(c, text)
	if err != nil {
		return err
	}
	var p problems
	class := map[bool]string{true: "accept", false: "reject"}[got.exit == 0 && got.count == 1]
	if !slices.Contains(c.classes(), class) {
		p.add("%s, want %v: exit %d, %s", class, c.classes(), got.exit, got.said)
	}
	want := slices.Sorted(slices.Values(c.Expect.Rcpts))
	if class == "accept" && want != nil && !slices.Equal(got.rcpts, want) {
		p.add("recipients %q, want %q", got.rcpts, want)
	}
	for _, word := range c.Expect.MustNot {
		name, arg, _ := strings.Cut(word, ":")
		broken := false
		switch name {
		case "header_kept":
			broken = hasField(got.text, arg)
		case "header_missing":
			broken = !hasField(got.text, arg)
		case "rcpt":
			broken = slices.Contains(got.rcpts, arg)
		case "header_injected": // what the environment says is not a field of its own
			for _, value := range c.Setup.Env {
				for _, line := range strings.Split(value, "\n")[1:] {
					name, _, _ := strings.Cut(line, ":")
					broken = broken || name != "" && hasField(got.text, name)
				}
			}
		case "panic":
		default:
			if !strings.HasPrefix(word, "time>") && !strings.HasPrefix(word, "rss>") {
				p.add("it must not %q, whatever that is", word)
			}
		}
		if broken {
			p.add("%s: %.500q to %q", word, got.text, got.rcpts)
		}
	}
	p.limits(c, got.took, got.memory)
	return p.err()
}

// headerServer sends the message by SMTP, in both ways.
func (r *Runner) headerServer(c *Case, text []byte) error {
	asked := &Case{Name: c.Name, Protocol: "smtp", Expect: c.Expect}
	wire := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n", "\r\n"), "\r\n.", "\r\n..")
	if !strings.HasSuffix(wire, "\r\n") {
		wire += "\r\n"
	}
	for _, line := range []string{"EHLO client.example\r\n", "MAIL FROM:<s@client.example>\r\n", "RCPT TO:<alice@test.example>\r\n", "DATA\r\n", wire + ".\r\n", "QUIT\r\n"} {
		asked.Chunks = append(asked.Chunks, Chunk{B64: []byte(line)})
	}
	return r.server(asked)
}

// headerLocal delivers the message.
func (r *Runner) headerLocal(c *Case, to string, text []byte) error {
	s, err := r.newSite()
	if err != nil {
		return err
	}
	defer s.close()
	home := filepath.Join(s.home, "mail", "alice")
	sender := "s@remote.example"
	if c.Setup.Sender != nil {
		sender = string(*c.Setup.Sender)
	}
	d, err := r.local(s, home, []string{"alice", home, "alice", "", "", "test.example", sender, to}, text)
	if err != nil {
		return err
	}
	var p problems
	class := exitClass(d.exit)
	if trouble := brokeDown([]byte(d.said)); trouble != "" {
		p.add("broke down: %s", trouble)
	}
	if !slices.Contains(c.classes(), class) {
		p.add("%s, want %v: %s", class, c.classes(), d.said)
	}
	stored, err := os.ReadFile(filepath.Join(home, "Mailbox"))
	if to == "./Maildir/" {
		var names []string
		names, err = filepath.Glob(filepath.Join(home, "Maildir", "new", "*"))
		if err == nil && len(names) == 1 {
			stored, err = os.ReadFile(names[0])
		}
	}
	if err != nil && class == "accept" {
		p.add("%w", err)
	}
	for _, word := range c.Expect.MustNot {
		name, limit, _ := strings.Cut(word, ">")
		switch name {
		case "mbox_messages":
			most, err := number(limit)
			if n := int64(separators(stored)); err != nil || n > most || n == 0 {
				p.add("%s: %d in %.500q", word, n, stored)
			}
		case "header_injected":
			for _, line := range strings.Split(sender, "\n")[1:] {
				if slices.Contains(fields(stored), line+"\n") {
					p.add("%s: %.500q", word, stored)
				}
			}
		case "loops":
			if d.exit != 0 || !bytes.HasPrefix(stored, []byte("Return-Path: <"+sender+">\nDelivered-To: alice@test.example\n")) {
				p.add("%s: %.500q", word, stored)
			}
		case "mbox_truncated", "panic":
		default:
			p.add("it must not %q, whatever that is", word)
		}
	}
	return p.err()
}

// separators counts the lines of an mbox file that readers take for the beginning of a message.
func separators(mbox []byte) (n int) {
	for line := range bytes.Lines(mbox) {
		if bytes.HasPrefix(line, []byte("From ")) {
			n++
		}
	}
	return n
}

func exitClass(code int) string {
	switch code {
	case 0:
		return "accept"
	case 100:
		return "reject"
	}
	return "tempfail"
}

// headerBounce lets a delivery of the message fail, and looks at what goes back.
func (r *Runner) headerBounce(c *Case, text []byte) error {
	if c.Setup.Failure != "permanent" {
		return fmt.Errorf("there is no failure %q", c.Setup.Failure)
	}
	s, err := r.newSite()
	if err != nil {
		return err
	}
	defer s.close()
	if err := errors.Join(s.control(map[string]string{"concurrencylocal": "10\n"}), s.start()); err != nil {
		return err
	}
	sender := "s@remote.example"
	if c.Setup.Sender != nil {
		sender = string(*c.Setup.Sender)
	}
	if err := r.enqueue(s, sender, []string{"nouser@test.example"}, text); err != nil {
		return err
	}
	if err := s.bounced(); err != nil {
		return err
	}
	back, err := s.quiet()
	if err != nil {
		return err
	}
	var p problems
	if trouble := s.trouble(); trouble != "" {
		p.add("broke down: %s", trouble)
	}
	for _, word := range c.Expect.MustNot {
		name, limit, _ := strings.Cut(word, ">")
		switch name {
		case "bounces": // to the null sender, or of a bounce of a bounce; postmaster is another matter
			for _, m := range back {
				if m.sender != "#@[]" || sender == "#@[]" {
					p.add("%s: <%s> %.500q", word, m.sender, m.text)
				}
			}
		case "bounce_size":
			most, err := number(limit)
			if err != nil || len(back) != 1 || int64(len(back[0].text)) > most {
				p.add("%s: %d bounces", word, len(back))
			}
		case "header_injected":
			if len(back) != 1 {
				p.add("%d bounces", len(back))
			}
			for _, m := range back {
				for _, line := range strings.Split(sender, "\n")[1:] {
					if name, _, ok := strings.Cut(line, ":"); ok && hasField(m.text, name) {
						p.add("%s: %.500q", word, m.text)
					}
				}
			}
		default:
			p.add("it must not %q, whatever that is", word)
		}
	}
	return p.err()
}

// enqueue runs qmail-queue.
func (r *Runner) enqueue(s *site, sender string, rcpts []string, text []byte) error {
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := io.WriteString(out, "F"+sender+"\x00T"+strings.Join(rcpts, "\x00T")+"\x00\x00"); err != nil {
		return err
	}
	out.Close()
	cmd := r.command(s, "qmail-queue")
	cmd.Stdin, cmd.Stdout, cmd.WaitDelay = bytes.NewReader(text), in, time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("qmail-queue: %w", err)
	}
	return nil
}

// bounced waits until the first message has ended, and what was made of it has come in.
func (s *site) bounced() error {
	for deadline := time.Now().Add(soon); ; time.Sleep(glance) {
		b, err := os.ReadFile(s.log)
		if err != nil {
			return err
		}
		bounce := bytes.Contains(b, []byte("\nbounce msg 1 "))
		if bytes.Contains(b, []byte("\nend msg 1\n")) && (!bounce || bytes.Contains(b, []byte("\nnew msg 2\n"))) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the first message does not end: %s", b)
		}
	}
}

// quiet waits until all that is still in the queue is for other machines, and returns it.
func (s *site) quiet() (list []message, err error) {
	for deadline := time.Now().Add(soon); ; time.Sleep(5 * glance) {
		c, err := admin.Dial(s.home)
		if err != nil {
			return nil, err
		}
		busy := false
		list = nil
		var ids []uint64
		_, err = c.List(&admin.Filter{Recipients: true}, func(m *admin.Message) error {
			ids = append(ids, m.ID)
			list = append(list, message{sender: m.Sender})
			return nil
		}, func(r *admin.Recipient) error {
			busy = busy || r.Channel == admin.Local && r.State != admin.Done
			return nil
		})
		for i, id := range ids {
			var b bytes.Buffer
			if err == nil && !busy {
				err = c.Copy(id, &b)
			}
			list[i].text = b.Bytes()
		}
		c.Close()
		switch {
		case err != nil:
			return nil, err
		case !busy:
			return list, nil
		case time.Now().After(deadline):
			return nil, errors.New("the queue does not come to rest")
		}
	}
}

// cdb plays a database to the program that reads it.
func (r *Runner) cdb(c *Case) error {
	var want *struct {
		Found bool
		Data  []byte `json:"data_b64"`
	}
	if err := json.Unmarshal(orNull(c.Expect.Value), &want); err != nil {
		return err
	}
	var p problems
	var class string
	var found bool
	var o *outcome
	var err error
	switch c.Setup.File {
	case "morercpthosts.cdb":
		class, found, o, err = r.morercpthosts(c)
	case "users/cdb":
		class, found, o, err = r.users(c)
	default:
		err = fmt.Errorf("there is no database %q", c.Setup.File)
	}
	if err != nil {
		return err
	}
	if !slices.Contains(c.classes(), class) {
		p.add("%s, want %v: %.300q", class, c.classes(), o.said)
	}
	if want != nil && class == "accept" && found != want.Found {
		p.add("found: %v, want %v: %.300q", found, want.Found, o.said)
	}
	if o.trouble != "" {
		p.add("broke down: %s", o.trouble)
	}
	for _, word := range c.Expect.MustNot {
		broken := false
		switch word {
		case "false_match", "delivered", "run_as_root":
			broken = found
		case "panic":
		default:
			if !strings.HasPrefix(word, "time>") && !strings.HasPrefix(word, "rss>") {
				p.add("it must not %q, whatever that is", word)
			}
		}
		if broken {
			p.add("%s: %.300q", word, o.said)
		}
	}
	p.limits(c, o.took-300*time.Millisecond, o.grown) // what the client waits for by itself
	return p.err()
}

// asking is a client that wants to write to somebody.
func asking(rcpt string) *Case {
	c := &Case{Protocol: "smtp"}
	for _, line := range []string{"EHLO client.example\r\n", "MAIL FROM:<s@client.example>\r\n", "RCPT TO:<" + rcpt + ">\r\n"} {
		c.Chunks = append(c.Chunks, Chunk{B64: []byte(line)})
	}
	return c
}

// verdict is what the last reply of a session says: that there is such a recipient, that there is none, or that
// nobody knows.
func verdict(o *outcome) (class string, found bool) {
	list, _ := (&Case{Protocol: "smtp"}).statuses(o.said)
	if len(list) == 0 || list[len(list)-1][0] == '4' {
		return "reject", false
	}
	return "accept", len(list) == 4 && list[3][0] == '2'
}

// morercpthosts asks qmail-smtpd whether it takes mail for the key.
func (r *Runner) morercpthosts(c *Case) (class string, found bool, o *outcome, err error) {
	s, err := r.newSite()
	if err != nil {
		return "", false, nil, err
	}
	defer s.close()
	if err := errors.Join(s.control(map[string]string{"rcpthosts": "other.example\n"}), s.write("control/morercpthosts.cdb", c.Input, 0o644)); err != nil {
		return "", false, nil, err
	}
	if o, err = r.playServer(asking("x@"+string(c.Setup.Key)), s, classic, false); err != nil {
		return "", false, nil, err
	}
	class, found = verdict(o)
	return class, found, o, nil
}

// users asks a running server whether there is the user of the key.
func (r *Runner) users(c *Case) (class string, found bool, o *outcome, err error) {
	s, err := r.newSite("smtp")
	if err != nil {
		return "", false, nil, err
	}
	defer s.close()
	// The account is 1000 in the records. Without root nobody can become another, so it is ours; and the home has to be
	// one that is there. Both are as long as before, so that the rest of the file stays what it is.
	us, home := fmt.Sprint(unprivileged), "/tmp/"+s.dir[len(s.dir)-6:]
	if os.Geteuid() != 0 {
		us = fmt.Sprint(os.Getuid())
	}
	if len(us) != 4 {
		return "", false, nil, fmt.Errorf("the number of our account has not four digits: %w", ErrSkip)
	}
	instructions := filepath.Join(home, ".qmail-") // the record has the dash
	if err := errors.Join(os.Mkdir(home, 0o700), r.own(home), os.WriteFile(instructions, []byte("./Maildir/\n"), 0o644), r.own(instructions)); err != nil {
		return "", false, nil, err
	}
	defer os.RemoveAll(home)
	records := bytes.ReplaceAll(bytes.ReplaceAll(c.Input, []byte("1000\x00"), []byte(us+"\x00")), []byte("/home/alice"), []byte(home))
	if err := errors.Join(s.write("users/cdb", records, 0o644), s.start()); err != nil {
		return "", false, nil, err
	}
	user := strings.Trim(string(c.Setup.Key), "!\x00")
	if o, err = r.playServer(asking(user+"@test.example"), s, longLived, true); err != nil {
		return "", false, nil, err
	}
	class, found = verdict(o)
	return class, found, o, nil
}
