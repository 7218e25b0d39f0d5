package smtpd

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/received"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/env"
	"qmail/internal/system/secure"
	"qmail/internal/system/serve"
)

// hostile is a case of the hostile clients' files.
type hostile struct {
	Name  string
	Setup struct {
		Listener    string
		TLS         bool
		Chunking    *bool
		Env         map[string]string
		ClientReads *bool             `json:"client_reads"`
		Remove      []string          `json:"remove_control"`
		Chmod       map[string]string `json:"chmod_control"`
		Write       map[string]string `json:"write_control"`
	}
	Chunks []struct {
		B64    []byte
		Repeat int
		Delay  int `json:"delay_ms"`
		Await  string
		Before bool `json:"before_banner"`
		Gen    string
		Count  int
	}
	Expect struct {
		Class   string
		Or      []string
		MustNot []string `json:"must_not"`
		Queued  *int
		Final   string
		Rcpts   []string
	}
}

// notYet is the one list of cases whose feature does not exist, by name.
func notYet(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("testdata/not-yet.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			names[line] = true
		}
	}
	return names
}

// elsewhere are the conditions that say something of other programs; a session cannot meet or break them.
var elsewhere = []string{"dkim_signed", "exec", "file", "bounce_to_remote", "sent_to", "bounces", "loops", "dns_queries", "time_differs"}

// way is how a session is served: by the long-lived process, and by one that tcpserver has started for it.
type way func(e *env.Env, service string, conn net.Conn, ip netip.Addr, q server.Queue, log *bytes.Buffer)

var ways = map[string]way{
	"long-lived": func(e *env.Env, service string, conn net.Conn, ip netip.Addr, q server.Queue, log *bytes.Buffer) {
		peer := func(config *Config) *server.Peer {
			p := config.peer(received.From{IP: ip.String(), Local: config.Me}, ip, kindOf(service))
			if serve.Encrypted(service) {
				p.TLS = &secure.State{}
			}
			return p
		}
		start(context.Background(), conn, e, peer, q, log)
	},
	"classic": func(e *env.Env, _ string, conn net.Conn, ip netip.Addr, q server.Queue, log *bytes.Buffer) {
		defer conn.Close()
		e.Vars = append(e.Vars, "PROTO=TCP", "TCPREMOTEIP="+ip.String(), "TCPLOCALHOST=mx.test.example")
		single(context.Background(), e, conn, q, (&env.Env{Stderr: log}).Log("qmail-smtpd"), netip.AddrPort{}, netip.AddrPort{})
	},
}

// TestHostileClients plays each case of the three files in virtual time, in both ways.
func TestHostileClients(t *testing.T) {
	skip := notYet(t)
	used := 0
	for _, file := range []string{"smuggling.jsonl", "smtp-misc.jsonl", "relay.jsonl"} {
		readJSONL(t, file, func(c hostile) {
			if skip[c.Name] {
				used++
				return
			}
			t.Run(c.Name, func(t *testing.T) {
				home := hostileHome(t, c)
				var outcomes []string
				for name, way := range ways {
					if kindOf(c.Setup.Listener) == server.Submission && name == "classic" {
						continue // nobody can log in there
					}
					synctest.Test(t, func(t *testing.T) {
						t.Logf("%s:", name)
						r := playHostile(t, c, home, way)
						judge(t, c, r)
						outcomes = append(outcomes, fmt.Sprintf("%s %q", codesOf(r.replies), r.queued))
					})
				}
				if len(outcomes) < 2 {
					return
				}
				if received := regexp.MustCompile(`[0-9:]{8} -0000`); received.ReplaceAllString(outcomes[0], "") != received.ReplaceAllString(outcomes[1], "") {
					t.Errorf("one way:   %s\nthe other: %s", outcomes[0], outcomes[1])
				}
			})
		})
	}
	if used != len(skip) {
		t.Errorf("%d of the %d names in not-yet.txt are cases", used, len(skip))
	}
}

