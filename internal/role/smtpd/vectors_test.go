package smtpd

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmail/internal/format/reply"
	"qmail/internal/proto/smtp/server"
	"qmail/internal/system/env"
)

// value is a byte value of the recordings: a string, {"b64"}, {"cat"} or {"rep"}.
type value []byte

func (v *value) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		*v = value(s)
		return err
	}
	var o struct {
		B64 *string
		Cat []value
		Rep []json.RawMessage
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	switch {
	case o.B64 != nil:
		data, err := base64.StdEncoding.DecodeString(*o.B64)
		*v = data
		return err
	case o.Cat != nil:
		*v = bytes.Join(func() (parts [][]byte) {
			for _, p := range o.Cat {
				parts = append(parts, p)
			}
			return parts
		}(), nil)
		return nil
	case len(o.Rep) == 2:
		var unit value
		var n int
		if err := errors.Join(json.Unmarshal(o.Rep[0], &unit), json.Unmarshal(o.Rep[1], &n)); err != nil {
			return err
		}
		*v = bytes.Repeat(unit, n)
		return nil
	}
	return fmt.Errorf("unknown byte value %s", b)
}

type recording struct {
	Name, Why string
	Wart      bool
	Env       map[string]string
	Control   map[string]value
	Steps     []struct {
		Send   value
		Pieces int
		Wait   int
	}
	Queue struct {
		Exit int
		FD6  value
		Read *bool
	}
	Expect struct {
		Recv   []value
		Tail   value
		Queued []struct {
			Sender  value
			Rcpts   []value
			Message value
		}
	}
}

// TestRecordingsOfQmail plays the recorded sessions of notqmail's qmail-smtpd, those left out that record what
// we do not want to copy, and compares as their README says: codes by class, status codes of refusals, what
// was queued.
func TestRecordingsOfQmail(t *testing.T) {
	played, warts := 0, 0
	readJSONL(t, "vectors.jsonl", func(c recording) {
		if c.Wart {
			warts++
			return
		}
		played++
		t.Run(c.Name, func(t *testing.T) { playRecording(t, c) })
	})
	if played < 50 || warts < 20 {
		t.Errorf("%d played, %d warts", played, warts)
	}
}

func playRecording(t *testing.T, c recording) {
	files := map[string]string{}
	for name, v := range c.Control {
		files[name] = string(v)
	}
	var vars []string
	for name, v := range c.Env {
		vars = append(vars, name+"="+v)
	}
	e := testEnv(makeHome(t, files), vars...)
	q := &fakeQueue{refuse: exitRefusal(c.Queue.Exit, string(c.Queue.FD6)), early: c.Queue.Read != nil && !*c.Queue.Read}
	client, conn := socketPair(t)
	done := make(chan error, 1)
	go func() {
		done <- start(t.Context(), conn, e, func(config *Config) *server.Peer { return peerOfEnv(config, e) }, q, &bytes.Buffer{})
	}()
	for i, want := range c.Expect.Recv {
		if i > 0 {
			sendPieces(t, client, c.Steps[i-1].Send, c.Steps[i-1].Pieces)
		}
		compareReplies(t, fmt.Sprintf("after step %d", i), string(want), receive(t, client, string(want)))
	}
	client.(*net.UnixConn).CloseWrite()
	tail, err := io.ReadAll(client)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // refused at the start, with our HELO unread
		t.Fatal(err)
	}
	compareReplies(t, "at the end", string(c.Expect.Tail), string(tail))
	<-done
	compareQueued(t, c, q.queued)
}

// peerOfEnv is a Peer by the variables of tcpserver.
func peerOfEnv(config *Config, e *env.Env) *server.Peer {
	p := &server.Peer{IP: e.Get("TCPREMOTEIP"), Host: e.Get("TCPREMOTEHOST"), Info: e.Get("TCPREMOTEINFO"), Local: e.Get("TCPLOCALHOST")}
	if p.Local == "" {
		p.Local = e.Get("TCPLOCALIP")
	}
	p.Relay = config.relayClient
	return p
}

// exitRefusal is what qmail.c makes of its queue program's exit code.
func exitRefusal(code int, text string) error {
	if code == 0 {
		return nil
	}
	reports := map[int]string{
		11: "Denvelope address too long for qq (#5.1.3)", 31: "Dmail server permanently rejected message (#5.3.0)",
		40: "Dqq permanent problem (#5.3.0)", 51: "Zqq out of memory (#4.3.0)", 53: "Zqq write error or disk full (#4.3.0)",
		54: "Zqq read error (#4.3.0)", 71: "Zmail server temporarily rejected message (#4.3.0)", 81: "Zqq internal bug (#4.3.0)",
		120: "Zunable to exec qq (#4.3.0)", 82: "Zqq temporary problem (#4.3.0)",
	}
	if code == 82 && text != "" {
		return reply.Parse(text)
	}
	return reply.Parse(reports[code])
}

