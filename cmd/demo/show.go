package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// act is one message and where it has to turn up.
type act struct {
	title             string
	sender, recipient string
	refused           string // the beginning of a refusal, if it is to be refused
	maildir           string // whose Maildir it reaches
	has               string // what the file in it has besides the subject
	sunk              bool   // it reaches the other machine
}

var acts = []act{
	{title: "To a user here", sender: "friend@" + remote, recipient: "alice@" + domain, maildir: "alice"},
	{
		title: "Through a virtual domain (control/virtualdomains leads it to bob, his .qmail-shop-sales to his Maildir)", sender: "friend@" + remote,
		recipient: "sales@" + virtual, maildir: "bob", has: "Delivered-To: bob-shop-sales@" + virtual,
	},
	{
		title: "Forwarded (alice's .qmail-team names bob)", sender: "friend@" + remote,
		recipient: "alice-team@" + domain, maildir: "bob", has: "Delivered-To: alice-team@" + domain,
	},
	{title: "Out to another machine (control/smtproutes)", sender: "alice@" + domain, recipient: "someone@" + remote, sunk: true},
	{
		title: "To nobody on another machine, so a bounce comes back", sender: "alice@" + domain,
		recipient: "nobody@" + remote, maildir: "alice", has: "failure notice",
	},
	{title: "To nobody here, refused before it is taken", sender: "friend@" + remote, recipient: "nobody@" + domain, refused: "550 5.1.1"},
}

// showAll plays all acts and returns their number.
func showAll(ctx context.Context, s *server, k *sink) (int, error) {
	for i, a := range acts {
		fmt.Printf("\n%d. %s: from %s to %s\n", i+1, a.title, a.sender, a.recipient)
		if err := a.show(ctx, s, k, fmt.Sprintf("demonstration %d", i+1)); err != nil {
			return i, fmt.Errorf("message %d: %w", i+1, err)
		}
	}
	return len(acts), nil
}

func (a act) show(ctx context.Context, s *server, k *sink, subject string) error {
	reply, err := submit(s.address, a.sender, a.recipient, subject)
	if err != nil {
		return err
	}
	fmt.Printf("    SMTP  %s\n", reply)
	if a.refused != "" {
		if !strings.HasPrefix(reply, a.refused) {
			return fmt.Errorf("it was not refused with %s", a.refused)
		}
		return nil
	}
	_, number, ok := strings.Cut(reply, " qp ")
	if !strings.HasPrefix(reply, "250 ") || !ok {
		return fmt.Errorf("it was not taken: %s", reply)
	}
	arrived := a.arrival(s, k, subject)
	if err := s.await(ctx, "it has arrived", func() bool { return arrived() != "" }); err != nil {
		return err
	}
	var story []string
	var ended bool
	if err := s.await(ctx, "the log has its end", func() bool {
		story, ended = follow(s.read(), number)
		return ended
	}); err != nil {
		return err
	}
	for _, line := range story {
		fmt.Printf("    log   %s\n", line)
	}
	fmt.Print(arrived())
	return nil
}

// arrival returns a function that says where the message is, or "" if it is not there yet.
func (a act) arrival(s *server, k *sink, subject string) func() string {
	if a.sunk {
		return func() string {
			if r, ok := k.find(subject); ok {
				return fmt.Sprintf("    sink  got %d bytes from <%s> for %s\n", len(r.body), r.sender, strings.TrimSpace(r.recipients))
			}
			return ""
		}
	}
	return func() string {
		dir := filepath.Join("mail", a.maildir, "Maildir", "new")
		entries, err := os.ReadDir(filepath.Join(s.home, dir))
		if err != nil {
			return ""
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(s.home, dir, e.Name()))
			if err == nil && strings.Contains(string(b), subject) && strings.Contains(string(b), a.has) {
				return fmt.Sprintf("    file  %s\n", filepath.Join(dir, e.Name()))
			}
		}
		return ""
	}
}

// follow finds what the log says of a message, of its deliveries, and of the messages that came of it, and
// whether it tells the end of all of them.
func follow(log, number string) (story []string, ended bool) {
	lines := strings.Split(log, "\n")
	t := thread{numbers: []string{number}}
	for size := -1; size < t.size(); { // each round may find what an earlier line was about
		size = t.size()
		for _, line := range lines {
			t.learn(line)
		}
	}
	ends := 0
	for _, line := range lines {
		if t.mentions(line) {
			story = append(story, line)
		}
		if m := end.FindStringSubmatch(line); m != nil && slices.Contains(t.numbers, m[1]) {
			ends++
		}
	}
	return story, ends == 1+len(t.children)
}

// thread is a message and all that came of it.
type thread struct {
	numbers    []string // of messages
	deliveries []string
	children   []string // the "qp" of those that came of it, whether or not they are on the log yet
}

func (t *thread) size() int { return len(t.numbers) + len(t.deliveries) + len(t.children) }

var (
	about   = regexp.MustCompile(`\bmsg (\d+)\b`)
	info    = regexp.MustCompile(`^info msg (\d+): .* qp (\d+) `)
	started = regexp.MustCompile(`^starting delivery (\d+): msg (\d+) `)
	result  = regexp.MustCompile(`^delivery (\d+): (?:.*\bqp_(\d+)/)?`) // such as "delivery 3: success: did_0+1+0/qp_4/"
	bounce  = regexp.MustCompile(`^bounce msg (\d+) qp (\d+)`)
	end     = regexp.MustCompile(`^end msg (\d+)`)
)

// learn takes from a line which numbers belong to the thread.
func (t *thread) learn(line string) {
	add := func(list *[]string, number string) {
		if number != "" && !slices.Contains(*list, number) {
			*list = append(*list, number)
		}
	}
	if m := started.FindStringSubmatch(line); m != nil && slices.Contains(t.numbers, m[2]) {
		add(&t.deliveries, m[1])
	}
	if m := result.FindStringSubmatch(line); m != nil && slices.Contains(t.deliveries, m[1]) {
		add(&t.children, m[2])
	}
	if m := bounce.FindStringSubmatch(line); m != nil && slices.Contains(t.numbers, m[1]) {
		add(&t.children, m[2])
	}
	if m := info.FindStringSubmatch(line); m != nil && slices.Contains(t.children, m[2]) && later(m[1], t.numbers[0]) {
		add(&t.numbers, m[1])
	}
}

// later compares message numbers. A process number, which "qp" may be, comes again; message numbers do not.
func later(a, b string) bool { return len(a) > len(b) || len(a) == len(b) && a > b }

func (t *thread) mentions(line string) bool {
	if m := about.FindStringSubmatch(line); m != nil {
		return slices.Contains(t.numbers, m[1])
	}
	m := result.FindStringSubmatch(line)
	return m != nil && slices.Contains(t.deliveries, m[1])
}
