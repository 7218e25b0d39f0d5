package enqueue

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"qmail/internal/format/envelope"
	"qmail/internal/format/reply"
	"qmail/internal/system/ipc"
)

// late puts a message into the queue whose envelope comes last.
func late(t *testing.T, c *Client, e *envelope.Envelope, body ...string) (uint64, error) {
	t.Helper()
	m, err := c.BeginBody()
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range body {
		if _, err := io.WriteString(m, part); err != nil && !errors.Is(err, errRefused) {
			t.Fatal(err)
		}
	}
	if err := m.Address(e); err != nil {
		m.Abort()
		return 0, err
	}
	a, err := m.Commit(ctx(t))
	return a.ID, err
}

func TestTheEnvelopeMayComeLast(t *testing.T) {
	e := &envelope.Envelope{Sender: "s@a.example", Recipients: []string{"u@b.example", "v@b.example"}}
	tests := []struct {
		name string
		peer Peer
		body []string
		head string
	}{
		{"a message in pieces", Peer{How: "from network", Network: true}, []string{"Subject: x\n", "\n", "body\n"}, "Received: (qmail 1 invoked from network); "},
		{"an empty one", Peer{UID: 7, PID: 99, How: "by uid 7"}, nil, "Received: (qmail 99 invoked by uid 7); "},
		{"a large one", Peer{How: "from network", Network: true}, []string{strings.Repeat("x", 300<<10), "end\n"}, "Received: (qmail 1 invoked from network); "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, c, _ := start(t, tt.peer)
			id, err := late(t, c, e, tt.body...)
			if err != nil {
				t.Fatal(err)
			}
			got := m.got(id)
			if got.envelope.Sender != e.Sender || strings.Join(got.envelope.Recipients, " ") != strings.Join(e.Recipients, " ") {
				t.Errorf("envelope %+v", got.envelope)
			}
			trace, body, _ := bytes.Cut(got.body, []byte("\n"))
			if !strings.HasPrefix(string(trace), tt.head) || string(body) != strings.Join(tt.body, "") {
				t.Errorf("%d bytes, beginning with %.200q", len(got.body), got.body)
			}
			if want := int64(tt.peer.PID); !tt.peer.Network && got.envelope.QP != want || got.envelope.UID != tt.peer.UID {
				t.Errorf("uid %d qp %d", got.envelope.UID, got.envelope.QP)
			}
		})
	}
}

func TestALateEnvelopeIsChecked(t *testing.T) {
	m, c, _ := start(t, Peer{Network: true, MaxRecipients: 2})
	tests := []struct {
		name string
		e    *envelope.Envelope
	}{
		{"an address too long", &envelope.Envelope{Sender: strings.Repeat("x", envelope.MaxAddress+1)}},
		{"a NUL", &envelope.Envelope{Sender: "s", Recipients: []string{"a\x00Tb"}}},
		{"more recipients than this peer may have", &envelope.Envelope{Sender: "s", Recipients: []string{"a", "b", "c"}}},
	}
	for _, tt := range tests {
		for _, body := range []string{"x\n", strings.Repeat("x", 300<<10)} {
			if id, err := late(t, c, tt.e, body); err == nil || reply.Letter(err) != 'D' {
				t.Errorf("%s, body of %d bytes: %d, %v", tt.name, len(body), id, err)
			}
		}
	}
	if m.count() != 0 {
		t.Errorf("%d are queued", m.count())
	}
	if _, err := late(t, c, &envelope.Envelope{Sender: "s", Recipients: []string{"a"}}, "y\n"); err != nil {
		t.Errorf("the connection is of no use afterwards: %v", err)
	}
}

func TestABodyWithoutAnEnvelopeIsRefused(t *testing.T) {
	m, c, _ := start(t, Peer{Network: true})
	msg, err := c.BeginBody()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(msg, "x\n")
	if _, err := msg.Commit(ctx(t)); reply.Letter(err) != 'D' || m.count() != 0 {
		t.Errorf("%v, %d queued", err, m.count())
	}
}

func TestALateMessageCanBeThrownAway(t *testing.T) {
	m, c, _ := start(t, Peer{Network: true})
	for _, body := range []string{"", "x\n", strings.Repeat("x", 300<<10)} {
		msg, err := c.BeginBody()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(msg, body)
		msg.Abort()
	}
	if err := c.Verify(ctx(t), "u@b.example"); err != nil { // all frames before have been read
		t.Fatal(err)
	}
	if m.count() != 0 {
		t.Errorf("%d are queued", m.count())
	}
}

func TestAnEnvelopeInTheMiddleBreaksTheProtocol(t *testing.T) {
	e := (&envelope.Envelope{Sender: "s", Recipients: []string{"a"}}).Append(nil, false)
	tests := []struct {
		name  string
		kinds string
	}{
		{"body, envelope, body", "BEB"},
		{"envelope, body, envelope", "EBE"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b, err := ipc.LocalPair()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			for _, kind := range []byte(tt.kinds) {
				part := []byte("x\n")
				if kind == kindEnvelope {
					part = e
				}
				if err := a.Send(kind, 1, part); err != nil {
					t.Fatal(err)
				}
			}
			if err := Serve(b, Peer{}, &memory{arrivals: map[uint64]stored{}}); !errors.Is(err, errBroken) {
				t.Errorf("Serve = %v", err)
			}
		})
	}
}
