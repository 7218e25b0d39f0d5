package dotqmail

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"qmail/internal/format/reply"
)

func show(lines []Line, err error) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%d %s %s|", l.Number, l.Kind, l.Text)
	}
	if err != nil {
		b.WriteString(reply.Of(err).Report())
	}
	return b.String()
}

func TestParse(t *testing.T) {
	const (
		blank   = "ZUh-oh: first line of .qmail file is blank. (#4.2.1)"
		fileBit = "ZUh-oh: .qmail has file delivery but has x bit set. (#4.7.0)"
		progBit = "ZUh-oh: .qmail has prog delivery but has x bit set. (#4.7.0)"
	)
	tests := []struct {
		name, text  string
		forwardOnly bool
		want        string
	}{
		{"one of each", "./Maildir/\n/var/mail/joe\n|cat\n&a@b\nc@d\n", false, "1 maildir ./Maildir/|2 mbox /var/mail/joe|3 program cat|4 forward a@b|5 forward c@d|"},
		{"comments and blank lines are passed over", "# hi\n\n \t\n./m\n", false, "4 mbox ./m|"},
		{"a file of comments does nothing", "# hi\n", false, ""},
		{"the last line needs no newline", "./m", false, "1 mbox ./m|"},
		{"trailing blanks go, leading ones make a forward", " ./m \t\n", false, "1 forward  ./m|"},
		{"a blank first line is a mistake", "\n./m\n", false, blank},
		{"so is one of blanks", " \n./m\n", false, blank},
		{"and no text at all", "", false, blank},
		{"a forward may be empty", "&\n", false, "1 forward |"},
		{"only the first & counts", "&&x\n", false, "1 forward &x|"},
		{"a path that ends in a slash is a maildir after its blanks are gone", "./m/ \n", false, "1 maildir ./m/|"},
		{"a dot alone is a file", ".\n", false, "1 mbox .|"},
		{"a program keeps what is its own", "| a  b\tc\n", false, "1 program  a  b\tc|"},
		{"the x bit allows forwards", "a@b\n# x\n", true, "1 forward a@b|"},
		{"the x bit forbids files", "a@b\n./m\n", true, "1 forward a@b|" + fileBit},
		{"the x bit forbids maildirs", "./m/\n", true, fileBit},
		{"the x bit forbids programs", "|x\n", true, progBit},
		{"+list counts from its line on", "|x\n+list\na@b\n|y\n", false, "1 program x|3 forward a@b|" + progBit},
		{"other + lines are ignored", "+lists\n+\n|y\n", false, "3 program y|"},
		{"a NUL ends nothing early", "./Mail\x00dir/\n", false, "ZUh-oh: line 1 of .qmail file contains a NUL. (#4.2.1)"},
		{"no control characters in paths", "a@b\n./Maildir/\r\n", false, "1 forward a@b|ZUh-oh: line 2 of .qmail file contains a control character. (#4.2.1)"},
		{"nor in addresses", "&a@b\rbcc\n", false, "ZUh-oh: line 1 of .qmail file contains a control character. (#4.2.1)"},
		{"a line has an end", "|" + strings.Repeat("a", MaxLine) + "\n", false, "ZUh-oh: line 1 of .qmail file is too long. (#4.2.1)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := show(Parse([]byte(tt.text), tt.forwardOnly)); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestCandidates(t *testing.T) {
	tests := []struct{ dash, ext, want string }{
		{"-", "a", ".qmail-a .qmail-default[a]"},
		{"-", "a-b", ".qmail-a-b .qmail-a-default[b] .qmail-default[a-b]"},
		{"-", "a-", ".qmail-a- .qmail-a-default[] .qmail-default[a-]"},
		{"-", "A.b-C", ".qmail-a:b-c .qmail-a:b-default[C] .qmail-default[A.b-C]"},
		{"", "", ".qmail .qmaildefault[]"},
		{"-", "", ".qmail- .qmail-default[]"},
		{"-", "x-DeFault", ".qmail-x-default[DeFault] .qmail-x-default[DeFault] .qmail-default[x-DeFault]"},
		{"-", "../../x", ".qmail-::/::/x .qmail-default[../../x]"},
		{"-/", "a", ".qmail-/a .qmail-/default[a]"},
	}
	for _, tt := range tests {
		var got []string
		for _, c := range Candidates(tt.dash, tt.ext) {
			s := c.Name
			if v, ok := c.Default(tt.ext); ok {
				s += "[" + v + "]"
			}
			got = append(got, s)
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("Candidates(%q, %q)\n got %s\nwant %s", tt.dash, tt.ext, s, tt.want)
		}
	}
}

func TestPieces(t *testing.T) {
	tests := []struct{ in, exts, hosts string }{
		{"a-b-c-d-e", "b-c-d-e c-d-e d-e", "a-b-c-d-e a-b-c-d-e a-b-c-d-e"},
		{"a-b", "b  ", "a-b a-b a-b"},
		{"", "  ", "  "},
		{"mx.sub.example.org", "  ", "mx.sub.example mx.sub mx"},
		{"example.org", "  ", "example example example"},
		{".org", "  ", "  "},
	}
	for _, tt := range tests {
		e, h := Exts(tt.in), Hosts(tt.in)
		if strings.Join(e[:], " ") != tt.exts || strings.Join(h[:], " ") != tt.hosts {
			t.Errorf("%q: exts %q hosts %q", tt.in, e, h)
		}
	}
}

func TestOwner(t *testing.T) {
	if got := Owner("-", "L.x") + " " + OwnerDefault("-", "L.x"); got != ".qmail-l:x-owner .qmail-l:x-owner-default" {
		t.Error(got)
	}
}

// The recorded cases that are about the text alone; the others need a machine and a message.
func TestAdversarial(t *testing.T) {
	about := map[string]bool{ // what a good text does later (accept) is not ours to say
		"ok-maildir": true, "ok-comment-forward": true, "first-line-blank": true, "no-final-newline": true,
		"crlf-lines": true, "nul-in-line": true, "exec-bit-program": true, "exec-bit-file": true,
		"list-then-program": true, "forward-fanout": true, "forward-newline-injection": true,
		"forward-dash": true, "many-programs": true, "line-16MiB": true,
	}
	f, err := os.Open("testdata/adversarial.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		var c struct {
			Name   string
			Setup  struct{ Mode string }
			Input  []byte `json:"input_b64"`
			Chunks []struct {
				B64    []byte
				Repeat int
			}
			Expect struct {
				Class string
				Or    []string
				Value json.RawMessage
			}
		}
		if err := json.Unmarshal(s.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(c.Name, "dotqmail/")
		if !about[name] {
			continue
		}
		delete(about, name)
		t.Run(name, func(t *testing.T) {
			text := c.Input
			for _, chunk := range c.Chunks {
				text = append(text, bytes.Repeat(chunk.B64, max(1, chunk.Repeat))...)
			}
			lines, err := Parse(text, strings.HasPrefix(c.Setup.Mode, "07"))
			if want := c.Expect.Class == "tempfail"; (reply.Letter(err) == 'Z') != want {
				t.Errorf("%v, want %s", err, c.Expect.Class)
			}
			if c.Expect.Value != nil {
				var got []map[string]string
				for _, l := range lines {
					got = append(got, map[string]string{l.Kind.String(): l.Text})
				}
				b, _ := json.Marshal(got)
				if !bytes.Equal(b, bytes.ReplaceAll(c.Expect.Value, []byte(" "), nil)) {
					t.Errorf("%s, want %s", b, c.Expect.Value)
				}
			}
		})
	}
	if s.Err() != nil || len(about) != 0 {
		t.Errorf("%v; not found: %v", s.Err(), about)
	}
}

// The laws: errors are temporary; a line keeps its place and holds no NUL or newline; with the x bit
// nothing but forwards comes out; a file gives the same with and without its last newline.
func FuzzParse(f *testing.F) {
	f.Add([]byte("./Maildir/\n|cat\n+list\n&a@b\n"), false)
	f.Add([]byte("# x\n ./m\n"), true)
	f.Fuzz(func(t *testing.T, text []byte, forwardOnly bool) {
		lines, err := Parse(text, forwardOnly)
		if err != nil && reply.Letter(err) != 'Z' {
			t.Errorf("%v bounces", err)
		}
		last := 0
		for _, l := range lines {
			if l.Number <= last || strings.ContainsAny(l.Text, "\x00\n") || forwardOnly && l.Kind != Forward {
				t.Errorf("%q gave %+v", text, lines)
			}
			last = l.Number
		}
		if err == nil && len(text) > 0 && text[len(text)-1] != '\n' {
			if again := show(Parse(append(bytes.Clone(text), '\n'), forwardOnly)); again != show(lines, nil) {
				t.Errorf("%q with a newline is %q", text, again)
			}
		}
	})
}

// The laws: names begin with .qmail and hold no dot after it; DEFAULT is an ending of the extension.
func FuzzCandidates(f *testing.F) {
	f.Add("a-b")
	f.Add("..-/..")
	f.Fuzz(func(t *testing.T, ext string) {
		list := Candidates("-", ext)
		if len(list) != strings.Count(ext, "-")+2 {
			t.Errorf("%d candidates for %q", len(list), ext)
		}
		for _, c := range list {
			rest, ok := strings.CutPrefix(c.Name, ".qmail-")
			if !ok || strings.Contains(rest, ".") {
				t.Errorf("candidate %q for %q", c.Name, ext)
			}
			if v, set := c.Default(ext); set && !strings.HasSuffix(ext, v) {
				t.Errorf("DEFAULT %q for %q", v, ext)
			}
		}
	})
}
