package received

import (
	"strings"
	"testing"
	"time"
)

func TestAppend(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	full := From{IP: "192.0.2.7", Host: "client.example.net", Info: "joe user!", Helo: "foo bar", Local: "mx.example.org"}
	named := full
	named.Info, named.Helo = "", "CLIENT.example.NET"
	tests := []struct {
		name, with, want string
		from             From
	}{
		{"all that can be known", "SMTP", "Received: from client.example.net (HELO foo?bar) (joe?user?@192.0.2.7)\n  by mx.example.org with SMTP; 4 Mar 2026 05:06:07 -0000\n", full},
		{"a client that gives its own name", "SMTP", "Received: from client.example.net (192.0.2.7)\n  by mx.example.org with SMTP; 4 Mar 2026 05:06:07 -0000\n", named},
		{"nothing known", "QMTP", "Received: from unknown (unknown)\n  by unknown with QMTP; 4 Mar 2026 05:06:07 -0000\n", From{}},
		{"line ends and quotes of a stranger", "QMQP", "Received: from a??X:?b (unknown)\n  by unknown with QMQP; 4 Mar 2026 05:06:07 -0000\n", From{Host: "a\r\nX:\"b"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(Append(nil, tt.from, tt.with, at)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestHops(t *testing.T) {
	tests := []struct {
		name, message string
		want          int
	}{
		{"no header", "\nReceived: x\n", 0},
		{"both fields, in any case", "Received: x\nSubject: y\nDELIVERED-TO: z\n\n", 2},
		{"a field in the body", "Received: x\n\nReceived: y\n", 1},
		{"blanks before the colon", "Received \t: x\n\n", 1},
		{"a longer name", "Received-SPF: pass\nX-Received: y\n\n", 0},
		{"no colon", "Received\nReceived x\n\n", 0},
		{"a field that goes on in the next line", "Received: x\n Received: y\n\n", 1},
		{"a last line without its end does not count", "Received: x", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var h Hops
			if h.Add([]byte(tt.message)); h.Seen != tt.want {
				t.Errorf("%d, want %d", h.Seen, tt.want)
			}
		})
	}
}

// FuzzHops: the count does not depend on how the message is cut into pieces.
func FuzzHops(f *testing.F) {
	f.Add("Received: x\nDelivered-To: y\n\nReceived: z\n", 3)
	f.Fuzz(func(t *testing.T, message string, size int) {
		size = min(max(size, 1), len(message)+1)
		var whole, pieces Hops
		whole.Add([]byte(message))
		for rest := message; rest != ""; {
			n := min(size, len(rest))
			pieces.Add([]byte(rest[:n]))
			rest = rest[n:]
		}
		if whole != pieces {
			t.Errorf("%+v in one piece, %+v in pieces of %d", whole, pieces, size)
		}
		if whole.Seen > strings.Count(message, ":") {
			t.Errorf("%d hops in %q", whole.Seen, message)
		}
	})
}
