package showctl

import (
	"bytes"
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"qmail/internal/store/control"
	"qmail/internal/system/env"
)

// home makes a home with some control files.
func home(t *testing.T, files map[string]string) string {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(home, "control", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return home
}

func run(main func(context.Context, *env.Env, []string) int, home string, args ...string) (int, string, string) {
	var out, err bytes.Buffer
	code := main(context.Background(), &env.Env{Home: home, Stdout: &out, Stderr: &err}, args)
	return code, out.String(), err.String()
}

func TestEverythingIsWell(t *testing.T) {
	h := home(t, map[string]string{"me": "mx.example\n", "databytes": "1000\n", "locals": "# ours\na.example\n\nb.example", "defaultdelivery": "./Maildir/\n|x\n"})
	code, out, _ := run(Main, h)
	for _, want := range []string{
		"qmail home directory: " + h + ".\n",
		"\nme: the name of this machine, and the default of many others [all]\n  mx.example\n\n",
		"\ndatabytes: the largest message that is taken, in bytes; 0 is any [smtpd qmtpd]\n  1000\n\n",
		"\nlocals: domains whose mail is delivered on this machine [send smtpd]\n  a.example\n  b.example\n\n",
		"\nidhost: (Default.) the host in message ids [inject smtpd]\n  mx.example (control/me)\n\n",
		"\nqueuelifetime: (Default.) how long a message is tried, in seconds [send]\n  604800\n\n",
		"\nsmtproutes: (Default.) where mail for some domains goes: domain:relay[:port] [remote rspawn]\n  nothing\n\n",
		"\ndefaultdelivery: what to do with mail for users without a .qmail file [lspawn]\n  ./Maildir/\n  |x\n\n",
	} {
		if !strings.Contains(out+"\n", want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code != 0 || strings.Contains(out, "!") {
		t.Errorf("%d\n%s", code, out)
	}
}

func TestWhatIsOdd(t *testing.T) {
	tests := []struct{ name, file, text, want string }{
		{"a file that nobody reads", "badrcpto", "x\n", "\nbadrcpto: I have no idea what this file does.\n"},
		{"a number that is none", "databytes", "many\n", "line 1: is no number; who does not refuse it takes the default: 0"},
		{"an empty number", "databytes", "", ""},
		{"more than a number", "databytes", "10k\n", "line 1: something follows the number"},
		{"more than a line", "me", "mx.example\nother\n", "line 2: only the first line counts"},
		{"a comment where there are none", "me", "# me\n", "line 1: there are no comments in this file"},
		{"line ends of another system", "locals", "a.example\r\n", "line 1: ends in CR LF, of which the CR counts"},
		{"a blank before a value", "locals", "x\n a.example\n", "line 2: begins with a blank, which counts"},
		{"a line that could be an escape", "locals", "\x1b[31m\n", "line 1: holds a control character"},
		{"a pair that is none", "virtualdomains", "a.example\n", "line 1: there is no colon"},
		{"a domain that is none", "rcpthosts", "ok.example\na@b\n", "line 2: malformed line \"a@b\""},
		{"a network that is none", "relayclients", "10.0.0.1/8\n", "line 1: malformed line \"10.0.0.1/8\""},
		{"a resolver that is none", "resolvers", "dns.example\n", "line 1: "},
		{"a database that is none", "morercpthosts.cdb", "x", "!"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"me": "mx.example\n", "rcpthosts": "x.example\n"}
			files[tt.file] = tt.text
			h := home(t, files)
			code, out, _ := run(Main, h)
			if tt.want == "" {
				return
			}
			if code != 1 || !strings.Contains(out, tt.want) || strings.Contains(out, "\x1b") {
				t.Errorf("%d, %q is not in\n%s", code, tt.want, out)
			}
			code, _, warnings := run(Control, h)
			if code != 1 || !strings.Contains(warnings, "qmail-control: warning: control/"+tt.file+": ") {
				t.Errorf("%d %s", code, warnings)
			}
		})
	}
}

func TestWhatIsMissingOrUnreadable(t *testing.T) {
	if code, out, _ := run(Main, home(t, nil)); code != 1 || !strings.Contains(out, "me: (Default.)") || !strings.Contains(out, "  ! there must be one\n") {
		t.Errorf("without me: %d %s", code, out)
	}
	h := home(t, map[string]string{"me": "mx.example\n"})
	if err := os.Mkdir(filepath.Join(h, "control", "locals"), 0o755); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := run(Main, h); code != 111 || !strings.Contains(out, "  ! unable to read: ") {
		t.Errorf("a directory: %d %s", code, out)
	}
	if code, _, err := run(Main, filepath.Join(h, "none")); code != 111 || !strings.HasPrefix(err, "qmail-showctl: fatal: ") {
		t.Errorf("no home: %d %s", code, err)
	}
	if code, _, _ := run(Main, h, "x"); code != 100 {
		t.Errorf("an argument: %d", code)
	}
}

func TestAnOldDatabaseIsTold(t *testing.T) {
	h := home(t, map[string]string{"me": "mx.example\n", "morercpthosts": "a.example\n", "morercpthosts.cdb": emptyDatabase()})
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(h, "control", "morercpthosts.cdb"), old, old); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := run(Main, h); code != 1 || !strings.Contains(out, "  a database of 0 keys\n  ! is older than control/morercpthosts; run qmail-newmrh\n") {
		t.Errorf("%d %s", code, out)
	}
}

