package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"qmail/internal/store/queue"
	"qmail/internal/system/disk"
)

// patient is a queue with a few messages in each of two segments, to be harmed while it is closed.
type patient struct {
	*testing.T
	disk *disk.Memory
	ids  []queue.ID
	body map[queue.ID]string
	segs []string // the two with messages
	at   map[queue.ID]entry
	warn []string
}

func newPatient(t *testing.T, sealed bool) *patient {
	p := &patient{T: t, disk: disk.NewMemory(), body: map[queue.ID]string{}, at: map[queue.ID]entry{}}
	j := p.open()
	for i := range 20 {
		id := j.NewID()
		p.body[id] = strings.Repeat(fmt.Sprintf("message %d ", i), 200)
		env := benchEnvelope()
		if i == 3 {
			env.Recipients = slices.Repeat(env.Recipients, 40)
		}
		if err := commit(j, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: env, Body: split(p.body[id])}}}); err != nil {
			t.Fatal(err)
		}
		p.ids = append(p.ids, id)
	}
	for id, e := range j.index.live {
		p.at[id] = *e
		if !slices.Contains(p.segs, e.seg.name) {
			p.segs = append(p.segs, e.seg.name)
		}
	}
	slices.Sort(p.segs)
	if sealed {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p.disk = p.disk.Kill()
	j.Close()
	return p
}

func (p *patient) open() *Journal {
	p.Helper()
	j, err := Open(p.disk, Options{SegmentSize: 1 << 15, CacheBytes: -1, Warn: func(s string) { p.warn = append(p.warn, s) }})
	if err != nil {
		p.Fatal(err)
	}
	return j
}

func (p *patient) flip(name string, at int64) {
	p.Helper()
	f, err := p.disk.OpenWrite(name)
	if err != nil {
		p.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		p.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], at); err != nil {
		p.Fatal(err)
	}
}

// check opens the queue and wants all messages but those lost, which must be gone, and those bad, which must say so.
func (p *patient) check(lost, bad []queue.ID) {
	p.Helper()
	for range 2 { // and it stays so
		j := p.open()
		if s := j.Stats(); s.Messages != len(p.ids)-len(lost) {
			p.Errorf("%d messages", s.Messages)
		}
		for _, id := range p.ids {
			got, err := readAll(j, id)
			switch {
			case slices.Contains(lost, id):
				if !errors.Is(err, queue.ErrNotFound) {
					p.Errorf("lost message %v: %v", id, err)
				}
			case slices.Contains(bad, id):
				if !errors.Is(err, queue.ErrDamaged) {
					p.Errorf("damaged message %v: %v", id, err)
				}
			case err != nil || got != p.body[id]:
				p.Errorf("message %v: %v, %d bytes", id, err, len(got))
			}
		}
		if len(bad) > 0 && len(j.Stats().Quarantined) == 0 {
			p.Error("nothing is said to be quarantined")
		}
		if err := j.Close(); err != nil {
			p.Error(err)
		}
	}
	if len(lost)+len(bad) > 0 {
		names, err := p.disk.ReadDir(quarantineDir)
		if err != nil || len(names) == 0 {
			p.Errorf("nothing was set aside: %v", err)
		}
	}
	if len(lost)+len(bad) > 0 && len(p.warn) == 0 {
		p.Error("nobody was warned")
	}
}

func TestDamage(t *testing.T) {
	tests := []struct {
		name   string
		sealed bool
		harm   func(p *patient)
		lost   []int
		bad    []int
	}{
		{"none", true, func(*patient) {}, nil, nil},
		{"none, after a kill", false, func(*patient) {}, nil, nil},
		{"a body in a sealed segment", true, func(p *patient) { p.harmBody(2) }, nil, []int{2}},
		{"a body in the head", false, func(p *patient) { p.harmBody(17) }, []int{17}, nil},
		{"a record's head in a sealed segment", false, func(p *patient) { p.flip(p.segs[0], int64(p.at[p.ids[1]].off)) }, nil, nil},
		{"the first header", true, func(p *patient) { p.flip(p.segs[0], 20) }, nil, nil},
		{"both headers, with a footer", true, func(p *patient) { p.flip(p.segs[0], 20); p.flip(p.segs[0], headerCopy+30) }, nil, nil},
		{"both headers of the head", false, func(p *patient) { p.flip(p.segs[1], 20); p.flip(p.segs[1], headerCopy+30) }, nil, nil},
		{"a footer", true, func(p *patient) { p.harmEnd(p.segs[0], trailerSize+30) }, nil, nil},
		{"a trailer", true, func(p *patient) { p.harmEnd(p.segs[0], 10) }, nil, nil},
		{"the ids file", true, func(p *patient) { p.flip(idsName, 0) }, nil, nil},
		{"no ids file", true, func(p *patient) {
			if err := p.disk.Remove(idsName); err != nil {
				p.Fatal(err)
			}
		}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPatient(t, tt.sealed)
			if len(p.segs) != 2 {
				t.Fatalf("%d segments", len(p.segs))
			}
			tt.harm(p)
			pick := func(n []int) (ids []queue.ID) {
				for _, i := range n {
					ids = append(ids, p.ids[i])
				}
				return ids
			}
			p.check(pick(tt.lost), pick(tt.bad))
			j := p.open()
			defer j.Close()
			if id := j.NewID(); id <= p.ids[len(p.ids)-1] {
				t.Errorf("id %v is given again", id)
			}
		})
	}
}

