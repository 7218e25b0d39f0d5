package header

import (
	"strings"
	"unicode/utf8"
)

// Kind is what a token is. Punctuation is its own kind.
type Kind byte

const (
	Dot       Kind = '.'
	Comma     Kind = ','
	At        Kind = '@'
	Left      Kind = '<'
	Right     Kind = '>'
	Colon     Kind = ':'
	Semicolon Kind = ';'
	Atom      Kind = 'a'
	Quoted    Kind = '"' // a quoted string, or an atom that may not stand bare
	Literal   Kind = '[' // a domain literal
	Comment   Kind = '('
)

// Token is one lexical token of RFC 822 3.3. Text has its quoting undone and no delimiters; it shares the
// memory of what was tokenized where nothing had to be undone. Punctuation has no text.
type Token struct {
	Kind Kind
	Text string
}

// Tokenize cuts a field body into tokens. It fails at a closing parenthesis or bracket that closes nothing
// and at a comment, quoted string or literal that never ends. Comments nest; their inner parentheses are
// lost. What it does takes time and memory in proportion to s.
func Tokenize(s string) (tokens []Token, ok bool) {
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case ' ', '\t', '\r', '\n':
			i++
		case '.', ',', '@', '<', '>', ':', ';':
			tokens = append(tokens, Token{Kind: Kind(c)})
			i++
		case ')', ']':
			return nil, false
		case '(', '"', '[':
			text, n := cutString(s[i:])
			if n == 0 {
				return nil, false
			}
			tokens = append(tokens, Token{Kind(c), text})
			i += n
		default:
			text, n := cutAtom(s[i:])
			kind := Atom
			if !bare(text) {
				kind = Quoted
			}
			tokens = append(tokens, Token{kind, text})
			i += n
		}
	}
	return tokens, true
}

// cutString takes the comment, quoted string or literal at the start of s; n is 0 if it never ends.
func cutString(s string) (text string, n int) {
	var closing byte
	switch s[0] {
	case '(':
		closing = ')'
	case '[':
		closing = ']'
	default:
		closing = '"'
	}
	var b strings.Builder
	plain := true // so far Text is s[1:i]
	depth := 1
	for i := 1; i < len(s); i++ {
		c := s[i]
		keep := true
		switch {
		case c == '\\':
			if plain {
				b.WriteString(s[1:i])
				plain = false
			}
			if i++; i == len(s) {
				return "", 0
			}
			c = s[i]
		case c == closing:
			if depth--; depth == 0 {
				if plain {
					return s[1:i], i + 1
				}
				return b.String(), i + 1
			}
			keep = false
		case c == '(' && closing == ')':
			depth++
			keep = false
		}
		if !keep && plain {
			b.WriteString(s[1:i])
			plain = false
		}
		if keep && !plain {
			b.WriteByte(c)
		}
	}
	return "", 0
}

// cutAtom takes what is not blank and not special. A backslash takes the next byte along, whatever it is; at
// the end it is dropped.
func cutAtom(s string) (text string, n int) {
	n = 0
	for n < len(s) && !endsAtom(s[n]) && s[n] != '\\' {
		n++
	}
	if n == len(s) || s[n] != '\\' {
		return s[:n], n
	}
	var b strings.Builder
	b.WriteString(s[:n])
	for n < len(s) && !endsAtom(s[n]) {
		if s[n] == '\\' {
			if n++; n == len(s) {
				break
			}
		}
		b.WriteByte(s[n])
		n++
	}
	return b.String(), n
}

func endsAtom(c byte) bool {
	switch c {
	case ' ', '\t', '\r', '\n', '(', '[', '"', '<', '>', ';', ':', '@', ',', '.':
		return true
	}
	return false
}

// bare reports whether an atom may be written as it is. UTF-8 may (RFC 6532 3.2), other bytes above 126 and
// all that a backslash has brought in may not.
func bare(text string) bool {
	high := false
	if text == "" {
		return false
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c >= 0x80:
			high = true
		case c < 32, c == 127, c == ')', c == ']', c == '\\', endsAtom(c):
			return false
		}
	}
	return !high || utf8.ValidString(text)
}

// Address is the envelope form of an address's tokens: their texts one after another, quoting undone,
// comments dropped, literals in their brackets.
func Address(tokens []Token) string {
	var b strings.Builder
	for _, t := range tokens {
		switch t.Kind {
		case Comment:
		case Atom, Quoted:
			b.WriteString(t.Text)
		case Literal:
			b.WriteByte('[')
			b.WriteString(t.Text)
			b.WriteByte(']')
		default:
			b.WriteByte(byte(t.Kind))
		}
	}
	return b.String()
}
