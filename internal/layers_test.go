// Package internal holds the tests that look at the tree as a whole.
package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floors are the layers of the tree: a package imports those of lower floors only.
var floors = []struct {
	prefix string
	floor  int
}{
	{"internal/format/", 0},
	{"internal/system/", 1},
	{"internal/store/", 2},
	{"internal/proto/", 3},
	{"internal/check/", 3},
	{"internal/role/", 4},
	{"internal/super/", 5},
	{"internal/vectors/", 5},
	{"internal/adversarial/", 5},
	{"cmd/", 6},
}

// neighbours are the imports within one floor that are allowed. A pattern that ends in a slash stands for the
// directory and what is below it.
var neighbours = []struct{ from, to, reason string }{
	{"internal/format/", "internal/format/", "values are made of values, and none of them has effects"},
	{"internal/system/env", "internal/system/ipc", "orders of the supervisor come as frames with descriptors"},
	{"internal/system/serve", "internal/system/env", "a server's life is made of the supervisor's orders"},
	{"internal/system/serve", "internal/system/ipc", "and one of them brings its link to qmail-send"},
	{"internal/store/queue/", "internal/store/queue/", "one interface, those who implement it, and its contract as a test"},
	{"internal/store/ledger", "internal/store/queue", "the account of what the queue's records say"},
	{"internal/proto/qq", "internal/proto/enqueue", "qmail-queue's interface, and the door behind it"},
	{"internal/proto/injection", "internal/proto/qq", "what is completed goes on to the queue"},
	{"internal/proto/inlet", "internal/proto/enqueue", "the sessions of a server share one link to the door"},
	{"internal/proto/inlet", "internal/proto/qq", "a server for one connection hands over as all injectors do"},
	{"internal/proto/smtp/client", "internal/proto/sasl", "a login is an exchange of its own, inside of the session"},
	{"internal/proto/sender", "internal/proto/smtp/client", "who takes mail elsewhere keeps the connections"},
	{"internal/proto/sender", "internal/proto/qmtp/", "and speaks the protocol that the other side wants; a test lets the two sides talk"},
}

// families are floors and directories whose subdirectories are one thing each: a role may be several packages, but
// no two roles know each other, and no two commands.
var families = []string{"internal/role/", "cmd/"}

const module = "qmail/"

func floorOf(pkg string) (int, bool) {
	for _, f := range floors {
		if strings.HasPrefix(pkg+"/", f.prefix) {
			return f.floor, true
		}
	}
	return 0, false
}

// allowed says what is wrong with an import, or "".
func allowed(from, to string) string {
	a, ok1 := floorOf(from)
	b, ok2 := floorOf(to)
	switch {
	case !ok1 || !ok2:
		return "is on no floor"
	case from == "internal/super" && b != 1:
		return "is more than root needs: the supervisor starts roles, it does not know them"
	case b < a:
		return ""
	case b > a:
		return "points up"
	}
	for _, family := range families {
		if rest, ok := strings.CutPrefix(from, family); ok {
			name, _, _ := strings.Cut(rest, "/")
			if strings.HasPrefix(to+"/", family+name+"/") {
				return ""
			}
			return "joins two that must not know each other"
		}
	}
	for _, n := range neighbours {
		if matches(from, n.from) && matches(to, n.to) {
			return ""
		}
	}
	return "is between neighbours that are not listed"
}

func matches(pkg, pattern string) bool {
	if strings.HasSuffix(pattern, "/") {
		return strings.HasPrefix(pkg+"/", pattern)
	}
	return pkg == pattern
}

// source is a parsed file that is no test.
type source struct {
	pkg  string // path below the module
	name string
	file *ast.File
}

func sources(t *testing.T) (set *token.FileSet, list []source) {
	t.Helper()
	set = token.NewFileSet()
	packages := map[string]bool{}
	for _, root := range []string{"../internal", "../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() && d.Name() == "testdata" {
				return cmpErr(err, fs.SkipDir)
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			pkg := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), "../"))
			packages[pkg] = true
			list = append(list, source{pkg, path, file})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(packages) < 20 {
		t.Fatalf("only %d packages found: %v", len(packages), slices.Sorted(maps.Keys(packages)))
	}
	return set, list
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func TestArrowsPointDown(t *testing.T) {
	set, list := sources(t)
	imports := 0
	for _, s := range list {
		for _, i := range s.file.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			to, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			imports++
			if wrong := allowed(s.pkg, to); wrong != "" {
				t.Errorf("%s: the import of %s %s", set.Position(i.Pos()), to, wrong)
			}
		}
	}
	if imports < 50 {
		t.Errorf("only %d imports found", imports)
	}
}