func (p *patient) harmBody(i int) {
	e := p.at[p.ids[i]]
	p.flip(e.seg.name, int64(e.off)+int64(e.body)+100)
}

// harmEnd flips a bit so many bytes before the end of a file.
func (p *patient) harmEnd(name string, before int64) {
	info, err := p.disk.Stat(name)
	if err != nil {
		p.Fatal(err)
	}
	p.flip(name, info.Size-before)
}

func TestALostSegmentIsSetAside(t *testing.T) {
	p := newPatient(t, true)
	f, err := p.disk.OpenWrite(p.segs[0])
	if err != nil {
		t.Fatal(err)
	}
	size, _ := f.Size()
	rnd := rand.New(rand.NewPCG(1, 1))
	junk := make([]byte, size)
	for i := range junk {
		junk[i] = byte(rnd.Uint32())
	}
	if _, err := f.WriteAt(junk, 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	var lost []queue.ID
	for id, e := range p.at {
		if e.seg.name == p.segs[0] {
			lost = append(lost, id)
		}
	}
	p.check(lost, nil)
	if _, err := p.disk.Stat(quarantineDir + "/" + path.Base(p.segs[0])); err != nil {
		t.Error(err)
	}
}

func TestABodyFileThatChangedIsNotDelivered(t *testing.T) {
	for _, harm := range []string{"changed", "cut", "missing"} {
		t.Run(harm, func(t *testing.T) {
			p := newPatient(t, true)
			j := p.open()
			id := j.NewID()
			s, err := j.Spool()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write([]byte("large body")); err != nil {
				t.Fatal(err)
			}
			if err := commit(j, queue.Batch{Accepts: []queue.Accept{{ID: id, Envelope: benchEnvelope(), Spool: s}}}); err != nil {
				t.Fatal(err)
			}
			j.Close()
			name := bodyName(uint64(id))
			switch harm {
			case "changed":
				p.flip(name, 3)
			case "cut":
				f, _ := p.disk.OpenWrite(name)
				f.Truncate(4)
				f.Close()
			case "missing":
				p.disk.Remove(name)
			}
			j = p.open()
			defer j.Close()
			if _, err := j.Body(context.Background(), id); !errors.Is(err, queue.ErrDamaged) {
				t.Errorf("error %v", err)
			}
			if _, err := j.Envelope(context.Background(), id); err != nil {
				t.Errorf("but the envelope is good: %v", err)
			}
		})
	}
}

func TestOrphanBodies(t *testing.T) {
	for _, harmed := range []bool{false, true} {
		p := newPatient(t, false)
		f, err := p.disk.Create(bodyName(77), 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if harmed {
			p.harmBody(17)
		}
		j := p.open()
		j.Close()
		if _, err := p.disk.Stat(bodyName(77)); err == nil {
			t.Error("the orphan is still there")
		}
		_, err = p.disk.Stat(quarantineDir + "/77")
		if harmed != (err == nil) {
			t.Errorf("harmed %v: %v", harmed, err)
		}
	}
}

// FuzzOpen harms any byte of any file: opening never panics, and what is delivered is what was accepted.
func FuzzOpen(f *testing.F) {
	f.Add(uint64(1), false)
	f.Add(uint64(2), true)
	f.Fuzz(func(t *testing.T, seed uint64, sealed bool) {
		p := newPatient(t, sealed)
		rnd := rand.New(rand.NewPCG(seed, 1))
		files := snapshot(t, p.disk)
		names := slices.Sorted(maps.Keys(files))
		for range 1 + rnd.IntN(8) {
			name := names[rnd.IntN(len(names))]
			if n := int64(len(files[name])); n > 0 {
				at := rnd.Int64N(n)
				if rnd.IntN(2) == 0 && strings.HasPrefix(name, segmentDir) {
					at = rnd.Int64N(min(n, headerRoom+3000))
				}
				p.flip(name, at)
			}
		}
		j, err := Open(p.disk, Options{SegmentSize: 1 << 15, CacheBytes: -1})
		if err != nil {
			return // a version that is not known, for one
		}
		defer j.Close()
		for id := range Entries(t, j) {
			want, known := p.body[id]
			if !known {
				t.Errorf("message %v from nowhere", id)
			}
			if got, err := readAll(j, id); err == nil && got != want {
				t.Errorf("message %v has other bytes", id)
			}
		}
	})
}

// Entries lists what Scan tells of.
func Entries(t *testing.T, j *Journal) map[queue.ID]bool {
	all := map[queue.ID]bool{}
	if err := j.Scan(func(e *queue.Entry) error { all[e.ID] = true; return nil }); err != nil {
		t.Error(err)
	}
	return all
}
