package adversarial

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmail/internal/format/netstring"
)

// outcome is what came of a case that was played against a server.
type outcome struct {
	session
	ip, way    string
	home       string // of alice, if mail was delivered to her
	canary     string
	deliveries []delivery
}

// statuses are the codes of SMTP replies, or the answers of QMTP and QMQP.
func (c *Case) statuses(said []byte) (list []string, malformed string) {
	if c.Protocol != "smtp" {
		for len(said) > 0 {
			val, rest, err := netstring.Cut(said, 1000)
			if err != nil || len(val) == 0 || !strings.Contains("KZD", string(val[:1])) {
				return list, fmt.Sprintf("%.100q is no answer", said)
			}
			list, said = append(list, string(val)), rest
		}
		return list, ""
	}
	for line := range bytes.Lines(said) {
		text, ok := bytes.CutSuffix(line, []byte("\r\n"))
		if !ok || len(text) < 3 || bytes.ContainsAny(text, "\r\n\x00") {
			return list, fmt.Sprintf("%.100q is no reply", line)
		}
		if len(text) == 3 || text[3] != '-' {
			list = append(list, string(text))
		}
	}
	return list, ""
}

// summary is what must be the same in both ways.
func (o *outcome) summary() string {
	protocol := "smtp"
	if len(o.said) > 0 && !bytes.HasPrefix(o.said, []byte("220")) && !bytes.HasPrefix(o.said, []byte("421")) {
		protocol = "qmtp"
	}
	list, _ := (&Case{Protocol: protocol}).statuses(o.said)
	var b strings.Builder
	last, times := "", 0
	for _, s := range append(list, "") {
		if len(s) > 3 && protocol == "smtp" {
			s = s[:3]
		} else if len(s) > 1 {
			s = s[:1]
		}
		if s != last && times > 0 {
			fmt.Fprintf(&b, "%s*%d ", last, times)
			times = 0
		}
		last = s
		times++
	}
	for _, m := range o.queued {
		fmt.Fprintf(&b, "<%s> to %q with %q ", m.sender, m.rcpts, afterTrace(m.text))
	}
	text := b.String()
	if len(text) > 2000 {
		text = text[:2000]
	}
	return text
}

// afterTrace is a message without the lines that we put above it.
func afterTrace(text []byte) []byte {
	rest := text
	for range 2 {
		if after, ok := bytes.CutPrefix(rest, []byte("Received: ")); ok {
			for first := true; first || len(after) > 0 && (after[0] == ' ' || after[0] == '\t'); first = false {
				_, after, _ = bytes.Cut(after, []byte("\n"))
			}
			rest = after
		}
	}
	return rest
}

// meets reports whether an outcome is of a class.
func (o *outcome) meets(c *Case, class string) bool {
	list, _ := c.statuses(o.said)
	has := func(letters string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(letters, s[:1]) })
	}
	smtp := c.Protocol == "smtp"
	switch class {
	case "accept":
		if smtp {
			return !o.refused && (!has("345") || len(o.queued) > 0)
		}
		return !has("ZD") || has("K")
	case "reject":
		return smtp && has("5") || !smtp && has("D")
	case "tempfail":
		return smtp && has("4") || !smtp && has("Z")
	case "close":
		quit := smtp && len(list) > 0 && strings.HasPrefix(list[len(list)-1], "221")
		return len(o.queued) == 0 && (o.refused || o.ended && !quit || !smtp && len(list) == 0)
	}
	return false
}

