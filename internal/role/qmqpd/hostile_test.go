package qmqpd

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

	"qmail/internal/format/envelope"
	"qmail/internal/format/netstring"
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

func (q *fakeQueue) Verify(string) error { return nil }

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
		r.server.Open = newServer(q, e, r.Refusals).Open
		defer r.Refusals.Start()()
		if !r.Welcome(ip) {
			r.Refusals.Note(ip.String(), "", "not a client of ours")
			return
		}
		r.session(context.Background(), "qmqp", conn, ip)
	},
	"classic": func(e *env.Env, conn net.Conn, ip netip.Addr, q inlet.Queue) {
		e.Vars = append(e.Vars, "PROTO=TCP", "TCPREMOTEIP="+ip.String(), "TCPLOCALHOST=mx.test.example")
		single(context.Background(), e, conn, q, e.Log("qmail-qmqpd"), netip.AddrPort{}, netip.AddrPort{})
	},
}

type hostile struct {
	Name  string
	Setup struct {
		Allowed bool `json:"qmqp_client_allowed"`
	}
	Input  []byte `json:"input_b64"`
	Chunks []struct {
		B64    []byte
		Repeat int
		Delay  int `json:"delay_ms"`
	}
	Expect struct {
		Class   string
		Or      []string
		MustNot []string `json:"must_not"`
		Queued  *int
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
	if n < 10 {
		t.Errorf("%d cases", n)
	}
}

// play lets a client send all it has, and returns what came of it.
func play(t *testing.T, c hostile, way func(*env.Env, net.Conn, netip.Addr, inlet.Queue)) string {
	clients := "192.0.2.1\n"
	if c.Setup.Allowed {
		clients = "192.0.2.0/24\n"
	}
	home := makeHome(t, map[string]string{"me": "mx.test.example\n", "qmqpclients": clients})
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
	began := time.Now()
	client.Write(c.Input) // the server may hang up
	for _, chunk := range c.Chunks {
		for i := 0; i < max(chunk.Repeat, 1); i++ {
			time.Sleep(time.Duration(chunk.Delay) * time.Millisecond)
			if _, err := client.Write(chunk.B64); err != nil {
				break
			}
		}
	}
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
	judge(t, c, q.queued, answers, ended, log.String(), int64(m.HeapAlloc)-before, time.Since(began))
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

var logLine = regexp.MustCompile(`^qmail-qmqpd: refused (192\.0\.2\.99: "[ -~]*": [ -~]+|192\.0\.2\.99: \d+ more that are not logged|\d+ more that are not logged)\n$`)

func judge(t *testing.T, c hostile, got []queued, answers []string, ended bool, log string, memory int64, took time.Duration) {
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
	for line := range strings.Lines(log) {
		if !logLine.MatchString(line) {
			t.Errorf("log line %q", line)
		}
	}
	for _, condition := range c.Expect.MustNot {
		word, most, _ := strings.Cut(condition, ">")
		n, _ := strconv.ParseInt(strings.TrimRight(most, "MiBs"), 10, 64)
		broken := false
		switch word {
		case "queued":
			broken = int64(len(got)) > n
		case "rss":
			broken = memory > n<<20
		case "time":
			broken = took > time.Duration(n)*time.Second
		case "panic": // would end the test
		default:
			t.Fatalf("unknown condition %q", condition)
		}
		if broken {
			t.Errorf("%s: %.300q, queued %q, %d bytes", condition, answers, got, memory)
		}
	}
}
