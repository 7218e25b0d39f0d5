package aliases

import (
	"bytes"
	"errors"
	"strings"

	"qmail/internal/format/address"
)

// Record is a record of a table: the key begins with a colon, or with a question mark for an owner.
type Record struct{ Key, Value string }

// Records are those of entries. That of an alias "owner-x" is also the owner of x.
func Records(entries []Entry) []Record {
	var list []Record
	for _, e := range entries {
		list = append(list, Record{":" + e.Target, string(Join(e.Commands))})
		if of, ok := strings.CutPrefix(e.Target, "owner-"); ok && of != "@" {
			list = append(list, Record{"?" + of, e.Target})
		}
	}
	return list
}

// ParseForward reads the syntax of setforward(1): "target: command, command;". A command without a sign is an
// address; "?address" is the owner of the target, who gets its bounces. A backslash takes the next byte as it is,
// lines that begin with # are comments, blanks around targets and commands do not count.
func ParseForward(text []byte) ([]Record, error) {
	p := parser{text: text, line: 1, start: true}
	var list []Record
	for {
		name, end, err := p.word(":")
		if err != nil {
			return nil, err
		}
		if end == 0 {
			if name != "" {
				return nil, p.fail("a target without a colon")
			}
			return list, nil
		}
		if name == "" {
			return nil, p.fail("no target before a colon")
		}
		records, err := p.commands(target(name))
		if err != nil {
			return nil, err
		}
		list = append(list, records...)
	}
}

// commands reads those of a target up to the semicolon.
func (p *parser) commands(name string) ([]Record, error) {
	var commands []string
	var owners []Record
	for {
		c, end, err := p.word(",;")
		switch {
		case err != nil:
			return nil, err
		case end == 0:
			return nil, p.fail("no semicolon after " + name)
		case strings.HasPrefix(c, "?"):
			owners = append(owners, Record{"?" + name, address.Lower(bare(c[1:]))})
		case c != "":
			c = sign(c)
			if err := check(c); err != nil {
				return nil, p.fail(err.Error())
			}
			commands = append(commands, c)
		}
		if end == ';' {
			break
		}
	}
	if commands == nil && owners != nil {
		return owners, nil
	}
	return append([]Record{{":" + name, string(Join(commands))}}, owners...), nil
}

// sign puts an ampersand before an address.
func sign(c string) string {
	if strings.IndexByte("|!./", c[0]) >= 0 {
		return c
	}
	return "&" + bare(strings.TrimPrefix(c, "&"))
}

// bare gives a name without a host one that fastforward completes.
func bare(name string) string {
	if !strings.Contains(name, "@") {
		name += "@"
	}
	return name
}

// parser reads words.
type parser struct {
	text  []byte
	line  int
	start bool // of a line
}

func (p *parser) fail(text string) error { return &Error{p.line, text} }

// word reads up to one of ends; end is 0 at the end of the text.
func (p *parser) word(ends string) (word string, end byte, err error) {
	var b []byte
	kept := 0 // so much of b is more than blanks at the end
	for len(p.text) > 0 {
		c := p.text[0]
		if p.start && c == '#' {
			_, p.text, _ = bytes.Cut(p.text, []byte("\n"))
			p.line++
			continue
		}
		p.text = p.text[1:]
		p.start = c == '\n'
		if p.start {
			p.line++
		}
		switch {
		case c == 0:
			return "", 0, p.fail("a NUL")
		case c == '\\':
			if len(p.text) == 0 {
				return "", 0, p.fail("a backslash at the end")
			}
			c, p.text = p.text[0], p.text[1:]
			if c == 0 {
				return "", 0, p.fail("a NUL")
			}
			if c == '\n' {
				p.line++
			}
			b = append(b, c)
			kept = len(b)
		case strings.IndexByte(ends, c) >= 0:
			return string(b[:kept]), c, nil
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if kept > 0 {
				b = append(b, ' ')
			}
		default:
			b = append(b, c)
			kept = len(b)
		}
	}
	return string(b[:kept]), 0, nil
}

// ErrRecord is a record that no table of ours has.
var ErrRecord = errors.New("aliases: not a record of a forwarding table")

// AppendForward writes a record in the syntax of ParseForward.
func AppendForward(dst []byte, r Record) ([]byte, error) {
	if len(r.Key) < 2 || r.Key[0] != ':' && r.Key[0] != '?' || strings.IndexByte(r.Key+r.Value, 0) >= 0 && r.Key[0] == '?' {
		return nil, ErrRecord
	}
	commands := []string{"?" + r.Value}
	if r.Key[0] == ':' {
		var err error
		if commands, err = Split([]byte(r.Value)); err != nil {
			return nil, ErrRecord
		}
	}
	dst = append(quote(dst, r.Key[1:]), ':')
	for i, c := range commands {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = quote(append(dst, ' '), c)
	}
	return append(dst, ";\n"...), nil
}

// quote writes a word so that it is read as it is.
func quote(dst []byte, word string) []byte {
	for i := 0; i < len(word); i++ {
		c := word[i]
		edge := i == 0 || i == len(word)-1 || word[i-1] == ' '
		if strings.IndexByte("\\,;:#\t\n\r", c) >= 0 || c == ' ' && edge {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return dst
}

// ParseMaillist reads the syntax of setmaillist(1): a command per line, an address or a file with more of them.
func ParseMaillist(text []byte) ([]string, error) {
	var commands []string
	number := 0
	for line := range bytes.Lines(text) {
		number++
		c := string(bytes.TrimRight(line, " \t\r\n"))
		if c == "" || c[0] == '#' {
			continue
		}
		if c[0] == '|' || c[0] == '!' {
			return nil, &Error{number, "no programs in a mailing list"}
		}
		c = sign(c)
		if err := check(c); err != nil {
			return nil, &Error{number, err.Error()}
		}
		commands = append(commands, c)
	}
	return commands, nil
}
