package super

import (
	"os"
	"path/filepath"
	"testing"
)

func TestARoleWithoutItsFilesDoesNotRun(t *testing.T) {
	home := t.TempDir()
	for _, dir := range []string{"users", "control"} {
		if err := os.Mkdir(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l := &listeners{home: home}
	wants := func() (list string) {
		for _, p := range table {
			if len(p.files) > 0 && l.wanted(p) {
				list += " " + p.name
			}
		}
		return list
	}
	steps := []struct{ file, want string }{{"", ""}, {"users/passwd", " authd"}, {"control/checkpassword", " checkpw authd"}}
	for _, s := range steps {
		if s.file != "" {
			if err := os.WriteFile(filepath.Join(home, s.file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := wants(); got != s.want {
			t.Errorf("with %s: %q, want %q", s.file, got, s.want)
		}
	}
}
