package qbiff

import (
	"encoding/binary"
	"strings"
	"testing"
)

// entry is a record of utmp.
func entry(r record, kind uint16, line, user string) []byte {
	b := make([]byte, r.size)
	binary.NativeEndian.PutUint16(b, kind)
	copy(b[r.line:], line)
	copy(b[r.user:], user)
	return b
}

func TestTerminals(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		r := layout(arch)
		var b []byte
		for _, e := range [][]byte{
			entry(r, userProcess, "pts/1", "joe"), entry(r, userProcess, "tty1", "ann"), entry(r, 8, "pts/2", "joe"),
			entry(r, userProcess, "../etc/passwd", "joe"), entry(r, userProcess, "/dev/sda", "joe"), entry(r, userProcess, "", "joe"),
			entry(r, userProcess, strings.Repeat("x", 40), strings.Repeat("y", 40)), entry(r, userProcess, "tty2", "joe"),
		} {
			b = append(b, e...)
		}
		if got := strings.Join(parse(append(b, 1, 2, 3), r, "joe"), " "); got != "pts/1 tty2" {
			t.Errorf("%s: %s", arch, got)
		}
	}
	if lines, err := terminals("/no/such/file", "joe"); err == nil {
		t.Errorf("%v", lines)
	}
}

func TestAnnounce(t *testing.T) {
	got := string(announce("joe\x1b", "s\n@x", []byte("Subject: hi\n\nbody "+strings.Repeat("x", 100)+"\n")))
	if want := "\r\n\x07*** TO <joe?> FROM <s?@x>\r\n    hi body " + strings.Repeat("x", textLimit-8) + "\r\n"; got != want {
		t.Errorf("%q", got)
	}
}

func TestOnlyOurOwnTerminalsAreTold(t *testing.T) {
	tell("/dev/null", []byte("x")) // is no terminal of ours that wants to be told; nothing to see but no panic
	tell("/no/such/terminal", []byte("x"))
}
