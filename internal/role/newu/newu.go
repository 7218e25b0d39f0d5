// Package newu is qmail-newu(8): it makes users/cdb of users/assign. The old database stays in place until the
// new one is complete and on the disk.
package newu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"qmail/internal/format/cdb"
	"qmail/internal/store/users"
	"qmail/internal/system/env"
	"qmail/internal/system/replace"
)

// maxAssign bounds users/assign, in bytes.
const maxAssign = 1 << 30

// Main runs the role and returns its exit code.
func Main(_ context.Context, e *env.Env, _ []string) int {
	if err := compile(e.Home); err != nil {
		fmt.Fprintf(e.Stderr, "qmail-newu: fatal: %v\n", err)
		return 111
	}
	return 0
}

func compile(home string) error {
	if info, err := os.Stat(home); err != nil || !info.IsDir() {
		return errors.New("unable to chdir")
	}
	dir := filepath.Join(home, "users")
	assign, err := read(filepath.Join(dir, "assign"))
	if err != nil {
		return err
	}
	err = replace.File(filepath.Join(dir, "cdb"), filepath.Join(dir, "cdb.tmp"), 0o644, func(f *os.File) error {
		w := cdb.NewWriter(f)
		if err := users.Compile(w, assign); err != nil {
			return err
		}
		return w.Close()
	})
	if failed, ok := errors.AsType[*replace.Error](err); ok && !errors.Is(err, users.ErrAssign) {
		return fmt.Errorf("%s: %w", map[replace.Step]string{
			replace.Open: "unable to open users/cdb.tmp", replace.Write: "unable to write users/cdb.tmp",
			replace.Move: "unable to move users/cdb.tmp to users/cdb",
		}[failed.Step], failed.Err)
	}
	if err != nil {
		return users.ErrAssign
	}
	return nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrInvalid
	}
	if err != nil {
		return nil, errors.New("unable to open users/assign")
	}
	if info.Size() > maxAssign {
		return nil, fmt.Errorf("users/assign is larger than %d bytes", maxAssign)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, errors.New("unable to open users/assign")
	}
	if err != nil {
		return nil, fmt.Errorf("unable to read users/assign: %w", err)
	}
	return b, nil
}
