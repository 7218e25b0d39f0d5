package fastforward

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/format/aliases"
	"qmail/internal/format/cdb"
	"qmail/internal/system/env"
)

const (
	message = "Subject: x\n\nbody\n"
	dtline  = "Delivered-To: r@h.example\n"
)

// world is a home with a queue program that keeps what it gets, and a table of that text.
func world(t *testing.T, table, recipient string) (dir string, e *env.Env, said *bytes.Buffer) {
	t.Helper()
	dir = t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "message"), []byte(message), 0o644))
	must(os.WriteFile(filepath.Join(dir, "queue"), []byte("#!/bin/sh\ncat >"+dir+"/queued; cat <&1 >"+dir+"/envelope\n"), 0o755))
	records, err := aliases.ParseForward([]byte(strings.ReplaceAll(table, "DIR", dir)))
	must(err)
	f, err := os.Create(filepath.Join(dir, "cdb"))
	must(err)
	w := cdb.NewWriter(f)
	for _, r := range records {
		must(w.Add([]byte(r.Key), []byte(r.Value)))
	}
	must(w.Close())
	must(f.Close())
	in, err := os.Open(filepath.Join(dir, "message"))
	must(err)
	t.Cleanup(func() { in.Close() })
	said = &bytes.Buffer{}
	local, host, _ := strings.Cut(recipient, "@")
	e = &env.Env{Home: dir, Stdin: in, Stdout: said, Stderr: said, Now: time.Now, Vars: []string{
		"PATH=/usr/bin:/bin", "RECIPIENT=" + recipient, "HOST=" + host, "EXT=list-" + local, "DEFAULT=" + local,
		"SENDER=s@x.example", "NEWSENDER=s@x.example", "DTLINE=" + dtline, "RPLINE=Return-Path: <s@x.example>\n",
		"UFLINE=From s@x.example Mon\n", "QMAILQUEUE=" + filepath.Join(dir, "queue"),
	}}
	return dir, e, said
}

func queued(dir string) string {
	b, _ := os.ReadFile(filepath.Join(dir, "envelope"))
	m, _ := os.ReadFile(filepath.Join(dir, "queued"))
	if string(m) != dtline+message && len(m) > 0 {
		return "message " + string(m)
	}
	return strings.ReplaceAll(string(b), "\x00", "|")
}

