package vectors

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// different are the cases in which we do not do what was recorded, and why. All are warts of the original; there are
// Exceptions besides.
var different = map[string]string{
	"sendmail-mailq":         "without a qmail-send there is nobody to ask",
	"inject-env-name-empty":  "an empty personal name is none",
	"inject-rw-backslash":    "what needs quotes gets them",
	"inject-rw-8bit":         "UTF-8 in a phrase stays as it is",
	"inject-hdr-crlf":        "a text whose lines end in CRLF is one",
	"sendmail-f-name":        "-F counts beside -f",
	"sendmail-f-angle":       "-f <> is the null sender",
	"pop3-pop3d-top-nolines": "TOP wants the number of lines (RFC 1939)",
	"pop3-pop3d-retr-extra":  "RETR takes one number (RFC 1939)",
	"pop3-pop3d-dele-stat":   "STAT leaves out what is deleted (RFC 1939)",
	"pop3-pop3d-capa":        "CAPA is answered (RFC 2449)",
	"pop3-pop3d-crlf":        "a CR before a line's end is not doubled",
	"smtpd-mail-twice":       "a second MAIL is out of order",
	"smtpd-nohelo":           "a greeting comes first",
	"smtpd-helo-noarg":       "a greeting has a name",
	"smtpd-lf-commands":      "lines end in CRLF",
	"smtpd-from-bare":        "an address stands in angle brackets",
	"smtpd-from-display":     "and nothing before them",
	"smtpd-nodomain":         "only postmaster needs no domain",
	"smtpd-empty-rcpt":       "a recipient is not empty",
	"smtpd-two-at":           "an @ in a local part is quoted",
	"smtpd-8bit-addr":        "other addresses need SMTPUTF8",
	"smtpd-nul-cmd":          "control bytes are refused",
	"smtpd-longcmd":          "command lines have a limit",
	"smtpd-rh-none":          "without rcpthosts nothing is relayed",
	"smtpd-nul-data":         "NUL is refused",
	"smtpd-lf-body":          "a bare LF is refused for good, at the true end",
	"smtpd-lf-dot":           "a bare LF is refused for good, at the true end",
	"smtpd-crlf-dot-lf":      "a bare LF is refused for good, at the true end",
	"smtpd-cr-mid":           "a bare CR is refused",
	"smtpd-dot-cr":           "a bare CR is refused",
	"smtpd-timeout":          "421 ends a session",
	"qmtpd-rh-none":          "without rcpthosts nothing is relayed",
	"qmtpd-inner-letters":    "a length has digits only",
	"remote-rcpt-3xx":        "354 to RCPT is no yes",
	"remote-msg-cr":          "a bare CR is a line end, once",
	"remote-msg-nonl":        "a last line is ended",
	"remote-addr-8bit":       "other addresses need SMTPUTF8",
	"remote-text-8bit":       "control bytes are not passed on",
}

// programs builds the binary and links every name to it.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "programs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // other users run them
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "qmail"), "qmail/cmd/qmail")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(filepath.Join(dir, "qmail"), "programs").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		if err := os.Symlink("qmail", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRecordings(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	r := &Runner{Bin: programs(t), ReadQueue: Dropped}
	used, exceptions := map[string]bool{}, 0
	for _, file := range files {
		cases, err := Load(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			if _, ok := different[c.Name]; ok {
				if used[c.Name] = true; !c.Wart {
					t.Errorf("%s is no wart", c.Name)
				}
			}
			if _, ok := Exception(c.Name); ok {
				exceptions++
			}
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.Name, func(t *testing.T) { play(t, r, &c) })
			}
		})
	}
	for name := range different {
		family, _, _ := strings.Cut(name, "-")
		if _, err := os.Stat("testdata/" + family + ".jsonl"); err == nil && !used[name] {
			t.Errorf("%s is no case", name)
		}
	}
	if exceptions != 2 {
		t.Errorf("%d exceptions", exceptions)
	}
}

// play runs one case. Those that differ on purpose must differ.
func play(t *testing.T, r *Runner, c *Case) {
	if !privilegedServer(c) {
		t.Parallel()
	}
	reason, differs := different[c.Name]
	if !differs {
		reason, differs = Exception(c.Name)
	}
	if differs {
		short := *r
		short.Patience = time.Second // the answer that was recorded will not come
		r = &short
	}
	err := r.Run(c)
	switch {
	case errors.Is(err, ErrSkip):
		t.Skip(err)
	case err != nil && differs:
		t.Skip(reason)
	case err == nil && differs:
		t.Errorf("is as recorded, but should not be: %s", reason)
	case err != nil:
		t.Errorf("%s: %v", c.Desc, err)
	}
}