// hostileHome is the fixture, changed as the case wants it.
func hostileHome(t *testing.T, c hostile) string {
	home := makeHome(t, map[string]string{
		"me": "mx.test.example\n", "rcpthosts": "test.example\nvirt.example\n.sub.example\n", "localiphost": "test.example\n",
		"databytes": "1048576\n", "maxrecipients": "100\n", "timeoutsmtpd": "10\n",
	})
	path := func(name string) string { return filepath.Join(home, "control", name) }
	for _, name := range c.Setup.Remove {
		if err := os.Remove(path(name)); err != nil {
			t.Fatal(err)
		}
	}
	for name := range c.Setup.Chmod { // root reads any file: a directory is as unreadable as mode 0 is to others
		if err := os.Remove(path(name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if c.Setup.Chunking != nil && !*c.Setup.Chunking {
		writeControl(t, home, "chunking", "0\n")
	}
	for name, text := range c.Setup.Write {
		writeControl(t, home, name, text)
	}
	return home
}

// fixtureUser tells who has a mailbox, or is somebody else's to know.
func fixtureUser(recipient string) bool {
	local, domain, ok := address.Split(address.Lower(recipient))
	if ok && domain != "test.example" {
		return true
	}
	return local == "alice" || local == "bob" || local == "postmaster" || strings.HasPrefix(local, "alice-")
}

// played is what came of a case.
type played struct {
	replies []smtpReply
	queued  []queuedMessage
	log     string
	ended   bool // by the server, before QUIT
	took    time.Duration
	memory  int64
}

func playHostile(t *testing.T, c hostile, home string, way way) played {
	var vars []string
	for name, v := range c.Setup.Env {
		vars = append(vars, name+"="+v)
	}
	e := testEnv(home, vars...)
	q := &fakeQueue{known: fixtureUser}
	client, conn := net.Pipe()
	var log, said bytes.Buffer
	var mu sync.Mutex
	ip := netip.MustParseAddr("192.0.2.99")
	done := make(chan struct{})
	go func() {
		defer close(done)
		way(e, c.Setup.Listener, conn, ip, q, &log)
	}()
	if c.Setup.ClientReads == nil || *c.Setup.ClientReads {
		go func() {
			b := make([]byte, 64<<10)
			for {
				n, err := client.Read(b)
				mu.Lock()
				said.Write(b[:n])
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
	}
	began := time.Now()
	top := watchMemory()
	sendHostile(c, client, done)
	r := played{took: time.Since(began)}
	select {
	case <-done:
		r.ended = true
	case <-time.After(time.Millisecond):
		client.Close()
		<-done
	}
	client.Close()
	synctest.Wait()
	r.memory = top()
	r.replies, r.queued, r.log = parseReplies(t, said.String()), q.queued, log.String()
	if n := len(r.replies); n > 0 && r.replies[n-1].code == "221" {
		r.ended = false
	}
	return r
}

// sendHostile is the client. It stops when the session is over.
func sendHostile(c hostile, client net.Conn, done chan struct{}) {
	for _, chunk := range c.Chunks {
		if !chunk.Before {
			synctest.Wait() // the replies are in
		}
		send, times := chunk.B64, max(chunk.Repeat, 1)
		if chunk.Gen == "rcpt-dictionary" {
			send = []byte("EHLO client.example\r\nMAIL FROM:<s@client.example>\r\n")
			for i := range chunk.Count {
				send = fmt.Appendf(send, "RCPT TO:<user%d@test.example>\r\n", i)
			}
		}
		if strings.HasPrefix(chunk.Gen, "auth-") {
			send = []byte("EHLO client.example\r\n")
			for i := range chunk.Count {
				login := [...]string{"alice@test.example", "nouser@test.example"}[i%2]
				send = fmt.Appendf(send, "AUTH PLAIN %s\r\n", base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "\x00%s\x00guess %d", login, i)))
			}
		}
		if chunk.Delay == 0 && sendAll(client, send, times) != nil {
			return
		}
		for i := 0; i < times && chunk.Delay > 0; i++ {
			time.Sleep(time.Duration(chunk.Delay) * time.Millisecond)
			if _, err := client.Write(send); err != nil {
				return
			}
		}
		if chunk.Await == "close" {
			select {
			case <-done:
			case <-time.After(time.Hour):
			}
		}
	}
	synctest.Wait()
}

// sendAll sends unit so many times, in large writes.
func sendAll(client net.Conn, unit []byte, times int) error {
	each := min(times, max(1, 1<<20/max(len(unit), 1)))
	block := bytes.Repeat(unit, each)
	for ; times > 0; times -= each {
		if _, err := client.Write(block[:min(times, each)*len(unit)]); err != nil {
			return err
		}
	}
	return nil
}

// watchMemory gives the growth of the heap at the end; what only lived in between is the collector's affair.
func watchMemory() func() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := int64(m.HeapAlloc)
	return func() int64 {
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc) - before
	}
}

// judge compares with what the case expects and forbids.
func judge(t *testing.T, c hostile, r played) {
	classes := append([]string{c.Expect.Class}, c.Expect.Or...)
	if !slices.ContainsFunc(classes, func(class string) bool { return meets(r, class) }) {
		t.Errorf("want one of %v, got %s and %d queued", classes, codesOf(r.replies), len(r.queued))
	}
	if c.Expect.Queued != nil && len(r.queued) != *c.Expect.Queued {
		t.Errorf("%d queued, want %d", len(r.queued), *c.Expect.Queued)
	}
	if c.Expect.Final == "after-real-eod" {
		oneVerdict(t, r.replies)
	}
	if len(r.queued) > 0 && c.Expect.Rcpts != nil && !slices.Equal(r.queued[0].rcpts, c.Expect.Rcpts) {
		t.Errorf("recipients %q, want %q", r.queued[0].rcpts, c.Expect.Rcpts)
	}
	for _, m := range r.queued {
		wellFormed(t, m)
	}
	for line := range strings.Lines(r.log) {
		if !logLine.MatchString(line) {
			t.Errorf("log line %q", line)
		}
	}
	for _, condition := range c.Expect.MustNot {
		if broken(t, r, condition) {
			t.Errorf("%s: replies %s, queued %q, %v, %d bytes", condition, codesOf(r.replies), r.queued, r.took, r.memory)
		}
	}
}

var (
	logLine = regexp.MustCompile(`^qmail-smtpd: refused 192\.0\.2\.99: "[ -~]*": [45][0-9][0-9] [ -~]*\n$|^qmail-smtpd: refused 192\.0\.2\.99: "(?:DATA|BDAT)": message cut short: [ -~]*\n$` +
		`|^qmail-smtpd: refused (?:192\.0\.2\.99: )?[0-9]+ more that are not logged\n$|^qmail-smtpd: alert: unable to read controls err=[ -~]*\n$`)
	trace = regexp.MustCompile(`^Received: from [!-~]+(?: \(HELO [!-~]*\))? \(192\.0\.2\.99\)\n  by mx\.test\.example with (?:SMTP|ESMTP|UTF8SMTP|ESMTPSA \([A-Za-z0-9 .]+\) tls [!-~]+); [ -~]+\n`)
)

func wellFormed(t *testing.T, m queuedMessage) {
	if !trace.MatchString(m.message) || strings.Contains(m.message, "\r") || strings.Contains(m.message, "\x00") {
		t.Errorf("queued message begins with %q", m.message[:min(len(m.message), 300)])
	}
}

// oneVerdict checks that between 354 and what QUIT gets there is one reply: nothing in the message was taken
// for its end, or for a command.
func oneVerdict(t *testing.T, replies []smtpReply) {
	i := slices.IndexFunc(replies, func(r smtpReply) bool { return r.code == "354" })
	if i < 0 {
		t.Fatalf("no 354 in %s", codesOf(replies))
	}
	rest := replies[i+1:]
	if n := len(rest); n > 0 && rest[n-1].code == "221" {
		rest = rest[:n-1]
	}
	if len(rest) != 1 {
		t.Errorf("after 354: %s", codesOf(rest))
	}
}

func meets(r played, class string) bool {
	has := func(first byte) bool {
		return slices.ContainsFunc(r.replies, func(p smtpReply) bool { return p.code[0] == first })
	}
	switch class {
	case "accept":
		return !has('3') && !has('4') && !has('5') || len(r.queued) > 0
	case "reject":
		return has('5')
	case "tempfail":
		return has('4')
	case "close":
		return r.ended && len(r.queued) == 0
	}
	return false
}

// broken reports whether a must_not condition came true.
func broken(t *testing.T, r played, condition string) bool {
	word, arg, _ := strings.Cut(condition, ":")
	if w, n, ok := strings.Cut(condition, ">"); ok {
		most := number(t, n)
		switch w {
		case "queued":
			return int64(len(r.queued)) > most
		case "replies":
			return int64(len(r.replies)) > most
		case "time":
			return r.took > time.Duration(most)*time.Second
		case "rss":
			return r.memory > most
		case "auth_attempts":
			return slices.ContainsFunc(r.replies[min(len(r.replies), 20):], func(p smtpReply) bool { return p.code == "535" })
		}
		word = w
	}
	switch word {
	case "sender":
		return slices.ContainsFunc(r.queued, func(m queuedMessage) bool { return m.sender == arg })
	case "rcpt":
		return slices.ContainsFunc(r.queued, func(m queuedMessage) bool { return slices.Contains(m.rcpts, arg) })
	case "relay":
		return slices.ContainsFunc(r.queued, func(m queuedMessage) bool { return slices.ContainsFunc(m.rcpts, foreign) })
	case "reply":
		return slices.ContainsFunc(r.replies, func(p smtpReply) bool { return regexp.MustCompile(arg).MatchString(p.lines[0]) })
	case "reply_differs": // VRFY and EXPN say the same of everybody: 252 and 502, whoever is asked for
		return !slices.ContainsFunc(r.replies, func(p smtpReply) bool { return p.code == "252" || p.code == "502" || p.code == "214" })
	case "auth_ok":
		return slices.ContainsFunc(r.replies, func(p smtpReply) bool { return p.code == "235" })
	case "panic", "log_line_forged", "log_control_chars", "header_injected":
		return false // a panic ends the test; judge has looked at each log line and each message's head
	}
	if !slices.Contains(elsewhere, word) {
		t.Fatalf("unknown condition %q", condition)
	}
	return false
}

// foreign reports whether a recipient is outside of the fixture's domains.
func foreign(recipient string) bool {
	local, domain, ok := address.Split(address.Lower(recipient))
	if !ok {
		return local != "postmaster"
	}
	return domain != "test.example" && domain != "virt.example" && !strings.HasSuffix(domain, ".sub.example")
}

func codesOf(replies []smtpReply) string {
	var list []string
	for _, r := range replies {
		list = append(list, r.code)
	}
	if len(list) > 40 {
		list = append(list[:40], "...")
	}
	return strings.Join(list, " ")
}