func TestTables(t *testing.T) {
	const nobody = "Sorry, no mailbox here by that name. (#5.1.1)\n"
	tests := []struct {
		name, table, recipient string
		options                []string
		code                   int
		queued, said           string
	}{
		{"an address", "r@h.example: a@y, b@z;", "R@h.example", nil, 0, "Fs@x.example|Ta@y|Tb@z||", "fastforward: qp "},
		{"a whole host", "@h.example: a@y; r@: b@y;", "r@h.example", nil, 0, "Fs@x.example|Ta@y||", "fastforward: qp "},
		{"a user at any host", "r: a@y;", "r@h.example", nil, 0, "Fs@x.example|Ta@y||", "fastforward: qp "},
		{"nobody", "x@h.example: a@y;", "r@h.example", nil, 100, "", nobody},
		{"nobody, but another line may know", "x: a@y;", "r@h.example", []string{"-p"}, 0, "", ""},
		{"somebody, and no other line", "r: a@y;", "r@h.example", []string{"-p"}, 99, "Fs@x.example|Ta@y||", "fastforward: qp "},
		{"the default part of a list's address", "r@h.example: a@y;", "r@h.example", []string{"-d"}, 0, "Fs@x.example|Ta@y||", "fastforward: qp "},
		{"aliases of aliases, each once", "r: a, b, c@y; a: c@y, d@y, r; b: a, e@y;", "r@h.example", nil, 0, "Fs@x.example|Tc@y|Td@y|Te@y||", "fastforward: qp "},
		{"nested addresses count in full only", "r: q@y; q: z@z; @y: z@z;", "r@h.example", nil, 0, "Fs@x.example|Tq@y||", "fastforward: qp "},
		{"a name without a host", "r: q;", "r@h.example", nil, 0, "Fs@x.example|Tq@h.example||", "fastforward: qp "},
		{"an owner", "r: ?o@y, a@y;", "r@h.example", nil, 0, "Fo@y|Ta@y||", "fastforward: qp "},
		{"a list in a list with an owner of its own", "r: a, l; l: ?o, b@y;", "r@h.example", nil, 0, "Fs@x.example|Ta@h.example|Tl@h.example||", "fastforward: qp "},
		{"a program", "r: |cat >DIR/piped\\; exit 99;", "r@h.example", nil, 0, "", ""},
		{"a program that says never", "r: |exit 100, a@y;", "r@h.example", nil, 100, "", "fastforward: fatal: permanent error of exit 100\n"},
		{"a program that says later", "r: a@y, |exit 75;", "r@h.example", nil, 111, "", "fastforward: fatal: temporary error of exit 75\n"},
		{"dry", "r: ?o@y, a@y, |x;", "r@h.example", []string{"-np"}, 99, "", "from <o@y>\nrun |x\nforward <a@y>\n"},
		{"nothing to do", "r:;", "r@h.example", nil, 0, "", ""},
		{"a list that is not there", "r: DIR/none, a@y;", "r@h.example", nil, 111, "", "fastforward: fatal: unable to open "},
		{"a list that others must not read", "r: DIR/secret, a@y;", "r@h.example", nil, 111, "", "fastforward: fatal: unable to read "},
		{"a list", "r: DIR/list, a@y;", "r@h.example", nil, 0, "Fs@x.example|Tl1@y|Tl2@y|Ta@y||", "fastforward: qp "},
		{"a list of itself", "r: DIR/self, a@y;", "r@h.example", nil, 0, "Fs@x.example|Ta@y||", "fastforward: qp "},
		{"no table", "", "r@h.example", []string{"-n", "--", "/no/such.cdb"}, 111, "", "fastforward: fatal: unable to open /no/such.cdb: file does not exist\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, e, said := world(t, tt.table, tt.recipient)
			for name, f := range map[string]struct {
				text string
				mode os.FileMode
			}{
				"list": {"&l1@y\x00&l2@y\x00", 0o644}, "secret": {"&l@y\x00", 0o600}, "self": {filepath.Join(dir, "self") + "\x00", 0o644},
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(f.text), f.mode); err != nil {
					t.Fatal(err)
				}
			}
			args := tt.options
			if len(args) == 0 || !strings.HasSuffix(args[len(args)-1], ".cdb") {
				args = append(args, filepath.Join(dir, "cdb"))
			}
			code := Main(t.Context(), e, args)
			if code != tt.code || !strings.HasPrefix(said.String(), tt.said) || (tt.said == "") != (said.Len() == 0) {
				t.Errorf("exit %d, said %q", code, said)
			}
			if got := queued(dir); got != tt.queued {
				t.Errorf("queued %q", got)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "piped")); err == nil && string(b) != message {
				t.Errorf("piped %q", b)
			}
		})
	}
}

func TestABounceHasNoOwner(t *testing.T) {
	for _, sender := range []string{"", "#@[]"} {
		dir, e, _ := world(t, "r: ?o@y, a@y;", "r@h.example")
		e.Vars = append([]string{"NEWSENDER=" + sender}, e.Vars...)
		if code := Main(t.Context(), e, []string{filepath.Join(dir, "cdb")}); code != 0 || queued(dir) != "F"+sender+"|Ta@y||" {
			t.Errorf("exit %d, queued %q", code, queued(dir))
		}
	}
}

func TestAPrelinedProgram(t *testing.T) {
	dir, e, said := world(t, "r: !cat >DIR/piped;", "r@h.example")
	code := Main(t.Context(), e, []string{filepath.Join(dir, "cdb")})
	b, err := os.ReadFile(filepath.Join(dir, "piped"))
	if code != 0 || err != nil || string(b) != "From s@x.example Mon\nReturn-Path: <s@x.example>\n"+dtline+message {
		t.Errorf("exit %d, %q %v, said %q", code, b, err, said)
	}
}

func TestADamagedTableIsTemporary(t *testing.T) {
	dir, e, said := world(t, "r: a@y;", "r@h.example")
	b, err := os.ReadFile(filepath.Join(dir, "cdb"))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"cut": b[:len(b)/2], "an unknown command": bytes.Replace(b, []byte("&a@y\x00"), []byte("\x01a@y\x00"), 1),
		"no end": bytes.Replace(b, []byte("&a@y\x00"), []byte("&a@yy"), 1), "empty": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, "cdb"), bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if code := Main(t.Context(), e, []string{filepath.Join(dir, "cdb")}); code != 111 {
			t.Errorf("%s: exit %d, said %q", name, code, said)
		}
	}
}

func TestMisuse(t *testing.T) {
	for name, args := range map[string][]string{"no table": {}, "an unknown option": {"-x", "t"}, "two tables": {"a", "b"}} {
		if code := Main(t.Context(), &env.Env{Stderr: io.Discard}, args); code != 100 {
			t.Errorf("%s: %d", name, code)
		}
	}
	if code := Main(t.Context(), &env.Env{Stderr: io.Discard}, []string{"t"}); code != 100 {
		t.Errorf("outside a .qmail file: %d", code)
	}
}
