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
	temp := filepath.Join(dir, "cdb.tmp")
	if err := write(temp, assign); err != nil {
		return err
	}
	if err := publish(temp, filepath.Join(dir, "cdb")); err != nil {
		return fmt.Errorf("unable to move users/cdb.tmp to users/cdb: %w", err)
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

// write makes the database and syncs it. Everybody may read it, whatever our umask is.
func write(path string, assign []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("unable to open users/cdb.tmp: %w", err)
	}
	defer f.Close()
	w := cdb.NewWriter(f)
	err = users.Compile(w, assign)
	if errors.Is(err, users.ErrAssign) {
		return errors.Join(err, os.Remove(path))
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("unable to write users/cdb.tmp: %w", err)
	}
	return nil
}

// publish gives a file its final name, durably.
func publish(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
