package main

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// state is what a sender knows of its message.
type state int

const (
	refused state = iota
	unknown
	accepted
)

// mail is one message.
type mail struct {
	token string
	to    []string
	state state
	got   map[string]int
}

// account is what senders and receivers know.
type account struct {
	mu     sync.Mutex
	mails  map[string]*mail
	last   int
	strays []string
}

func newAccount() *account { return &account{mails: map[string]*mail{}} }

// The places that mail goes to.
const (
	toMaildir = "alice@torture.example"
	toProgram = "bob-program@torture.example"
	toRemote1 = "one@far.example"
	toRemote2 = "two@far.example"
)

// write makes up a message to some recipients, by the bits of which.
func (a *account) write(size int, which int) *mail {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	m := &mail{token: fmt.Sprintf("t%d", a.last), got: map[string]int{}}
	for i, to := range []string{toMaildir, toProgram, toRemote1, toRemote2} {
		if which&(1<<i) != 0 {
			m.to = append(m.to, to)
		}
	}
	a.mails[m.token] = m
	return m
}

// text is a message that says itself whether it is whole.
func (m *mail) text(size int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: torture\n\n")
	for b.Len() < size {
		fmt.Fprintf(&b, "%s should arrive as a whole, and only where it was sent\n", m.token)
	}
	body := b.String()
	return fmt.Sprintf("X-Torture: %s %d %08x\n%s", m.token, len(body), crc32.ChecksumIEEE([]byte(body)), body)
}

func (a *account) set(m *mail, s state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m.state = s
}

// arrived notes a message. What is cut short, as by a program that was killed, did not arrive; with whole it must not be.
func (a *account) arrived(to string, text []byte, whole bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := bytes.Index(text, []byte("X-Torture: "))
	if at < 0 {
		if whole {
			a.strays = append(a.strays, fmt.Sprintf("%s got something else: %.100q", to, text))
		}
		return
	}
	line, body, _ := bytes.Cut(text[at:], []byte("\n"))
	fields := strings.Fields(string(line))
	m := (*mail)(nil)
	if len(fields) == 4 {
		m = a.mails[fields[1]]
	}
	if m == nil {
		a.strays = append(a.strays, fmt.Sprintf("%s got what nobody sent: %.100q", to, line))
		return
	}
	size, _ := strconv.Atoi(fields[2])
	if len(body) != size || fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)) != fields[3] {
		if whole {
			a.strays = append(a.strays, fmt.Sprintf("%s: %s has other bytes than were sent", to, m.token))
		}
		return
	}
	m.got[to]++
}

// collect reads what was delivered on this machine.
func (a *account) collect(s *server) error {
	for dir, to := range map[string]string{s.maildir(): toMaildir, s.programs(): toProgram} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			a.arrived(to, text, to == toMaildir)
		}
	}
	return nil
}

// judge compares what was promised with what arrived.
func (a *account) judge() (text string, wrong []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wrong = a.strays
	count := map[state]int{}
	recipients, arrived, twice := 0, 0, 0
	for _, m := range a.mails {
		count[m.state]++
		some, all := false, true
		for _, to := range m.to {
			n := m.got[to]
			delete(m.got, to)
			some, all = some || n > 0, all && n > 0
			if m.state == accepted {
				recipients++
			}
			if n > 0 {
				arrived++
				twice += n - 1
			}
		}
		for to := range m.got {
			wrong = append(wrong, fmt.Sprintf("%s arrived at %s, where it was not sent", m.token, to))
		}
		switch {
		case m.state == accepted && !all:
			wrong = append(wrong, fmt.Sprintf("%s was accepted, and is lost to some of %v", m.token, m.to))
		case m.state == refused && some:
			wrong = append(wrong, fmt.Sprintf("%s was refused, and arrived at some of %v", m.token, m.to))
		case m.state == unknown && some && !all:
			wrong = append(wrong, fmt.Sprintf("%s arrived at some of %v only", m.token, m.to))
		}
	}
	return fmt.Sprintf("%d messages accepted, %d refused, %d left in doubt; %d recipients accepted, %d arrived with those in doubt, %d times twice",
		count[accepted], count[refused], count[unknown], recipients, arrived, twice), wrong
}
