package header

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func tokens(t testing.TB, s string) []Token {
	t.Helper()
	list, ok := Tokenize(s)
	if !ok {
		t.Fatalf("cannot tokenize %q", s)
	}
	return list
}

func completion(t testing.TB) *Completion {
	return &Completion{
		Host: tokens(t, "mx.example.org"), Domain: tokens(t, "example.org"), Plus: tokens(t, "example.org"),
	}
}

// rewrite is what qmail-inject does to one field: the field rewritten, or as it was, and the addresses seen.
func rewrite(c *Completion, field string) (string, []string, error) {
	name, body, _ := strings.Cut(field, ":")
	list, ok := Tokenize(body)
	if !ok {
		return field + "\n", nil, ErrList
	}
	var seen []string
	list, err := List(list, func(a []Token) []Token {
		a = c.Complete(a)
		seen = append(seen, Address(a))
		return a
	})
	if err != nil {
		return field + "\n", seen, err
	}
	return string(Append(nil, name, list)), seen, nil
}

func TestRewrite(t *testing.T) {
	const h = "mx.example.org"
	tests := []struct {
		in, out string
		seen    []string
		bad     bool
	}{
		{"a", "a@" + h, []string{"a@" + h}, false},
		{"a@b", "a@b.example.org", []string{"a@b.example.org"}, false},
		{"a@b.cs+", "a@b.cs.example.org", []string{"a@b.cs.example.org"}, false},
		{"a+", "a+@" + h, []string{"a+@" + h}, false},
		{"a@b.", "a@b.example.org", []string{"a@b.example.org"}, false},
		{"a@", "a@" + h, []string{"a@" + h}, false},
		{"a@.b", "a@.b", []string{"a@.b"}, false},
		{"@b", "", []string{""}, false},
		{"<>", "<>", []string{""}, false},
		{"<@r1,@r2:a@b.c>", "<a@b.c>", []string{"a@b.c"}, false},
		{"@r1:a@b.c", "@r1:a@b.c", []string{"a@b.c"}, true},
		{"a@[]", "a@[]", []string{"a@[]"}, false},
		{"a@[1.2.3.4]", "a@[1.2.3.4]", []string{"a@[1.2.3.4]"}, false},
		{"a@b@c.d", "a@b@c.d", []string{"a@b@c.d"}, false},
		{"(c) a (d) @ (e) b . c (f)", "a@b.c (c) (d) (e) (f)", []string{"a@b.c"}, false},
		{"grp: a, b@c;, d", "grp: a@" + h + ", b@c.example.org;, d@" + h, []string{"d@" + h, "b@c.example.org", "a@" + h}, false},
		{"grp:;", "grp: ;", nil, false},
		{"g: a, h: b;", "g: a, h: b;", []string{"b@" + h, "a@" + h}, true},
		{"a:b", "a:b", []string{"b@" + h}, true},
		{"a;b", "a@" + h + ";, b@" + h, []string{"b@" + h, "a@" + h}, false},
		{`"unclosed`, `"unclosed`, nil, true},
		{"a<b", "a <b@" + h, []string{"a<b@" + h}, false},
		{"a>b", "a>b", []string{"b@" + h, "a@" + h}, true},
		{"a,,b", "a@" + h + ", , b@" + h, []string{"b@" + h, "a@" + h}, false},
		{"<d@e.f> Joe", "<d@e.f>, Joe@" + h, []string{"Joe@" + h, "d@e.f"}, false},
		{`Joe "Q" Public <joe@b.c>`, `Joe "Q" Public <joe@b.c>`, []string{"joe@b.c"}, false},
		{`"a"."b"@c.d`, `"a"."b"@c.d`, []string{"a.b@c.d"}, false},
		{`""@b.c`, `""@b.c`, []string{"@b.c"}, false},
		{"caf\xe9@b.c", "\"caf\xe9\"@b.c", []string{"caf\xe9@b.c"}, false},
		{"a)", `"a\)"@` + h, []string{"a)@" + h}, false},
		{"Joe Q. Public <a@b.c>", "Joe Q.Public <a@b.c>", []string{"a@b.c"}, false},
		{"djb fred", "djb@" + h + ", fred@" + h, []string{"fred@" + h, "djb@" + h}, false},
		{"a@b.c <d@e.f>", "a@b.c <d@e.f>", []string{"d@e.f"}, false},
		{"(a (b) c) x@y.z", "x@y.z (a b c)", []string{"x@y.z"}, false},
		{`(a \(b) x@y.z`, `x@y.z (a \(b)`, []string{"x@y.z"}, false},
		// What differs from qmail: UTF-8 stays as it is, what a backslash has brought in stays quoted, and a
		// comment inside angle brackets moves behind them.
		{"Jörg Müller <j@x.example>, Käse@x.example", "Jörg Müller <j@x.example>, Käse@x.example", []string{"Käse@x.example", "j@x.example"}, false},
		{`a\ b@x.example, c\@d@x.example`, `"a b"@x.example, "c@d"@x.example`, []string{"c@d@x.example", "a b@x.example"}, false},
		{"<a(x)@b.c>", "<a@b.c>(x)", []string{"a@b.c"}, false},
		{"a\\\nBcc: v@w.x", "a\\\nBcc: v@w.x", []string{"v@w.x"}, true},
		{"\"a\\\nBcc\" <v@w.x>", `"a Bcc" <v@w.x>`, []string{"v@w.x"}, false},
	}
	for _, tt := range tests {
		got, seen, err := rewrite(completion(t), "To: "+tt.in)
		want := "To: " + tt.out + "\n"
		if tt.out == "" {
			want = "To:\n"
		}
		if got != want || !slices.Equal(seen, tt.seen) || (err != nil) != tt.bad {
			t.Errorf("%q became %q with %q, %v; want %q with %q", tt.in, got, seen, err, want, tt.seen)
		}
	}
}

