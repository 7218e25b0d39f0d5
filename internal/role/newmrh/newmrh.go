// Package newmrh is qmail-newmrh(8): it makes control/morercpthosts.cdb of control/morercpthosts.
package newmrh

import (
	"context"
	"fmt"
	"io/fs"
	"os"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
)

const (
	source = "morercpthosts"
	temp   = "morercpthosts.tmp"
	result = "morercpthosts.cdb"
)

// Main runs the role and returns its exit code. On error the old database stays.
func Main(_ context.Context, e *env.Env, _ []string) int {
	if err := compile(e.Home); err != nil {
		fmt.Fprintf(e.Stderr, "qmail-newmrh: fatal: %v\n", err)
		return 111
	}
	return 0
}

func compile(home string) error {
	if _, err := os.Stat(home); err != nil {
		return fmt.Errorf("unable to chdir to %s: %w", home, err)
	}
	dir := control.Open(home)
	entries, present, err := dir.Entries(source)
	if err == nil && !present {
		err = fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("unable to read control/%s: %w", source, err)
	}
	if err := write(dir.Path(temp), entries); err != nil {
		return fmt.Errorf("unable to write to control/%s: %w", temp, err)
	}
	if err := os.Rename(dir.Path(temp), dir.Path(result)); err != nil {
		return fmt.Errorf("unable to move control/%s to control/%s: %w", temp, result, err)
	}
	if err := syncDir(dir.Path(".")); err != nil {
		return fmt.Errorf("unable to move control/%s to control/%s: %w", temp, result, err)
	}
	return nil
}

// write makes a database with each line, in lower case, as a key without data.
func write(path string, entries []control.Entry) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	w := cdb.NewWriter(f)
	for _, entry := range entries {
		if err := w.Add([]byte(address.Lower(entry.Text)), nil); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
