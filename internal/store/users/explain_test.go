package users

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	dir := t.TempDir()
	home := filepath.Join(dir, "joe")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := write(t, filepath.Join(dir, "passwd"), fmt.Sprintf(
		"root:x:0:0::/root:/bin/sh\njunk\njoe:x:%d:100::%s:/bin/sh\njoe:x:1:1::/:/bin/sh\nalias:x:7:7::/alias:/bin/sh\n", os.Getuid(), home))
	text := "=ann:ann:501:100:/home/ann:::\n+ann-:ann:501:100:/home/ann:-::\n=ANN:other:502:100:/home/other:::\n+ann-l-:ann:501:100:/home/ann:-:l-:\n.\nrubbish\n"
	cdbPath := filepath.Join(dir, "cdb")
	assign(t, cdbPath, text)
	tables := New(cdbPath, passwd)
	assignPath := write(t, filepath.Join(dir, "assign"), text)
	tests := []struct {
		local, user, file string
		line              int
		text              string
	}{
		{"ann", "ann", assignPath, 1, "=ann"},
		{"Ann-X", "ann", assignPath, 2, "+ann-"},
		{"ann-l-x", "ann", assignPath, 4, "+ann-l-"},
		{"joe", "joe", passwd, 3, "joe"},
		{"joe-x", "joe", passwd, 3, "joe"},
		{"nobody", "alias", passwd, 5, "alias"},
		{"root", "alias", passwd, 5, "alias"},
	}
	if os.Getuid() == 0 {
		tests = append(tests[:3], tests[5:]...) // root's account does not count
	}
	for _, tt := range tests {
		a, s, err := tables.Explain(tt.local)
		if err != nil || a.User != tt.user || s.File != tt.file || s.Line != tt.line || s.Text != tt.text {
			t.Errorf("%s: %+v %+v %v", tt.local, a, s, err)
		}
	}
	write(t, assignPath, strings.Replace(text, "501", "503", 1))
	if a, s, err := tables.Explain("ann"); err != nil || a.UID != 501 || s.File != cdbPath || s.Line != 0 || !strings.Contains(s.Text, "qmail-newu has not been run") {
		t.Errorf("%+v %+v %v", a, s, err)
	}
	if err := os.Remove(assignPath); err != nil {
		t.Fatal(err)
	}
	if a, s, err := tables.Explain("ann"); err != nil || a.UID != 501 || s.File != cdbPath || s.Line != 0 {
		t.Errorf("%+v %+v %v", a, s, err)
	}
}

// TestExplainAgreesWithFind asks both about many names of many tables.
func TestExplainAgreesWithFind(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	name := func() string {
		b := make([]byte, 1+rnd.IntN(4))
		for i := range b {
			b[i] = "aA-"[rnd.IntN(3)]
		}
		return string(b)
	}
	passwd := write(t, filepath.Join(dir, "passwd"), "alias:x:7:7::/alias:/bin/sh\n")
	lines := 0
	for range 60 {
		var text strings.Builder
		for range rnd.IntN(8) {
			fmt.Fprintf(&text, "%c%s:u%d:%d:100:/home/u:-:%s:\n", "=+"[rnd.IntN(2)], name(), rnd.IntN(9), 500+rnd.IntN(9), name())
		}
		text.WriteString(".\n")
		write(t, filepath.Join(dir, "assign"), text.String())
		assign(t, filepath.Join(dir, "cdb"), text.String())
		tables := New(filepath.Join(dir, "cdb"), passwd)
		all := strings.Split(text.String(), "\n")
		for range 40 {
			local := name()
			want, err1 := tables.Find(local)
			got, source, err2 := tables.Explain(local)
			if got != want || (err1 == nil) != (err2 == nil) {
				t.Fatalf("%s: %+v %v, and explained %+v %v\n%s", local, want, err1, got, err2, text.String())
			}
			if source.Line > 0 && strings.HasSuffix(source.File, "assign") {
				lines++
				if !strings.Contains(all[source.Line-1], fmt.Sprintf(":%s:%d:", got.User, got.UID)) {
					t.Fatalf("%s: %+v by line %d\n%s", local, got, source.Line, text.String())
				}
			}
		}
	}
	if lines < 500 {
		t.Errorf("only %d answers with a line", lines)
	}
}
