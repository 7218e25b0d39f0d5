package control

import (
	"os"
	"reflect"
	"testing"
)

func dir(t *testing.T, files map[string]string) Dir {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(home+"/control", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(home+"/control/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Open(home)
}

func TestLine(t *testing.T) {
	d := dir(t, map[string]string{"a": "one \t\ntwo\n", "empty": "", "space": " # hi\r\n", "me": "host\n"})
	for name, want := range map[string]string{"a": "one", "empty": "", "space": " # hi\r", "missing": "host"} {
		if got, err := d.LineOrMe(name, "x"); got != want || err != nil {
			t.Errorf("%s: %q %v, want %q", name, got, err, want)
		}
	}
	if got, _ := dir(t, nil).LineOrMe("a", "literal"); got != "literal" {
		t.Errorf("without me: %q", got)
	}
}

func TestInt(t *testing.T) {
	d := dir(t, map[string]string{"a": "34abc\n", "b": " 5\n", "c": "-1\n", "e": "", "huge": "99999999999999999999\n"})
	for name, want := range map[string]int64{"a": 34, "b": 7, "c": 7, "e": 7, "missing": 7, "huge": 1<<63 - 1} {
		if got, err := d.Int(name, 7); got != want || err != nil {
			t.Errorf("%s: %d %v, want %d", name, got, err, want)
		}
	}
}

func TestEntries(t *testing.T) {
	d := dir(t, map[string]string{"a": "# no\n\none  \n x\n#two\nhost#comment\nlast", "b": ""})
	got, ok, err := d.Entries("a")
	want := []Entry{{3, "one"}, {4, " x"}, {6, "host#comment"}, {7, "last"}}
	if !reflect.DeepEqual(got, want) || !ok || err != nil {
		t.Errorf("%v %v %v", got, ok, err)
	}
	if got, ok, err := d.Entries("b"); len(got) != 0 || !ok || err != nil {
		t.Errorf("an empty list is present: %v %v %v", got, ok, err)
	}
	if _, ok, err := d.Entries("missing"); ok || err != nil {
		t.Errorf("missing: %v %v", ok, err)
	}
}

func TestNotAFile(t *testing.T) {
	d := dir(t, nil)
	if err := os.Mkdir(d.Path("locals"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.List("locals"); err == nil {
		t.Error("a directory was read as a list")
	}
}

func TestMapDomain(t *testing.T) {
	m := NewMap([]string{"Virt.test:joe", ".wild.test:w", "not.wild.test:", "nocolon", "dup:1", "DUP:2", ":all:8025"})
	tests := []struct{ in, value, key string }{
		{"virt.TEST", "joe", "virt.test"},
		{"a.b.wild.test", "w", ".wild.test"},
		{"not.wild.test", "", "not.wild.test"},
		{"wild.test", "all:8025", ""},
		{"dup", "2", "dup"},
		{"", "all:8025", ""},
	}
	for _, tt := range tests {
		if value, key, ok := m.Domain(tt.in); value != tt.value || key != tt.key || !ok {
			t.Errorf("Domain(%q) = %q %q %v", tt.in, value, key, ok)
		}
	}
	if _, _, ok := NewMap([]string{"a:b"}).Domain("c"); ok {
		t.Error("found what is not there")
	}
}
