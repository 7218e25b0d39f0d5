package sender

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/format/smtproute"
	"qmail/internal/proto/qmtp"
	"qmail/internal/proto/smtp/client"
	"qmail/internal/store/control"
	"qmail/internal/system/serve"
)

// taken is a message at a QMTP server of this world; committing takes it a second.
type taken struct {
	n *internet
	b bytes.Buffer
}

func (m *taken) Write(p []byte) error { m.b.Write(p); return nil }
func (m *taken) Abort()               {}

func (m *taken) Commit(e *envelope.Envelope) (uint64, error) {
	time.Sleep(time.Second)
	if strings.Contains(m.b.String(), "refuse me") {
		return 0, reply.Temporary("4.3.0", "disk full (#4.3.0)", nil)
	}
	_, text, _ := strings.Cut(m.b.String(), "-0000\n")
	m.n.note("qmtp %s %s", strings.Join(e.Recipients, ","), text[:min(len(text), 20)])
	return 7, nil
}

// open lets everybody send to anybody.
type open struct{}

func (open) Recipient(_ *qmtp.Peer, _, recipient string) (string, error) { return recipient, nil }

// qmtp is our own server at the other end of a pipe.
func (n *internet) qmtp(host string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	n.mu.Lock()
	n.conns[host]++
	n.mu.Unlock()
	config := &qmtp.Config{Policy: open{}, Patience: serve.Patience{Wait: time.Minute, Total: time.Hour, Grace: time.Minute, Rate: 1}}
	v := qmtp.Server{
		Settings: func() *qmtp.Config { return config }, Now: time.Now,
		Open: func() (qmtp.Message, error) { return &taken{n: n}, nil },
		Verify: func(r string) error {
			switch local, _, _ := strings.Cut(r, "@"); local {
			case "nouser":
				return reply.Permanent("5.1.1", "no such user (#5.1.1)", nil)
			case "later":
				return reply.Temporary("4.2.0", "mailbox busy (#4.2.0)", nil)
			}
			return nil
		},
	}
	n.wg.Go(func() {
		defer theirs.Close()
		v.Serve(context.Background(), theirs, &qmtp.Peer{})
	})
	return ours, nil
}

// routed is a sender with lines of qmtproutes.
func (n *internet) routed(lines ...string) *Sender {
	s := n.sender()
	c := *s.config.Load()
	m := control.NewMap(lines)
	c.QMTP = func(domain string) (smtproute.Relay, bool) {
		v, _, ok := m.Domain(domain)
		relay, err := smtproute.ParseRelay(v, smtproute.QMTP)
		return relay, ok && err == nil
	}
	s.Configure(&c)
	return s
}

func TestRoutesByQMTP(t *testing.T) {
	hosts := map[string]string{"192.0.2.50:209": "qmtp", "192.0.2.51:2209": "qmtp", "192.0.2.60": "good", "192.0.2.70:209": "closes", "192.0.2.71:209": "mute"}
	records := []string{"A relay.example 192.0.2.50", "A two.example 192.0.2.52", "A two.example 192.0.2.50", "A far.example 192.0.2.60", "A x.sub.example 192.0.2.60"}
	tests := []struct {
		name, route, domain, want, story string
	}{
		{"a relay", "far.example:relay.example", "far.example", "K192.0.2.50 accepted message. Remote host said: ok 946684801 qp 7", "dial 192.0.2.50:209, qmtp u@far.example x\n"},
		{"an address and a port", "far.example:192.0.2.51:2209", "far.example", "K192.0.2.51 accepted message. Remote host said: ok 946684801 qp 7", "dial 192.0.2.51:2209, qmtp u@far.example x\n"},
		{"a wildcard", ".sub.example:relay.example", "x.sub.example", "K192.0.2.50 accepted message. Remote host said: ok 946684801 qp 7", "dial 192.0.2.50:209, qmtp u@far.example x\n"},
		{"everything", ":relay.example", "far.example", "K192.0.2.50 accepted message. Remote host said: ok 946684801 qp 7", "dial 192.0.2.50:209, qmtp u@far.example x\n"},
		{"nothing: by SMTP, then", "far.example:", "far.example", "K192.0.2.60 accepted message. Remote host said: 250 taken", "dial 192.0.2.60, message at 192.0.2.60"},
		{"the address that answers", "far.example:two.example", "far.example", "K192.0.2.50 accepted message. Remote host said: ok 946684801 qp 7", "dial 192.0.2.52:209, dial 192.0.2.50:209, qmtp u@far.example x\n"},
		{"a relay that is not there", "far.example:192.0.2.99", "far.example", "ZSorry, I wasn't able to establish a QMTP connection. (#4.4.1)", "dial 192.0.2.99:209"},
		{"a relay that does not exist", "far.example:no.example", "far.example", "DSorry, I couldn't find any host named no.example. (#5.1.2)", ""},
		{"a relay that hangs up", "far.example:192.0.2.70", "far.example", "ZConnected to 192.0.2.70 but connection died. ", "dial 192.0.2.70:209"},
		{"a relay that says nothing", "far.example:192.0.2.71", "far.example", "ZConnected to 192.0.2.71 but connection died. Possible duplicate! (#4.4.2)", "dial 192.0.2.71:209"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newInternet(t, hosts, records...)
				s := n.routed(tt.route)
				if got := send(s, tt.domain); !strings.HasPrefix(got, tt.want) {
					t.Errorf("%s, want %s", got, tt.want)
				}
				if got := n.story(); !strings.HasPrefix(got, strings.TrimSuffix(tt.story, "\n")) {
					t.Errorf("%q, want %q", got, tt.story)
				}
				s.Close()
				n.wg.Wait()
			})
		})
	}
}

