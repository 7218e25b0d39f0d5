// Package showctl is qmail-showctl(8) and qmail control: it shows each control file with its meaning, its value
// and its default, and names those that are unknown, malformed or unreadable.
package showctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"qmail/internal/check/relay"
	"qmail/internal/format/cdb"
	"qmail/internal/proto/resolve"
	"qmail/internal/proto/sender"
	"qmail/internal/store/control"
	"qmail/internal/system/env"
)

// Exit codes: scripts may ask whether everything is well.
const (
	well       = 0
	wrong      = 1 // a file is unknown or malformed
	usage      = 100
	unreadable = 111
)

// state is a control file as it is.
type state struct {
	control.Setting
	known, present bool
	value          []string // what counts: one, or a line each
	fromMe         bool
	troubles       []string
	err            error
}

// look reads all control files, those that are known and those that are there.
func look(home string) ([]state, error) {
	dir := control.Open(home)
	list, err := os.ReadDir(dir.Path("."))
	if err != nil {
		return nil, err
	}
	var all []state
	for _, s := range control.Settings() {
		all = append(all, read(dir, s))
	}
	for _, f := range list {
		if !slices.ContainsFunc(all, func(s state) bool { return s.Name == f.Name() }) {
			all = append(all, state{Setting: control.Setting{Name: f.Name()}, present: true, troubles: []string{"I have no idea what this file does."}})
		}
	}
	for _, err := range asTheProgramsDo(dir) {
		blame(all, dir, err)
	}
	return all, nil
}

// asTheProgramsDo reads what the programs read that refuse to start over a malformed line.
func asTheProgramsDo(dir control.Dir) (errs []error) {
	_, err := relay.Load(dir, nil)
	errs = append(errs, err)
	_, err = sender.Load(dir, sender.Strict)
	errs = append(errs, err)
	_, err = resolve.Servers(dir)
	return append(errs, err)
}

// blame adds an error to the file that it names.
func blame(all []state, dir control.Dir, err error) {
	if err == nil {
		return
	}
	for i := range all {
		s := &all[i]
		if rest, ok := strings.CutPrefix(err.Error(), dir.Path(s.Name)+":"); ok && s.err == nil && !slices.ContainsFunc(s.troubles, func(t string) bool { return strings.Contains(rest, t) }) {
			s.troubles = append(s.troubles, "line "+strings.TrimPrefix(strings.TrimSpace(rest), "line "))
		}
	}
}

func read(dir control.Dir, setting control.Setting) state {
	s := state{Setting: setting, known: true}
	var b []byte
	if b, s.present, s.err = dir.Read(s.Name); s.err != nil {
		s.troubles = []string{"unable to read: " + cause(s.err)}
		return s
	}
	if !s.present {
		s.value, s.fromMe, s.err = otherwise(dir, setting)
		if s.err != nil {
			s.troubles = []string{"unable to read me: " + cause(s.err)}
		}
		if s.Name == "me" {
			s.troubles = []string{"there must be one"}
		}
		return s
	}
	s.fill(dir, b)
	return s
}

// otherwise is what counts without the file.
func otherwise(dir control.Dir, s control.Setting) (value []string, fromMe bool, err error) {
	if s.Me {
		me, present, err := dir.Line("me")
		if err != nil || present {
			return []string{me}, present, err
		}
	}
	if s.Default != "" {
		value = []string{s.Default}
	}
	return value, false, nil
}

