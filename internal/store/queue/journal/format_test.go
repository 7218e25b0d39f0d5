package journal

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"

	"qmail/internal/store/queue"
)

func TestRuns(t *testing.T) {
	tests := []struct {
		name string
		in   []uint32
		want []uint32
	}{
		{"one", []uint32{0}, []uint32{0}},
		{"a run", []uint32{3, 4, 5}, []uint32{3, 4, 5}},
		{"two runs", []uint32{0, 1, 7}, []uint32{0, 1, 7}},
		{"out of order and twice", []uint32{9, 2, 2, 1, 9}, []uint32{1, 2, 9}},
		{"the largest", []uint32{0, math.MaxUint32}, []uint32{0, math.MaxUint32}},
		{"the two largest", []uint32{math.MaxUint32 - 1, math.MaxUint32}, []uint32{math.MaxUint32 - 1, math.MaxUint32}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := runs(makeRuns(nil, tt.in))
			if !r.valid() {
				t.Fatal("not valid")
			}
			var got []uint32
			for rest, from := r, uint64(0); len(rest) > 0; {
				first, last, next, _ := rest.step(from)
				for i := first; i <= last; i++ {
					got = append(got, uint32(i))
				}
				rest, from = next, last+1
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestACloseOfManyIsShort(t *testing.T) {
	all := make([]uint32, 100_000)
	for i := range all {
		all[i] = uint32(i)
	}
	if n := len(makeRuns(nil, all)); n > 8 {
		t.Errorf("%d bytes", n)
	}
}

func FuzzRuns(f *testing.F) { // whatever is valid reads as a set below the limit, and writes to the same set
	f.Add([]byte{0, 0, 5, 3}, uint32(100))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}, uint32(7))
	f.Fuzz(func(t *testing.T, b []byte, limit uint32) {
		r, limit := runs(b), limit%10_000
		var got []uint32
		r.each(limit, func(i uint32) { got = append(got, i) })
		if !r.valid() {
			return
		}
		for i, n := range got {
			if n >= limit || i > 0 && n <= got[i-1] {
				t.Fatalf("%d after %v", n, got[:i])
			}
		}
		var again []uint32
		runs(makeRuns(nil, got)).each(limit, func(i uint32) { again = append(again, i) })
		if !slices.Equal(got, again) {
			t.Fatalf("%v reads back as %v", got, again)
		}
	})
}

func someItems() []item {
	return []item{
		{kind: kindAccept, id: 5, birth: 7, recipients: 2, envelope: []byte("Fa\x00Tb\x00Tc\x00"), length: 9, size: 4, sum: checksum([]byte("body"))},
		{kind: kindAccept, id: 6, flags: flagFile, birth: -7, recipients: 1, envelope: []byte("F\x00Tb\x00"), length: 5, size: 1 << 40, sum: 9},
		{kind: kindClose, id: 5, outcome: queue.Bounced, as: 6, who: makeRuns(nil, []uint32{1})},
		{kind: kindNote, id: 6, next: 99, who: makeRuns(nil, []uint32{0, 4}), text: []byte("no route")},
		{kind: kindHold, id: 6, flags: flagOn},
		{kind: kindClose, id: 6, outcome: queue.Delivered},
	}
}

// aFail is an item that other tests of whole segments need not count.
func aFail() item {
	return item{kind: kindFail, id: 6, outcome: queue.Expired, who: makeRuns(nil, []uint32{2}), text: []byte("no such box")}
}

func FuzzCut(f *testing.F) { // an item has one spelling
	for _, it := range append(someItems(), aFail()) {
		f.Add(it.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		it, rest, err := cut(b)
		if err != nil {
			return
		}
		if got := append(it.append(nil), rest...); !bytes.Equal(got, b) {
			t.Fatalf("%+v\nfrom %x\ninto %x", it, b, got)
		}
	})
}

func FuzzHeader(f *testing.F) { // what is read of a header is written again
	f.Add(header{seq: 3, stamp: 4, prevSeq: 2, prevEnd: 4096, nextID: 77}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == headerSize { // let the fuzzer past the checksum
			le.PutUint32(b[60:], checksum(b[:60]))
		}
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		again, err := parseHeader(h.room())
		if err != nil || again != h {
			t.Fatalf("%+v reads back as %+v, %v", h, again, err)
		}
	})
}

func FuzzTrailer(f *testing.F) { // what a trailer points at is in the file
	f.Add(trailer{seq: 3, stamp: 4, at: 8192, length: 10, end: 8190}.append(nil), int64(1<<20))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) == trailerSize { // let the fuzzer past the checksum
			le.PutUint32(b[60:], checksum(b[:60]))
		}
		tr, err := parseTrailer(b, header{seq: 3, stamp: 4}, size)
		if err != nil {
			return
		}
		if tr.at < headerRoom || tr.end > tr.at || tr.at+tr.length+trailerSize > size || tr.at+tr.length < 0 {
			t.Fatalf("%+v in a file of %d", tr, size)
		}
	})
}

