package local

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmail/internal/format/spawn"
	"qmail/internal/proto/jobs"
)

func fileBody(t testing.TB, text string) *jobs.Body {
	t.Helper()
	fd, err := unix.MemfdCreate("message", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "message")
	t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(text)
	must(t, err)
	return jobs.NewFileBody(f, 0, int64(len(text)))
}

func TestHeaderHas(t *testing.T) {
	const mine = "Delivered-To: joe@host.example"
	long := strings.Repeat("x", 4096) // what the reader holds of a line
	tests := []struct {
		name, text string
		want       bool
	}{
		{"the line itself", "A: b\n" + mine + "\n\nbody\n", true},
		{"as the first", mine + "\nA: b\n\n", true},
		{"as the last, without a newline", "A: b\n" + mine, true},
		{"in the body", "A: b\n\n" + mine + "\n", false},
		{"with more behind it", mine + " \n\n", false},
		{"in other case", "delivered-to: joe@host.example\n\n", false},
		{"folded", "Delivered-To:\n joe@host.example\n\n", false},
		{"at the end of a long line", long + mine + "\n\n", false},
		{"after a long line", long + "x\n" + mine + "\n\n", true},
		{"after a line as long as the buffer", long[1:] + "\n" + mine + "\n\n", true},
		{"an end that only looks empty, after a long line", long + "\n" + mine + "\n\n", true},
		{"an empty message", "", false},
	}
	for _, tt := range tests {
		for kind, body := range map[string]*jobs.Body{"memory": jobs.NewBody([]byte(tt.text)), "file": fileBody(t, tt.text)} {
			if got, _, err := headerHas(body, []byte(mine)); got != tt.want || err != nil {
				t.Errorf("%s, %s: %v, %v", tt.name, kind, got, err)
			}
		}
	}
}

// The law: a message in a file and the same in memory are read alike.
func FuzzHeaderHas(f *testing.F) {
	f.Add("A: b\nDelivered-To: x@y\n\n", "Delivered-To: x@y")
	f.Add(strings.Repeat("x", 4095)+"\nyz\n\n", "yz")
	f.Fuzz(func(t *testing.T, text, line string) {
		if line == "" || strings.Contains(line, "\n") {
			return
		}
		a, n, _ := headerHas(jobs.NewBody([]byte(text)), []byte(line))
		b, m, err := headerHas(fileBody(t, text), []byte(line))
		if a != b || n != m || err != nil {
			t.Errorf("%q in %q: memory %v, file %v %v", line, text, a, b, err)
		}
	})
}

func TestArguments(t *testing.T) {
	eight := []string{"joe", "/home/joe", "joe-x", "-", "x", "host.example", "s@x.example", "./Mailbox"}
	tests := []struct {
		name string
		args []string
		ok   bool
		dry  bool
	}{
		{"eight", eight, true, false},
		{"after --", append([]string{"--"}, eight...), true, false},
		{"-n says what would be done", append([]string{"-n"}, eight...), true, true},
		{"the last option counts", append([]string{"-nN", "--"}, eight...), true, false},
		{"an unknown option", append([]string{"-x"}, eight...), false, false},
		{"seven", eight[:7], false, false},
		{"nine", append(eight, "x"), false, false},
		{"a relative home", []string{"joe", "home", "", "", "", "", "", ""}, false, false},
	}
	for _, tt := range tests {
		d, ok := parseArgs(tt.args)
		if ok != tt.ok || ok && (d.dry != tt.dry || d.user != "joe" || d.fallback != "./Mailbox") {
			t.Errorf("%s: %+v, %v", tt.name, d, ok)
		}
	}
}

// tooLong ends a report that was cut; with it, 2997 bytes are left.
const tooLong = "\nError report too long, sorry.\n"

func TestReportsAreCut(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	tests := []struct {
		name   string
		writes []string
		want   string
	}{
		{"nothing", nil, "D"},
		{"as long as may be", []string{x(1000), x(2000)}, "D" + x(3000)},
		{"one byte more", []string{x(3000), "y"}, "D" + x(2997-len(tooLong)) + tooLong},
		{"much more", []string{x(100000), x(100000)}, "D" + x(2997-len(tooLong)) + tooLong},
		{"up to a NUL", []string{"a\x00", "b"}, "Da"},
	}
	for _, tt := range tests {
		c := &capped{}
		for _, w := range tt.writes {
			if n, err := c.Write([]byte(w)); n != len(w) || err != nil {
				t.Errorf("%s: %d, %v", tt.name, n, err)
			}
		}
		if got := c.report(exitNever); got != tt.want {
			t.Errorf("%s: %d bytes %.50q", tt.name, len(got), got)
		}
	}
	c := &capped{}
	for range maxOutput >> 20 {
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write([]byte("x")); err == nil || cap(c.text) > 2*spawn.MaxLocal {
		t.Errorf("after %d bytes: %v, %d kept", maxOutput, err, cap(c.text))
	}
}