func cause(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// fill takes the value out of the file's bytes.
func (s *state) fill(dir control.Dir, b []byte) {
	if s.Form == control.Database {
		s.database(dir, b)
		return
	}
	if s.Form == control.Text {
		s.value = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		return
	}
	number := 0
	for line := range bytes.Lines(b) {
		number++
		text := strings.TrimRight(string(line), " \t\n")
		trouble := ""
		switch one := s.Form == control.OneLine || s.Form == control.Number; {
		case one && number > 1:
			if text != "" {
				trouble = "only the first line counts"
			}
		case one || text != "" && text[0] != '#':
			trouble = s.line(text)
			if s.Form == control.Secret {
				text = "(not shown)"
			}
			s.value = append(s.value, text)
		}
		if trouble != "" && len(s.troubles) < 10 {
			s.troubles = append(s.troubles, fmt.Sprintf("line %d: %s", number, trouble))
		}
	}
	if number == 0 && (s.Form == control.OneLine || s.Form == control.Number) {
		s.value = []string{""}
	}
}

// line says what is odd about one line that counts.
func (s *state) line(text string) string {
	switch {
	case strings.HasSuffix(text, "\r"):
		return "ends in CR LF, of which the CR counts"
	case strings.HasPrefix(text, " ") || strings.HasPrefix(text, "\t"):
		return "begins with a blank, which counts"
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\t' || r == 127 }):
		return "holds a control character"
	case s.Form == control.Pairs && !strings.Contains(text, ":"):
		return "there is no colon"
	case s.Form == control.OneLine && text != "" && text[0] == '#':
		return "there are no comments in this file"
	}
	if s.Form == control.Number {
		if _, ok := control.ScanInt(text); !ok {
			return "is no number; who does not refuse it takes the default: " + s.Default
		}
		if strings.Trim(text, "0123456789") != "" {
			return "something follows the number"
		}
	}
	return ""
}

// database checks a cdb file, and whether it is older than what it is made of.
func (s *state) database(dir control.Dir, b []byte) {
	records := 0
	db, err := cdb.New(b)
	if err == nil {
		err = db.Each(func(_, _ []byte) error { records++; return nil })
	}
	if err != nil {
		s.troubles = append(s.troubles, err.Error())
		return
	}
	s.value = []string{fmt.Sprintf("a database of %d keys", records)}
	made, err1 := os.Stat(dir.Path(s.Name))
	source, err2 := os.Stat(dir.Path(strings.TrimSuffix(s.Name, ".cdb")))
	if err1 == nil && err2 == nil && source.ModTime().After(made.ModTime()) {
		s.troubles = append(s.troubles, "is older than control/"+strings.TrimSuffix(s.Name, ".cdb")+"; run qmail-newmrh")
	}
}

// verdict is the exit code for all of them.
func verdict(all []state) int {
	code := well
	for _, s := range all {
		if s.err != nil {
			return unreadable
		}
		if len(s.troubles) > 0 {
			code = wrong
		}
	}
	return code
}

// Main is qmail-showctl: everything, for people.
func Main(_ context.Context, e *env.Env, args []string) int {
	if len(args) > 0 {
		fmt.Fprintln(e.Stderr, "qmail-showctl: usage: qmail-showctl")
		return usage
	}
	all, err := look(e.Home)
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-showctl: fatal: unable to read control: %v\n", err)
		return unreadable
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "qmail home directory: %s.\n", e.Home)
	for _, s := range all {
		s.describe(&b)
	}
	e.Stdout.Write(b.Bytes())
	return verdict(all)
}

// describe writes a paragraph: the name, the value, and what it means.
func (s *state) describe(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n%s:", s.Name)
	if s.known && !s.present {
		b.WriteString(" (Default.)")
	}
	if s.known {
		fmt.Fprintf(b, " %s [%s]\n", s.Meaning, s.Programs)
		switch {
		case s.err != nil:
		case len(s.value) == 0:
			b.WriteString("  nothing\n")
		case s.fromMe:
			fmt.Fprintf(b, "  %s (control/me)\n", clean(s.value[0]))
		default:
			for _, v := range s.value {
				fmt.Fprintf(b, "  %s\n", clean(v))
			}
		}
	} else {
		b.WriteByte(' ')
	}
	for i, t := range s.troubles {
		if s.known || i > 0 {
			b.WriteString("  ! ")
		}
		b.WriteString(clean(t) + "\n")
	}
}

// clean keeps a terminal from obeying what a file says.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 127 {
			return '?'
		}
		return r
	}, s)
}