func FuzzPages(f *testing.F) { // a footer never makes a panic, nor places outside of the records
	var foot []byte
	for i, it := range append(someItems(), aFail()) {
		foot = appendPage(foot, int64(headerRoom+i*1024), it.append(nil))
	}
	f.Add(foot, int64(1<<20))
	f.Fuzz(func(t *testing.T, b []byte, end int64) {
		pages(b, end, func(p place, it *item) error {
			if p.off < headerRoom || p.off+headSize+int64(p.meta) > end {
				t.Fatalf("%+v with the end at %d", p, end)
			}
			return nil
		})
	})
}

const testSeq, testStamp = 3, 0x1122334455667788

// image is a segment with records of items and bodies, and where each record begins.
func image(t testing.TB) (b []byte, at []int64) {
	t.Helper()
	b = header{seq: testSeq, stamp: testStamp}.room()
	for i, it := range someItems() {
		b = append(b, make([]byte, aligned(int64(len(b)))-int64(len(b)))...)
		at = append(at, int64(len(b)))
		o := &op{}
		o.start()
		o.rec = it.append(o.rec)
		o.finish()
		putHead(o.rec[align:], testSeq, testStamp, head{o.length, len(o.meta()), checksum(o.meta()), 77})
		b = append(b, o.rec[align:]...)
		if i == 0 {
			b = append(b, "body"...)
		}
	}
	return append(b, make([]byte, 1000)...), at
}

func scanned(b []byte) (found []string, end int64, damaged []span) {
	end, damaged = scan(b, testSeq, testStamp, func(_ place, meta []byte) { found = append(found, string(meta)) })
	return found, end, damaged
}

func TestScan(t *testing.T) {
	whole, at := image(t)
	all, end, damaged := scanned(whole)
	if len(all) != len(at) || len(damaged) != 0 || end <= at[len(at)-1] {
		t.Fatalf("%d records, end %d, damaged %v", len(all), end, damaged)
	}
	tests := []struct {
		name    string
		harm    func(b []byte) []byte
		want    []int
		damaged []span
	}{
		{"cut in the last record", func(b []byte) []byte { return b[:at[5]+20] }, []int{0, 1, 2, 3, 4}, nil},
		{"cut in the first", func(b []byte) []byte { return b[:at[0]+50] }, nil, nil},
		{"a bit in a body", func(b []byte) []byte { b[at[1]-6] ^= 1; return b }, []int{1, 2, 3, 4, 5}, []span{{at[0], at[1]}}},
		{"a bit in an item", func(b []byte) []byte { b[at[2]+headSize+9] ^= 1; return b }, []int{0, 1, 3, 4, 5}, []span{{at[2], at[3]}}},
		{"a length", func(b []byte) []byte { b[at[2]+2] ^= 1; return b }, []int{0, 1, 3, 4, 5}, []span{{at[2], at[3]}}},
		{"two in a row", func(b []byte) []byte { b[at[2]+2] ^= 1; b[at[3]+8] ^= 1; return b }, []int{0, 1, 4, 5}, []span{{at[2], at[4]}}},
		{"the last", func(b []byte) []byte { b[at[5]+headSize] ^= 1; return b }, []int{0, 1, 2, 3, 4}, nil},
		{"zeros in the middle", func(b []byte) []byte { clear(b[at[1]:at[4]]); return b }, []int{0, 4, 5}, []span{{at[1], at[4]}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, _, damaged := scanned(tt.harm(bytes.Clone(whole)))
			var want []string
			for _, i := range tt.want {
				want = append(want, all[i])
			}
			if !slices.Equal(found, want) || !slices.Equal(damaged, tt.damaged) {
				t.Errorf("%d records, want %d; damaged %v, want %v", len(found), len(want), damaged, tt.damaged)
			}
		})
	}
}

func TestRecordsOfAnotherUseAreNotRead(t *testing.T) {
	b, _ := image(t)
	for _, tt := range []struct {
		name       string
		seq, stamp uint64
	}{{"another number", testSeq + 1, testStamp}, {"another stamp", testSeq, testStamp + 1}} {
		n := 0
		if scan(b, tt.seq, tt.stamp, func(place, []byte) { n++ }); n > 0 {
			t.Errorf("%s: read %d records", tt.name, n)
		}
	}
}

// FuzzScan harms a segment anywhere: what is still read is what was written.
func FuzzScan(f *testing.F) {
	whole, _ := image(f)
	all, _, _ := scanned(whole)
	f.Add(uint16(4200), []byte{1}, uint16(60000))
	f.Add(uint16(4096), []byte(strings.Repeat("\xff", 64)), uint16(4700))
	f.Fuzz(func(t *testing.T, at uint16, xor []byte, size uint16) {
		b := bytes.Clone(whole)
		for i, x := range xor {
			if p := int(at) + i; p < len(b) {
				b[p] ^= x
			}
		}
		b = b[:min(int(size), len(b))]
		found, end, damaged := scanned(b)
		last := 0
		for _, meta := range found {
			i := slices.Index(all[last:], meta)
			if i < 0 {
				t.Fatalf("a record from nowhere: %x", meta)
			}
			last += i + 1
		}
		if end > max(int64(len(b)), headerRoom) {
			t.Fatalf("ends at %d of %d", end, len(b))
		}
		for _, d := range damaged {
			if d.from >= d.to || d.to > end {
				t.Fatalf("damaged %v, end %d", d, end)
			}
		}
	})
}