// emptyDatabase is a cdb file without a record: 256 empty tables, each at the end of the header.
func emptyDatabase() string { return strings.Repeat("\x00\x08\x00\x00\x00\x00\x00\x00", 256) }

func TestControl(t *testing.T) {
	h := home(t, map[string]string{"me": "mx.example\n", "locals": "a.example\nb.example\n"})
	code, out, err := run(Control, h)
	if code != 0 || err != "" {
		t.Fatal(code, err)
	}
	for _, want := range []string{"\nlocals\tset\ta.example b.example\tme\t", "\ndatabytes\tdefault\t0\t0\t", "\nidhost\tdefault\tmx.example\tme, else idhost\t", "\nsmtproutes\tunset\t\t\t"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code, out, _ := run(Control, h, "locals", "envnoathost"); code != 0 || out != "a.example\nb.example\nmx.example\n" {
		t.Errorf("%d %q", code, out)
	}
	if code, _, err := run(Control, h, "nothing"); code != 100 || !strings.Contains(err, "there is no setting") {
		t.Errorf("%d %q", code, err)
	}
	if code, _, _ := run(Control, h, "-x"); code != 100 {
		t.Error(code)
	}
}

func TestSettingsAreInOrder(t *testing.T) {
	list := control.Settings()
	if !slices.IsSortedFunc(list, func(a, b control.Setting) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("not by name")
	}
	for _, s := range list {
		if s.Meaning == "" || s.Programs == "" {
			t.Errorf("%s says nothing", s.Name)
		}
	}
}

// Every control file that the source reads by its name is in the list.
func TestTheListIsComplete(t *testing.T) {
	readers := []string{"Line", "LineOr", "LineOrMe", "Int", "List", "Entries", "number", "line", "lineOr", "lineOrMe", "list", "seconds", "loadSet"}
	found := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"qmail/internal/store/control"` }) {
			return nil
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			name := ""
			switch f := call.Fun.(type) {
			case *ast.Ident:
				name = f.Name
			case *ast.SelectorExpr:
				name = f.Sel.Name
			}
			if !slices.Contains(readers, name) {
				return true
			}
			for _, arg := range call.Args[:min(2, len(call.Args))] {
				lit, ok := arg.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				file, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Error(err)
				}
				found++
				if !slices.ContainsFunc(control.Settings(), func(s control.Setting) bool { return s.Name == file }) {
					t.Errorf("%s reads control/%s, which is not in control.Settings", path, file)
				}
				break
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 20 {
		t.Errorf("only %d found", found)
	}
}

// The manual page has all of them.
func TestTheManualIsComplete(t *testing.T) {
	page, err := os.ReadFile("../../../man/qmail-control.5")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range control.Settings() {
		if !strings.Contains(string(page), "\n.It Pa "+s.Name+"\n") {
			t.Errorf("qmail-control.5 does not have %s", s.Name)
		}
	}
}
