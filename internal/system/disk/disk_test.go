package disk

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// both runs a test on the real disk and on the one in memory: what holds on one must hold on the other.
func both(t *testing.T, f func(t *testing.T, d FS)) {
	t.Run("dir", func(t *testing.T) {
		d, err := OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		f(t, d)
	})
	t.Run("memory", func(t *testing.T) { f(t, NewMemory()) })
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

func put(t *testing.T, d FS, name, content string) {
	t.Helper()
	f, err := d.Create(name, 0o600)
	ok(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	ok(t, err)
	ok(t, f.Sync())
	ok(t, f.Close())
}

func get(d FS, name string) string {
	f, err := d.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestContract(t *testing.T) {
	both(t, func(t *testing.T, d FS) {
		put(t, d, "a", "alpha")
		ok(t, d.Mkdir("sub", 0o700))
		ok(t, d.SyncDir("."))
		_, err := d.Create("a", 0o600)
		is(t, err, fs.ErrExist)
		is(t, d.Mkdir("sub", 0o700), fs.ErrExist)
		_, err = d.Open("b")
		is(t, err, fs.ErrNotExist)
		_, err = d.Open("../a")
		is(t, err, fs.ErrInvalid)
		_, err = d.Open("/etc/passwd")
		is(t, err, fs.ErrInvalid)
		is(t, d.Rename("a", "../a"), fs.ErrInvalid)
		_, err = d.Create("none/a", 0o600)
		is(t, err, fs.ErrNotExist)
		is(t, d.Remove("none"), fs.ErrNotExist)

		put(t, d, "sub/b", "beta")
		ok(t, d.Rename("a", "sub/b")) // replaces
		if got := get(d, "sub/b"); got != "alpha" {
			t.Errorf("after rename: %q", got)
		}
		names, err := d.ReadDir(".")
		ok(t, err)
		if !slices.Equal(names, []string{"sub"}) {
			t.Errorf("names %q", names)
		}
		info, err := d.Stat("sub/b")
		ok(t, err)
		if info.Size != 5 || info.Mode != 0o600 {
			t.Errorf("%+v", info)
		}
		info, err = d.Stat("sub")
		ok(t, err)
		if !info.Mode.IsDir() || info.Mode.Perm() != 0o700 {
			t.Errorf("%+v", info)
		}
		ok(t, d.Remove("sub/b"))
		names, err = d.ReadDir("sub")
		ok(t, err)
		if len(names) != 0 {
			t.Errorf("names %q", names)
		}
	})
}

func TestFileContract(t *testing.T) {
	both(t, func(t *testing.T, d FS) {
		f, err := d.Create("f", 0o600)
		ok(t, err)
		defer f.Close()
		ok(t, f.Allocate(100))
		pieces := [][]byte{[]byte("one"), nil, []byte("two"), []byte("three")}
		n, err := f.WriteVec(pieces, 10)
		ok(t, err)
		if n != 11 {
			t.Errorf("wrote %d", n)
		}
		size, err := f.Size()
		ok(t, err)
		b := make([]byte, 13)
		_, err = f.ReadAt(b, 9)
		ok(t, err)
		if size != 100 || string(b) != "\x00onetwothree\x00" {
			t.Errorf("%d %q", size, b)
		}
		k, err := f.ReadAt(b, 95)
		if k != 5 || err != io.EOF {
			t.Errorf("at the end: %d %v", k, err)
		}
		ok(t, f.Truncate(12))
		ok(t, f.Truncate(20))
		_, err = f.ReadAt(b, 7)
		ok(t, err)
		if string(b) != "\x00\x00\x00on"+strings.Repeat("\x00", 8) {
			t.Errorf("%q", b)
		}
		many := slices.Repeat([][]byte{[]byte("xy")}, 3000)
		n, err = f.WriteVec(many, 0)
		ok(t, err)
		if got := get(d, "f"); n != 6000 || got != strings.Repeat("xy", 3000) {
			t.Errorf("wrote %d of many pieces, read %d", n, len(got))
		}
		r, err := d.Open("f")
		ok(t, err)
		if _, err := r.WriteAt([]byte("z"), 0); err == nil {
			t.Error("wrote to a file opened for reading")
		}
		ok(t, r.Close())
		if r.Close() == nil {
			t.Error("closed twice")
		}
	})
}

func TestTempContract(t *testing.T) {
	both(t, func(t *testing.T, d FS) {
		ok(t, d.Mkdir("dir", 0o700))
		f, err := d.Temp("dir", 0o600)
		ok(t, err)
		_, err = f.WriteAt([]byte("unnamed"), 0)
		ok(t, err)
		ok(t, f.Sync())
		put(t, d, "dir/taken", "")
		is(t, d.Link(f, "dir/taken"), fs.ErrExist)
		ok(t, d.Link(f, "dir/name"))
		ok(t, f.Close())
		if got := get(d, "dir/name"); got != "unnamed" {
			t.Errorf("linked file has %q", got)
		}
		g, err := d.Temp("dir", 0o600)
		ok(t, err)
		ok(t, g.Close())
		names, err := d.ReadDir("dir")
		ok(t, err)
		if !slices.Equal(names, []string{"name", "taken"}) {
			t.Errorf("names %q", names)
		}
	})
}

func TestLockContract(t *testing.T) {
	both(t, func(t *testing.T, d FS) {
		put(t, d, "lock", "")
		a, err := d.OpenWrite("lock")
		ok(t, err)
		b, err := d.OpenWrite("lock")
		ok(t, err)
		defer b.Close()
		ok(t, a.Lock())
		is(t, b.Lock(), syscall.EWOULDBLOCK)
		ok(t, a.Close())
		ok(t, b.Lock())
	})
}

func TestDirDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	ok(t, syscall.Symlink("/etc/passwd", dir+"/link"))
	d, err := OpenDir(dir)
	ok(t, err)
	defer d.Close()
	_, err = d.Open("link")
	is(t, err, syscall.ELOOP)
}

func TestNamedTempWorksLikeAnUnnamedOne(t *testing.T) { // for file systems without O_TMPFILE
	d, err := OpenDir(t.TempDir())
	ok(t, err)
	defer d.Close()
	f, err := d.Create(TempPrefix+"1", 0o600)
	ok(t, err)
	f.(*file).name, f.(*file).named = TempPrefix+"1", func() error { return d.Remove(TempPrefix + "1") }
	ok(t, d.Link(f, "name"))
	ok(t, f.Close())
	names, err := d.ReadDir(".")
	ok(t, err)
	if !slices.Equal(names, []string{"name"}) {
		t.Errorf("names %q", names)
	}
}

func TestPowerCut(t *testing.T) {
	tests := []struct {
		name        string
		syncF, dir  bool
		lost, keptF string
	}{
		{"nothing synced", false, false, "gone", "data"},
		{"only the bytes synced", true, false, "gone", "data"},
		{"only the name synced", false, true, "", "data"},
		{"both synced", true, true, "data", "data"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMemory()
			f, err := m.Create("f", 0o600)
			ok(t, err)
			_, err = f.WriteAt([]byte("data"), 0)
			ok(t, err)
			if tt.syncF {
				ok(t, f.Sync())
			}
			if tt.dir {
				ok(t, m.SyncDir("."))
			}
			lost := get(m.Crash(Lost, nil), "f")
			if strings.Contains(lost, "not exist") {
				lost = "gone"
			}
			if lost != tt.lost {
				t.Errorf("after a cut that loses all: %q, want %q", lost, tt.lost)
			}
			if got := get(m.Crash(Kept, nil), "f"); got != tt.keptF {
				t.Errorf("after one that keeps all: %q", got)
			}
			if _, err := m.Open("f"); !errors.Is(err, ErrPower) {
				t.Errorf("the old disk still works: %v", err)
			}
		})
	}
}

func TestARandomCutTearsAndReorders(t *testing.T) {
	m := NewMemory()
	f, err := m.Create("f", 0o600)
	ok(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte("a"), 16384), 0)
	ok(t, err)
	ok(t, f.Sync())
	ok(t, m.SyncDir("."))
	_, err = f.WriteAt(bytes.Repeat([]byte("b"), 8192), 0)
	ok(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte("c"), 8192), 8192)
	ok(t, err)
	rnd := rand.New(rand.NewPCG(1, 2))
	var reordered, torn, whole bool
	for range 200 {
		got := get(m.Crash(Random, rnd), "f")
		if len(got) != 16384 {
			t.Fatalf("size %d", len(got))
		}
		first, second := got[:8192], got[8192:]
		if strings.Trim(first, "ab") != "" || strings.Trim(second, "ac") != "" {
			t.Fatal("bytes from nowhere")
		}
		for i := 0; i < len(got); i += 512 {
			if strings.Trim(got[i:i+512], got[i:i+1]) != "" {
				t.Fatal("a torn sector")
			}
		}
		reordered = reordered || !strings.Contains(first, "b") && strings.Contains(second, "c")
		torn = torn || strings.Contains(first, "b") && strings.Contains(first, "a")
		whole = whole || !strings.Contains(got, "b") && !strings.Contains(got, "c")
	}
	if !reordered || !torn {
		t.Errorf("reordered %v torn %v whole %v: this disk is too kind", reordered, torn, whole)
	}
}

