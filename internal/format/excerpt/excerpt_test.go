package excerpt

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	tests := []struct {
		name, message string
		limit         int
		want          string
	}{
		{"subject, then body", "From: a\nSubject: hi\n there\n\nLine 1\n\nline  2\n", 80, "hi there Line 1 line 2"},
		{"cut", "Subject: 0123456789\n\nbody\n", 12, "0123456789 b"},
		{"not in the middle of a character", "Subject: 0123456é\n\n", 8, "0123456"},
		{"no subject", "\nbody\n", 80, "body"},
		{"nothing", "", 80, ""},
		{"no orders for the terminal", "Subject: \x1b[2Jx\x07\xff\n\n\x9b1m\u009b\n", 80, "?[2Jx?? ?1m?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Text([]byte(tt.message), tt.limit); got != tt.want {
				t.Errorf("%q", got)
			}
		})
	}
}

// FuzzText: it is short, UTF-8, and printable.
func FuzzText(f *testing.F) {
	f.Add([]byte("Subject: \x1b[1m\xc3\n\nx"), 5)
	f.Fuzz(func(t *testing.T, message []byte, limit int) {
		limit = max(limit%200, 0)
		got := Text(message, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q", got)
		}
	})
}