func TestFolding(t *testing.T) {
	a := func(n int) string { return strings.Repeat("a", n-4) + "@b.c" }
	tests := []struct{ name, in, out string }{
		{"78 columns with the comma fit", "To: " + a(36) + ", " + a(35) + ", x@y.z", "To: " + a(36) + ", " + a(35) + ",\n  x@y.z\n"},
		{"79 do not", "To: " + a(36) + ", " + a(36) + ", x@y.z", "To: " + a(36) + ",\n  " + a(36) + ", x@y.z\n"},
		{"the last item may end in column 78", "To: " + a(36) + ", " + a(36), "To: " + a(36) + ", " + a(36) + "\n"},
		{"and not in column 79", "To: " + a(36) + ", " + a(37), "To: " + a(36) + ",\n  " + a(37) + "\n"},
		{"a single item may be longer", "To: " + a(90), "To: " + a(90) + "\n"},
		{"continuation lines count from their blanks", "To: " + a(70) + ", " + a(37) + ", " + a(36) + ", " + a(37), "To: " + a(70) + ",\n  " + a(37) + ", " + a(36) + ",\n  " + a(37) + "\n"},
		{"a comma at the end leaves no line of blanks", "To: " + a(90) + ",", "To: " + a(90) + ",\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, _, err := rewrite(completion(t), tt.in); got != tt.out || err != nil {
				t.Errorf("got %q, %v\nwant %q", got, err, tt.out)
			}
		})
	}
}

func TestFields(t *testing.T) {
	const message = "A: 1\r\nB : 2\n 2\n\t2\nC:\n: x\nD: 4\n"
	var names, fields []string
	for f := range Fields([]byte(message)) {
		names, fields = append(names, f.Name()), append(fields, string(f.Body()))
	}
	if !slices.Equal(names, []string{"A", "B", "C"}) || !slices.Equal(fields, []string{" 1\r\n", " 2\n 2\n\t2\n", "\n"}) {
		t.Errorf("%q %q", names, fields)
	}
	for _, tt := range []struct{ in, header string }{
		{"", ""}, {"\nx: y\n", ""}, {"a: b", "a: b"}, {"a: b\n\nc: d\n", "a: b\n"}, {" a: b\n", ""},
		{"a\x00: b\n", ""}, {"a b: c\n", ""}, {"a:\n \n\n", "a:\n \n"}, {"a: b\n\r\nc", "a: b\n"}, {"ü: x\n", ""},
	} {
		if got, body := Split([]byte(tt.in)); string(got) != tt.header || string(got)+string(body) != tt.in {
			t.Errorf("Split(%q) = %q, %q", tt.in, got, body)
		}
	}
}

