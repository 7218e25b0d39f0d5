package importer

import (
	"os"
	"path/filepath"
	"testing"

	"qmail/internal/store/control"
)

func TestPrefixesOfVirtualDomainsAreUndone(t *testing.T) {
	i := &importer{virtual: control.NewMap([]string{"virt.example:joe-v", "special@virt.example:ann-s", ".wild.example:joe-w", "out.wild.example:"})}
	for in, want := range map[string]string{
		"joe@here.example":           "joe@here.example",
		"joe-v-box@virt.example":     "box@virt.example",
		"joe-v-box@VIRT.example":     "box@VIRT.example",
		"ann-s-special@virt.example": "special@virt.example",
		"ann-s-Special@virt.example": "Special@virt.example",
		"ann-s-other@virt.example":   "ann-s-other@virt.example", // some user's, from before the entry was made
		"joe-w-x@a.wild.example":     "x@a.wild.example",
		"joe-w-x@out.wild.example":   "joe-w-x@out.wild.example",
		"joe-v-joe-v-x@virt.example": "joe-v-x@virt.example", // once
		"no host":                    "no host",
		`joe-v-"a@b"@virt.example`:   `"a@b"@virt.example`,
	} {
		if got := i.strip(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestWhatWasTakenIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "imported")
	a, err := openTaken(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openTaken(path, false); err == nil {
		t.Error("two at once")
	}
	for _, key := range []string{"1 2 3", "1 2 4"} {
		if err := a.add(key); err != nil {
			t.Fatal(err)
		}
	}
	a.close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("1 2 5") // cut short by a crash
	f.Close()
	for _, dry := range []bool{true, false, false} {
		b, err := openTaken(path, dry)
		if err != nil {
			t.Fatal(err)
		}
		if !b.has("1 2 3") || !b.has("1 2 4") || b.has("1 2 5") || b.has("1 2") {
			t.Errorf("%v", b.keys)
		}
		b.close()
	}
}
