// Package replace puts a new file in the place of an old one: readers see the old one or the new one, whole, and
// after a crash too.
package replace

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Step is where it failed.
type Step string

const (
	Open  Step = "open"  // of the temporary file
	Write Step = "write" // of its content, the sync included
	Move  Step = "move"  // to its final name
)

// Error is a failure. The file of the final name is as it was, but perhaps after Move.
type Error struct {
	Step Step
	Err  error
}

func (e *Error) Error() string { return string(e.Step) + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// File makes a file by way of temp, a name on the same file system that nobody else uses. It has that mode,
// whatever the umask.
func File(path, temp string, mode fs.FileMode, write func(f *os.File) error) error {
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return &Error{Open, err}
	}
	defer f.Close() // once more after the one that counts, or after an error
	err = write(f)
	for _, then := range []func() error{func() error { return f.Chmod(mode) }, f.Sync, f.Close} {
		if err == nil {
			err = then()
		}
	}
	if err != nil {
		_ = os.Remove(temp) // else the next one writes over it
		return &Error{Write, err}
	}
	if err := os.Rename(temp, path); err != nil {
		return &Error{Move, err}
	}
	d, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return &Error{Move, err}
	}
	return nil
}