func TestMatch(t *testing.T) {
	tests := []struct {
		template, got string
		want          bool
	}{
		{"abc", "abc", true},
		{"abc", "abcd", false},
		{"", "", true},
		{"Date: {{DATE}}\n", "Date: 3 Nov 2026 01:02:03 -0000\n", true},
		{"Date: {{DATE}}\n", "Date: 3 Nov 2026 01:02:03\n", false},
		{"{{TIME}}.{{PID}}x", "1700000000.7x", true},
		{"{{TIME}}", "170000000", false},
		{"{{NONE}}{{PID}}", "{{NONE}}12", true},
		{"{{PID}}1", "21", false}, // the longest, and no second thought
		{"{{", "{{", true},
	}
	for _, tt := range tests {
		if got := match([]byte(tt.template), []byte(tt.got)); got != tt.want {
			t.Errorf("match(%q, %q) = %v", tt.template, tt.got, got)
		}
	}
}

// A runner that lets everything pass is worse than none: each kind of difference must be seen.
func TestTheRunnerSeesDifferences(t *testing.T) {
	text := func(s string) *Value { v := Value(s); return &v }
	good := func() (*run, *result) {
		x := &run{c: &Case{Kind: "exec", Family: "inject", Expect: Expect{
			Stdout: text("out\n"), Stderr: Value("bad (#5.1.1)\n"),
			Queued: []Queued{{Value("s"), []Value{Value("a"), Value("b")}, Value("m\n")}},
			Home:   map[string]*Value{"x": text("1")},
			Tree:   map[string]Entries{"f": {{Mode: "0644", Data: text("d")}}},
			Saw:    [][]*Seen{{{Raw: Value("raw")}}},
		}, Servers: []Server{{Proto: "qmqp"}}}}
		return x, &result{
			stdoutSeen: true, stdout: []byte("out\n"), stderr: []byte("other words #5.1.1\n"),
			queued:    []Queued{{Value("s"), []Value{Value("b"), Value("a")}, Value("m\n")}},
			homeFiles: map[string][]byte{"x": []byte("1")},
			tree:      map[string][]entry{"f": {{mode: "0644", data: "d"}}},
			saw:       [][]*Seen{{{Raw: Value("raw")}}},
		}
	}
	if x, got := good(); x.compare(got) != nil {
		t.Fatal(x.compare(got))
	}
	for name, spoil := range map[string]func(*run, *result){
		"exit":       func(_ *run, r *result) { r.exit = 1 },
		"stdout":     func(_ *run, r *result) { r.stdout = []byte("out") },
		"silence":    func(_ *run, r *result) { r.stderr = nil },
		"code":       func(_ *run, r *result) { r.stderr = []byte("#5.1.2\n") },
		"sender":     func(_ *run, r *result) { r.queued[0].Sender = Value("t") },
		"recipients": func(_ *run, r *result) { r.queued[0].Recipients = r.queued[0].Recipients[:1] },
		"order":      func(x *run, _ *result) { x.c.Family = "queue" },
		"message":    func(_ *run, r *result) { r.queued[0].Message = Value("n\n") },
		"none":       func(_ *run, r *result) { r.queued = nil },
		"one more":   func(_ *run, r *result) { r.stored = r.queued },
		"home":       func(_ *run, r *result) { delete(r.homeFiles, "x") },
		"file":       func(_ *run, r *result) { r.tree["g"] = []entry{{mode: "0644"}} },
		"mode":       func(_ *run, r *result) { r.tree["f"][0].mode = "0600" },
		"saw":        func(_ *run, r *result) { r.saw[0] = slices.Concat(r.saw[0], r.saw[0]) },
	} {
		x, got := good()
		if spoil(x, got); x.compare(got) == nil {
			t.Errorf("%s: nothing seen", name)
		}
	}
	for _, tt := range []struct {
		proto, want, got string
		same             bool
	}{
		{"smtp", "553 no (#5.7.1)\r\n", "550 5.7.1 never\r\n", true},
		{"smtp", "553 no (#5.7.1)\r\n", "550 5.1.1 never\r\n", false},
		{"smtp", "250 ok\r\n", "250 ok\r\n250 ok\r\n", false},
		{"smtp", "250-h\r\n250 PIPELINING\r\n", "250-h\r\n250-SIZE 1\r\n250 PIPELINING\r\n", true},
		{"smtp", "250-h\r\n250 PIPELINING\r\n", "250-h\r\n250 SIZE 1\r\n", false},
		{"smtp", "220 a ESMTP\r\n", "220 b ESMTP\r\n", false},
		{"qmqp", "{{LEN}}:Kok {{TIME}} qp {{QP}},", "19:Kok 1700000000 qp 1,", true},
		{"qmqp", "{{LEN}}:Kok {{TIME}} qp {{QP}},", "3:Zno,", false},
		{"pop3", "+OK\r\n+OK 2 30\r\n", "+OK hello\r\n+OK 2 30\r\n", true},
		{"pop3", "+OK 2 30\r\n", "+OK 3 30\r\n", false},
		{"pop3", "+OK\r\na\r\n\r\n.\r\n", "+OK\r\na\r\n.\r\n", true},
		{"pop3", "+OK\r\na\r\n.\r\n", "+OK\r\nb\r\n.\r\n", false},
		{"raw", "a{{PID}}", "a1", true},
	} {
		if got := dialogue(tt.proto, []byte(tt.want), []byte(tt.got)); (got == "") != tt.same {
			t.Errorf("%s %q against %q: %q", tt.proto, tt.got, tt.want, got)
		}
	}
}
