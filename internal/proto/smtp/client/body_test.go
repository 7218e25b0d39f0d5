package client

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// encode encodes stored in blocks of n bytes.
func encode(stored []byte, n int) []byte {
	var e encoder
	var out []byte
	for b := stored; len(b) > 0; {
		k := min(n, len(b))
		out = e.append(out, b[:k])
		b = b[k:]
	}
	return e.finish(out)
}

// decode is the server's side, as RFC 5321 4.5.2 and 2.3.8 have it and no laxer: the lines of the message,
// and what stands behind the end of the data.
func decode(wire []byte) (lines []string, rest []byte, err error) {
	for {
		i := bytes.IndexByte(wire, '\n')
		if i < 0 {
			return lines, nil, fmt.Errorf("no end of data; %q is left", wire)
		}
		if i == 0 || wire[i-1] != '\r' {
			return nil, nil, fmt.Errorf("a bare LF after %q", wire[:i])
		}
		line := string(wire[:i-1])
		wire = wire[i+1:]
		if strings.ContainsAny(line, "\r") {
			return nil, nil, fmt.Errorf("a bare CR in %q", line)
		}
		if line == "." {
			return lines, wire, nil
		}
		lines = append(lines, strings.TrimPrefix(line, "."))
	}
}

// storedLines are the lines of a stored message, by a reading as plain as can be.
func storedLines(stored []byte) []string {
	s := strings.ReplaceAll(string(stored), "\r\n", "\n")
	s = strings.ReplaceAll(s, "\r", "\n")
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// checkBody is the law: whatever is stored, in whatever blocks, the server reads its lines, then exactly one
// end, then nothing.
func checkBody(t *testing.T, stored []byte, blocks ...int) {
	t.Helper()
	wire := encode(stored, len(stored)+1)
	lines, rest, err := decode(wire)
	if err != nil || len(rest) > 0 {
		t.Fatalf("%q: %v, and behind the end %q", stored, err, rest)
	}
	if want := storedLines(stored); !slices.Equal(lines, want) {
		t.Fatalf("%q: %q, want %q", stored, lines, want)
	}
	for _, n := range blocks {
		if got := encode(stored, n); !bytes.Equal(got, wire) {
			t.Fatalf("%q in blocks of %d: %q, want %q", stored, n, got, wire)
		}
	}
}

func TestEveryShortBodyIsOneMessage(t *testing.T) {
	const alphabet = "\r\n\x00.a"
	var walk func(stored []byte)
	count := 0
	walk = func(stored []byte) {
		checkBody(t, stored, 1, 2, 3)
		count++
		if len(stored) == 7 {
			return
		}
		for i := range len(alphabet) {
			walk(append(stored[:len(stored):len(stored)], alphabet[i]))
		}
	}
	walk(nil)
	if count != 97656 { // 1 + 5 + ... + 5^7
		t.Errorf("%d bodies", count)
	}
}

func FuzzBody(f *testing.F) { // law: see checkBody
	for _, s := range []string{"", "a", "\r.\n", "a\r\n.\r\n", "\r\r\n.", ".\r", "..\n", "Subject: x\n\nhello\r.\nMAIL FROM:<>\n"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, stored []byte, block int) {
		checkBody(t, stored, 1+(block&0x7fff))
	})
}

func TestHeaderOf(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "\nbody": "", "A: b\n\nbody\n\nx": "A: b", "A: b\n": "A: b\n", "A: b\r\n\r\nbody": "A: b\r", "A: b\n\r\nx\n\ny": "A: b",
	} {
		if got := string(headerOf([]byte(in))); got != want {
			t.Errorf("headerOf(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHighBytes(t *testing.T) {
	for n := range 40 {
		b := bytes.Repeat([]byte{0x7f}, n)
		if hasHighByte(b) {
			t.Errorf("found in %d ASCII bytes", n)
		}
		for i := range b {
			b[i] |= 0x80
			if !hasHighByte(b) {
				t.Errorf("byte %d of %d not found", i, n)
			}
			b[i] &= 0x7f
		}
	}
}

func TestBodiesOfAnySizeStream(t *testing.T) {
	for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 3*blockSize + 5} {
		for _, fill := range []string{"\n", ".\n", "\r", "x", "hello\r\n", strings.Repeat("y", 70) + "\n"} {
			stored := bytes.Repeat([]byte(fill), size/len(fill)+1)[:size]
			for _, head := range []int{0, size / 2, size} {
				body := Body{Head: stored[:head], Rest: bytes.NewReader(stored[head:]), Size: int64(size)}
				if head == size {
					body.Rest = nil
				}
				s := startSink(t, map[string]string{})
				r := s.client(t).Deliver(&Message{Recipients: []string{"u@far.example"}, Body: body})
				if r.Message.Letter != 'K' {
					t.Fatalf("%d bytes of %q: %+v", size, fill, r)
				}
				lines, _, err := decode(append(s.take(), ".\r\n"...))
				if want := storedLines(stored); err != nil || strings.Join(lines, "\n") != strings.Join(want, "\n") {
					t.Fatalf("%d bytes of %q with a head of %d: %d lines, want %d; %v", size, fill, head, len(lines), len(want), err)
				}
			}
		}
	}
}

func BenchmarkEncode4K(b *testing.B) {
	stored := bytes.Repeat([]byte(strings.Repeat("x", 63)+"\n"), 64)
	out := make([]byte, 0, 16<<10)
	b.SetBytes(int64(len(stored)))
	b.ReportAllocs()
	for b.Loop() {
		var e encoder
		out = e.finish(e.append(out[:0], stored))
	}
	if _, err := io.Discard.Write(out); err != nil {
		b.Fatal(err)
	}
}
