package aliases

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"qmail/internal/format/header"
)

func completion(t testing.TB) *header.Completion {
	t.Helper()
	c := &header.Completion{}
	for value, into := range map[string]*[]header.Token{"h.example": &c.Host, "d.example": &c.Domain, "p.example": &c.Plus} {
		tokens, ok := header.Tokenize(value)
		if !ok {
			t.Fatal(value)
		}
		*into = tokens
	}
	return c
}

func TestItems(t *testing.T) {
	tests := []struct {
		name, list string
		want       string
	}{
		{"an address is completed", "joe", "&joe@h.example(joe)"},
		{"several, with and without commas", "joe, ann@x.example <bob@y>\tcarl@z+", "&joe@h.example(joe) &bob@y.d.example(bob@y) &carl@z.p.example(carl@z+)"},
		{"words before brackets are a phrase", "Joe User <joe@x.example>", "&joe@x.example(joe@x.example)"},
		{"comments", "joe (him), (nobody)", "&joe@h.example(joe)"},
		{"a program", `"|prog -x, y@z: w", |/bin/cat`, "|prog -x, y@z: w |/bin/cat"},
		{"a bar in an address is part of it", "|joe@x.example", "&|joe@x.example(|joe@x.example)"},
		{"a backslash", `\joe`, "&joe@h.example(joe)"},
		{"an included list", ":include:/etc/lists/a.b, :INCLUDE: lists/c", ":/etc/lists/a.b :lists/c"},
		{"a file", "/var/mail/joe, joe", "//var/mail/joe &joe@h.example(joe)"},
		{"nothing", " , ,", ""},
		{"a group", "friends: joe, ann;", "error"},
		{"an open quote", `"joe`, "error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			items, err := Items(tt.list, completion(t))
			var got []string
			for _, i := range items {
				s := string(i.Kind) + i.Text
				if i.Kind == Address {
					s += "(" + i.Given + ")"
				}
				got = append(got, s)
			}
			if err != nil {
				got = []string{"error"}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestParse(t *testing.T) {
	const text = `# comment
Root:	joe,
	ann@x.example

# and on
  "|prog"
"odd name"@x.example: /etc/ok@y
list: :include:lists/l
owner-list: joe
root: second
bye:
`
	entries, err := Parse([]byte(strings.Replace(text, "/etc/ok@y", "ok@y.example", 1)), completion(t))
	want := []Entry{
		{"root@", []string{"&joe@h.example", "&ann@x.example", "!prog"}},
		{"odd name@x.example", []string{"&ok@y.example"}},
		{"list@", []string{"./lists/l.bin"}},
		{"owner-list@", []string{"&joe@h.example"}},
		{"bye@", nil},
	}
	if err != nil || !reflect.DeepEqual(entries, want) {
		t.Errorf("%+v %v", entries, err)
	}
	records := Records(entries)
	if got := fmt.Sprintf("%q", records[len(records)-2]); got != `{"?list@" "owner-list@"}` {
		t.Errorf("the owner is %s", got)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"a line without a colon": {"x: y\njoe\n", "line 2: unable to parse this line"},
		"a file":                 {"x: /var/mail/x\n", "line 1: file delivery /var/mail/x not supported"},
		"no name":                {": joe\n", "line 1: unable to parse this line"},
		"a NUL":                  {"x: \"a\x00b\"\n", "line 1: a NUL in a command"},
		"a monster":              {"x: " + strings.Repeat("y", 900) + "\n", "line 1: an address is too long"},
		"nothing to continue":    {"  joe\n", "line 1: unable to parse this line"},
	} {
		if _, err := Parse([]byte(tt.text), completion(t)); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseInclude(t *testing.T) {
	got, err := ParseInclude([]byte("# list\njoe, ann@x.example\n:include:more\n\n"), completion(t))
	if err != nil || strings.Join(got, " ") != "&joe@h.example &ann@x.example ./more.bin" {
		t.Errorf("%q %v", got, err)
	}
	if _, err := ParseInclude([]byte("joe\n\"|sh\"\n"), completion(t)); err == nil || !strings.HasPrefix(err.Error(), "line 2: ") {
		t.Errorf("a program: %v", err)
	}
}

func TestParseForward(t *testing.T) {
	const text = `# comment
Fun@X.example: ?owner-fun, joe, &ann@y.example,
  |prog a\, b\; c, ./list ;
@dom: bob@z.example; joe:;`
	want := []Record{
		{":fun@x.example", "&joe@\x00&ann@y.example\x00|prog a, b; c\x00./list\x00"},
		{"?fun@x.example", "owner-fun@"},
		{":@dom", "&bob@z.example\x00"},
		{":joe@", ""},
	}
	got, err := ParseForward([]byte(text))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"x", "x: y", ": y;", "x: y; z", "x: \\", "x: \x00;"} {
		if got, err := ParseForward([]byte(bad)); err == nil {
			t.Errorf("%q gives %q", bad, got)
		}
	}
}

func TestParseMaillist(t *testing.T) {
	got, err := ParseMaillist([]byte("# x\njoe  \n\n&ann@x.example\n/more\n./more\n"))
	if err != nil || strings.Join(got, " ") != "&joe@ &ann@x.example /more ./more" {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"|sh\n", "!sh\n", "a\x00b\n"} {
		if _, err := ParseMaillist([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzForward: what is written is read back as it was.
func FuzzForward(f *testing.F) {
	f.Add("Fun@X.example: ?owner-fun, joe, |prog a\\, b\\  ; @d: \\ x\\ \\  \\#,/\\\n;")
	f.Fuzz(func(t *testing.T, text string) {
		records, err := ParseForward([]byte(text))
		if err != nil {
			return
		}
		for _, r := range records {
			b, err := AppendForward(nil, r)
			if err != nil {
				t.Fatalf("%q cannot be written: %v", r, err)
			}
			again, err := ParseForward(b)
			if err != nil || len(again) != 1 || again[0] != r {
				t.Errorf("%q is written %q and read %q %v", r, b, again, err)
			}
		}
	})
}

// FuzzParse: whatever an alias file holds, the commands are whole and of known kinds.
func FuzzParse(f *testing.F) {
	f.Add("Root: joe,\n \"|x\"\nowner-l: :include:x\n")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := Parse([]byte(text), completion(t))
		if err != nil {
			return
		}
		for _, r := range Records(entries) {
			if r.Key[0] == ':' {
				if _, err := Split([]byte(r.Value)); err != nil {
					t.Errorf("%q: %v", r, err)
				}
			}
		}
	})
}