func TestRenameIsOneStep(t *testing.T) {
	m := NewMemory()
	put(t, m, "new", "new")
	put(t, m, "old", "old")
	ok(t, m.SyncDir("."))
	ok(t, m.Rename("new", "old"))
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	for range 50 {
		seen[get(m.Crash(Random, rnd), "old")] = true
	}
	if len(seen) != 2 || !seen["new"] || !seen["old"] {
		t.Errorf("saw %v", seen)
	}
}

func TestAFailedSyncLosesAndTheNextLies(t *testing.T) {
	m := NewMemory()
	f, err := m.Create("f", 0o600)
	ok(t, err)
	ok(t, m.SyncDir("."))
	_, err = f.WriteAt([]byte("data"), 0)
	ok(t, err)
	m.Inject(FailKind(syscall.EIO, OpSync))
	is(t, f.Sync(), syscall.EIO)
	m.Inject(nil)
	ok(t, f.Sync())
	if got := get(m, "f"); got != "data" {
		t.Errorf("reads %q", got)
	}
	if got := get(m.Crash(Kept, nil), "f"); got != "" {
		t.Errorf("after the cut %q", got)
	}
}

func TestSpaceRunsOut(t *testing.T) {
	m := NewMemory()
	m.SetSpace(10)
	f, err := m.Create("f", 0o600)
	ok(t, err)
	ok(t, f.Allocate(6))
	_, err = f.WriteAt(make([]byte, 6), 0) // reserved
	ok(t, err)
	_, err = f.WriteAt(make([]byte, 6), 6)
	is(t, err, syscall.ENOSPC)
	is(t, f.Allocate(11), syscall.ENOSPC)
	ok(t, f.Close())
	ok(t, m.Remove("f"))
	put(t, m, "g", "0123456789")
}

func TestInjection(t *testing.T) {
	m := NewMemory()
	put(t, m, "f", "x")
	n := m.Ops()
	m.Inject(FailNth(n+1, syscall.EIO))
	_, err := m.Stat("f")
	ok(t, err)
	_, err = m.Stat("f")
	is(t, err, syscall.EIO)
	_, err = m.Stat("f")
	ok(t, err)
	m.Inject(DieAt(1))
	ok(t, m.Mkdir("a", 0o700))
	_, err = m.Stat("a")
	ok(t, err)
	is(t, m.Mkdir("b", 0o700), ErrPower)
	is(t, m.SyncDir("."), ErrPower)
	if !m.Dead() {
		t.Error("still alive")
	}
}

func TestKillKeepsWhatWasWrittenButNotLocks(t *testing.T) {
	m := NewMemory()
	put(t, m, "f", "x")
	f, err := m.OpenWrite("f")
	ok(t, err)
	ok(t, f.Lock())
	next := m.Kill()
	_, err = m.Stat("f")
	is(t, err, ErrPower)
	g, err := next.OpenWrite("f")
	ok(t, err)
	ok(t, g.Lock())
	if _, err := next.Crash(Lost, nil).Open("f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a killed process made a name durable: %v", err)
	}
}
