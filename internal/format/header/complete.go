package header

import "slices"

// Completion is how addresses without a full host are completed. Its parts are tokens, as Tokenize makes
// them of the control files defaulthost, defaultdomain and plusdomain.
type Completion struct {
	Host, Domain, Plus []Token
}

// Complete rewrites one address as qmail-inject does, in this order: a source route is dropped, then a dot
// at the end, then an @ at the end; without an @ the host is added; a + at the end of the host is replaced by
// the plus domain; a host without a dot gets the default domain. An empty address, and one at the host
// "[]", stay as they are. The result may share memory with address.
func (c *Completion) Complete(address []Token) []Token {
	n := len(address)
	if n == 0 || n >= 2 && address[n-1] == (Token{Literal, ""}) && address[n-2].Kind == At {
		return address
	}
	if address[0].Kind == At {
		address = dropRoute(address)
	}
	address = dropLast(address, Dot)
	address = dropLast(address, At)
	if len(address) == 0 {
		return address
	}
	if !slices.ContainsFunc(address, func(t Token) bool { return t.Kind == At }) {
		address = append(append(slices.Clip(address), Token{Kind: At}), c.Host...)
	}
	if last := &address[len(address)-1]; last.Kind == Atom && last.Text != "" && last.Text[len(last.Text)-1] == '+' {
		address = slices.Clone(address) // the host's tokens may be ours to read only
		n := len(address) - 1
		address[n].Text = address[n].Text[:len(address[n].Text)-1]
		if address[n].Text == "" {
			address = address[:n]
		}
		address = append(append(address, Token{Kind: Dot}), c.Plus...)
	}
	if bareHost(address) {
		address = append(append(slices.Clip(address), Token{Kind: Dot}), c.Domain...)
	}
	return address
}

func dropRoute(address []Token) []Token {
	i := slices.IndexFunc(address, func(t Token) bool { return t.Kind == Colon })
	if i < 0 {
		return nil
	}
	return address[i+1:]
}

func dropLast(address []Token, kind Kind) []Token {
	if n := len(address); n > 0 && address[n-1].Kind == kind {
		return address[:n-1]
	}
	return address
}

// bareHost reports whether there is neither a dot nor a literal behind the last @.
func bareHost(address []Token) bool {
	for i := len(address) - 1; i >= 0; i-- {
		switch address[i].Kind {
		case Dot, Literal:
			return false
		case At:
			return true
		}
	}
	return true
}
