package newaliases

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmail/internal/format/cdb"
	"qmail/internal/system/env"
)

func world(t *testing.T, text string) (file string, e *env.Env, said *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"control/me": "h.example\n", "table": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	said = &bytes.Buffer{}
	return filepath.Join(dir, "table"), &env.Env{Home: dir, Stderr: said}, said
}

func TestATableIsMade(t *testing.T) {
	file, e, said := world(t, "root: joe\nowner-list: ann\nlist: :include:/x\n")
	if code := Main(t.Context(), e, []string{file}); code != 0 {
		t.Fatalf("%d: %s", code, said)
	}
	b, err := os.ReadFile(file + ".cdb")
	if err != nil {
		t.Fatal(err)
	}
	db, err := cdb.New(b)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{":root@": "&joe@h.example\x00", "?list@": "owner-list@", ":list@": "/x.bin\x00"} {
		if got, found, err := db.Find([]byte(key)); !found || err != nil || string(got) != want {
			t.Errorf("%s: %q %v %v", key, got, found, err)
		}
	}
	if info, err := os.Stat(file + ".cdb"); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v", info, err)
	}
}

func TestAMistakeLeavesTheOldTable(t *testing.T) {
	file, e, said := world(t, "x: y\nz\n")
	if err := os.WriteFile(file+".cdb", []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := Main(t.Context(), e, []string{file}); code != 111 || !strings.HasSuffix(said.String(), "line 2: unable to parse this line\n") {
		t.Errorf("%d: %s", code, said)
	}
	if b, err := os.ReadFile(file + ".cdb"); err != nil || string(b) != "old" {
		t.Errorf("%q %v", b, err)
	}
}

func TestAListIsMade(t *testing.T) {
	file, e, said := world(t, "joe, ann@x.example\n")
	if code := Newinclude(t.Context(), e, []string{file}); code != 0 {
		t.Fatalf("%d: %s", code, said)
	}
	if b, err := os.ReadFile(file + ".bin"); err != nil || string(b) != "&joe@h.example\x00&ann@x.example\x00" {
		t.Errorf("%q %v", b, err)
	}
	if code := Newinclude(t.Context(), e, nil); code != 100 {
		t.Errorf("without a list: %d", code)
	}
	if code := Newinclude(t.Context(), e, []string{file + "none"}); code != 111 {
		t.Errorf("with no such list: %d", code)
	}
}
