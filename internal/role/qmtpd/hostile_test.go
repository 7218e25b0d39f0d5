package qmtpd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/envelope"
	"qmail/internal/format/netstring"
	"qmail/internal/format/reply"
	"qmail/internal/proto/inlet"
	"qmail/internal/system/env"
)

// fakeQueue stands in for qmail-send.
type fakeQueue struct {
	mu     sync.Mutex
	queued []queued
}

type queued struct {
	sender  string
	rcpts   []string
	message string
}

// Verify knows the users of test.example: alice, with her extensions, and bob.
func (q *fakeQueue) Verify(recipient string) error {
	local, domain, ok := address.Split(address.Lower(recipient))
	if ok && domain != "test.example" || local == "alice" || local == "bob" || local == "postmaster" || strings.HasPrefix(local, "alice-") {
		return nil
	}
	return &reply.Error{Code: 550, Status: "5.1.1", Text: "sorry, no mailbox here by that name (#5.1.1)"}
}

func (q *fakeQueue) Open(*envelope.Envelope) (inlet.Message, error) { return &fakeMessage{q: q}, nil }

type fakeMessage struct {
	q    *fakeQueue
	body bytes.Buffer
}

func (m *fakeMessage) Write(p []byte) error { m.body.Write(p); return nil }
func (m *fakeMessage) Abort()               {}

func (m *fakeMessage) Commit(e *envelope.Envelope) (uint64, error) {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.q.queued = append(m.q.queued, queued{e.Sender, e.Recipients, m.body.String()})
	return uint64(len(m.q.queued)), nil
}

// makeHome makes a home of control files.
func makeHome(t testing.TB, files map[string]string) string {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return home
}

// ways are how a session is served: by the long-lived process, and by one that tcpserver has started for it.
var ways = map[string]func(e *env.Env, conn net.Conn, ip netip.Addr, q inlet.Queue){
	"long-lived": func(e *env.Env, conn net.Conn, ip netip.Addr, q inlet.Queue) {
		config, err := ReadConfig(e)
		if err != nil {
			panic(err)
		}
		r := newRole(e, config)
		r.server.Open, r.server.Verify = newServer(q, nil, e, r.Refusals).Open, q.Verify
		defer r.Refusals.Start()()
		r.session(context.Background(), "qmtp", conn, ip)
	},
	"classic": func(e *env.Env, conn net.Conn, ip netip.Addr, q inlet.Queue) {
		e.Vars = append(e.Vars, "PROTO=TCP", "TCPREMOTEIP="+ip.String(), "TCPLOCALHOST=mx.test.example")
		single(context.Background(), e, conn, q, e.Log("qmail-qmtpd"), netip.AddrPort{}, netip.AddrPort{})
	},
}

type hostile struct {
	Name   string
	Input  []byte `json:"input_b64"`
	Chunks []struct {
		B64    []byte
		Repeat int
		Delay  int `json:"delay_ms"`
		Gen    string
		Count  int
	}
	Expect struct {
		Class   string
		Or      []string
		MustNot []string `json:"must_not"`
		Queued  *int
		Rcpts   []string
	}
}

// TestHostileClients plays each case in virtual time, in both ways.
func TestHostileClients(t *testing.T) {
	f, err := os.Open("testdata/hostile.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for d := json.NewDecoder(f); d.More(); n++ {
		var c hostile
		if err := d.Decode(&c); err != nil {
			t.Fatal(err)
		}
		t.Run(c.Name, func(t *testing.T) {
			outcomes := map[string]string{}
			for name, way := range ways {
				synctest.Test(t, func(t *testing.T) { outcomes[name] = play(t, c, way) })
			}
			if outcomes["classic"] != outcomes["long-lived"] {
				t.Errorf("%q", outcomes)
			}
		})
	}
	if n < 25 {
		t.Errorf("%d cases", n)
	}
}

func (c *hostile) input() []byte {
	in := c.Input
	for _, chunk := range c.Chunks {
		if chunk.Gen == "qmtp-recipients" {
			var list []byte
			for i := range chunk.Count {
				list = netstring.Append(list, fmt.Sprintf("alice-%d@test.example", i))
			}
			in = append(in, "19:\nSubject: s\n\nhello\n,16:s@client.example,"...)
			in = netstring.Append(in, list)
			continue
		}
		in = append(in, bytes.Repeat(chunk.B64, max(chunk.Repeat, 1))...)
	}
	return in
}

