package address

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCutPath(t *testing.T) {
	long := strings.Repeat("a", MaxLocal)
	tests := []struct {
		name, in string
		want     Path
		rest     string
		bad      bool
	}{
		{"an ordinary mailbox", "<a.b@c.example>", Path{Address: "a.b@c.example"}, "", false},
		{"parameters follow a blank", "<a@b.example> SIZE=3", Path{Address: "a@b.example"}, " SIZE=3", false},
		{"blanks before the path", "  <a@b.example>", Path{Address: "a@b.example"}, "", false},
		{"the null path", "<>", Path{}, "", false},
		{"a name without a domain is marked", "<postmaster>", Path{Address: "postmaster", Bare: true}, "", false},
		{"quoting is undone", `<"a b\"\c"@d.example>`, Path{Address: `a b"c@d.example`}, "", false},
		{"a quoted @ stays in the local part", `<"v@r.example"@t.example>`, Path{Address: "v@r.example@t.example"}, "", false},
		{"a quoted @ without a domain would become one", `<"v@r.example">`, Path{}, "", true},
		{"a source route is dropped", "<@x.example,@[127.0.0.1],@[IPv6:::1]:a@b.example>", Path{Address: "a@b.example"}, "", false},
		{"a source route alone is no mailbox", "<@x.example>", Path{}, "", true},
		{"UTF-8 is marked", "<ü@ö.example>", Path{Address: "ü@ö.example", UTF8: true}, "", false},
		{"the dot at the end of a domain is kept", "<a@b.example.>", Path{Address: "a@b.example."}, "", false},
		{"but only one", "<a@b.example..>", Path{}, "", true},
		{"the longest local part", "<" + long + "@b.example>", Path{Address: long + "@b.example"}, "", false},
		{"a longer one", "<a" + long + "@b.example>", Path{}, "", true},
		{"a longer one in quotes", `<"a` + long + `"@b.example>`, Path{}, "", true},
		{"a mapped IPv6 literal", "<a@[IPv6:::ffff:192.0.2.1]>", Path{Address: "a@[IPv6:::ffff:192.0.2.1]"}, "", false},
		{"a literal with a zone", "<a@[IPv6:fe80::1%eth0]>", Path{}, "", true},
		{"an IPv6 literal without its tag", "<a@[::1]>", Path{}, "", true},
		{"qmail's own marks cannot come from a stranger", "<#@[]>", Path{}, "", true},
		{"the mark of VERP neither", "<list-@lists.example-@[]>", Path{}, "", true},
		{"words before the bracket", "Joe <a@b.example>", Path{}, "", true},
		{"two paths", "<a@b.example><c@d.example>", Path{}, "", true},
		{"nothing", "", Path{}, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, rest, err := CutPath(tt.in)
			if (err != nil) != tt.bad || !tt.bad && (p != tt.want || rest != tt.rest) {
				t.Errorf("CutPath(%q) = %+v, %q, %v", tt.in, p, rest, err)
			}
		})
	}
}

func TestCutPathAgainstHostileForms(t *testing.T) {
	f, err := os.Open("testdata/path.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		var c struct {
			Name   string
			Input  []byte `json:"input_b64"`
			Expect struct {
				Class string
				Or    []string
				Value *struct{ Local, Domain string }
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		p, rest, err := CutPath(string(c.Input))
		class := "accept"
		if err != nil || rest != "" {
			class = "reject"
		}
		if class != c.Expect.Class && !slices.Contains(c.Expect.Or, class) {
			t.Errorf("%s: %q: %s, want %s", c.Name, c.Input, class, c.Expect.Class)
		}
		if local, domain, _ := Split(p.Address); class == "accept" && c.Expect.Value != nil &&
			(local != c.Expect.Value.Local || domain != c.Expect.Value.Domain) {
			t.Errorf("%s: %q became %q at %q", c.Name, c.Input, local, domain)
		}
	}
	if n < 50 {
		t.Fatalf("only %d cases", n)
	}
}

// What CutPath accepts, written as a path again, is read as the same address.
func FuzzCutPath(f *testing.F) {
	for _, s := range []string{"<a@b.example>", `<"a\"b"@c.d>`, "<@a,@b:c@d>", "<>", "<x@[IPv6:::1]> A=b", "<ü@ö.example>", "<p>"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p, rest, err := CutPath(string(in))
		if err != nil {
			return
		}
		if strings.ContainsAny(p.Address, "\x00\r\n\x7f") || !utf8.ValidString(p.Address) || p.UTF8 == ascii(p.Address) && p.Address != "" {
			t.Fatalf("%q became %+v", in, p)
		}
		local, domain, ok := Split(p.Address)
		if ok == p.Bare && p.Address != "" || len(local) > MaxLocal || len(domain) > MaxDomain {
			t.Fatalf("%q became %+v", in, p)
		}
		if rest != "" && rest[0] != ' ' || !bytes.HasSuffix(in, []byte(rest)) {
			t.Fatalf("%q left %q", in, rest)
		}
		again, tail, err := CutPath("<" + QuoteAddress(p.Address) + ">")
		if err != nil || tail != "" || again != p {
			t.Fatalf("%q became %+v, that became %+v, %q, %v", in, p, again, tail, err)
		}
	})
}
