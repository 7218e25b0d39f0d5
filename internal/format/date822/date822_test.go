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

func TestLocal(t *testing.T) {
	winter, summer := time.Unix(1767225600, 0), time.Unix(1782864000, 0) // 1 January and 1 July 2026, 0:00 UTC
	tests := []struct {
		tz   string
		t    time.Time
		want string
	}{
		{"UTC0", winter, "1 Jan 2026 00:00:00 +0000"},
		{"XST+5:30", winter, "31 Dec 2025 18:30:00 -0530"},
		{"<+0330>-3:30", winter, "1 Jan 2026 03:30:00 +0330"},
		{"CET-1CEST,M3.5.0,M10.5.0/3", winter, "1 Jan 2026 01:00:00 +0100"},
		{"CET-1CEST,M3.5.0,M10.5.0/3", summer, "1 Jul 2026 02:00:00 +0200"},
		{"EST5EDT", summer, "30 Jun 2026 20:00:00 -0400"},
		{"LMT-0:19:32", winter, "1 Jan 2026 00:19:32 +0020"},
	}
	for _, tt := range tests {
		zone := Zone(tt.tz)
		if zone == nil {
			t.Errorf("%s is no zone", tt.tz)
			continue
		}
		if got := string(AppendLocal(nil, tt.t.In(zone))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.tz, got, tt.want)
		}
	}
	for _, tz := range []string{"", "UTC", "Europe/Berlin", ":x", "5", "A5", "Etc/GMT+5", "EST5\nEDT"} {
		if Zone(tz) != nil {
			t.Errorf("%q is a zone", tz)
		}
	}
}
