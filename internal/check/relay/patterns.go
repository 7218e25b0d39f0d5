package relay

import (
	"fmt"
	"regexp"
	"strings"

	"qmail/internal/format/address"
	"qmail/internal/store/control"
)

// patterns is a list of what is not wanted: names and addresses, wildcards, and expressions.
//
// A line is one of these, and letters of either case are equal in all of them:
//
//   - plain text: an address, @ and a host, or for HELO a host name, or a dot and what its name ends in;
//   - a line that begins with * : * stands for any bytes and ? for any one, and the whole must match;
//   - a line with one of ^ $ * ? ( ) [ ] { } | \ : a regular expression, which may match anywhere;
//   - ! and a regular expression: what does not match it.
//
// Expressions are the operator's, compiled when the file is read, and matched in time linear in what a
// stranger sends (RE2): none can be made to take long.
type patterns struct {
	plain control.Set
	rules []rule
}

type rule struct {
	match *regexp.Regexp
	not   bool
}

const maxPattern = 1000 // bytes of a line

// loadPatterns reads a list. Without a file nothing is in it.
func loadPatterns(dir control.Dir, name string) (*patterns, error) {
	entries, _, err := dir.Entries(name)
	if err != nil {
		return nil, err
	}
	p := &patterns{}
	var plain []string
	for _, e := range entries {
		if !isAddressPattern(e.Text) || len(e.Text) > maxPattern {
			return nil, malformed(dir, name, e)
		}
		expression, not, isPlain := readPattern(e.Text)
		if isPlain {
			plain = append(plain, e.Text)
			continue
		}
		match, err := regexp.Compile("(?is:" + expression + ")")
		if err != nil {
			return nil, fmt.Errorf("%s:%d: malformed line %q: %w", dir.Path(name), e.Number, e.Text, err)
		}
		p.rules = append(p.rules, rule{match, not})
	}
	p.plain = control.NewSet(plain)
	return p, nil
}

// readPattern makes a line an expression.
func readPattern(line string) (expression string, not, isPlain bool) {
	switch {
	case line[0] == '!':
		return line[1:], true, false
	case line[0] == '*':
		quoted := regexp.QuoteMeta(line)
		return "^" + strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(quoted) + "$", false, false
	case strings.ContainsAny(line, `^$*?()[]{}|\`):
		return line, false, false
	}
	return "", false, true
}

// address reports whether an address is in the list.
func (p *patterns) address(addr string) bool {
	if p.plain.Has(addr) || p.rule(addr) {
		return true
	}
	i := strings.LastIndexByte(addr, '@')
	return i >= 0 && p.plain.Has(addr[i:])
}

// host reports whether a host name is in the list.
func (p *patterns) host(name string) bool {
	if len(p.plain) > 0 {
		name := address.Lower(name)
		if p.plain[name] {
			return true
		}
		for i := 0; i < len(name); i++ {
			if name[i] == '.' && p.plain[name[i:]] {
				return true
			}
		}
	}
	return p.rule(name)
}

func (p *patterns) rule(s string) bool {
	for _, r := range p.rules {
		if r.match.MatchString(s) != r.not {
			return true
		}
	}
	return false
}

// unwanted are two lists of one kind: for all, and for those who are no relay clients.
type unwanted struct{ all, strangers *patterns }

func loadUnwanted(dir control.Dir, name string) (u unwanted, err error) {
	if u.all, err = loadPatterns(dir, name); err == nil {
		u.strangers, err = loadPatterns(dir, name+"norelay")
	}
	return u, err
}

func (u unwanted) address(relay bool, addr string) bool {
	return u.all.address(addr) || !relay && u.strangers.address(addr)
}

func (u unwanted) host(relay bool, name string) bool {
	return u.all.host(name) || !relay && u.strangers.host(name)
}
