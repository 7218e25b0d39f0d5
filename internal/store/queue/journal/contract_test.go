package journal_test

import (
	"os"
	"testing"

	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/store/queue/queuetest"
	"qmail/internal/system/disk"
)

func TestContract(t *testing.T) {
	disks := []struct {
		name string
		disk func(t *testing.T) disk.FS
	}{
		{"memory", func(*testing.T) disk.FS { return disk.NewMemory() }},
		{"directory", func(t *testing.T) disk.FS {
			d, err := disk.OpenDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			return d
		}},
	}
	sizes := []struct {
		name string
		opt  journal.Options
	}{
		{"", journal.Options{}},
		{" in small segments, without cache", journal.Options{SegmentSize: 128 << 10, CacheBytes: -1}},
	}
	for _, d := range disks {
		for _, o := range sizes {
			if d.name == "directory" && (o.opt.SegmentSize == 0 || testing.Short()) {
				continue // each test opens a few queues: seconds on a slow disk
			}
			t.Run(d.name+o.name, func(t *testing.T) {
				queuetest.Run(t, func(t *testing.T) func() (queue.Store, error) {
					fs := d.disk(t)
					if d.name == "memory" && o.opt.SegmentSize == 0 {
						o.opt.SegmentSize = 1 << 20
					}
					o.opt.Warn = func(s string) { t.Log(s) }
					return func() (queue.Store, error) { return journal.Open(fs, o.opt) }
				})
			})
		}
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	d, err := disk.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	j, err := journal.Open(d, journal.Options{SegmentSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	queuetest.Accept(t, j, "x", "a")
	seen := 0
	check := func(name string, mode os.FileMode) {
		seen++
		want := os.FileMode(0o600)
		if mode.IsDir() {
			want = 0o700
		}
		if mode.Perm() != want {
			t.Errorf("%s has mode %v", name, mode)
		}
	}
	var walk func(string)
	walk = func(at string) {
		names, err := d.ReadDir(at)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if at != "." {
				name = at + "/" + name
			}
			info, err := d.Stat(name)
			if err != nil {
				continue // spares come and go
			}
			check(name, info.Mode)
			if info.Mode.IsDir() {
				walk(name)
			}
		}
	}
	walk(".")
	if seen < 60 {
		t.Errorf("saw only %d files", seen)
	}
}
