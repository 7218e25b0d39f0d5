package text0

import (
	"bytes"
	"testing"
)

func TestCut(t *testing.T) {
	tests := []struct {
		name, in    string
		letter      byte
		value, rest string
		err         error
	}{
		{"one record", "Fa@b\x00", 'F', "a@b", "", nil},
		{"an empty value", "F\x00T\x00", 'F', "", "T\x00", nil},
		{"no NUL", "Fa@b", 0, "", "Fa@b", ErrCut},
		{"no letter", "\x00x", 0, "", "\x00x", ErrEmpty},
		{"nothing", "", 0, "", "", ErrCut},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, v, r, err := Cut([]byte(tt.in))
			if l != tt.letter || string(v) != tt.value || string(r) != tt.rest || err != tt.err {
				t.Errorf("Cut = %c %q %q %v", l, v, r, err)
			}
		})
	}
}

func TestInt(t *testing.T) {
	for in, ok := range map[string]bool{"0": true, "-5": true, "17": true, "017": false, "+1": false, "": false, "1x": false, "99999999999999999999": false} {
		if _, err := Int([]byte(in)); (err == nil) != ok {
			t.Errorf("Int(%q): %v", in, err)
		}
	}
}

func TestAppendRefusesNUL(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a NUL was written")
		}
	}()
	Append(nil, 'T', "a\x00b")
}

func FuzzCut(f *testing.F) { // Cut accepts exactly what Append writes
	f.Add([]byte("Fa\x00Tb\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		l, v, rest, err := Cut(in)
		if err == nil && !bytes.Equal(append(Append(nil, l, string(v)), rest...), in) {
			t.Errorf("%q does not come back", in)
		}
	})
}