// judge says what is wrong with an outcome.
func (c *Case) judge(o *outcome) (p problems) {
	list, malformed := c.statuses(o.said)
	if malformed != "" && !o.refused {
		p.add("%s", malformed)
	}
	if !slices.ContainsFunc(c.classes(), func(class string) bool { return o.meets(c, class) }) {
		p.add("want one of %v, got %.300q, ended by the server %v, %d queued", c.classes(), list, o.ended, len(o.queued))
	}
	if n := c.Expect.Queued; n != nil && len(o.queued) != *n {
		p.add("%d queued, want %d", len(o.queued), *n)
	}
	if n := c.Expect.QueuedMax; n != nil && len(o.queued) > *n {
		p.add("%d queued, want at most %d", len(o.queued), *n)
	}
	if c.Expect.Final == "after-real-eod" {
		c.oneVerdict(list, &p)
	}
	for _, m := range o.queued {
		if c.Expect.Rcpts != nil && !slices.Equal(m.rcpts, c.Expect.Rcpts) {
			p.add("recipients %q, want %q", m.rcpts, c.Expect.Rcpts)
		}
		if !bytes.HasSuffix(m.text, c.Expect.Suffix) {
			p.add("stored %.200q, which does not end in %q", m.text, c.Expect.Suffix)
		}
		if wrong := c.headOf(m); wrong != "" {
			p.add("%s", wrong)
		}
	}
	if o.way == classic {
		for line := range strings.Lines(string(o.log)) {
			if !ownLine.MatchString(line) {
				p.add("log line %q", line)
			}
		}
	}
	if o.trouble != "" {
		p.add("broke down: %s", o.trouble)
	}
	for _, word := range c.Expect.MustNot {
		if leftOut("condition", strings.FieldsFunc(word, func(r rune) bool { return r == ':' || r == '>' })[0]) != "" {
			continue
		}
		broken, err := c.broken(o, word, list)
		if err != nil {
			p.add("%w", err)
		} else if broken {
			p.add("%s: %.300q, %d queued, %v, %d MiB", word, list, len(o.queued), o.took.Round(time.Second), o.grown>>20)
		}
	}
	return p
}

var (
	// ownLine is what a server for one connection may write on its log.
	ownLine = regexp.MustCompile(`^qmail-(smtpd|qmtpd|qmqpd): (refused (127\.[0-9.]+: "[ -~]*": [ -~]+|(127\.[0-9.]+: )?[0-9]+ more that are not logged)|alert: [ -~]+)\n$`)
	// trace is the line of a network server in a message.
	trace = regexp.MustCompile(`^Received: from [!-~]+(?: \(HELO [!-~]*\))? \([!-~]+\)\n  by mx\.test\.example with [A-Z0-9]+; [ -~]+ -0000\n`)
	// queueTrace is what comes before it.
	queueTrace = regexp.MustCompile(`^Received: \(qmail [0-9]+ invoked (?:from network|by uid [0-9]+)\); [ -~]+ -0000\n`)
)

// headOf says what is wrong with the lines that we put above a message.
func (c *Case) headOf(m message) string {
	text := m.text
	for _, line := range []*regexp.Regexp{queueTrace, trace} {
		found := line.Find(text)
		if found == nil {
			return fmt.Sprintf("a queued message begins with %.300q", m.text)
		}
		text = text[len(found):]
	}
	if c.Protocol == "smtp" && bytes.ContainsAny(m.text, "\r\x00") {
		return fmt.Sprintf("there are bare CR or NUL in %.300q", m.text)
	}
	return ""
}

// oneVerdict checks that between 354 and what QUIT gets there is one reply: nothing in the message was taken for its
// end, or for a command.
func (c *Case) oneVerdict(list []string, p *problems) {
	i := slices.IndexFunc(list, func(s string) bool { return strings.HasPrefix(s, "354") })
	if i < 0 {
		p.add("there is no 354 in %q", list)
		return
	}
	rest := list[i+1:]
	if n := len(rest); n > 0 && strings.HasPrefix(rest[n-1], "221") {
		rest = rest[:n-1]
	}
	if len(rest) != 1 {
		p.add("after 354 came %q", rest)
	}
}

