// Package getopt reads command lines the way qmail's programs do (subgetopt.c): options of one letter, which
// may be bundled; an argument of an option is the rest of its word or the next word; options end at the first
// word that is none, at "--", or at a lone "-".
package getopt

import "strings"

// Option is one option of a command line.
type Option struct {
	Letter byte
	Arg    string
}

// Error is a command line that cannot be read. Its text is getopt's.
type Error struct {
	text   string
	letter byte
}

func (e *Error) Error() string { return e.text + " -- " + string([]byte{e.letter}) }

// Parse reads args. Spec holds the letters that are known; one that a colon follows has an argument, one that
// a question mark follows takes the rest of its word, perhaps nothing. On error the options before the
// trouble are returned too.
func Parse(args []string, spec string) (options []Option, rest []string, err error) {
	for len(args) > 0 {
		word := args[0]
		if len(word) < 2 || word[0] != '-' {
			break
		}
		args = args[1:]
		if word == "--" {
			break
		}
		for letters := word[1:]; letters != ""; {
			o := Option{Letter: letters[0]}
			letters = letters[1:]
			switch takes(spec, o.Letter) {
			case 0:
				return options, args, &Error{"illegal option", o.Letter}
			case ':':
				if o.Arg, letters = letters, ""; o.Arg == "" {
					if len(args) == 0 {
						return options, args, &Error{"option requires an argument", o.Letter}
					}
					o.Arg, args = args[0], args[1:]
				}
			case '?':
				o.Arg, letters = letters, ""
			}
			options = append(options, o)
		}
	}
	return options, args, nil
}

// takes is ':' or '?' as in spec, ' ' for a letter without an argument, and 0 for one that is not known.
func takes(spec string, letter byte) byte {
	if letter == ':' || letter == '?' {
		return 0
	}
	i := strings.IndexByte(spec, letter)
	switch {
	case i < 0:
		return 0
	case i+1 < len(spec) && (spec[i+1] == ':' || spec[i+1] == '?'):
		return spec[i+1]
	}
	return ' '
}
