package vectors

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// entry is the state of one file.
type entry struct {
	mode, data, link string
	dir, gone        bool
}

// snapshot is the state of the watched directories. Files delivered into new, cur or tmp have names of no
// meaning: they are a list under "dir/*".
func (x *run) snapshot() map[string][]entry {
	all := map[string][]entry{}
	given, bases := map[string]bool{}, map[string]bool{}
	for _, f := range x.c.Files {
		path := filepath.Clean(f.Path)
		given[path] = true
		if isMailDir(filepath.Base(filepath.Dir(path))) {
			base, _, _ := strings.Cut(filepath.Base(path), ":")
			bases[base] = true
		}
	}
	var walk func(dir string)
	walk = func(dir string) {
		list, err := os.ReadDir(filepath.Join(x.tmp, dir))
		if err != nil {
			return
		}
		for _, f := range list {
			path := filepath.Join(dir, f.Name())
			e := x.look(path)
			base, _, _ := strings.Cut(f.Name(), ":")
			if isMailDir(filepath.Base(dir)) && !e.dir && !given[path] && !bases[base] {
				path = dir + "/*"
			}
			all[path] = append(all[path], e)
			if e.dir {
				walk(path)
			}
		}
	}
	for _, w := range x.c.Watch {
		walk(w)
	}
	return all
}

func isMailDir(name string) bool { return name == "new" || name == "cur" || name == "tmp" }

func (x *run) look(path string) entry {
	full := filepath.Join(x.tmp, path)
	info, err := os.Lstat(full)
	if err != nil {
		return entry{gone: true}
	}
	bits := uint32(info.Mode().Perm())
	if info.Mode()&os.ModeSticky != 0 {
		bits |= 0o1000
	}
	e := entry{mode: fmt.Sprintf("%04o", bits), dir: info.IsDir()}
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		target, _ := os.Readlink(full)
		return entry{link: target}
	case info.Mode().IsRegular():
		b, err := os.ReadFile(full)
		if err != nil {
			b = []byte("(unreadable)")
		}
		e.data = string(b)
		if st, ok := info.Sys().(*syscall.Stat_t); ok { // to look is not to read
			_ = os.Chtimes(full, time.Unix(st.Atim.Unix()), info.ModTime())
		}
	}
	return e
}

// changes is what became different.
func changes(before, after map[string][]entry) map[string][]entry {
	diff := map[string][]entry{}
	for path, e := range after {
		if !slices.Equal(before[path], e) {
			diff[path] = e
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			diff[path] = []entry{{gone: true}}
		}
	}
	return diff
}

func (x *run) compareTree(got map[string][]entry) string {
	want := x.c.Expect.Tree
	if want == nil {
		return ""
	}
	paths := slices.Sorted(maps.Keys(got))
	for path := range want {
		if _, ok := got[path]; !ok {
			paths = append(paths, path)
		}
	}
	for _, path := range paths {
		w, g := want[path], slices.Clone(got[path])
		if len(w) != len(g) {
			return fmt.Sprintf("%s: %d entries, want %d", path, len(g), len(w))
		}
		for _, e := range w {
			i := slices.IndexFunc(g, func(have entry) bool { return x.sameEntry(e, have) })
			if i < 0 {
				return fmt.Sprintf("%s: nothing like %s; have %+v", path, describe(e), g)
			}
			g = slices.Delete(g, i, i+1)
		}
	}
	return ""
}

func (x *run) sameEntry(w Entry, g entry) bool {
	if w.Mode != g.mode || w.Dir != g.dir || w.Gone != g.gone {
		return false
	}
	if x.Runner != nil && x.Loose && w.Data != nil && bytes.Contains(*w.Data, []byte("\n--- Below this line")) && likeBounce(x.expand(*w.Data), []byte(g.data)) {
		return true
	}
	return (w.Data == nil || match(x.expand(*w.Data), []byte(g.data))) && (w.Link == nil || match(x.expand(*w.Link), []byte(g.link)))
}

func describe(e Entry) string {
	data := ""
	if e.Data != nil {
		data = string(*e.Data)
	}
	return fmt.Sprintf("{mode %s dir %v gone %v %q}", e.Mode, e.Dir, e.Gone, data)
}
