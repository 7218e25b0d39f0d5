package smtpd

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/proto/sasl"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/env"
	"qmail/internal/system/serve"
)

// makeHome makes a home of control files. A morercpthosts becomes a cdb too, as qmail-newmrh makes it.
func makeHome(t testing.TB, files map[string]string) string {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		writeControl(t, home, name, text)
	}
	if text, ok := files["morercpthosts"]; ok {
		writeMore(t, filepath.Join(home, "control", "morercpthosts.cdb"), text)
	}
	return home
}

func writeControl(t testing.TB, home, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func writeMore(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := cdb.NewWriter(f)
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, " \t\n"); line != "" && line[0] != '#' {
			if err := w.Add([]byte(address.Lower(line)), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func testEnv(home string, vars ...string) *env.Env {
	return &env.Env{Home: home, Vars: vars, Stderr: io.Discard, Now: time.Now, Ready: func() error { return nil }}
}

// fakeQueue stands in for qmail-send: refuse is its answer to each message, known tells which recipients there
// are.
type fakeQueue struct {
	mu     sync.Mutex
	queued []queuedMessage
	known  func(recipient string) bool
	refuse error
	early  bool // refuses before it has read all
}

type queuedMessage struct {
	sender  string
	rcpts   []string
	message string
}

func (q *fakeQueue) Verify(recipient string) error {
	if q.known != nil && !q.known(recipient) {
		return &reply.Error{Code: 550, Status: "5.1.1", Text: "sorry, no mailbox here by that name (#5.1.1)"}
	}
	return nil
}

func (q *fakeQueue) Open(e *envelope.Envelope) (server.Message, error) {
	return &fakeMessage{q: q, e: e}, nil
}

type fakeMessage struct {
	q    *fakeQueue
	e    *envelope.Envelope
	body bytes.Buffer
}

func (m *fakeMessage) Write(p []byte) error {
	if m.body.Write(p); m.q.early && m.body.Len() > 1000 {
		return m.q.refuse
	}
	return nil
}

func (m *fakeMessage) Commit() (uint64, error) {
	if m.q.refuse != nil {
		return 0, m.q.refuse
	}
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.q.queued = append(m.q.queued, queuedMessage{m.e.Sender, m.e.Recipients, m.body.String()})
	return uint64(1000 + len(m.q.queued)), nil
}

func (m *fakeMessage) Abort() {}

// start runs one session over conn with the configuration of home, as the role would: where that cannot be
// read the role does not serve, and the client meets 421.
func start(ctx context.Context, conn net.Conn, e *env.Env, peer func(*Config) *server.Peer, q server.Queue, log *bytes.Buffer) error {
	defer conn.Close()
	config, err := ReadConfig(e, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		conn.Write([]byte("421 4.3.0 unable to read controls (#4.3.0)\r\n"))
		return err
	}
	lines := (&env.Env{Stderr: log}).Log("qmail-smtpd")
	config.Session.Mechanisms = func(p *server.Peer) ([]string, bool) {
		if p.Kind != server.Submission {
			return nil, false
		}
		if p.TLS == nil {
			return nil, true
		}
		return []string{"SCRAM-SHA-256", "PLAIN", "LOGIN"}, true
	}
	v := server.Server{
		Settings: func() *server.Config { return &config.Session }, Queue: q, Now: e.Now,
		Auth: &fixtureAuth{}, Random: func([]byte) {},
		Refused: func(p *server.Peer, command, reply string) { lines.Info(serve.RefusalLine(p.IP, command, reply)) },
	}
	return v.Serve(ctx, conn, peer(config))
}

// fixtureAuth stands in for qmail-authd: alice@test.example's password is "correct horse".
type fixtureAuth struct{ attempts int }

func (a *fixtureAuth) Begin(ctx context.Context, p *server.Peer, mechanism string, initial []byte) (server.Exchange, server.Answer) {
	a.attempts++
	if a.attempts > 20 {
		panic("more than 20 guesses")
	}
	v, err := sasl.NewServer(mechanism, nil, a)
	if err != nil {
		return nil, server.Answer{Outcome: server.Malformed}
	}
	x := fixtureExchange{v}
	return x, x.Next(ctx, initial)
}

func (a *fixtureAuth) Password(login, password string) error {
	if login != "alice@test.example" || password != "correct horse" {
		return sasl.ErrRefused
	}
	return nil
}

func (a *fixtureAuth) Verifier(mechanism, login string) (sasl.Verifier, error) {
	return sasl.NewVerifier(mechanism, "correct horse of "+login, []byte("salt"), 4096)
}

type fixtureExchange struct{ v *sasl.Server }

func (x fixtureExchange) Abort() {}

func (x fixtureExchange) Next(_ context.Context, response []byte) server.Answer {
	challenge, done, err := x.v.Next(response)
	switch {
	case !done:
		return server.Answer{Outcome: server.Challenged, Challenge: challenge}
	case err == nil:
		return server.Answer{Outcome: server.Accepted, Login: x.v.Login}
	case err == sasl.ErrRefused:
		return server.Answer{Outcome: server.Rejected}
	}
	return server.Answer{Outcome: server.Malformed}
}

// smtpReply is one reply, all of its lines.
type smtpReply struct {
	code  string
	lines []string
}

// parseReplies cuts what a server said into replies; a line that is none fails the test.
func parseReplies(t testing.TB, s string) (list []smtpReply) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(s) {
		text, ok := strings.CutSuffix(line, "\r\n")
		if !ok || len(text) < 3 {
			t.Fatalf("malformed reply %q", line)
		}
		lines = append(lines, text)
		if len(text) > 3 && text[3] == '-' {
			continue
		}
		list = append(list, smtpReply{text[:3], lines})
		lines = nil
	}
	if lines != nil {
		t.Fatalf("incomplete reply %q", lines)
	}
	return list
}

// readJSONL calls fn with each line of a file under testdata.
func readJSONL[T any](t *testing.T, name string, fn func(c T)) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := json.NewDecoder(f)
	n := 0
	for ; d.More(); n++ {
		var c T
		if err := d.Decode(&c); err != nil {
			t.Fatalf("%s: case %d: %v", name, n+1, err)
		}
		fn(c)
	}
	if n == 0 {
		t.Fatalf("%s has no case", name)
	}
}

// number reads n of text like "queued>n", with a unit.
func number(t *testing.T, s string) int64 {
	t.Helper()
	unit := int64(1)
	for suffix, u := range map[string]int64{"MiB": 1 << 20, "s": 1} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = rest, u
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatalf("%q is no number", s)
	}
	return n * unit
}
