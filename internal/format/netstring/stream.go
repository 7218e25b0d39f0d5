package netstring

// Stream reads one netstring that comes in pieces, however large it is. Its zero value is ready to use.
type Stream struct {
	length Length
	left   int64
	done   bool
}

// Next takes what belongs to the netstring from the front of b: piece is content, in b's memory, n what was used
// up. done says that the netstring is complete, its comma included. The error is about the length, as soon as it is
// known to be over limit, or about the comma.
func (s *Stream) Next(b []byte, limit int64) (piece []byte, n int, done bool, err error) {
	if !s.length.Done() {
		if n, err = s.length.Read(b, limit); err != nil || !s.length.Done() {
			return nil, n, false, err
		}
		s.left = s.length.Value()
	}
	k := int(min(s.left, int64(len(b)-n)))
	piece = b[n : n+k]
	n += k
	s.left -= int64(k)
	if s.left == 0 && n < len(b) && !s.done {
		if b[n] != ',' {
			return piece, n, false, ErrSyntax
		}
		n++
		s.done = true
	}
	return piece, n, s.done, nil
}

// Length is the length of the content, and whether it is known yet.
func (s *Stream) Length() (n int64, known bool) { return s.length.Value(), s.length.Done() }

// Left is how much of the content is still to come.
func (s *Stream) Left() int64 { return s.left }