func TestResultsOfEachRecipient(t *testing.T) {
	tests := []struct {
		name, body string
		rcpts      []string
		want       []string
		classic    string
	}{
		{"one of each", "x\n", []string{"a@b", "nouser@b", "later@b"},
			[]string{"K192.0.2.50 accepted message.\nRemote host said: ok 946684801 qp 7\n", "D192.0.2.50 does not like recipient.\nRemote host said: no such user (#5.1.1)\n", "Z192.0.2.50 does not like recipient.\nRemote host said: mailbox busy (#4.2.0)\n"},
			"r h192.0.2.50 does not like recipient.\nRemote host said: no such user (#5.1.1)\n s192.0.2.50 does not like recipient.\nRemote host said: mailbox busy (#4.2.0)\n K192.0.2.50 accepted message.\nRemote host said: ok 946684801 qp 7\n "},
		{"never", "x\n", []string{"nouser@b"}, []string{"D192.0.2.50 does not like recipient.\nRemote host said: no such user (#5.1.1)\n"},
			"h192.0.2.50 does not like recipient.\nRemote host said: no such user (#5.1.1)\n DGiving up on 192.0.2.50.\n "},
		{"the message, for now", "refuse me\n", []string{"a@b", "nouser@b"},
			[]string{"Z192.0.2.50 does not like recipient.\nRemote host said: disk full (#4.3.0)\n", "D192.0.2.50 does not like recipient.\nRemote host said: no such user (#5.1.1)\n"},
			"s192.0.2.50 does not like recipient.\nRemote host said: disk full (#4.3.0)\n h192.0.2.50 does not like recipient.\nRemote host said: no such user (#5.1.1)\n ZGiving up on 192.0.2.50.\n "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newInternet(t, map[string]string{"192.0.2.50:209": "qmtp"})
				s := n.routed(":192.0.2.50")
				r := s.Send(context.Background(), "b", &client.Message{Sender: "s@a", Recipients: tt.rcpts, Body: client.Memory([]byte(tt.body))})
				for i, want := range tt.want {
					if got := r.Of(i); got != want {
						t.Errorf("%s: %q, want %q", tt.rcpts[i], got, want)
					}
				}
				if got := strings.ReplaceAll(string(r.Classic(nil)), "\x00", " "); got != tt.classic {
					t.Errorf("%q, want %q", got, tt.classic)
				}
				s.Close()
				n.wg.Wait()
			})
		})
	}
}

// TestMessagesShareAConnection: each takes the server a second, and all together hardly more.
func TestMessagesShareAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"192.0.2.50:209": "qmtp"})
		s := n.routed(":192.0.2.50")
		var all sync.WaitGroup
		began := time.Now()
		for i := range 12 {
			all.Go(func() {
				body := fmt.Sprintf("%d\n", i)
				m := &client.Message{Recipients: []string{fmt.Sprintf("u%d@b", i)}, Body: client.Body{Head: []byte(body), Rest: strings.NewReader("rest\n"), Size: int64(len(body) + 5)}}
				r := s.Send(context.Background(), "b", m)
				if got := r.Of(0); got[0] != 'K' {
					t.Error(got)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took != time.Second || n.conns["192.0.2.50:209"] != 1 {
			t.Errorf("%v over %d connections", took, n.conns["192.0.2.50:209"])
		}
		for i := range 12 {
			if !strings.Contains(n.story()+fmt.Sprintf("qmtp u%d@b %d\nrest\n", i, i), fmt.Sprintf("qmtp u%d@b %d\nrest\n", i, i)) {
				t.Errorf("message %d is lost", i)
			}
		}
		time.Sleep(idleFor + 2*sweepEach)
		n.wg.Wait() // an idle connection is closed
		if got := send(s, "b"); got[0] != 'K' || n.conns["192.0.2.50:209"] != 2 {
			t.Errorf("%s over %d connections", got, n.conns["192.0.2.50:209"])
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestACrowdGetsMoreConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newInternet(t, map[string]string{"192.0.2.50:209": "qmtp"})
		s := n.routed(":192.0.2.50")
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				if got := send(s, "b"); got[0] != 'K' {
					t.Error(got)
				}
			})
		}
		all.Wait()
		if got := n.conns["192.0.2.50:209"]; got < 2 || got > maxLinks {
			t.Errorf("%d connections", got)
		}
		s.Close()
		n.wg.Wait()
	})
}

func TestQMTPRoutesAreRead(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, "control", "qmtproutes")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("# ours\nb.example:relay.example\n.b.example:[2001:db8::1]:2209\n")
	c, err := Load(control.Open(home), Strict)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := c.QMTP("B.example"); !ok || r.Host != "relay.example" || r.Port != 209 {
		t.Errorf("%+v, %v", r, ok)
	}
	if r, ok := c.QMTP("a.b.example"); !ok || r.Addr.String() != "2001:db8::1" || r.Port != 2209 {
		t.Errorf("%+v, %v", r, ok)
	}
	if r, ok := c.QMTP("c.example"); ok {
		t.Errorf("%+v", r)
	}
	write("b.example:relay.example:x\n")
	if _, err := Load(control.Open(home), Strict); err == nil || !strings.Contains(err.Error(), "qmtproutes: line 1:") {
		t.Errorf("%v", err)
	}
	if _, err := Load(control.Open(home), Classic); err != nil {
		t.Errorf("%v", err)
	}
}
