package replace

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path, temp := filepath.Join(dir, "x"), filepath.Join(dir, "x.tmp")
	text := func(s string) func(*os.File) error {
		return func(f *os.File) error { _, err := io.WriteString(f, s); return err }
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	if err := File(path, temp, 0o644, text("one")); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err := File(path, temp, 0o644, func(f *os.File) error { return errors.Join(text("two")(f), boom) })
	if e, ok := errors.AsType[*Error](err); !ok || e.Step != Write || !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	err = File(path, filepath.Join(dir, "no/such"), 0o644, text("two"))
	if e, ok := errors.AsType[*Error](err); !ok || e.Step != Open {
		t.Errorf("%v", err)
	}
	err = File(dir, temp, 0o644, text("two"))
	if e, ok := errors.AsType[*Error](err); !ok || e.Step != Move {
		t.Errorf("%v", err)
	}
	b, err := os.ReadFile(path)
	info, err2 := os.Stat(path)
	if err != nil || err2 != nil || string(b) != "one" || info.Mode().Perm() != 0o644 {
		t.Errorf("%q %v %v %v", b, info, err, err2)
	}
}
