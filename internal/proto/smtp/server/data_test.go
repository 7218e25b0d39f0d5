package server

import (
	"bytes"
	"strings"
	"testing"
)

// reference is what RFC 5321 says in as few lines as it can be said: the message ends at the first
// CRLF . CRLF, the start counting as a CRLF; what is before it has CRLF line ends and no other CR, LF or NUL.
func reference(in string) (stored string, used int, bare, end bool) {
	i := strings.Index("\r\n"+in, "\r\n.\r\n")
	if i < 0 {
		return "", 0, false, false
	}
	lines := strings.SplitAfter(in[:i], "\r\n")
	for n, line := range lines {
		lines[n] = strings.TrimPrefix(line, ".")
	}
	stored = strings.Join(lines, "")
	bare = strings.ContainsAny(strings.ReplaceAll(in[:i], "\r\n", ""), "\r\n\x00")
	return strings.ReplaceAll(stored, "\r\n", "\n"), i + 3, bare, true
}

// decode feeds in to a decoder in pieces, whose sizes cuts gives in turn.
func decode(d *Decoder, in []byte, cuts []byte) (stored []byte, used int, end bool) {
	for i := 0; used < len(in) && !end; i++ {
		size := len(in) - used
		if len(cuts) > 0 {
			size = min(size, int(cuts[i%len(cuts)])%7+1)
		}
		piece := bytes.Clone(in[used : used+size])
		s, n, e := d.Decode(piece)
		stored = append(stored, s...)
		used += n
		if end = e; !end && n != size {
			panic("a block was not used up")
		}
	}
	return stored, used, end
}

func checkDecoder(t *testing.T, in string, cuts []byte) {
	var d Decoder
	got, used, end := decode(&d, []byte(in), cuts)
	want, wantUsed, bare, wantEnd := reference(in)
	if end != wantEnd {
		t.Fatalf("%q: end %v, want %v", in, end, wantEnd)
	}
	if !end {
		return
	}
	if used != wantUsed || d.Bare != bare || !bare && (string(got) != want || d.Size != int64(len(want))) {
		t.Fatalf("%q: %q (%d) after %d bytes, bare %v; want %q after %d, bare %v", in, got, d.Size, used, d.Bare, want, wantUsed, bare)
	}
}

// TestEveryShortMessage decodes all 488,280 strings over CR, LF, NUL, dot and a letter up to length 8, each
// with its true end put behind it, whole and byte by byte.
func TestEveryShortMessage(t *testing.T) {
	const alphabet = "\r\n\x00.a"
	n := 0
	var all func(prefix []byte, left int)
	all = func(prefix []byte, left int) {
		if len(prefix) > 0 {
			n++
			in := string(prefix) + "\r\n.\r\nQUIT\r\n"
			checkDecoder(t, in, nil)
			checkDecoder(t, in, []byte{0})
		}
		if left > 0 {
			for i := range len(alphabet) {
				all(append(prefix, alphabet[i]), left-1)
			}
		}
	}
	all(make([]byte, 0, 8), 8)
	if n != 488280 {
		t.Fatalf("%d strings", n)
	}
}

// TestEveryShortMessageInASession sends those up to length 5 through a session: one message or a refusal,
// and what follows the true end is read as commands only after a message that was well formed.
func TestEveryShortMessageInASession(t *testing.T) {
	const alphabet = "\r\n\x00.a"
	var all func(prefix string, left int)
	all = func(prefix string, left int) {
		q := &memoryQueue{}
		body := prefix + "\r\n.\r\n"
		want, used, bare, _ := reference(body)
		got := codes(t, play(t, newServer(q), ehlo+from+to+"DATA\r\n", body+"NOOP\r\n"))
		wantCodes := "220, 250, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0"
		if bare {
			wantCodes = "220, 250, 250 2.1.0, 250 2.1.5, 354, 550 5.6.0"
		}
		if !strings.HasPrefix(got, wantCodes) || bare && got != wantCodes || !bare && used == len(body) && got != wantCodes+", 250 2.0.0" {
			t.Fatalf("%q: %s, want %s", prefix, got, wantCodes)
		}
		if bare != (len(q.messages) == 0) || !bare && (len(q.messages) != 1 || !strings.HasSuffix(q.messages[0].body, "-0000\n"+want)) {
			t.Fatalf("%q: queued %q", prefix, q.messages)
		}
		if left > 0 {
			for i := range len(alphabet) {
				all(prefix+alphabet[i:i+1], left-1)
			}
		}
	}
	all("", 5)
}

func TestHopsAreHeaderFields(t *testing.T) {
	tests := []struct {
		name, in string
		hops     int
	}{
		{"both fields, in any case", "Received: a\r\nDELIVERED-to: b\r\n\r\n", 2},
		{"folded", "Received:\r\n from a\r\n\tby b\r\nreceived:c\r\n\r\n", 2},
		{"blanks before the colon", "Received : a\r\nDelivered-To\t:b\r\n\r\n", 2},
		{"other fields", "Received-SPF: a\r\nReceive: b\r\nX-Received: c\r\n Received: d\r\n\r\n", 0},
		{"without a colon", "Received a\r\nDelivered-To\r\n\r\n", 0},
		{"the body", "Subject: x\r\n\r\nReceived: a\r\n", 0},
		{"behind a stuffed dot", ".Received: a\r\n\r\n", 1},
		{"no body", "Received: a\r\n", 1},
	}
	for _, tt := range tests {
		for _, cuts := range [][]byte{nil, {0}, {2}, {4, 1}} {
			var d Decoder
			decode(&d, []byte(tt.in+".\r\n"), cuts)
			if d.Hops != tt.hops {
				t.Errorf("%s, cut at %v: %d hops, want %d", tt.name, cuts, d.Hops, tt.hops)
			}
		}
	}
}

// However the bytes come, the decoder does what the reference does.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte("a\r\n..b\r\n.\r\nx"), []byte{1, 2})
	f.Add([]byte("\r\r\n.\r\n"), []byte{0})
	f.Add([]byte("Received: a\r\n\r\n\n.\r\n"), []byte{3})
	f.Fuzz(func(t *testing.T, in, cuts []byte) {
		checkDecoder(t, string(in), cuts)
		checkDecoder(t, string(in)+"\r\n.\r\n", cuts)
	})
}

func BenchmarkDecoder(b *testing.B) {
	in := []byte(strings.Repeat(strings.Repeat("x", 70)+"\r\n", 57) + ".\r\n")
	work := make([]byte, len(in))
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for range b.N {
		copy(work, in)
		var d Decoder
		if _, _, end := d.Decode(work); !end {
			b.Fatal("no end")
		}
	}
}
