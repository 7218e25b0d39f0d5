package newmrh

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmail/internal/format/cdb"
	"qmail/internal/system/env"
)

func run(home string) (int, string) {
	var out bytes.Buffer
	code := Main(context.Background(), &env.Env{Home: home, Stderr: &out}, nil)
	return code, out.String()
}

func TestMain(t *testing.T) {
	home := t.TempDir()
	control := filepath.Join(home, "control")
	text := "Example.ORG \n# none\n\n.sub.example.org\t\nlast.example"
	if err := errors.Join(os.Mkdir(control, 0o755), os.WriteFile(filepath.Join(control, source), []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	if code, out := run(home); code != 0 || out != "" {
		t.Fatal(code, out)
	}
	b, err := os.ReadFile(filepath.Join(control, result))
	if err != nil {
		t.Fatal(err)
	}
	db, err := cdb.New(b)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]bool{"example.org": true, ".sub.example.org": true, "last.example": true, "# none": false, "": false, "Example.ORG": false} {
		if _, ok, err := db.Find([]byte(key)); ok != want || err != nil {
			t.Errorf("%q: %v %v", key, ok, err)
		}
	}
	if _, err := os.Stat(filepath.Join(control, temp)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	// The old database outlives trouble with the new one.
	if err := errors.Join(os.Remove(filepath.Join(control, source)), os.Mkdir(filepath.Join(control, source), 0o755)); err != nil {
		t.Fatal(err)
	}
	if code, out := run(home); code != 111 || !strings.HasPrefix(out, "qmail-newmrh: fatal: unable to read control/morercpthosts: ") {
		t.Error(code, out)
	}
	if again, err := os.ReadFile(filepath.Join(control, result)); err != nil || !bytes.Equal(again, b) {
		t.Error("the old database is gone", err)
	}
}

func TestTrouble(t *testing.T) {
	home := t.TempDir()
	if code, out := run(filepath.Join(home, "none")); code != 111 || !strings.Contains(out, "unable to chdir to ") {
		t.Error(code, out)
	}
	if code, out := run(home); code != 111 || !strings.Contains(out, "unable to read control/morercpthosts: ") {
		t.Error(code, out)
	}
	control := filepath.Join(home, "control")
	if err := errors.Join(os.MkdirAll(filepath.Join(control, temp), 0o755), os.WriteFile(filepath.Join(control, source), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if code, out := run(home); code != 111 || !strings.Contains(out, "unable to write to control/morercpthosts.tmp: ") {
		t.Error(code, out)
	}
}
