package passwdtool

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmail/internal/format/cdb"
	"qmail/internal/store/passwd"
	"qmail/internal/system/env"
)

const (
	bcrypted = "$2y$05$teX8NeqPGQVcIsaa0Ux7UuaiMPQY1LP5KBRFGF.H033UeM61p9O4O"
	crypted  = "$6$abcdefgh$yIZAF3gQPvtKZO/9qOJKffAKKbtS3ef3qmwyugk4uWVjX8YZf/GV3A8SkFxEPY0T56CcilGrHKLffBsp6dLMG."
	verifier = "{SCRAM-SHA-256}4096,9f1LcWkfgFoPBJVxHYEGIw==,2H4fCU0Nr0mIuURhVzWN8mwgoQjUo6QAmfBbQ8axNSY=,tiOjbXyFh3gf9CZXnf7Zmii5c5zDCAq9WMgO2dO4l0I="
)

func newHome(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "users"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(passwd.Path(home), nil, 0o600); err != nil { // it is ours then, and not to be given to qmailk
		t.Fatal(err)
	}
	return home
}

// run runs the tool with a file as its input.
func run(t *testing.T, home, input string, args ...string) (code int, out, errs string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var o, e bytes.Buffer
	code = Main(context.Background(), &env.Env{Home: home, Stdin: in, Stdout: &o, Stderr: &e}, args)
	return code, o.String(), e.String()
}

func TestVerbs(t *testing.T) {
	home := newHome(t)
	steps := []struct {
		name, input string
		args        string
		code        int
		says        string
	}{
		{"a new user", "correct horse\n", "add Alice@test.example", 0, ""},
		{"the same again", "x\n", "add alice@test.example", 100, "there is such a user already"},
		{"the right password", "correct horse\r\n", "check alice@test.example", 0, ""},
		{"a wrong one", "correct horsf\n", "check alice@test.example", 1, "not the password"},
		{"nobody's password", "x\n", "check nobody", 100, "no such user"},
		{"a change", "pencil\n", "set alice@test.example", 0, ""},
		{"counts", "pencil\n", "check alice@test.example", 0, ""},
		{"a change for nobody", "x\n", "set nobody", 100, "no such user"},
		{"a user without SCRAM", "x\n", "add -n bob", 0, ""},
		{"the list", "", "list", 0, "alice@test.example argon2id SCRAM-SHA-256 SCRAM-SHA-1\nbob argon2id\n"},
		{"no password", "\n", "add carol", 100, "a password is 1 to 512 bytes"},
		{"no input", "", "add carol", 100, "a password is 1 to 512 bytes"},
		{"too long a password", strings.Repeat("x", 513) + "\n", "add carol", 100, "a password is 1 to 512 bytes"},
		{"a login with a colon", "x\n", "add a:b", 100, "a login is"},
		{"an empty login", "x\n", "add ", 100, "usage"},
		{"a deletion", "", "delete BOB", 0, ""},
		{"a deletion of nobody", "", "delete bob", 100, "no such user"},
		{"no verb", "", "", 100, "usage"},
		{"another verb", "", "frobnicate x", 100, "usage"},
		{"an unknown option", "", "add -x y", 100, "usage"},
		{"a password as an argument", "", "add alice secret", 100, "usage"},
	}
	for _, s := range steps {
		code, out, errs := run(t, home, s.input, strings.Fields(s.args)...)
		if code != s.code || !strings.Contains(out+errs, s.says) || s.says == "" && out+errs != "" {
			t.Errorf("%s: %d, %q, %q", s.name, code, out, errs)
		}
	}
	b, err := os.ReadFile(passwd.Path(home))
	if err != nil || bytes.Contains(b, []byte("pencil")) || bytes.Contains(b, []byte("correct")) || !bytes.HasPrefix(b, []byte("#secret ")) {
		t.Errorf("%v: %q", err, b)
	}
}

func TestImport(t *testing.T) {
	tests := []struct {
		name, file, text, args, want, left string
	}{
		{"htpasswd", "htpasswd", "# people\nalice:" + bcrypted + "\n", "", "alice bcrypt\n", ""},
		{"shadow", "shadow", "alice:" + crypted + ":19000:0:99999:7:::\nbin:*:19000::::::\nlocked:!" + crypted + ":19000::::::\n", "-d test.example", "alice@test.example sha512crypt\n", `"bin"`},
		{"Dovecot", "users", "alice@a.example:{BLF-CRYPT}" + bcrypted + ":1000:1000::/home\nbob@a.example:" + verifier + "\n", "-d x.example", "alice@a.example bcrypt\nbob@a.example none SCRAM-SHA-256\n", ""},
		{"vpopmail", "vpasswd", "alice:" + crypted + ":1:0:Alice:/home/vpopmail/domains/a.example/alice:NOQUOTA:plain text\n", "-d a.example", "alice@a.example sha512crypt\n", ""},
		{"DES", "htpasswd", "alice:abJnggxhB/yWI\n", "", "", `"alice"`},
	}
	for _, tt := range tests {
		home := newHome(t)
		path := filepath.Join(t.TempDir(), tt.file)
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, out, errs := run(t, home, "", append(append([]string{"import"}, strings.Fields(tt.args)...), path)...)
		if code != 0 || !strings.Contains(errs, tt.left) || tt.left == "" && errs != "" || strings.Contains(errs, "abcdefgh") || strings.Contains(errs, "abJ") {
			t.Errorf("%s: %d, %q, %q", tt.name, code, out, errs)
		}
		if _, list, _ := run(t, home, "", "list"); list != tt.want {
			t.Errorf("%s: %q", tt.name, list)
		}
	}
}

func TestImportOfVpopmailsDatabase(t *testing.T) {
	home := newHome(t)
	path := filepath.Join(t.TempDir(), "vpasswd.cdb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := cdb.NewWriter(f)
	for name, value := range map[string]string{"alice": crypted + ":1:0:Alice:/home/a:NOQUOTA:", "bob": "!:1:0::/home/b:NOQUOTA:"} {
		if err := w.Add([]byte(name), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	code, out, errs := run(t, home, "", "import", "-d", "a.example", path)
	if code != 0 || out != "1 users, 1 left out\n" || !strings.Contains(errs, `"bob"`) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	if code, _, _ := run(t, home, "correct horse\n", "check", "alice@a.example"); code != 0 {
		t.Error("the password does not fit")
	}
	if _, out, errs := run(t, home, "", "import", "-d", "a.example", path); out != "0 users, 2 left out\n" || !strings.Contains(errs, "already") {
		t.Errorf("again: %q, %q", out, errs)
	}
	if _, out, _ := run(t, home, "", "import", "-f", "-d", "a.example", path); out != "1 users, 1 left out\n" {
		t.Errorf("by force: %q", out)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := run(t, home, "", "import", path); code != 111 {
		t.Errorf("a damaged database: %d", code)
	}
}
