package users

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"qmail/internal/format/cdb"
)

// at lets a slice be written like a file.
type at struct{ bytes.Buffer }

func (a *at) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); a.Len() < need {
		a.Write(make([]byte, need-a.Len()))
	}
	return copy(a.Bytes()[off:], p), nil
}

func compile(t testing.TB, assign string) ([]byte, error) {
	t.Helper()
	var a at
	w := cdb.NewWriter(&a)
	if err := Compile(w, []byte(assign)); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return a.Bytes(), nil
}

func TestCompile(t *testing.T) {
	tests := []struct {
		name, assign, local string
		want                Account
		found               bool
	}{
		{"a name", "=joe:joe:501:100:/home/joe:::\n.\n", "JOE", Account{"joe", 501, 100, "/home/joe", "", ""}, true},
		{"a wildcard keeps the case of the rest", "+joe-:joe:501:100:/home/joe:-:pre:\n.\n", "Joe-Ext",
			Account{"joe", 501, 100, "/home/joe", "-", "preExt"}, true},
		{"a wildcard that ends in a capital", "+CapE:joe:501:100:/home/joe:-::\n.\n", "capex",
			Account{"joe", 501, 100, "/home/joe", "-", "x"}, true},
		{"the catch-all", "+:alias:7:8:/a:-::\n.\n", "any", Account{"alias", 7, 8, "/a", "-", "any"}, true},
		{"the first of two counts", "=a:x:1:1:/x:::\n=a:y:2:2:/y:::\n.\n", "a", Account{"x", 1, 1, "/x", "", ""}, true},
		{"any other first byte means a name", "?a:x:1:1:/x:::\n.\n", "a", Account{"x", 1, 1, "/x", "", ""}, true},
		{"a name is no wildcard", "=joe:joe:501:100:/home/joe:::\n.\n", "joe-x", Account{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := compile(t, tt.assign)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "cdb")
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
			got, _, found, err := New(path, "").assigned(tt.local)
			if err != nil || found != tt.found || got != tt.want {
				t.Errorf("%+v %v %v", got, found, err)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, assign := range map[string]string{
		"an empty file":       "",
		"a missing end":       "=a:a:1:1:/a:::\n",
		"an empty line":       "=a:a:1:1:/a:::\n\n.\n",
		"too few fields":      "=a:a:1:1:/a::\n.\n",
		"a line with a NUL":   "=a\x00b:a:1:1:/a:::\n.\n",
		"a line without name": ":a:1:1:/a::::\n.\n",
	} {
		if _, err := compile(t, assign); !errors.Is(err, ErrAssign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzCompile: what is accepted is found again, and nothing makes a record that a lookup cannot read.
func FuzzCompile(f *testing.F) {
	f.Add("=joe:joe:501:100:/home/joe:::\n+joe-:joe:501:100:/home/joe:-::\n.\n", "joe-x")
	f.Fuzz(func(t *testing.T, assign, local string) {
		b, err := compile(t, assign)
		if err != nil {
			return
		}
		db, err := cdb.New(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, _, err := search(db, local); err != nil {
			t.Errorf("a lookup fails: %v", err)
		}
	})
}
