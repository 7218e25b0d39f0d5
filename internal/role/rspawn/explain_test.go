package rspawn

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"qmail/internal/proto/admin"
	"qmail/internal/proto/jobs"
)

// ask puts a question to a running qmail-rspawn.
func (r *rig) ask(q *jobs.Question) []byte {
	r.t.Helper()
	type result struct {
		answer []byte
		err    error
	}
	got := make(chan result, 1)
	if err := r.client.Ask(q, func(answer []byte, err error) { got <- result{answer, err} }); err != nil {
		r.t.Fatal(err)
	}
	select {
	case one := <-got:
		if one.err != nil {
			r.t.Fatal(one.err)
		}
		return one.answer
	case <-time.After(20 * time.Second):
		r.t.Fatal("no answer")
	}
	return nil
}

func TestExplain(t *testing.T) {
	tests := []struct {
		name    string
		control map[string]string
		host    string
		to      string
		want    string
	}{
		{"a route", map[string]string{"smtproutes": "# x\n.example:127.0.0.1:2525\n"}, "far.example", "a@far.example",
			"smtproutes=127.0.0.1 port 2525 (.example:127.0.0.1:2525) 2; target=127.0.0.1:2525 (127.0.0.1) 0; verdict=K (it would be sent by SMTP to the first of these that answers) 0; "},
		{"a route of the other kind", map[string]string{"qmtproutes": "far.example:127.0.0.1\n", "smtproutes": ":127.0.0.1:2525\n"}, "far.example", "a@far.example",
			"qmtproutes=127.0.0.1 port 209 (far.example:127.0.0.1) 1; target=127.0.0.1:209 (127.0.0.1) 0; verdict=K (it would be sent by QMTP to the first of these that answers) 0; "},
		{"an address", nil, "[192.0.2.77]", "a@[192.0.2.77]",
			"target=192.0.2.77:25 ([192.0.2.77], preference 0) 0; verdict=K (it would be sent by SMTP to the first of these that answers) 0; "},
		{"nobody to ask", map[string]string{"resolvers": "127.0.0.1:1\n"}, "far.example", "a@far.example",
			"verdict=Z (Sorry, I couldn't find any host by that name. (#4.1.2)) 0; "},
		{"no host", nil, "", "a", "verdict=D (Sorry, address must include host name. (#5.1.3)) 0; "},
		{"another program", map[string]string{"qmailremote": "/bin/other\n"}, "far.example", "a@far.example",
			"replacement=/bin/other (this program delivers in the place of qmail-remote) 1; verdict=K () 0; "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"me": "here.example\n"}
			for name, text := range tt.control {
				files[name] = text
			}
			r := start(t, files)
			steps, err := admin.ParseSteps(r.ask(&jobs.Question{Explain: &jobs.Job{Sender: "s@x", Host: tt.host, Recipients: []string{tt.to}}}))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, s := range steps {
				got += fmt.Sprintf("%s=%s (%s) %d; ", s.Topic, s.Value, s.Text, s.Line)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestForgettingIsAnswered(t *testing.T) {
	r := start(t, map[string]string{"me": "here.example\n"})
	for _, q := range []*jobs.Question{{Slow: true}, {Forget: true}} {
		b := r.ask(q)
		if len(b) != 1 {
			t.Errorf("%q", b)
		}
	}
	if !strings.Contains(r.log.String(), "forgot which addresses timed out") {
		t.Error(r.log.String())
	}
}
