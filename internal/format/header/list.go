package header

import (
	"errors"
	"slices"
)

// ErrList is a body that is not an address list in any reading.
var ErrList = errors.New("header: not an address list")

// List reads the tokens of an address list and returns them with each address as rewrite makes it.
//
// An address list is easy to read from right to left, as qmail does: rewrite sees the rightmost address
// first. It gets an address's tokens in their natural order, without comments and without angle brackets,
// perhaps none, and may change and return them. Where two addresses follow each other without a comma, one is
// put in. Comments inside an address come to stand behind it.
//
// On ErrList rewrite may have seen some addresses: those to the right of the trouble.
func List(body []Token, rewrite func([]Token) []Token) ([]Token, error) {
	l := list{in: body, rewrite: rewrite, out: make([]Token, 0, len(body)+8)}
	err := l.read()
	if err != nil {
		return nil, err
	}
	slices.Reverse(l.out)
	return l.out, nil
}

// list is a reading in progress; address and out are in reverse order.
type list struct {
	in, address, out []Token
	rewrite          func([]Token) []Token
}

func (l *list) read() error {
	group, word := false, true // inside a group; a word may begin here
	for len(l.in) > 0 {
		t := l.last()
		switch t.Kind {
		case Semicolon:
			l.end(true)
			if group {
				return ErrList
			}
			group, word = true, true
			l.copy()
		case Colon:
			l.end(false)
			if !group {
				return ErrList
			}
			group, word = false, true
			for len(l.in) > 0 && l.last().Kind != Comma {
				l.copy()
			}
			if len(l.in) > 0 {
				l.copy()
			}
		case Right:
			l.end(true)
			if !l.angle() {
				return ErrList
			}
			word = false
		case Atom, Quoted, Literal:
			if !word {
				l.end(true)
			}
			word = false
			l.take()
		case Comment: // is a blank to the grammar
			l.copy()
		case Comma:
			l.end(false)
			word = true
			l.copy()
		default:
			word = true
			l.take()
		}
	}
	l.end(false)
	return nil
}

func (l *list) last() Token { return l.in[len(l.in)-1] }

// copy moves a token to the output, take to the address.
func (l *list) copy() {
	l.out = append(l.out, l.last())
	l.in = l.in[:len(l.in)-1]
}

func (l *list) take() {
	l.address = append(l.address, l.last())
	l.in = l.in[:len(l.in)-1]
}

// end ends the pending address, if there is one; comma says whether one must stand before what follows.
func (l *list) end(comma bool) {
	if len(l.address) == 0 {
		return
	}
	l.found()
	if comma {
		l.out = append(l.out, Token{Kind: Comma})
	}
}

// angle reads from a right angle bracket to its left one and the phrase before that. What is between the
// brackets is an address even when it is empty.
func (l *list) angle() bool {
	l.in = l.in[:len(l.in)-1]
	for len(l.in) > 0 && l.last().Kind != Left {
		if l.last().Kind == Comment {
			l.copy()
		} else {
			l.take()
		}
	}
	l.out = append(l.out, Token{Kind: Right})
	l.found()
	if len(l.in) == 0 {
		return false
	}
	l.copy()
	for len(l.in) > 0 && isPhrase(l.last().Kind) {
		l.copy()
	}
	return true
}

func isPhrase(k Kind) bool {
	return k == Comment || k == Atom || k == Quoted || k == At || k == Dot
}

func (l *list) found() {
	slices.Reverse(l.address)
	address := l.rewrite(l.address)
	for i := len(address) - 1; i >= 0; i-- {
		l.out = append(l.out, address[i])
	}
	l.address = l.address[:0]
}