// play lets a client send all it has, and returns what came of it.
func play(t *testing.T, c hostile, way func(*env.Env, net.Conn, netip.Addr, inlet.Queue)) string {
	home := makeHome(t, map[string]string{
		"me": "mx.test.example\n", "rcpthosts": "test.example\nvirt.example\n.sub.example\n", "databytes": "1048576\n", "maxrecipients": "100\n",
	})
	var log bytes.Buffer
	e := &env.Env{Home: home, Stderr: &log, Now: time.Now}
	q := &fakeQueue{}
	client, conn := net.Pipe()
	done, said := make(chan struct{}), make(chan string, 1)
	go func() { defer close(done); defer conn.Close(); way(e, conn, netip.MustParseAddr("192.0.2.99"), q) }()
	go func() { b, _ := io.ReadAll(client); said <- string(b) }()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := int64(m.HeapAlloc)
	client.Write(c.input()) // the server may hang up
	synctest.Wait()
	ended := false
	select {
	case <-done:
		ended = true
	default:
		client.Close()
		<-done
	}
	runtime.GC()
	runtime.ReadMemStats(&m)
	answers := parse(t, <-said)
	judge(t, c, q.queued, answers, ended, log.String(), int64(m.HeapAlloc)-before)
	return fmt.Sprint(answers, ended, q.queued)
}

// parse cuts answers; anything that is none fails the test.
func parse(t *testing.T, said string) (list []string) {
	t.Helper()
	for rest := []byte(said); len(rest) > 0; {
		val, after, err := netstring.Cut(rest, 1000)
		if err != nil || !strings.ContainsAny(string(val[:1]), "KZD") {
			t.Fatalf("told %.300q", said)
		}
		list, rest = append(list, string(val)), after
	}
	return list
}

var logLine = regexp.MustCompile(`^qmail-qmtpd: refused (192\.0\.2\.99: "[ -~]*": [ -~]+|192\.0\.2\.99: \d+ more that are not logged|\d+ more that are not logged)\n$`)

func judge(t *testing.T, c hostile, got []queued, answers []string, ended bool, log string, memory int64) {
	has := func(letter byte) bool {
		return slices.ContainsFunc(answers, func(a string) bool { return a[0] == letter })
	}
	meets := func(class string) bool {
		switch class {
		case "accept":
			return !has('Z') && !has('D') || has('K')
		case "reject":
			return has('D')
		case "tempfail":
			return has('Z')
		case "close": // a client that has no more to say is closed, too
			return len(got) == 0 && (ended || len(answers) == 0)
		}
		return false
	}
	if classes := append([]string{c.Expect.Class}, c.Expect.Or...); !slices.ContainsFunc(classes, meets) {
		t.Errorf("want one of %v, got %.300q, ended %v, %d queued", classes, answers, ended, len(got))
	}
	if c.Expect.Queued != nil && len(got) != *c.Expect.Queued {
		t.Errorf("%d queued, want %d", len(got), *c.Expect.Queued)
	}
	if len(got) > 0 && c.Expect.Rcpts != nil && !slices.Equal(got[0].rcpts, c.Expect.Rcpts) {
		t.Errorf("recipients %q", got[0].rcpts)
	}
	for line := range strings.Lines(log) {
		if !logLine.MatchString(line) {
			t.Errorf("log line %q", line)
		}
	}
	for _, condition := range c.Expect.MustNot {
		word, most, _ := strings.Cut(condition, ">")
		n, _ := strconv.ParseInt(strings.TrimSuffix(most, "MiB"), 10, 64)
		broken := false
		switch word {
		case "queued":
			broken = int64(len(got)) > n
		case "rss":
			broken = memory > n<<20
		case "relay":
			for _, m := range got {
				for _, r := range m.rcpts {
					broken = broken || !strings.HasSuffix(r, "@test.example")
				}
			}
		case "panic", "header_injected", "log_line_forged": // the first ends the test; recipients with line ends are never queued
			for _, m := range got {
				broken = broken || strings.ContainsAny(strings.Join(m.rcpts, "")+m.sender, "\r\n\x00")
			}
		default:
			t.Fatalf("unknown condition %q", condition)
		}
		if broken {
			t.Errorf("%s: %.300q, queued %q, %d bytes", condition, answers, got, memory)
		}
	}
}