func socketPair(t *testing.T) (client, conn net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	t.Cleanup(func() { ends[0].Close() })
	ends[0].SetDeadline(time.Now().Add(20 * time.Second))
	return ends[0], ends[1]
}

func sendPieces(t *testing.T, conn net.Conn, data []byte, size int) {
	t.Helper()
	if size == 0 {
		size = max(len(data), 1)
	}
	for len(data) > 0 {
		n := min(size, len(data))
		if _, err := conn.Write(data[:n]); err != nil {
			t.Logf("write: %v", err) // the session may have ended; the replies tell
			return
		}
		data = data[n:]
	}
}

// receive reads as many replies as want has.
func receive(t *testing.T, conn net.Conn, want string) string {
	t.Helper()
	var got []byte
	b := make([]byte, 4096)
	for len(parseComplete(string(got))) < len(parseComplete(want)) {
		n, err := conn.Read(b)
		if got = append(got, b[:n]...); err != nil {
			t.Fatalf("want %q, got %q, %v", want, got, err)
		}
	}
	return string(got)
}

// parseComplete gives the complete replies in s.
func parseComplete(s string) (list []smtpReply) {
	var lines []string
	for line := range strings.Lines(s) {
		if !strings.HasSuffix(line, "\n") || len(line) < 4 {
			break
		}
		lines = append(lines, line)
		if line[3] != '-' {
			list = append(list, smtpReply{line[:3], lines})
			lines = nil
		}
	}
	return list
}

// class is what counts as one code.
func class(code string) string {
	switch code {
	case "500", "501", "502", "504", "555":
		return "syntax"
	case "550", "553", "554":
		return "refused"
	case "451", "452":
		return "temporary"
	}
	return code
}

func sameCode(a, b string) bool {
	return class(a) == class(b) || a == "503" && b == "554" || a == "554" && b == "503"
}

func compareReplies(t *testing.T, where, want, got string) {
	t.Helper()
	wants, gots := parseReplies(t, want), parseReplies(t, got)
	if len(wants) != len(gots) {
		t.Fatalf("%s: want %q, got %q", where, want, got)
	}
	status := regexp.MustCompile(`\(#(\d\.\d{1,3}\.\d{1,3})\)`)
	for i, w := range wants {
		g := gots[i]
		if !sameCode(w.code, g.code) {
			t.Errorf("%s: want %q, got %q", where, w.lines, g.lines)
		}
		if class(w.code) == "refused" || w.code == "552" {
			for _, m := range status.FindAllStringSubmatch(strings.Join(w.lines, "\n"), -1) {
				if !strings.Contains(strings.Join(g.lines, "\n"), m[1]) {
					t.Errorf("%s: status %s is not in %q", where, m[1], g.lines)
				}
			}
		}
		many := w.code == "250" && len(w.lines) > 1
		if (many || w.code == "220") && firstWord(w.lines[0]) != firstWord(g.lines[0]) {
			t.Errorf("%s: want the name of %q, got %q", where, w.lines[0], g.lines[0])
		}
		if many {
			for _, line := range w.lines[1:] {
				found := false
				for _, have := range g.lines[1:] {
					found = found || firstWord(have) == firstWord(line)
				}
				if !found {
					t.Errorf("%s: %s is missing", where, firstWord(line))
				}
			}
		}
	}
}

func firstWord(line string) string {
	word, _, _ := strings.Cut(line[4:], " ")
	return word
}

func compareQueued(t *testing.T, c recording, got []queuedMessage) {
	t.Helper()
	if len(got) != len(c.Expect.Queued) {
		t.Fatalf("%d queued, want %d", len(got), len(c.Expect.Queued))
	}
	ours := regexp.MustCompile(`^Received: (?:[^\n]*\n[ \t])*[^\n]*\n`)
	fields := regexp.MustCompile(`^(?:[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*)*$`)
	for i, w := range c.Expect.Queued {
		var rcpts []string
		for _, r := range w.Rcpts {
			rcpts = append(rcpts, string(r))
		}
		if got[i].sender != string(w.Sender) || fmt.Sprint(got[i].rcpts) != fmt.Sprint(rcpts) {
			t.Errorf("queued %q %q, want %q %q", got[i].sender, got[i].rcpts, w.Sender, rcpts)
		}
		trace := ours.Find(w.Message)
		head, ok := strings.CutSuffix(got[i].message, string(w.Message[len(trace):]))
		if !ok || !strings.HasPrefix(head, "Received:") || !fields.MatchString(head) {
			t.Fatalf("queued %q, want %q", got[i].message, w.Message)
		}
		// Stronger than the README asks: but for the protocol's name and the date the field is the original's.
		line, _, _ := strings.Cut(strings.ReplaceAll(head, "with ESMTP;", "with SMTP;"), "; ")
		if want, _, _ := strings.Cut(string(trace), "; "); line != want {
			t.Errorf("trace %q, want %q", head, trace)
		}
	}
}
