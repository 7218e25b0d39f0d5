package journal

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

func TestASegmentNeedsWhatItsRecordsAnswer(t *testing.T) {
	accept := func(flags uint8) *item { return &item{kind: kindAccept, id: 9, recipients: 2, flags: flags} }
	tests := []struct {
		name string
		it   *item
	}{
		{"a close", &item{kind: kindClose, id: 9}},
		{"a close of one", &item{kind: kindClose, id: 9, who: makeRuns(nil, []uint32{1})}},
		{"a note", &item{kind: kindNote, id: 9, next: 1}},
		{"a hold", &item{kind: kindHold, id: 9, flags: flagOn}},
		{"a copy", accept(flagCopy)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := index{live: map[queue.ID]*entry{}}
			first, second := &segment{seq: 1}, &segment{seq: 2}
			x.fold(first, place{}, accept(0))
			x.fold(second, place{}, tt.it)
			if _, ok := second.deps[first]; !ok || len(first.deps) != 0 {
				t.Errorf("the second needs %v, the first %v", second.deps, first.deps)
			}
		})
	}
}

func TestWhoNeededAGoneSegmentNeedsWhatItNeeded(t *testing.T) {
	one, two, three := &segment{seq: 1}, &segment{seq: 2}, &segment{seq: 3}
	two.needs(one)
	three.needs(two)
	j := &Journal{segs: []*segment{one, two, three}}
	two.gone = true
	j.forget(two)
	if _, ok := three.deps[one]; !ok || len(three.deps) != 1 || len(j.segs) != 2 {
		t.Errorf("the third needs %v", three.deps)
	}
	one.gone = true
	j.forget(one)
	if len(three.deps) != 0 {
		t.Errorf("the third still needs %v", three.deps)
	}
}

func TestIDsArePromisedBeforeTheyAreGiven(t *testing.T) {
	m := disk.NewMemory()
	j, err := Open(m, smallOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	f, err := m.Crash(disk.Lost, nil).Open(idsName)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 30)
	n, _ := f.ReadAt(b, 0)
	if limit, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err != nil || limit < idBlock {
		t.Errorf("promised %q: %v", b[:n], err)
	}
}

func TestPiecesReadLikeOne(t *testing.T) {
	p := newPieces([][]byte{[]byte("one"), nil, []byte("two"), []byte("three")}, 11)
	for off := range int64(12) {
		for size := range 13 {
			b := make([]byte, size)
			n, err := p.ReadAt(b, off)
			want := "onetwothree"[off:min(11, int(off)+size)]
			if string(b[:n]) != want || err != nil != (n < size) {
				t.Fatalf("%d at %d: %q %v", size, off, b[:n], err)
			}
		}
	}
	if _, err := p.ReadAt(nil, -1); err != os.ErrInvalid {
		t.Error(err)
	}
}
