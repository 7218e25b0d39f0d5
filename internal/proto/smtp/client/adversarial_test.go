package client

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// hostile is a recorded server, a message for it, and what may come of it.
type hostile struct {
	Name  string
	Setup struct {
		Message []byte `json:"message_b64"`
		Append  []byte `json:"message_append_b64"`
		Repeat  int    `json:"message_append_repeat"`
		Rcpts   []string
	}
	Chunks []struct {
		Server  []byte `json:"server_b64"`
		After   string
		Segment int
		Delay   int    `json:"delay_ms"`
		Again   []byte `json:"repeat_b64"`
		Repeat  int
		Tail    []byte `json:"tail_b64"`
		Sink    string
		Close   bool
		Stop    bool `json:"stop_reading"`
		DNS     string
	}
	Expect struct {
		Class   string
		Or      []string
		MustNot []string `json:"must_not"`
	}
}

// elsewhere names the cases that are about choosing a server, which this package does not do.
var elsewhere = map[string]string{
	"outbound/mx-points-to-localhost": "played by the role that looks hosts up",
}

func TestHostileServers(t *testing.T) {
	file, err := os.ReadFile("testdata/outbound.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for line := range strings.Lines(string(file)) {
		var c hostile
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		cases++
		t.Run(c.Name, func(t *testing.T) {
			if why := elsewhere[c.Name]; why != "" {
				t.Log(why)
				return
			}
			synctest.Test(t, func(t *testing.T) { playHostile(t, c) })
		})
	}
	if cases < 30 {
		t.Fatalf("%d cases", cases)
	}
}

func playHostile(t *testing.T, c hostile) {
	if len(c.Setup.Rcpts) == 0 {
		c.Setup.Rcpts = []string{"box@remote.example"}
	}
	ours, theirs := net.Pipe()
	h := &script{conn: theirs, seen: map[string]int{}}
	done := make(chan struct{})
	go func() { defer close(done); h.play(c) }()
	start := time.Now()
	conn := New(ours, Options{Hello: "mx.test.example", Timeout: 1200 * time.Second})
	var result Result
	if hello := conn.Hello(); hello.Letter != 0 {
		result = Failure(hello, len(c.Setup.Rcpts))
	} else {
		body := append(c.Setup.Message, bytes.Repeat(c.Setup.Append, c.Setup.Repeat)...)
		result = conn.Deliver(&Message{Sender: "s@test.example", Recipients: c.Setup.Rcpts, Body: Memory(body)})
	}
	took := time.Since(start)
	conn.Quit()
	<-done
	judge(t, c, &result, h, took)
}

func judge(t *testing.T, c hostile, r *Result, h *script, took time.Duration) {
	classes := map[byte]string{'K': "accept", 'Z': "tempfail", 'D': "reject"}
	class := classes[r.Of(0)[0]]
	if class != c.Expect.Class && !slices.Contains(c.Expect.Or, class) {
		t.Errorf("%s, want %s or %v: %q", class, c.Expect.Class, c.Expect.Or, r.Classic(nil))
	}
	limits := map[string]time.Duration{"time>120s": 120 * time.Second, "time>400s": 400 * time.Second, "time>700s": 700 * time.Second}
	for _, must := range c.Expect.MustNot {
		broken := false
		switch must {
		case "delivered":
			broken = class == "accept"
		case "bounced":
			broken = class == "reject"
		case "sent_body":
			broken = h.bodies > 0
		case "sink_msgs>1":
			broken = h.bodies > 1
		case "sink_cmd_after_eod":
			broken = h.afterEnd != ""
		case "bare_cr_on_wire":
			broken = bytes.Contains(bytes.ReplaceAll(h.wire, []byte("\r\n"), nil), []byte("\r"))
		case "bare_lf_on_wire":
			broken = bytes.Contains(bytes.ReplaceAll(h.wire, []byte("\r\n"), nil), []byte("\n"))
		case "log_control_chars", "header_injected":
			broken = strings.ContainsAny(r.Of(0), "\x00\r\x1b")
		case "wrong_recipient_status":
			broken = r.Of(0)[0] != 'K' || r.Of(1)[0] != 'D' || r.Of(2)[0] != 'Z'
		case "time>120s", "time>400s", "time>700s":
			broken = took > limits[must]
		case "rss>32MiB", "panic", "exec", "queue_record_forged", "bounce_mime_broken", "other_delivery_blocked":
			// a panic would end the test; reply_test bounds memory; the rest is for what reads our report
		default:
			t.Fatalf("unknown condition %q", must)
		}
		if broken {
			t.Errorf("%s; the server saw %q, the report is %q", must, h.wire, r.Classic(nil))
		}
	}
}

// script is a server that plays a case.
type script struct {
	conn     net.Conn
	seen     map[string]int // commands
	wire     []byte
	bodies   int
	afterEnd string // what came behind an end of data, but QUIT
	data     bool   // we are inside a body
}

