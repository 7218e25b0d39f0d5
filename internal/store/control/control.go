// Package control reads the control files: one setting per file, in control/ below the home.
//
// There are four kinds, as in qmail's control.c: a line (only the first counts, trailing blanks stripped, no
// comments), an integer (leading digits of a line), a list (a value per line, empty lines and lines that
// begin with # dropped) and a map (a list whose lines are key:value, ASCII case folded in keys, the last
// of equal keys wins). A missing file is not an error; any other trouble is, and the error names the file.
package control

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"qmail/internal/format/address"
)

// maxFile bounds what one control file may hold, in bytes; large tables belong into cdb files.
const maxFile = 64 << 20

// Dir is a control directory.
type Dir struct{ path string }

// Open names the control directory of a home; nothing is read yet.
func Open(home string) Dir { return Dir{filepath.Join(home, "control")} }

// Path is the file that holds a setting.
func (d Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Read returns a file's bytes, and false if there is none.
func (d Dir) Read(name string) ([]byte, bool, error) {
	f, err := os.Open(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	if !info.Mode().IsRegular() {
		return nil, false, fmt.Errorf("%s: not a regular file", d.Path(name))
	}
	if info.Size() > maxFile {
		return nil, false, fmt.Errorf("%s: larger than %d bytes", d.Path(name), maxFile)
	}
	b, err := os.ReadFile(d.Path(name))
	if err != nil {
		return nil, false, err
	}
	return b, true, nil
}

// Line returns the first line of a file; an empty file is an empty line, and present.
func (d Dir) Line(name string) (value string, present bool, err error) {
	b, ok, err := d.Read(name)
	if err != nil || !ok {
		return "", false, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return strip(line), true, nil
}

// LineOrMe is Line; a missing file gives the value of the file me, and where that is missing too, otherwise.
func (d Dir) LineOrMe(name, otherwise string) (string, error) {
	v, ok, err := d.Line(name)
	if err != nil || ok {
		return v, err
	}
	if v, ok, err = d.Line("me"); err != nil || ok {
		return v, err
	}
	return otherwise, nil
}

// LineOr is Line with a default for a missing file.
func (d Dir) LineOr(name, otherwise string) (string, error) {
	v, ok, err := d.Line(name)
	if err != nil || ok {
		return v, err
	}
	return otherwise, nil
}

// Int returns the leading digits of the first line; without a digit, or without the file, otherwise. A
// number too large for int64 is the largest one.
func (d Dir) Int(name string, otherwise int64) (int64, error) {
	v, ok, err := d.Line(name)
	if err != nil || !ok {
		return otherwise, err
	}
	n, ok := ScanInt(v)
	if !ok {
		return otherwise, nil
	}
	return n, nil
}

// ScanInt reads the leading digits of s, as qmail's scan_ulong does, and false if there is none.
func ScanInt(s string) (n int64, ok bool) {
	for i := 0; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		ok = true
		digit := int64(s[i] - '0')
		if n > (math.MaxInt64-digit)/10 {
			return math.MaxInt64, true
		}
		n = n*10 + digit
	}
	return n, ok
}

// Entry is one line of a list.
type Entry struct {
	Number int // of the line in its file, from 1: for messages that name it
	Text   string
}

// Entries returns a file's lines without comments and empty ones, and false if there is no file.
func (d Dir) Entries(name string) ([]Entry, bool, error) {
	b, ok, err := d.Read(name)
	if err != nil || !ok {
		return nil, false, err
	}
	var list []Entry
	for number := 1; len(b) > 0; number++ {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		if text := strip(line); text != "" && text[0] != '#' {
			list = append(list, Entry{number, text})
		}
	}
	return list, true, nil
}

// List is Entries without the line numbers.
func (d Dir) List(name string) (list []string, present bool, err error) {
	entries, ok, err := d.Entries(name)
	for _, e := range entries {
		list = append(list, e.Text)
	}
	return list, ok, err
}

// Set is a list to look things up in: keys folded to lower case.
type Set map[string]bool

// Has reports whether key is in the set; only ASCII case folds.
func (s Set) Has(key string) bool { return len(s) > 0 && s[address.Lower(key)] }

// NewSet makes a set of a list.
func NewSet(list []string) Set {
	s := make(Set, len(list))
	for _, v := range list {
		s[address.Lower(v)] = true
	}
	return s
}

// Map is a file of key:value lines; keys are folded to lower case.
type Map map[string]string

// Get looks key up; only ASCII case folds.
func (m Map) Get(key string) (value string, ok bool) {
	if len(m) == 0 {
		return "", false
	}
	value, ok = m[address.Lower(key)]
	return value, ok
}

// NewMap makes a map of lines; those without a colon are left out, and the last of equal keys wins.
func NewMap(list []string) Map {
	m := make(Map, len(list))
	for _, line := range list {
		if key, value, ok := strings.Cut(line, ":"); ok {
			m[address.Lower(key)] = value
		}
	}
	return m
}

// Domain looks up the whole domain, then each suffix that begins at a dot (".b.c", ".c"), then the empty
// key: the search order of virtualdomains and smtproutes. key is the entry that was found.
func (m Map) Domain(domain string) (value, key string, ok bool) {
	if len(m) == 0 {
		return "", "", false
	}
	domain = address.Lower(domain)
	for i := 0; i <= len(domain); i++ {
		if i == 0 || i == len(domain) || domain[i] == '.' {
			if value, ok := m[domain[i:]]; ok {
				return value, domain[i:], true
			}
		}
	}
	return "", "", false
}

func strip(line []byte) string { return string(bytes.TrimRight(line, " \t\n")) }
