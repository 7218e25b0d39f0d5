package users

import (
	"bytes"
	"errors"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
)

// ErrAssign is a users/assign that qmail-newu does not take.
var ErrAssign = errors.New("bad format in users/assign")

// Compile writes what users/assign says into w: a record for each assignment, in order, and one that lists
// the bytes in which wildcards end. Keys are in lower case, since they are looked up so.
//
// A line "=local:user:uid:gid:home:dash:ext:" assigns a name, "+loc:user:uid:gid:home:dash:pre:" all names that
// begin so; a line that begins with a dot ends the file. A file without that end was cut short.
func Compile(w *cdb.Writer, assign []byte) error {
	var ends []byte
	for line := range bytes.Lines(assign) {
		if line[0] == '.' {
			return w.Add(nil, ends)
		}
		key, data, err := assignment(string(line))
		if err != nil {
			return err
		}
		if wild := key[len(key)-1] != 0; wild && len(key) > 1 && bytes.IndexByte(ends, key[len(key)-1]) < 0 {
			ends = append(ends, key[len(key)-1])
		}
		if err := w.Add(key, data); err != nil {
			return err
		}
	}
	return ErrAssign
}

// assignment makes a record of one line. What follows its last colon is not looked at.
func assignment(line string) (key, data []byte, err error) {
	const fields = 7
	f := strings.SplitN(line, ":", fields+1)
	if len(f) != fields+1 || f[0] == "" || strings.IndexByte(line, 0) >= 0 {
		return nil, nil, ErrAssign
	}
	key = append(key, '!')
	key = append(key, address.Lower(f[0][1:])...)
	if f[0][0] != '+' {
		key = append(key, 0)
	}
	return key, []byte(strings.Join(f[1:fields], "\x00")), nil
}
