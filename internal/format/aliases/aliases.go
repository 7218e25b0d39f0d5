// Package aliases reads and writes the tables of fastforward(1): /etc/aliases in sendmail's syntax, .forward files,
// included lists, and the syntaxes of setforward(1) and setmaillist(1).
//
// A table maps targets, "user@host", "@host" or "user@", to commands: "&address" forwards, "|program" runs a
// program, "!program" runs one with the lines before the message (preline(1)), "/file" and "./file" go on with the
// commands of a file. Commands at rest are each ended by a NUL. Keys are in lower case.
package aliases

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/format/header"
)

// maxCommand bounds a command, in bytes.
const maxCommand = 801

// Error is what is wrong in a file, and where.
type Error struct {
	Line int
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Text) }

// Entry is a target with its commands.
type Entry struct {
	Target   string // in lower case, with an @
	Commands []string
}

// Kind is what an item of a list is.
type Kind byte

const (
	Address Kind = '&'
	Program Kind = '|'
	Include Kind = ':'
	File    Kind = '/'
)

// Item is one recipient in sendmail's syntax.
type Item struct {
	Kind  Kind
	Text  string // an address completed, a command line, a path
	Given string // an address as it was written, quoting undone
}

// Unsupported is the text of the error for a file that mail shall be appended to.
func (i Item) Unsupported() string { return "file delivery " + i.Text + " not supported" }

var errList = errors.New("unable to parse")

// Items reads one list of recipients: addresses in the syntax of header fields, "|program", ":include:path" and
// "/path". Commas between them may be missing.
func Items(list string, complete *header.Completion) ([]Item, error) {
	tokens, ok := header.Tokenize(list)
	if !ok {
		return nil, errList
	}
	var items []Item
	for len(tokens) > 0 {
		n := 0
		for n < len(tokens) && tokens[n].Kind != header.Comma {
			n++
		}
		some, err := between(tokens[:n], complete)
		if err != nil {
			return nil, err
		}
		items = append(items, some...)
		tokens = tokens[min(n+1, len(tokens)):]
	}
	return items, nil
}

// between reads what stands between two commas.
func between(tokens []header.Token, complete *header.Completion) ([]Item, error) {
	if len(tokens) > 3 && tokens[0].Kind == header.Colon && tokens[2].Kind == header.Colon && address.EqualFold(tokens[1].Text, "include") {
		return []Item{{Kind: Include, Text: header.Address(tokens[3:])}}, nil
	}
	for _, t := range tokens {
		if t.Kind == header.Colon || t.Kind == header.Semicolon { // groups are not for here
			return nil, errList
		}
	}
	var items []Item
	_, err := header.List(tokens, func(a []header.Token) []header.Token {
		if len(a) > 0 {
			items = append(items, item(a, complete))
		}
		return nil
	})
	if err != nil {
		return nil, errList
	}
	for i, j := 0, len(items)-1; i < j; i, j = i+1, j-1 { // List reads from the right
		items[i], items[j] = items[j], items[i]
	}
	return items, nil
}

// item reads the tokens of one.
func item(a []header.Token, complete *header.Completion) Item {
	given := header.Address(a)
	local := true
	for _, t := range a {
		local = local && t.Kind != header.At
	}
	switch {
	case local && strings.HasPrefix(given, "|"):
		return Item{Kind: Program, Text: given[1:], Given: given}
	case local && strings.HasPrefix(given, "/"):
		return Item{Kind: File, Text: given, Given: given}
	}
	return Item{Kind: Address, Text: header.Address(complete.Complete(a)), Given: given}
}

// command is an item as a table has it.
func (i Item) command() (string, error) {
	c := ""
	switch i.Kind {
	case Address:
		c = "&" + i.Text
	case Program:
		c = "!" + i.Text
	case Include:
		c = i.Text + ".bin"
		if !strings.HasPrefix(c, "/") && !strings.HasPrefix(c, "./") {
			c = "./" + c
		}
	default:
		return "", errors.New(i.Unsupported())
	}
	return c, check(c)
}