// number reads what follows a > in a condition.
func number(s string) (int64, error) {
	unit := int64(1)
	for _, u := range []struct {
		suffix string
		factor int64
	}{{"MiB", 1 << 20}, {"ms", int64(time.Millisecond)}, {"s", int64(time.Second)}} {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, unit = rest, u.factor
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n * unit, err
}

// broken reports whether something came true that must not.
func (c *Case) broken(o *outcome, condition string, list []string) (bool, error) {
	word, arg, _ := strings.Cut(condition, ":")
	if w, limit, ok := strings.Cut(condition, ">"); ok {
		most, err := number(limit)
		if err != nil {
			return false, err
		}
		switch w {
		case "queued":
			return int64(len(o.queued)) > most, nil
		case "replies":
			return int64(len(list)) > most, nil
		case "reply_line":
			return slices.ContainsFunc(bytes.Split(o.said, []byte("\n")), func(l []byte) bool { return int64(len(l)) > most }), nil
		case "time":
			return int64(o.took) > most, nil
		case "rss":
			return o.grown > most, nil
		case "bounces":
			n := 0
			for _, m := range o.queued {
				if m.sender == "" {
					n++
				}
			}
			return int64(n) > most, nil
		}
		return false, fmt.Errorf("it must not %q, whatever that is", condition)
	}
	switch word {
	case "sender":
		return slices.ContainsFunc(o.queued, func(m message) bool { return m.sender == arg }), nil
	case "rcpt", "sent_to":
		return o.anyRecipient(func(r string) bool { return r == arg }), nil
	case "relay":
		return o.anyRecipient(foreign), nil
	case "bounce_to_remote":
		// A bounce is born of a recipient that cannot be delivered to: none such may have been taken.
		return o.anyRecipient(func(r string) bool { return !known(r) }), nil
	case "reply":
		pattern, err := regexp.Compile(arg)
		return err == nil && slices.ContainsFunc(list, pattern.MatchString), err
	case "reply_differs": // 252 and 502 are said of everybody
		return !slices.ContainsFunc(list, func(s string) bool { return slices.Contains([]string{"252", "502", "500", "214"}, s[:3]) }), nil
	case "header_injected":
		return slices.ContainsFunc(o.queued, func(m message) bool {
			return c.headOf(m) != "" || strings.ContainsAny(m.sender+strings.Join(m.rcpts, ""), "\r\n\x00")
		}), nil
	case "log_line_forged", "log_control_chars":
		return o.forged(c), nil
	case "loops":
		return slices.ContainsFunc(o.deliveries, func(d delivery) bool { return d.exit != 100 }), nil
	case "exec", "file":
		return o.left(word, arg)
	case "panic":
		return o.trouble != "", nil
	case "auth", "auth_ok":
		return slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(s, "235") }), nil
	case "plaintext_command_executed":
		return len(o.queued) > 0, nil
	}
	return false, fmt.Errorf("it must not %q, whatever that is", condition)
}

func (o *outcome) anyRecipient(ok func(string) bool) bool {
	return slices.ContainsFunc(o.queued, func(m message) bool { return slices.ContainsFunc(m.rcpts, ok) })
}

// foreign reports whether a recipient is outside of the fixture's domains.
func foreign(recipient string) bool {
	local, domain, ok := cutLast(strings.ToLower(recipient), "@")
	if !ok {
		return local != "postmaster"
	}
	return domain != "test.example" && domain != "virt.example" && !strings.HasSuffix(domain, ".sub.example")
}

// known reports whether mail for a recipient is delivered, and not sent back.
func known(recipient string) bool {
	local, domain, ok := cutLast(strings.ToLower(recipient), "@")
	user, _, _ := strings.Cut(local, "-")
	return (!ok || domain == "test.example") && slices.Contains([]string{"alice", "bob", "postmaster"}, user)
}

// forged reports whether a line that the client sent is one of the log, or there are control bytes on it.
func (o *outcome) forged(c *Case) bool {
	for _, b := range o.log {
		if b != '\n' && b != '\t' && (b < ' ' || b > '~') {
			return true
		}
	}
	lines := map[string]bool{}
	for line := range strings.Lines(string(o.log)) {
		lines[strings.TrimSuffix(line, "\n")] = true
	}
	escapes := strings.NewReplacer(`\r`, "\n", `\n`, "\n", "%0a", "\n", "%0A", "\n", "%0d", "\n", "%0D", "\n", "\r", "\n", "+0A", "\n", "+0D", "\n")
	for _, text := range []string{string(c.input()), escapes.Replace(string(c.input()))} {
		for line := range strings.Lines(text) {
			if line = strings.TrimRight(line, "\r\n"); len(line) > 3 && lines[line] {
				return true
			}
		}
	}
	return false
}

// left reports whether a delivery left something behind that it must not: a canary, or a file elsewhere than in the
// home.
func (o *outcome) left(word, arg string) (bool, error) {
	paths := []string{o.canary, "/tmp/canary"}
	if word == "file" && arg != "/tmp" {
		paths = append(paths, arg)
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return true, nil
		}
	}
	if o.home == "" {
		return false, nil
	}
	entries, err := os.ReadDir(o.home)
	for _, e := range entries {
		if !slices.Contains([]string{".qmail", ".qmail-default", "senders", "exts", "Mailbox", "Maildir"}, e.Name()) {
			return true, err
		}
	}
	return len(entries) == 0 && filepath.IsAbs(o.home), err
}
