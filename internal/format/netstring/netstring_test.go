package netstring

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestCut(t *testing.T) {
	tests := []struct {
		name, in  string
		limit     int64
		val, rest string
		err       error
	}{
		{"a value", "5:hello,rest", 100, "hello", "rest", nil},
		{"nothing is a value", "0:,", 0, "", "", nil},
		{"a value as long as the limit", "5:hello,", 5, "hello", "", nil},
		{"a value longer than the limit", "6:hello!,", 5, "", "", ErrTooLong},
		{"too long is known before it is there", "60", 5, "", "", ErrTooLong},
		{"a length with a leading zero", "05:hello,", 100, "", "", ErrSyntax},
		{"a length of zeros", "00:,", 100, "", "", ErrSyntax},
		{"no length", ":hello,", 100, "", "", ErrSyntax},
		{"a negative length", "-1:a,", 100, "", "", ErrSyntax},
		{"a plus sign", "+1:a,", 100, "", "", ErrSyntax},
		{"a blank before the length", " 1:a,", 100, "", "", ErrSyntax},
		{"a hexadecimal length", "0x1:a,", 100, "", "", ErrSyntax},
		{"a NUL in the length", "1\x00:a,", 100, "", "", ErrSyntax},
		{"no colon", "1a,", 100, "", "", ErrSyntax},
		{"something else in place of the comma", "1:a;", 100, "", "", ErrSyntax},
		{"a length that would wrap around 64 bits", "18446744073709551617:a,", 1<<63 - 1, "", "", ErrTooLong},
		{"more digits than any number has", strings.Repeat("1", 10000), 1<<63 - 1, "", "", ErrTooLong},
		{"a length cut short", "12", 100, "", "", io.ErrUnexpectedEOF},
		{"a value cut short", "5:hel", 100, "", "", io.ErrUnexpectedEOF},
		{"the comma is missing at the end", "5:hello", 100, "", "", io.ErrUnexpectedEOF},
		{"nothing", "", 100, "", "", io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			val, rest, err := Cut([]byte(tt.in), tt.limit)
			if string(val) != tt.val || string(rest) != tt.rest || !errors.Is(err, tt.err) {
				t.Errorf("Cut(%.40q, %d) = %q, %q, %v", tt.in, tt.limit, val, rest, err)
			}
		})
	}
}

func TestSizeIsWhatAppendWrites(t *testing.T) {
	for _, n := range []int{0, 1, 9, 10, 11, 99, 100, 12345} {
		if got := Append(nil, make([]byte, n)); int64(len(got)) != Size(int64(n)) {
			t.Errorf("Size(%d) = %d, want %d", n, Size(int64(n)), len(got))
		}
	}
}

// FuzzCut: Cut accepts exactly what Append writes, allocates nothing, and a Length that gets its input in two
// pieces comes to the same.
func FuzzCut(f *testing.F) {
	f.Add([]byte("05:hello,"), 1)
	f.Add([]byte("5:hello,1:a,"), 2)
	f.Add([]byte("18446744073709551617:a,"), 5)
	f.Fuzz(func(t *testing.T, in []byte, at int) {
		val, rest, err := Cut(in, 1<<20)
		if err == nil && !bytes.Equal(append(Append(nil, val), rest...), in) {
			t.Errorf("%q is a second spelling of %q", in, val)
		}
		if err == io.ErrUnexpectedEOF && len(in) > 1<<20+10 {
			t.Errorf("%d bytes and not enough", len(in))
		}
		var whole, halves Length
		n, err := whole.Read(in, 1<<20)
		at = min(max(at, 0), len(in))
		k, err2 := halves.Read(in[:at], 1<<20)
		if err2 == nil {
			var more int
			more, err2 = halves.Read(in[at:], 1<<20)
			k += more
		}
		if n != k || err != err2 || whole != halves {
			t.Errorf("%q in one piece: %d, %v, %+v; cut at %d: %d, %v, %+v", in, n, err, whole, at, k, err2, halves)
		}
	})
}