func check(command string) error {
	switch {
	case strings.IndexByte(command, 0) >= 0:
		return errors.New("a NUL in a command")
	case command[0] == '&' && len(command) > maxCommand:
		return errors.New("an address is too long")
	}
	return nil
}

// logical are lines, each with those that continue it. Empty lines and comments are left out.
func logical(text []byte, yield func(number int, line string) error) error {
	number, first := 0, 0
	var line []byte
	flush := func() error {
		if len(line) == 0 {
			return nil
		}
		err := yield(first, string(line))
		line = line[:0]
		return err
	}
	for part := range bytes.Lines(text) {
		number++
		switch {
		case len(bytes.TrimSpace(part)) == 0 || part[0] == '#':
		case part[0] == ' ' || part[0] == '\t':
			if len(line) == 0 {
				first = number
			}
			line = append(line, part...)
		default:
			if err := flush(); err != nil {
				return err
			}
			first, line = number, append(line, part...)
		}
	}
	return flush()
}

// Parse reads /etc/aliases. Of equal targets the first counts; those that follow are left out.
func Parse(text []byte, complete *header.Completion) ([]Entry, error) {
	var entries []Entry
	seen := map[string]bool{}
	err := logical(text, func(number int, line string) error {
		name, list, ok := cutTarget(line)
		if !ok {
			return &Error{number, "unable to parse this line"}
		}
		items, err := Items(list, complete)
		if err != nil {
			return &Error{number, err.Error()}
		}
		e := Entry{Target: target(name)}
		for _, i := range items {
			c, err := i.command()
			if err != nil {
				return &Error{number, err.Error()}
			}
			e.Commands = append(e.Commands, c)
		}
		if !seen[e.Target] {
			seen[e.Target] = true
			entries = append(entries, e)
		}
		return nil
	})
	return entries, err
}

// cutTarget cuts a line at the first colon that is not quoted.
func cutTarget(line string) (name, rest string, ok bool) {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case '"':
			quoted = !quoted
		case ':':
			if quoted {
				continue
			}
			tokens, ok := header.Tokenize(line[:i])
			name = header.Address(tokens)
			return name, line[i+1:], ok && name != "" && strings.IndexByte(name, 0) < 0
		}
	}
	return "", "", false
}

// target is a name as a key: without a host it stands for that user at any host.
func target(name string) string {
	if !strings.Contains(name, "@") {
		name += "@"
	}
	return address.Lower(name)
}

// ParseInclude reads an included list: addresses and more lists, no programs.
func ParseInclude(text []byte, complete *header.Completion) ([]string, error) {
	var commands []string
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if line[0] == '#' {
			continue
		}
		items, err := Items(string(line), complete)
		for _, i := range items {
			if i.Kind == Program {
				return nil, &Error{number, "program delivery " + i.Text + " not supported"}
			}
			c, failed := i.command()
			err = errors.Join(err, failed)
			commands = append(commands, c)
		}
		if err != nil {
			return nil, &Error{number, err.Error()}
		}
	}
	return commands, nil
}

// Join is commands as they are at rest.
func Join(commands []string) []byte {
	var b []byte
	for _, c := range commands {
		b = append(append(b, c...), 0)
	}
	return b
}

// ErrDamaged are bytes that Join has not made.
var ErrDamaged = errors.New("aliases: not a list of commands")

// Split is the reverse of Join. Every command is of a known kind.
func Split(b []byte) ([]string, error) {
	var commands []string
	for len(b) > 0 {
		c, rest, ok := bytes.Cut(b, []byte{0})
		if !ok || len(c) == 0 || strings.IndexByte("&|!./", c[0]) < 0 || check(string(c)) != nil {
			return nil, ErrDamaged
		}
		commands, b = append(commands, string(c)), rest
	}
	return commands, nil
}
