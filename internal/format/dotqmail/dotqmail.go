// Package dotqmail knows the delivery instructions of dot-qmail(5): the text of a .qmail file, the names of
// the files that are looked for, and what an address leaves in the variables DEFAULT, EXT2 and HOST2.
//
// Parse takes a whole file and says what each line asks for, before anything is done about it. What cannot
// be meant (a NUL, a control character in a path or an address, an endless line) is an error, and all errors
// are temporary: the user is expected to mend the file.
package dotqmail

import (
	"bytes"
	"fmt"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/reply"
)

// MaxFile and MaxLine bound a .qmail file and each of its lines, in bytes.
const (
	MaxFile = 8 << 20
	MaxLine = 64 << 10
)

// Kind is what a line asks for.
type Kind byte

// The kinds are the words that qmail-local -n prints.
const (
	Program Kind = iota + 1 // run by /bin/sh -c
	Mbox                    // append to a file
	Maildir                 // deliver into a directory
	Forward                 // pass on to an address
)

func (k Kind) String() string {
	return [...]string{"nothing", "program", "mbox", "maildir", "forward"}[k]
}

// Line is one instruction. Text is the command, the path or the address.
type Line struct {
	Kind   Kind
	Text   string
	Number int // in the file, from 1
}

// Parse returns the instructions of a file in order. With forwardOnly (the file's x bit is set), and after a
// line "+list", only forwards are allowed. With an error come the lines before the one at fault.
func Parse(text []byte, forwardOnly bool) ([]Line, error) {
	var lines []Line
	if len(text) == 0 {
		text = []byte("\n") // no default delivery is a blank first line
	}
	for number := 1; len(text) > 0; number++ {
		var raw []byte
		raw, text, _ = bytes.Cut(text, []byte("\n"))
		raw = bytes.TrimRight(raw, " \t")
		if len(raw) > MaxLine {
			return lines, fault(number, "is too long")
		}
		if bytes.IndexByte(raw, 0) >= 0 {
			return lines, fault(number, "contains a NUL")
		}
		line := Line{Number: number}
		switch {
		case len(raw) == 0:
			if number == 1 {
				return lines, reply.Temporary("4.2.1", "Uh-oh: first line of .qmail file is blank.", nil)
			}
			continue
		case raw[0] == '#':
			continue
		case raw[0] == '+':
			forwardOnly = forwardOnly || string(raw) == "+list"
			continue
		case raw[0] == '|':
			line.Kind, line.Text = Program, string(raw[1:])
		case raw[0] == '.' || raw[0] == '/':
			line.Kind, line.Text = Mbox, string(raw)
			if raw[len(raw)-1] == '/' {
				line.Kind = Maildir
			}
		case raw[0] == '&':
			line.Kind, line.Text = Forward, string(raw[1:])
		default:
			line.Kind, line.Text = Forward, string(raw)
		}
		if err := line.check(forwardOnly); err != nil {
			return lines, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func (l Line) check(forwardOnly bool) error {
	switch {
	case l.Kind == Program && forwardOnly:
		return reply.Temporary("4.7.0", "Uh-oh: .qmail has prog delivery but has x bit set.", nil)
	case l.Kind != Forward && forwardOnly:
		return reply.Temporary("4.7.0", "Uh-oh: .qmail has file delivery but has x bit set.", nil)
	case l.Kind != Program && hasControl(l.Text):
		return fault(l.Number, "contains a control character")
	}
	return nil
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

func fault(number int, what string) error {
	return reply.Temporary("4.2.1", fmt.Sprintf("Uh-oh: line %d of .qmail file %s.", number, what), nil)
}

// SafeExt is the extension as it stands in file names: lower case, no dots.
func SafeExt(ext string) string { return strings.ReplaceAll(address.Lower(ext), ".", ":") }

// Candidate is a file that may hold the instructions.
type Candidate struct {
	Name string
	// From is where in the extension DEFAULT begins if this file is used, or -1 if it stays unset.
	From int
}

// Candidates returns the files to look for, best first: .qmail Dash Ext, then with each ending of the
// extension that follows a dash, and at last all of it, replaced by default.
func Candidates(dash, ext string) []Candidate {
	safe := SafeExt(ext)
	list := []Candidate{{Name: ".qmail" + dash + safe, From: -1}}
	if strings.HasSuffix(safe, "default") {
		list[0].From = len(safe) - len("default")
	}
	for i := len(safe); i >= 0; i-- {
		if i == 0 || safe[i-1] == '-' {
			list = append(list, Candidate{Name: ".qmail" + dash + safe[:i] + "default", From: i})
		}
	}
	return list
}

// Default is the value of DEFAULT, and whether it is set.
func (c Candidate) Default(ext string) (value string, set bool) {
	if c.From < 0 || c.From > len(ext) {
		return "", false
	}
	return ext[c.From:], true
}

// Owner is the file whose existence makes LOCAL-owner@HOST the sender of what is forwarded, and
// OwnerDefault the one that asks for a sender per recipient besides.
func Owner(dash, ext string) string        { return ".qmail" + dash + SafeExt(ext) + "-owner" }
func OwnerDefault(dash, ext string) string { return ".qmail" + dash + SafeExt(ext) + "-owner-default" }

// Exts returns EXT2, EXT3 and EXT4: what follows the first, second and third dash.
func Exts(ext string) (v [3]string) {
	for i := range v {
		_, ext, _ = strings.Cut(ext, "-")
		v[i] = ext
	}
	return v
}

// Hosts returns HOST2, HOST3 and HOST4: host cut before the last, second last and third last dot. Where
// there is no further dot the value stays.
func Hosts(host string) (v [3]string) {
	for i := range v {
		if dot := strings.LastIndexByte(host, '.'); dot >= 0 {
			host = host[:dot]
		}
		v[i] = host
	}
	return v
}
