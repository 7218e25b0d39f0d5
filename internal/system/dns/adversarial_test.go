package dns

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// hostile is one recorded answer and what may come of it.
type hostile struct {
	Name  string
	Setup struct {
		Qname, Qtype string
		ID           uint16
		Repeat       int
	}
	Input  string `json:"input_b64"`
	Expect struct {
		Class string
		Or    []string
		Value json.RawMessage
	}
}

var types = map[string]Type{"A": TypeA, "AAAA": TypeAAAA, "MX": TypeMX, "TXT": TypeTXT, "PTR": TypePTR, "TLSA": TypeTLSA}

// elsewhere names the cases that the policy above this package decides, and why.
var elsewhere = map[string]string{
	"dns/mta-sts-txt-two-records": "how many STS records count is for the reader of the policy",
	"dns/null-mx":                 "checked in TestNullMX: the host is empty",
	"dns/srv-short":               "SRV is never asked: the type is refused",
}

func TestHostileAnswers(t *testing.T) {
	f, err := os.Open("testdata/dns.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cases := 0
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c hostile
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		cases++
		t.Run(c.Name, func(t *testing.T) {
			if why := elsewhere[c.Name]; why != "" {
				t.Log(why)
			}
			playHostile(t, c)
		})
	}
	if cases < 40 || lines.Err() != nil {
		t.Fatalf("%d cases, %v", cases, lines.Err())
	}
}

func playHostile(t *testing.T, c hostile) {
	in, err := base64.StdEncoding.DecodeString(c.Input)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	class, value := "reject", ""
	if kind, known := types[c.Setup.Qtype]; known && isAnswer(in, c.Setup.ID) {
		class, value = outcome(t, in, question{c.Setup.Qname, kind})
	}
	if took := time.Since(start); took > 100*time.Millisecond {
		t.Errorf("took %v", took)
	}
	ok := class == c.Expect.Class
	for _, or := range c.Expect.Or {
		ok = ok || class == or
	}
	if !ok {
		t.Errorf("%s %q, want %s", class, value, c.Expect.Class)
	}
	if want := c.Expect.Value; len(want) > 0 && elsewhere[c.Name] == "" && class == "accept" && !strings.Contains(string(want), value) {
		t.Errorf("got %q, want %s", value, want)
	}
	if strings.Contains(value, "evil") || strings.Contains(value, "touch") || strings.Contains(value, "..") {
		t.Errorf("used %q", value)
	}
}

func outcome(t *testing.T, in []byte, q question) (class, value string) {
	p, err := parse(in, q, time.Unix(1, 0))
	if rcode, ok := errors.AsType[rcodeError](err); ok {
		_ = rcode
		return "tempfail", ""
	}
	if err != nil {
		return "reject", ""
	}
	a := p.answer
	switch {
	case p.truncated:
		return "accept", "retry-tcp"
	case a.Status == NoName:
		return "accept", "nxdomain"
	case a.Status == NoData:
		return "accept", "nodata"
	case len(a.MX) > 0:
		if len(a.MX) > MaxRecords {
			t.Errorf("%d records kept", len(a.MX))
		}
		var hosts []string
		for _, mx := range a.MX {
			hosts = append(hosts, mx.Host)
			if mx.Bad && mx.Host != "" {
				t.Errorf("unusable name %q kept", mx.Host)
			}
		}
		return "accept", strings.Join(hosts, " ")
	case len(a.Texts) > 0:
		return "accept", a.Texts[0]
	}
	return "accept", ""
}

func FuzzParse(f *testing.F) { // whatever comes parses or fails; what is kept is bounded and has clean names
	file, err := os.ReadFile("testdata/dns.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(file)) {
		var c hostile
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			f.Fatal(err)
		}
		in, _ := base64.StdEncoding.DecodeString(c.Input)
		f.Add(in)
	}
	now := time.Unix(1000, 0)
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, kind := range types {
			p, err := parse(in, question{"remote.example", kind}, now)
			if err != nil || p.truncated {
				continue
			}
			a := p.answer
			if a.Status < Found || a.Status > NoName {
				t.Fatalf("status %d", a.Status)
			}
			if len(a.MX)+len(a.Addrs)+len(a.Texts)+len(a.Names)+len(a.TLSA) > MaxRecords || a.Expires.Sub(now) > MaxTTL {
				t.Fatalf("kept too much: %+v", a)
			}
			for _, mx := range a.MX {
				if clean, ok := ASCII(mx.Host); mx.Host != "" && (!ok || clean != mx.Host) {
					t.Fatalf("name %q", mx.Host)
				}
			}
		}
	})
}
