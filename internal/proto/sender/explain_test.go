package sender

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/smtproute"
	"qmail/internal/store/control"
)

// checkForetold compares an explanation with what then happened.
func checkForetold(t *testing.T, e Explanation, report, story string) {
	t.Helper()
	if e.Verdict.Letter != 0 {
		if said := string(e.Verdict.Letter) + strings.TrimSpace(strings.ReplaceAll(e.Verdict.Text, "\n", " ")); said != report || story != "" {
			t.Errorf("foretold %q, happened %q, %q", said, report, story)
		}
		return
	}
	dials := ""
	for _, part := range strings.Split(story, ", ") {
		if host, ok := strings.CutPrefix(part, "dial "); ok {
			dials += host + " "
		}
	}
	targets := ""
	for _, target := range e.Targets {
		if target.Addr.Port() == smtproute.SMTP {
			targets += target.Addr.Addr().String() + " "
		} else {
			targets += target.Addr.String() + " "
		}
	}
	if dials == "" || !strings.HasPrefix(targets, dials) {
		t.Errorf("foretold %q, dialled %q", targets, dials)
	}
}

func TestExplainKnowsWhoTimesOut(t *testing.T) {
	n := newInternet(t, map[string]string{"10.0.0.2": "ok"}, "MX far.example 10 a.example", "MX far.example 20 b.example", "A a.example 10.0.0.1", "A b.example 10.0.0.2")
	s := n.sender()
	defer s.Close()
	slow := func(addr string) {
		for _, ago := range []time.Duration{10 * time.Minute, 0} {
			s.Slow().TimedOut(netip.MustParseAddr(addr), time.Now().Add(-ago))
		}
	}
	slow("10.0.0.1")
	e := s.Explain(t.Context(), "far.example")
	if e.Verdict.Letter != 0 || len(e.Targets) != 2 || !e.Skipped[0] || e.Skipped[1] {
		t.Errorf("%+v", e)
	}
	if got := send(s, "far.example"); !strings.HasPrefix(got, "K10.0.0.2 accepted") {
		t.Error(got)
	}
	s.pool.drop()
	n.story()
	slow("10.0.0.2")
	e = s.Explain(t.Context(), "far.example")
	checkForetold(t, e, send(s, "far.example"), "")
	if e.Verdict.Letter != 'Z' {
		t.Errorf("%+v", e)
	}
	s.Slow().Clear()
	if e = s.Explain(t.Context(), "far.example"); e.Verdict.Letter != 0 || e.Skipped[0] {
		t.Errorf("%+v", e)
	}
	n.wg.Wait()
}

func TestExplainWithoutAName(t *testing.T) {
	s := newInternet(t, nil).sender()
	s.Configure(&Config{})
	checkForetold(t, s.Explain(t.Context(), "x"), send(s, "x"), "")
}

func TestRouteLine(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := control.Open(home)
	write := func(text string) {
		if err := os.WriteFile(dir.Path("smtproutes"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const text = "# routes\n\na.example:10.0.0.1\n.example:relay.example:26\nA.EXAMPLE:10.0.0.2\n:\n"
	write(text)
	c, err := Load(dir, Strict)
	if err != nil {
		t.Fatal(err)
	}
	for domain, line := range map[string]int{"a.example": 5, "A.Example": 5, "b.example": 4, "x.b.example": 4, "elsewhere": 6} {
		relay, ok := c.Route(domain)
		if got, text := RouteLine(dir, "smtproutes", domain, relay); !ok || got != line || text == "" {
			t.Errorf("%s: line %d, %q; want %d", domain, got, text, line)
		}
	}
	relay, _ := c.Route("a.example")
	write(strings.Replace(text, "10.0.0.2", "10.0.0.3", 1))
	if got, _ := RouteLine(dir, "smtproutes", "a.example", relay); got != 0 {
		t.Errorf("line %d of a file that says something else", got)
	}
	write("")
	if got, _ := RouteLine(dir, "smtproutes", "a.example", relay); got != 0 {
		t.Errorf("line %d of a file that says nothing", got)
	}
}
