package send

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmail/internal/format/reply"
	"qmail/internal/proto/admin"
)

// TestADamagedMessageIsListedAndCanBeDeleted: nothing else can be done about it.
func TestADamagedMessageIsListedAndCanBeDeleted(t *testing.T) {
	h := newHouse(t, nil)
	h.setDeliver(deferring)
	h.start()
	var many []string
	for i := range 40 { // so many that the envelope is not repeated in a footer
		many = append(many, fmt.Sprintf("later-%02d-of-many@a.example", i))
	}
	id := h.submit("s@far.example", "x\n", many...)
	good := h.submit("s@far.example", "y\n", "later@a.example")
	h.log.await(t, "deferral:", 41)
	h.end()
	flip(t, filepath.Join(h.home, "queue/journal/segments"), "later-20-of-many")
	h.start()
	c := h.openDesk()
	h.log.await(t, "message is damaged and will not be tried", 1)
	damaged := 0
	_, err := c.List(&admin.Filter{Recipients: true}, func(m *admin.Message) error {
		if m.Damaged != (m.ID == id) || m.ID != id && m.ID != good {
			t.Errorf("%+v", m)
		}
		if m.Damaged {
			damaged++
		}
		return nil
	}, func(*admin.Recipient) error { return nil })
	if err != nil || damaged != 1 {
		t.Errorf("%d damaged, %v", damaged, err)
	}
	var body bytes.Buffer
	if err := c.Copy(id, &body); err != nil || !strings.HasSuffix(body.String(), "\nx\n") { // it is not what is damaged
		t.Errorf("%q %v", body.String(), err)
	}
	if err := h.as(os.Getuid()+1).Show(id, nil, nil); reply.Letter(err) != 'D' {
		t.Errorf("a stranger sees it: %v", err)
	}
	for _, verb := range []admin.Verb{admin.Hold, admin.Release, admin.Retry, admin.Bounce} {
		if _, err := c.Order(&admin.Order{Verb: verb, ID: id}); reply.Letter(err) != 'D' {
			t.Errorf("%c: %v", verb, err)
		}
	}
	orderOf(t, c, admin.Delete, id)
	orderOf(t, c, admin.Delete, good)
	h.empty()
	h.end()
}

// flip changes a byte of a text wherever it is in the files of a directory.
func flip(t *testing.T, dir, text string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	flipped := 0
	for _, entry := range names {
		if !strings.HasSuffix(entry.Name(), ".seg") {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			b[i] ^= 1
			flipped++
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if flipped != 1 {
		t.Fatalf("%q is in %d files", text, flipped)
	}
}