func TestTheRulesKnowRightFromWrong(t *testing.T) {
	tests := []struct {
		from, to string
		ok       bool
	}{
		{"internal/role/smtpd", "internal/proto/enqueue", true},
		{"internal/proto/enqueue", "internal/role/smtpd", false},
		{"internal/role/smtpd", "internal/role/send", false},
		{"internal/role/send", "internal/role/send/schedule", true},
		{"internal/role/send/route", "internal/role/send/schedule", true},
		{"internal/role/sendmail", "internal/role/send/schedule", false},
		{"internal/proto/smtp/server", "internal/check/relay", false},
		{"internal/super", "internal/system/ipc", true},
		{"internal/super", "internal/role/send", false},
		{"internal/super", "internal/store/control", false},
		{"internal/store/users", "internal/store/control", false},
		{"internal/format/bounce", "internal/format/address", true},
		{"internal/format/bounce", "internal/system/ipc", false},
		{"cmd/qmail", "internal/super", true},
		{"internal/super", "cmd/qmail", false},
		{"cmd/demo", "cmd/bench/internal/load", false},
		{"internal/util", "internal/format/address", false},
	}
	for _, tt := range tests {
		if wrong := allowed(tt.from, tt.to); (wrong == "") != tt.ok {
			t.Errorf("%s -> %s: %q", tt.from, tt.to, wrong)
		}
	}
}

// TestNoHiddenHands finds work done before main and variables that a package shares with itself.
func TestNoHiddenHands(t *testing.T) {
	set, list := sources(t)
	variables := map[string]map[string]bool{}
	for _, s := range list {
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: init", set.Position(d.Pos()))
				}
			case *ast.GenDecl:
				if d.Tok != token.VAR {
					continue
				}
				for _, spec := range d.Specs {
					v := spec.(*ast.ValueSpec)
					if len(v.Values) == 0 && names(v) != "_" {
						t.Errorf("%s: %s has no value yet, so it is meant to change", set.Position(v.Pos()), names(v))
					}
					if variables[s.pkg] == nil {
						variables[s.pkg] = map[string]bool{}
					}
					for _, name := range v.Names {
						variables[s.pkg][name.Name] = name.Name != "_"
					}
				}
			}
		}
	}
	for _, s := range list {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				for _, at := range changes(f, variables[s.pkg]) {
					t.Errorf("%s: a package variable changes", set.Position(at))
				}
			}
		}
	}
}

func names(v *ast.ValueSpec) string {
	var list []string
	for _, n := range v.Names {
		list = append(list, n.Name)
	}
	return strings.Join(list, ", ")
}

// changes finds assignments in f to a package's variables. A local variable of the same name hides one: then
// nothing is said.
func changes(f *ast.FuncDecl, variables map[string]bool) (list []token.Pos) {
	hidden := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, name := range n.Names {
				hidden[name.Name] = true
			}
		case *ast.AssignStmt:
			for _, e := range n.Lhs {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					hidden[id.Name] = true
				}
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				hidden[name.Name] = true
			}
		case *ast.RangeStmt:
			for _, e := range []ast.Expr{n.Key, n.Value} {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					hidden[id.Name] = true
				}
			}
		}
		return true
	})
	check := func(e ast.Expr) {
		if name := base(e); variables[name] && !hidden[name] {
			list = append(list, e.Pos())
		}
	}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, e := range n.Lhs {
				check(e)
			}
		case *ast.IncDecStmt:
			check(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				check(n.X)
			}
		}
		return true
	})
	return list
}

// base is the variable that a place is part of.
func base(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return base(e.X)
	case *ast.IndexExpr:
		return base(e.X)
	case *ast.StarExpr:
		return base(e.X)
	case *ast.ParenExpr:
		return base(e.X)
	}
	return ""
}

func TestHiddenHandsAreFound(t *testing.T) {
	const text = `package p
var table = map[string]int{}
var count = 0
func a() { table["x"] = 1 }
func b() { count++ }
func c() { p := &count; *p = 1 }
func d() { count := 1; count++ }
func e(table []int) { table[0] = 1 }
func f() int { return count + table["x"] }
`
	file, err := parser.ParseFile(token.NewFileSet(), "p.go", text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	found := ""
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && len(changes(f, map[string]bool{"table": true, "count": true})) > 0 {
			found += f.Name.Name
		}
	}
	if found != "abc" {
		t.Errorf("found %q, wanted abc", found)
	}
}
