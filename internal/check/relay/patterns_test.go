package relay

import (
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"qmail/internal/format/reply"
)

func TestPatterns(t *testing.T) {
	p := load(t, map[string]string{
		"me": "here.example\n", "rcpthosts": "here.example\n",
		"badrcptto": "# no longer here\nGone@here.example\n@closed.here.example\n*-old@*\n^list\\+.*@here\\.example$\n[0-9]{5}\n",
		"badhelo":   "localhost\n.dyn.example\n!\\.\n^\\[?192\\.0\\.2\\.\n",
	})
	recipients := []struct {
		name, addr string
		bad        bool
	}{
		{"an address", "gone@HERE.example", true},
		{"but not one that contains it", "xgone@here.example", false},
		{"and its dots are dots", "gone@hereXexample", false},
		{"a host", "anybody@closed.here.example", true},
		{"but not what is below it", "a@b.closed.here.example", false},
		{"a wildcard", "bob-OLD@any.example", true},
		{"which has to match all of it", "bob-old", false},
		{"an expression", "LIST+x@here.example", true},
		{"with an anchor", "mylist+x@here.example", false},
		{"an expression that may match anywhere", "a12345b@here.example", true},
		{"a comment is no entry", "no longer here", false},
		{"nobody", "", false},
	}
	for _, tt := range recipients {
		if got := p.badRcpts.address(false, tt.addr); got != tt.bad {
			t.Errorf("recipient, %s: %q is %v", tt.name, tt.addr, got)
		}
	}
	hosts := []struct {
		name, host string
		bad        bool
	}{
		{"a name", "LOCALHOST", true},
		{"the end of a name", "a.b.dyn.example", true},
		{"which is not the name itself", "dyn.example", false},
		{"nor part of a label", "xdyn.example", false},
		{"what does not match an expression", "nodots", true},
		{"an address", "[192.0.2.7]", true},
		{"another address", "[198.51.100.7]", false},
		{"a good name", "mail.there.example", false},
	}
	for _, tt := range hosts {
		if got := p.Helo(false, tt.host) != nil; got != tt.bad {
			t.Errorf("HELO, %s: %q is %v", tt.name, tt.host, got)
		}
	}
}

func TestListsForStrangersOnly(t *testing.T) {
	p := load(t, map[string]string{
		"me": "here.example\n", "rcpthosts": "here.example\n",
		"badmailfromnorelay": "@here.example\n", "badrcpttonorelay": "inside@here.example\n", "badhelonorelay": "localhost\n",
		"badmailfrom": "!@\n", "badrcptto": "dead@here.example\n", "badhelo": "evil\n",
	})
	tests := []struct {
		name, helo, sender, rcpt string
		relay                    bool
		text                     string // what the refusal is about
	}{
		{"a stranger with our name", "x", "a@here.example", "u@here.example", false, "badmailfrom"},
		{"one of us", "x", "a@here.example", "u@here.example", true, ""},
		{"a sender without a host, by an expression", "x", "root", "u@here.example", true, "badmailfrom"},
		{"the null sender is never bad", "x", "", "u@here.example", false, ""},
		{"a stranger to somebody inside", "x", "", "inside@here.example", false, "badrcptto"},
		{"one of us to somebody inside", "x", "", "inside@here.example", true, ""},
		{"one of us to somebody dead", "x", "", "dead@here.example", true, "badrcptto"},
		{"a stranger's bad name", "localhost", "", "u@here.example", false, "badhelo"},
		{"the same of one of us", "localhost", "", "u@here.example", true, ""},
		{"a name that is bad for all", "EVIL", "", "u@here.example", true, "badhelo"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := p.Helo(tt.relay, tt.helo)
			if err == nil {
				_, err = p.Recipient(tt.relay, tt.sender, path(t, tt.rcpt))
			}
			if e := reply.Of(err); (e == nil) != (tt.text == "") || e != nil && (e.Code != 553 || !strings.Contains(e.Text, "in my "+tt.text+" list (#5.7.1)")) {
				t.Errorf("%v", err)
			}
		})
	}
}

// Expressions that keep a backtracking matcher busy for ever take no time here, however long the stranger's text.
func TestNoExpressionTakesLong(t *testing.T) {
	p := load(t, map[string]string{"badrcptto": "^(a+)+$\n(a|aa)+@x$\n.*.*.*.*=@\n"})
	began := time.Now()
	for range 100 {
		p.badRcpts.address(false, strings.Repeat("a", 900)+"!")
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("%v", took)
	}
}

// FuzzReadPattern: a line is plain text or an expression, never both; a wildcard is always an expression that can
// be compiled, and one that matches itself.
func FuzzReadPattern(f *testing.F) {
	for _, s := range []string{"a@b", "@b", ".b", "*@b?", "!x", "^a$", "*[", "*\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if line == "" || len(line) > maxPattern || !utf8.ValidString(line) { // what is none is no expression
			return
		}
		expression, not, plain := readPattern(line)
		if plain && (expression != "" || not) || not != (line[0] == '!') {
			t.Fatalf("%q: %q %v %v", line, expression, not, plain)
		}
		if line[0] == '*' {
			match, err := regexp.Compile("(?is:" + expression + ")")
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if !match.MatchString(line) {
				t.Errorf("%q does not match itself", line)
			}
		}
	})
}
