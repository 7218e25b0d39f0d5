package ipc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	a, b, err := LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	deadline := time.Now().Add(10 * time.Second)
	a.SetReadDeadline(deadline)
	b.SetReadDeadline(deadline)
	return a, b
}

func TestFramesArriveWhole(t *testing.T) {
	a, b := pair(t)
	const writers, each = 8, 300
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				body := bytes.Repeat([]byte{byte(w)}, i*37)
				if err := a.Send('B', uint32(w), body[:len(body)/2], body[len(body)/2:]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	next := map[uint32]int{}
	for range writers * each {
		f, err := b.Read()
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte{byte(f.Stream)}, next[f.Stream]*37)
		if f.Kind != 'B' || !bytes.Equal(f.Payload, want) {
			t.Fatalf("stream %d frame %d: %d bytes", f.Stream, next[f.Stream], len(f.Payload))
		}
		next[f.Stream]++
	}
	wg.Wait()
}

func TestSendAllKeepsTogether(t *testing.T) {
	a, b := pair(t)
	go func() {
		for i := range 100 {
			go a.Send('x', 0)
			a.SendAll(uint32(i+1), Message{'E', [][]byte{{1}}}, Message{'B', nil}, Message{'D', nil})
		}
	}()
	for n := 0; n < 100; {
		f, err := b.Read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == 'x' {
			continue
		}
		for _, kind := range []byte{'B', 'D'} {
			g, err := b.Read()
			if err != nil || g.Kind != kind || g.Stream != f.Stream {
				t.Fatalf("%c of %d, %v; want %c of %d", g.Kind, g.Stream, err, kind, f.Stream)
			}
		}
		n++
	}
}

func TestFilesTravelWithTheirFrame(t *testing.T) {
	a, b := pair(t)
	for i := range 20 {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(f, i)
		go func() {
			a.Send('n', uint32(i), make([]byte, 100))
			a.SendFile('f', uint32(i), f, []byte("here"))
			a.Send('n', uint32(i))
			f.Close()
		}()
		for _, kind := range []byte("nfn") {
			got, err := b.Read()
			if err != nil || got.Kind != kind || (got.File != nil) != (kind == 'f') {
				t.Fatalf("%c %v %v, want %c", got.Kind, got.File, err, kind)
			}
			if got.File == nil {
				continue
			}
			text := make([]byte, 10)
			n, _ := got.File.ReadAt(text, 0)
			got.File.Close()
			if string(text[:n]) != fmt.Sprint(i) {
				t.Errorf("descriptor %d reads %q", i, text[:n])
			}
		}
	}
}

// raw gives the bytes side of a connection whose other side is a Conn.
func raw(t *testing.T) (Stream, *Conn) {
	t.Helper()
	a, b := pair(t)
	return a.stream, b
}

func header(size uint32, kind, flags byte) []byte {
	h := binary.BigEndian.AppendUint32(nil, size)
	return append(h, kind, flags, 0, 0, 0, 0)
}

func TestALyingPeerIsDropped(t *testing.T) {
	file := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	tests := []struct {
		name  string
		bytes []byte
		file  *os.File
		close bool
		want  error
	}{
		{"a payload over the maximum", header(MaxPayload+1, 'B', 0), nil, false, ErrFrame},
		{"an enormous payload", header(1<<32-1, 'B', 0), nil, false, ErrFrame},
		{"an unknown flag", header(0, 'B', 2), nil, false, ErrFrame},
		{"a descriptor announced that does not come", header(0, 'B', 1), nil, false, ErrFrame},
		{"a descriptor that nothing announced", header(0, 'B', 0), file(), false, ErrFrame},
		{"half a header", header(0, 'B', 0)[:5], nil, true, io.ErrUnexpectedEOF},
		{"half a payload", append(header(10, 'B', 0), 1, 2), nil, true, io.ErrUnexpectedEOF},
		{"nothing", nil, nil, true, io.EOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, c := raw(t)
			if len(tt.bytes) > 0 {
				if err := s.Write(tt.bytes, tt.file); err != nil {
					t.Fatal(err)
				}
			}
			if tt.close {
				s.Close()
			}
			if f, err := c.Read(); !errors.Is(err, tt.want) {
				t.Errorf("got %+v %v, want %v", f, err, tt.want)
			}
			if err := c.Send('x', 0); err == nil {
				t.Error("the connection still sends")
			}
		})
	}
}

func TestPostNeverWaits(t *testing.T) {
	a, b := pair(t)
	posted := 0
	for a.Post('x', uint32(posted), make([]byte, 1000)) == nil {
		posted++
		if posted > 3*maxPending/1000 {
			t.Fatal("a peer that reads nothing was given all that")
		}
	}
	if posted < maxPending/1100 {
		t.Errorf("lost after %d frames", posted)
	}
	if _, err := b.Read(); err != nil {
		t.Errorf("what was written before is lost: %v", err)
	}
}

func TestPostKeepsOrder(t *testing.T) {
	a, b := pair(t)
	go func() {
		for i := range uint32(2000) {
			if i%3 == 0 {
				a.Send('x', i)
			} else {
				a.Post('x', i)
			}
		}
	}()
	for i := range uint32(2000) {
		if f, err := b.Read(); err != nil || f.Stream != i {
			t.Fatalf("%d: %+v %v", i, f, err)
		}
	}
}

func TestSendAfterPeerIsGone(t *testing.T) {
	a, b := pair(t)
	b.Close()
	var err error
	for range 100 {
		if err = a.Send('x', 0, make([]byte, 1000)); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("sending to nobody succeeded for ever")
	}
}

func TestLongSocketPaths(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 90), strings.Repeat("e", 90))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds a stale socket
		ln, err := Listen(dir+"/s", 0o666)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := ln.AcceptUnix(); err == nil {
				defer c.Close()
				New(Unix(c)).Send('x', 1, []byte("hi"))
			}
		}()
		c, err := Dial(dir+"/s", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := PeerOf(c); err != nil || p.UID != os.Getuid() || p.PID != os.Getpid() {
			t.Errorf("%+v %v", p, err)
		}
		groups, err := PeerGroups(c)
		if mine, merr := os.Getgroups(); err != nil || merr != nil || !slices.Equal(groups, mine) {
			t.Errorf("groups %v %v, want %v", groups, err, mine)
		}
		if f, err := New(Unix(c)).Read(); err != nil || string(f.Payload) != "hi" {
			t.Errorf("%q %v", f.Payload, err)
		}
		ln.Close()
	}
}

func FuzzRead(f *testing.F) { // whatever comes, a frame or an error, never more bytes than were sent
	f.Add(append(header(3, 'B', 0), "abc"...))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b, err := LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		go func() { a.stream.Write(in, nil); a.Close() }()
		used := 0
		for {
			fr, err := b.Read()
			if err != nil {
				break
			}
			used += headerSize + len(fr.Payload)
		}
		if used > len(in) {
			t.Fatalf("%d bytes of frames from %d", used, len(in))
		}
	})
}

func BenchmarkSend(b *testing.B) {
	x, y, err := LocalPair()
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 4096)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	go func() {
		for range b.N {
			x.Send('B', 1, body)
		}
	}()
	for range b.N {
		if _, err := y.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
