package netstring

import (
	"bytes"
	"io"
	"testing"
)

// FuzzStream: however a netstring is cut into pieces, a Stream makes of it what Cut does.
func FuzzStream(f *testing.F) {
	f.Add([]byte("5:hello,rest"), 2)
	f.Add([]byte("0:,x"), 1)
	f.Add([]byte("5:hello;"), 3)
	f.Add([]byte("12:"), 1)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		const limit = 1 << 16
		size = max(size, 1)
		var s Stream
		var got []byte
		rest, done := in, false
		var err error
		for len(rest) > 0 && !done && err == nil {
			var piece []byte
			var n int
			piece, n, done, err = s.Next(rest[:min(size, len(rest))], limit)
			if n == 0 && err == nil {
				t.Fatalf("no progress in %q", rest)
			}
			got = append(got, piece...)
			rest = rest[n:]
		}
		val, after, want := Cut(in, limit)
		switch {
		case want == io.ErrUnexpectedEOF:
			if done || err != nil {
				t.Errorf("%q is not complete, but %v, %v", in, done, err)
			}
		case want != nil:
			if err != want {
				t.Errorf("%q: %v, want %v", in, err, want)
			}
		case !done || !bytes.Equal(got, val) || !bytes.Equal(rest, after):
			t.Errorf("%q: %q and %q, want %q and %q", in, got, rest, val, after)
		}
	})
}
