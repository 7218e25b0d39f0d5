package passwdtool

import (
	"bytes"
	"fmt"
	"strings"

	"qmail/internal/format/cdb"
	"qmail/internal/store/passwd"
)

// linesOf are the lines "login:hash..." of a file, or of vpopmail's vpasswd.cdb, whose keys are the logins.
func linesOf(path string, b []byte) (list []string, err error) {
	if strings.HasSuffix(path, ".cdb") {
		db, err := cdb.New(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		err = db.Each(func(key, value []byte) error {
			list = append(list, string(key)+":"+string(bytes.TrimRight(value, "\x00\n")))
			return nil
		})
		return list, err
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimRight(line, " \t\r\n"); line != "" && line[0] != '#' {
			list = append(list, line)
		}
	}
	return list, nil
}

// convert reads a line. What follows the second field, such as vpopmail's numbers and quota, does not matter here. The
// hash may have a scheme in braces before it, as Dovecot's have.
func (t *tool) convert(line string) (passwd.User, error) {
	login, rest, ok := strings.Cut(line, ":")
	if !ok {
		return passwd.User{}, fmt.Errorf("%w: not of the form login:hash", errBad)
	}
	if t.add != "" && !strings.Contains(login, "@") {
		login += "@" + t.add
	}
	field, _, _ := strings.Cut(rest, ":")
	if strings.HasPrefix(field, "{") && !strings.HasPrefix(field, "{SCRAM-") {
		_, field, _ = strings.Cut(field, "}")
	}
	return passwd.ParseLine(login + ":" + field)
}