func (h *script) play(c hostile) {
	defer h.conn.Close()
	r := bufio.NewReader(h.conn)
	for i, step := range c.Chunks {
		switch {
		case step.Sink != "":
			h.sink(r, i == 0)
			return
		case step.After != "" && !h.await(r, step.After):
			return
		case step.Close:
			return
		case step.Stop:
			time.Sleep(time.Hour)
			return
		}
		out := append(step.Server, bytes.Repeat(step.Again, step.Repeat)...)
		out = append(out, step.Tail...)
		if strings.HasPrefix(string(step.Server), "354") {
			h.data = true
		}
		for len(out) > 0 {
			n := len(out)
			if step.Segment > 0 {
				n = min(n, step.Segment)
			}
			time.Sleep(time.Duration(step.Delay) * time.Millisecond)
			if _, err := h.conn.Write(out[:n]); err != nil {
				return
			}
			out = out[n:]
		}
	}
	for h.line(r) != "" { // the client ends it
	}
}

// await reads until the command was seen: "RCPT#2" is the second RCPT, EOD the end of the data.
func (h *script) await(r *bufio.Reader, what string) bool {
	verb, number, _ := strings.Cut(what, "#")
	want := 1
	if number != "" {
		want = int(number[0] - '0')
	}
	for h.seen[verb] < want {
		if h.line(r) == "" {
			return false
		}
	}
	return true
}

func (h *script) line(r *bufio.Reader) string {
	line, err := r.ReadString('\n')
	if err != nil {
		return ""
	}
	h.wire = append(h.wire, line...)
	if h.data {
		if line == ".\r\n" {
			h.data = false
			h.bodies++
			h.seen["EOD"]++
		}
		return line
	}
	if h.bodies > 0 && !strings.HasPrefix(line, "QUIT") {
		h.afterEnd += line
	}
	h.seen[strings.ToUpper(line[:min(4, len(line))])]++
	return line
}

// sink is an obliging server; greet is false if the script has greeted and answered EHLO already.
func (h *script) sink(r *bufio.Reader, greet bool) {
	if greet {
		h.conn.Write([]byte("220 mx.remote.example ESMTP\r\n"))
	}
	for {
		line := h.line(r)
		reply := "250 ok\r\n"
		switch {
		case line == "":
			return
		case h.data:
			continue
		case strings.HasPrefix(line, "EHLO"):
			reply = "250-mx.remote.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
		case strings.HasPrefix(line, "DATA"):
			h.data, reply = true, "354 go\r\n"
		case strings.HasPrefix(line, "QUIT"):
			return
		}
		if _, err := h.conn.Write([]byte(reply)); err != nil {
			return
		}
	}
}

func TestSilenceEndsAtEachStage(t *testing.T) {
	stages := []struct {
		name  string
		steps []string // replies, each after one line of the client
		limit time.Duration
		want  string
	}{
		{"greeting", nil, waitGreeting, "but connection died. (#4.4.2)"},
		{"EHLO", []string{"220 x\r\n"}, waitCommand, "but connection died. (#4.4.2)"},
		{"MAIL", []string{"220 x\r\n", "250 x\r\n"}, waitCommand, "but connection died. (#4.4.2)"},
		{"RCPT", []string{"220 x\r\n", "250 x\r\n", "250 x\r\n"}, waitCommand, "but connection died. (#4.4.2)"},
		{"DATA", []string{"220 x\r\n", "250 x\r\n", "250 x\r\n", "250 x\r\n"}, waitData, "but connection died. (#4.4.2)"},
		{"the end", []string{"220 x\r\n", "250 x\r\n", "250 x\r\n", "250 x\r\n", "354 x\r\n"}, waitFinal, "Possible duplicate! (#4.4.2)"},
	}
	for _, timeout := range []time.Duration{0, time.Second, 1200 * time.Second} {
		for _, st := range stages {
			t.Run(st.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ours, theirs := net.Pipe()
					go func() {
						r := bufio.NewReader(theirs)
						for i, reply := range st.steps {
							if i > 0 {
								r.ReadString('\n')
							}
							theirs.Write([]byte(reply))
						}
						r.WriteTo(discard{})
						theirs.Close()
					}()
					start := time.Now()
					c := New(ours, Options{Hello: "x", Timeout: timeout})
					hello := c.Hello()
					result := Failure(hello, 1)
					if hello.Letter == 0 {
						result = c.Deliver(&Message{Recipients: []string{"u@x"}, Body: Memory([]byte("x\n"))})
					}
					limit := st.limit
					if timeout > 0 {
						limit = min(limit, timeout)
					}
					if took := time.Since(start); took != limit {
						t.Errorf("gave up after %v, want %v", took, limit)
					}
					if got := result.Of(0); got[0] != 'Z' || !strings.Contains(got, st.want) {
						t.Errorf("%q", got)
					}
					c.Quit()
				})
			})
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
