// Package date822 writes dates as qmail does in header fields (date822fmt.c).
package date822

import (
	"strings"
	"time"
)

var months = [...]string{"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"}

// Append writes "23 Nov 2026 03:58:18 -0000": UTC always, the day without a leading zero, no newline.
func Append(dst []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	if day >= 10 {
		dst = append(dst, byte('0'+day/10))
	}
	dst = append(dst, byte('0'+day%10), ' ')
	dst = append(dst, months[month-1]...)
	dst = append(dst, ' ', byte('0'+year/1000%10), byte('0'+year/100%10), byte('0'+year/10%10), byte('0'+year%10), ' ')
	dst = two(dst, hour)
	dst = append(dst, ':')
	dst = two(dst, minute)
	dst = append(dst, ':')
	dst = two(dst, second)
	return append(dst, " -0000"...)
}

func two(dst []byte, n int) []byte { return append(dst, byte('0'+n/10), byte('0'+n%10)) }

// Format is Append as a string.
func Format(t time.Time) string { return string(Append(nil, t)) }

// AppendLocal writes "23 Nov 2026 03:58:18 +0100": in t's own zone, of which minutes are written.
func AppendLocal(dst []byte, t time.Time) []byte {
	_, offset := t.Zone()
	utc := t.UTC().Add(time.Duration(offset) * time.Second) // what a clock on the wall shows, as if it were UTC
	dst = Append(dst, utc)
	dst = dst[:len(dst)-len("-0000")]
	sign := byte('+')
	if offset < 0 {
		sign, offset = '-', -offset
	}
	minutes := (offset + 30) / 60
	return two(two(append(dst, sign), minutes/60), minutes%60)
}

// Zone reads a zone as POSIX has it in TZ, such as "XST+5:30" or "CET-1CEST,M3.5.0,M10.5.0/3"; nil if tz is none,
// but perhaps the name of a zone.
func Zone(tz string) *time.Location {
	name, rest := tz, ""
	if i := strings.IndexAny(tz, "+-0123456789"); i >= 3 {
		name, rest = tz[:i], tz[i:]
	}
	if strings.HasPrefix(tz, "<") {
		if i := strings.IndexByte(tz, '>'); i > 0 {
			name, rest = tz[:i+1], tz[i+1:]
		}
	}
	rest = strings.TrimLeft(rest, "+-")
	if rest == "" || rest[0] < '0' || '9' < rest[0] || strings.ContainsAny(name, "/: \n") || strings.Contains(rest, "\n") {
		return nil
	}
	// The time package reads such rules only where they stand at the end of a zone file (RFC 8536). This is one
	// that says nothing else.
	const header = "TZif2" + "\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00"
	const counts = "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x01" + "\x00\x00\x00\x04"
	const zone = "\x00\x00\x00\x00" + "\x00" + "\x00" + "UTC\x00"
	l, err := time.LoadLocationFromTZData(tz, []byte(header+counts+zone+header+counts+zone+"\n"+tz+"\n"))
	if err != nil {
		return nil
	}
	return l
}

// In is t in the zone that the variable TZ names, else in this machine's.
func In(t time.Time, tz string) time.Time {
	if zone := Zone(tz); zone != nil {
		return t.In(zone)
	}
	return t.Local()
}
