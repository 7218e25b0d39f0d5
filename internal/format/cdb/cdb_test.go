package cdb

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// ram is an io.WriterAt in memory.
type ram struct{ b []byte }

func (r *ram) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(r.b) {
		r.b = append(r.b, make([]byte, need-len(r.b))...)
	}
	return copy(r.b[off:], p), nil
}

func build(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var r ram
	w := NewWriter(&r)
	for i := 0; i < len(pairs); i += 2 {
		if err := w.Add([]byte(pairs[i]), []byte(pairs[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return r.b
}

func TestFind(t *testing.T) {
	data := build(t, "one", "1", "two", "22", "one", "again", "", "empty key", "no data", "")
	tests := []struct {
		name, key, want string
		found           bool
	}{
		{"a key is found", "two", "22", true},
		{"of equal keys the first is found", "one", "1", true},
		{"the empty key is a key", "", "empty key", true},
		{"data may be empty", "no data", "", true},
		{"a key that was not added is not found", "three", "", false},
		{"a prefix of a key is not the key", "tw", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for kind, db := range both(t, data) {
				got, found, err := db.Find([]byte(tt.key))
				if string(got) != tt.want || found != tt.found || err != nil {
					t.Errorf("%s: Find(%q) = %q, %v, %v; want %q, %v", kind, tt.key, got, found, err, tt.want, tt.found)
				}
			}
		})
	}
}

// both opens data in memory and behind a ReaderAt.
func both(t testing.TB, data []byte) map[string]*DB {
	t.Helper()
	a, err := New(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewReaderAt(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*DB{"memory": a, "file": b}
}

func TestManyRecordsAreAllFoundAndKeepTheirOrder(t *testing.T) {
	const n = 20000
	var pairs []string
	for i := range n {
		pairs = append(pairs, fmt.Sprintf("key-%d", i), strings.Repeat("x", i%40))
	}
	db, err := New(build(t, pairs...))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		got, found, err := db.Find([]byte(pairs[i]))
		if string(got) != pairs[i+1] || !found || err != nil {
			t.Fatalf("Find(%q) = %q, %v, %v", pairs[i], got, found, err)
		}
	}
	i := 0
	err = db.Each(func(key, data []byte) error {
		if string(key) != pairs[i] || string(data) != pairs[i+1] {
			return fmt.Errorf("record %d is %q: %q", i/2, key, data)
		}
		i += 2
		return nil
	})
	if err != nil || i != len(pairs) {
		t.Errorf("%d records of %d, %v", i/2, n, err)
	}
}

func TestEachStopsAtTheFirstError(t *testing.T) {
	db, err := New(build(t, "a", "1", "b", "2"))
	if err != nil {
		t.Fatal(err)
	}
	stop, calls := errors.New("stop"), 0
	if err := db.Each(func(_, _ []byte) error { calls++; return stop }); err != stop || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

type failing struct{ after int }

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errors.New("disk full")
	}
	return len(p), nil
}

func TestAFailedWriteIsReportedAtTheLatestByClose(t *testing.T) {
	for after := range 3 {
		w := NewWriter(&failing{after})
		w.Add([]byte("big"), make([]byte, bufferSize)) // flushes once; Close writes the rest and the header
		if err := w.Close(); err == nil {
			t.Errorf("write %d failed and nobody said so", after)
		}
	}
	w := NewWriter(&failing{3})
	w.Add([]byte("big"), make([]byte, bufferSize))
	if err := w.Close(); err != nil {
		t.Errorf("three good writes are enough: %v", err)
	}
}

// The recorded damages: which key is asked, and whether the answer must be an error.
func TestAdversarial(t *testing.T) {
	f, err := os.Open("testdata/adversarial.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ran := 0
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c struct {
			Name  string
			Setup struct {
				File string
				Key  []byte `json:"key_b64"`
			}
			Input  []byte `json:"input_b64"`
			Expect struct {
				Class   string
				Or      []string
				MustNot []string `json:"must_not"`
				Value   *struct {
					Found bool
					Data  *string `json:"data_b64"`
				}
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		if c.Setup.File == "users/cdb" && c.Expect.Value == nil {
			continue // the record is damaged, not the file: package users has those
		}
		ran++
		t.Run(c.Name, func(t *testing.T) {
			data, found, err := find(c.Input, c.Setup.Key)
			class := "accept"
			if err != nil {
				class = "reject"
			}
			if class != c.Expect.Class && !contains(c.Expect.Or, class) {
				t.Errorf("%s (%v), want %s %v", class, err, c.Expect.Class, c.Expect.Or)
			}
			if found && contains(c.Expect.MustNot, "false_match") {
				t.Errorf("found %q in a damaged file", data)
			}
			if v := c.Expect.Value; v != nil {
				if found != v.Found {
					t.Errorf("found %v, want %v", found, v.Found)
				}
				if v.Data != nil && base64.StdEncoding.EncodeToString(data) != *v.Data {
					t.Errorf("data %q, want %s", data, *v.Data)
				}
			}
		})
	}
	if err := lines.Err(); err != nil || ran < 18 {
		t.Errorf("%d cases ran, %v", ran, err)
	}
}

func find(file, key []byte) (data []byte, found bool, err error) {
	db, err := New(file)
	if err != nil {
		return nil, false, err
	}
	return db.Find(key)
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// The laws: any file and key give an answer, the same from memory and from a file; a key that is found is
// one that the file holds.
func FuzzFind(f *testing.F) {
	f.Add(build(f, "one", "1", "two", "2"), []byte("two"))
	f.Add(make([]byte, headerSize), []byte("x"))
	f.Fuzz(func(t *testing.T, file, key []byte) {
		db, err := New(file)
		if err != nil {
			return
		}
		data, found, err := db.Find(key)
		if found && err != nil || found && !bytes.Contains(file, append(bytes.Clone(key), data...)) {
			t.Errorf("Find(%q) = %q, %v, %v", key, data, found, err)
		}
		other, _ := NewReaderAt(bytes.NewReader(file), int64(len(file)))
		data2, found2, err2 := other.Find(key)
		if !bytes.Equal(data, data2) || found != found2 || (err == nil) != (err2 == nil) {
			t.Errorf("memory says %q, %v, %v; file says %q, %v, %v", data, found, err, data2, found2, err2)
		}
		total := 0
		db.Each(func(key, data []byte) error { total += 8 + len(key) + len(data); return nil })
		if total > len(file) {
			t.Errorf("records of %d bytes in a file of %d", total, len(file))
		}
	})
}

// The law: what is added is found, and iterated in order.
func FuzzWriter(f *testing.F) {
	f.Add("a", "1", "b", "2")
	f.Fuzz(func(t *testing.T, k1, d1, k2, d2 string) {
		db, err := New(build(t, k1, d1, k2, d2))
		if err != nil {
			t.Fatal(err)
		}
		want := d2
		if k1 == k2 {
			want = d1
		}
		if got, found, err := db.Find([]byte(k2)); string(got) != want || !found || err != nil {
			t.Errorf("Find(%q) = %q, %v, %v; want %q", k2, got, found, err, want)
		}
		var all []string
		db.Each(func(k, d []byte) error { all = append(all, string(k), string(d)); return nil })
		if strings.Join(all, "\x00") != strings.Join([]string{k1, d1, k2, d2}, "\x00") {
			t.Errorf("records %q", all)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	var pairs []string
	for i := range 10000 {
		pairs = append(pairs, fmt.Sprintf("domain%d.example", i), "")
	}
	db, err := New(build(b, pairs...))
	if err != nil {
		b.Fatal(err)
	}
	key := []byte("domain4711.example")
	b.ReportAllocs()
	for b.Loop() {
		if _, found, _ := db.Find(key); !found {
			b.Fatal("not found")
		}
	}
}
