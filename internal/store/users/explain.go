package users

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Source is where an account was found.
type Source struct {
	File string // users/cdb or passwd; users/assign where its line is known
	Line int    // from 1; 0 if it is not known
	Text string // which entry, for people

	key, record []byte
}

// maxSource bounds what is read of users/assign or passwd to find a line, in bytes.
const maxSource = 256 << 20

// Explain is Find that also says where the answer comes from. It takes longer: it looks for the line.
func (t *Tables) Explain(local string) (Account, Source, error) {
	a, source, err := t.find(local)
	switch {
	case source.key == nil:
	case source.File == t.cdb:
		t.explainAssigned(&source)
	default:
		t.explainPasswd(&source)
	}
	return a, source, err
}

// explainAssigned finds the line of users/assign that qmail-newu made the record of.
func (t *Tables) explainAssigned(s *Source) {
	name := string(bytes.TrimSuffix(s.key[1:], []byte{0}))
	if s.key[len(s.key)-1] == 0 {
		s.Text = "=" + name
	} else {
		s.Text = "+" + name
	}
	assign := filepath.Join(filepath.Dir(t.cdb), "assign")
	text, err := readFile(assign)
	if err != nil {
		s.Text += "; users/assign cannot be read"
		return
	}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if line[0] == '.' {
			break
		}
		key, record, err := assignment(string(line))
		if err != nil || !bytes.Equal(key, s.key) {
			continue
		}
		if bytes.Equal(record, s.record) {
			s.File, s.Line = assign, number
			return
		}
		break // the first of equal keys counts
	}
	s.Text += "; users/assign has something else: qmail-newu has not been run since it changed"
}

func (t *Tables) explainPasswd(s *Source) {
	s.Text = string(s.key)
	text, err := readFile(t.passwd.path)
	if err != nil {
		return
	}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if name, _, ok := strings.Cut(string(line), ":"); ok && name == string(s.key) && len(parsePasswd(line)) == 1 {
			s.Line = number
			return
		}
	}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSource))
}