// The hostile lists, as qmail-inject would take them: what holds a NUL or a line that is no continuation
// never gets as far as the list.
func TestHostileLists(t *testing.T) {
	f, err := os.Open("testdata/list.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &Completion{Host: tokens(t, "test.example"), Domain: tokens(t, "test.example"), Plus: tokens(t, "test.example")}
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		var tc struct {
			Name   string
			Input  []byte `json:"input_b64"`
			Chunks []struct {
				Bytes  []byte `json:"b64"`
				Repeat int
			}
			Expect struct {
				Class string
				Or    []string
				Value []string
				Qmail []string `json:"qmail_value"`
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &tc); err != nil {
			t.Fatal(err)
		}
		for _, chunk := range tc.Chunks {
			tc.Input = append(tc.Input, bytes.Repeat(chunk.Bytes, max(chunk.Repeat, 1))...)
		}
		field := append([]byte("To: "), tc.Input...)
		started := time.Now()
		_, seen, err := rewrite(c, string(field))
		if d := time.Since(started); d > time.Second {
			t.Errorf("%s took %v", tc.Name, d)
		}
		if _, rest, _ := Cut(field); len(rest) > 0 || bytes.IndexByte(field, 0) >= 0 {
			err, seen = ErrList, nil
		}
		class, want := "accept", tc.Expect.Value
		if err != nil && len(seen) == 0 { // otherwise the field stays as it is, and what was seen counts
			class = "reject"
		}
		if tc.Name == "address/list-literal-100000" {
			// No longer address than the queue takes is a matter of the envelope, not of the list.
			if err != nil || len(seen) != 1 || len(seen[0]) != 100004 {
				t.Errorf("%s: %d addresses, %v", tc.Name, len(seen), err)
			}
			continue
		}
		if class != tc.Expect.Class && !slices.Contains(tc.Expect.Or, class) {
			t.Errorf("%s: %.60q: %s, want %s", tc.Name, tc.Input, class, tc.Expect.Class)
		}
		if class != tc.Expect.Class {
			want = tc.Expect.Qmail
		}
		slices.Sort(seen)
		slices.Sort(want)
		if class == "accept" && !slices.Equal(seen, want) {
			t.Errorf("%s: %q gave %q, want %q", tc.Name, tc.Input, seen, want)
		}
	}
	if n < 30 {
		t.Fatalf("only %d cases", n)
	}
}

// A rewritten list is rewritten to itself, byte for byte, and is one field. What addresses are found the
// second time are the same, unless one of them was empty, in which case it may have vanished, or held an
// angle bracket, which then counts.
func FuzzRewrite(f *testing.F) {
	for _, s := range []string{"a, b@c (d)", "g: a;, <b@c>", `"q\"" . x @ [1]`, "a<b", "a;b", "x <@a:b@c>, y@z+", "a\\", "()", "\"\n a\"", "ü@ö"} {
		f.Add(s)
	}
	c := completion(f)
	f.Fuzz(func(t *testing.T, body string) {
		list, ok := Tokenize(body)
		if !ok {
			return
		}
		if len(list) > len(body) {
			t.Fatalf("%d tokens from %d bytes", len(list), len(body))
		}
		addresses := 0
		out, err := List(list, func(a []Token) []Token { addresses++; return c.Complete(a) })
		if err != nil {
			if !errors.Is(err, ErrList) {
				t.Fatal(err)
			}
			return
		}
		field := Append(nil, "To", out)
		if limit := 4 + 6*len(body) + addresses*len("@mx.example.org.example.org"); len(field) > limit {
			t.Fatalf("%q grew to %d bytes, over %d", body, len(field), limit)
		}
		got, rest, ok := Cut(field)
		if !ok || len(rest) > 0 || got.Name() != "To" {
			t.Fatalf("%q became %q, which is not one field", body, field)
		}
		again, ok := Tokenize(string(got.Body()))
		if !ok {
			t.Fatalf("%q became %q, which has no tokens", body, field)
		}
		if once := Append(nil, "To", again); !bytes.Equal(once, field) {
			t.Fatalf("%q became %q, read as %q", body, field, once)
		}
	})
}

// Fields loses, adds and changes nothing, and no field holds the start of another.
func FuzzFields(f *testing.F) {
	for _, s := range []string{"a: b\n c\nd: e\n\nbody", "a:b", "x\n", ": \n", "a :\r\n\tb"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var all []byte
		for field := range Fields(message) {
			all = append(all, field...)
			if field.Name() == "" || field.Body() == nil && len(field) == 0 {
				t.Fatalf("%q has no name", field)
			}
			for i, c := range field[:len(field)-1] {
				if next := field[i+1]; c == '\n' && next != ' ' && next != '\t' {
					t.Fatalf("%q is more than one field", field)
				}
			}
		}
		header, body := Split(message)
		if !bytes.Equal(all, header) || !bytes.Equal(append(all, body...), message) {
			t.Fatalf("%q became %q and %q", message, header, body)
		}
	})
}

// Time grows with the input and no faster: ten times the input takes far less than a hundred times as long.
func TestLinear(t *testing.T) {
	for _, unit := range []string{"a ", "a@b.c, ", "(", "(x)", `"`, "<", "<a>", ";", ":", "g:a;,", "a\\", ".", "@", "[x]", "[", "a b <c>,"} {
		run := func(n int) time.Duration {
			body := strings.Repeat(unit, n)
			best := time.Hour
			for range 3 {
				started := time.Now()
				rewrite(completion(t), "To: "+body)
				best = min(best, time.Since(started))
			}
			return best
		}
		small, large := run(3000), run(30000)
		if large > 60*small+100*time.Millisecond {
			t.Errorf("%q: %v, ten times as many %v", unit, small, large)
		}
	}
}
