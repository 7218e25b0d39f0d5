package header

// width is the longest line Append writes where it can choose, in columns; a single address may be longer.
const width = 78

// Append writes a field: its name, a colon, tokens, a newline. It breaks lines only after commas, and only
// where the next item would pass column 78; continuation lines begin with two blanks.
func Append(dst []byte, name string, tokens []Token) []byte {
	dst = append(dst, name...)
	dst = append(dst, ':')
	line := 0 // where the line begins
	if i := lastNewline(dst); i >= 0 {
		line = i + 1
	}
	last := Colon
	item := len(dst) // where the item begins: at the blank before it
	first := true
	for _, t := range tokens {
		if spaced(last, t.Kind) {
			dst = append(dst, ' ')
		}
		dst = appendToken(dst, t)
		last = t.Kind
		if t.Kind == Comma {
			dst, line = fold(dst, line, item, first)
			item, first = len(dst), false
		}
	}
	if item < len(dst) {
		dst, _ = fold(dst, line, item, first)
	}
	return append(dst, '\n')
}

// fold puts the item that dst ends with on a line of its own if it does not fit on the line it is on.
func fold(dst []byte, line, item int, first bool) ([]byte, int) {
	if first || len(dst)-line <= width {
		return dst, line
	}
	dst = append(dst, 0, 0)
	copy(dst[item+2:], dst[item:])
	dst[item], dst[item+1] = '\n', ' ' // and the blank that was there
	return dst, item + 1
}

func lastNewline(b []byte) int {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == '\n' {
			return i
		}
	}
	return -1
}

// spaced reports whether a blank stands between two tokens.
func spaced(left, right Kind) bool {
	return left == Colon || left == Comma || right == Left || isText(left) && isText(right)
}

func isText(k Kind) bool {
	return k == Atom || k == Quoted || k == Literal || k == Comment
}

func appendToken(dst []byte, t Token) []byte {
	switch t.Kind {
	case Atom:
		return appendText(dst, t.Text)
	case Quoted:
		return append(appendText(append(dst, '"'), t.Text), '"')
	case Literal:
		return append(appendText(append(dst, '['), t.Text), ']')
	case Comment:
		return append(appendText(append(dst, '('), t.Text), ')')
	}
	return append(dst, byte(t.Kind))
}

// appendText quotes what has a meaning inside strings. A line end that no blank follows would begin a new
// field, or end the header: it becomes a blank.
func appendText(dst []byte, text string) []byte {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch c {
		case '\n':
			if i+1 == len(text) || text[i+1] != ' ' && text[i+1] != '\t' {
				c = ' '
				break
			}
			dst = append(dst, '\\')
		case '"', '[', ']', '(', ')', '\\', '\r':
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return dst
}
