package date822

import (
	"testing"
	"time"
)

func TestFormat(t *testing.T) {
	tests := []struct {
		in   time.Time
		want string
	}{
		{time.Date(2026, 11, 23, 3, 58, 18, 0, time.UTC), "23 Nov 2026 03:58:18 -0000"},
		{time.Date(2027, 1, 1, 0, 30, 5, 0, time.FixedZone("", 3600)), "31 Dec 2026 23:30:05 -0000"},
		{time.Date(1999, 2, 9, 10, 0, 0, 0, time.UTC), "9 Feb 1999 10:00:00 -0000"},
	}
	for _, tt := range tests {
		if got := Format(tt.in); got != tt.want {
			t.Errorf("Format(%v) = %q, want %q", tt.in, got, tt.want)
		}
	}
}
