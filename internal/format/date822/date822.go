// Package date822 writes dates as qmail does in header fields (date822fmt.c).
package date822

import "time"

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
