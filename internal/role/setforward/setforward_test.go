package setforward

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"qmail/internal/system/env"
)

// call runs one of the tools with that input.
func call(t *testing.T, main func(context.Context, *env.Env, []string) int, input []byte, args ...string) (out string, code int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, input, 0o644); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var stdout bytes.Buffer
	code = main(t.Context(), &env.Env{Stdin: in, Stdout: &stdout, Stderr: &bytes.Buffer{}}, args)
	return stdout.String(), code
}

func TestWhatIsSetIsPrinted(t *testing.T) {
	dir := t.TempDir()
	table, list, temp := filepath.Join(dir, "t.cdb"), filepath.Join(dir, "l.bin"), filepath.Join(dir, "tmp")
	if _, code := call(t, Main, []byte("Fun: ?own@x, joe@y, |a\\, b;\n"), table, temp); code != 0 {
		t.Fatal(code)
	}
	b, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	if out, code := call(t, Printforward, b); code != 0 || out != "fun@: &joe@y, |a\\, b;\nfun@: ?own@x;\n" {
		t.Errorf("%d %q", code, out)
	}
	if _, code := call(t, Setmaillist, []byte("joe@y\n./more\n"), list, temp); code != 0 {
		t.Fatal(code)
	}
	if b, err = os.ReadFile(list); err != nil {
		t.Fatal(err)
	}
	if out, code := call(t, Printmaillist, b); code != 0 || out != "&joe@y\n./more\n" {
		t.Errorf("%d %q", code, out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestTrouble(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		main  func(context.Context, *env.Env, []string) int
		input string
		args  []string
		code  int
	}{
		"no arguments":       {Main, "", nil, 100},
		"too many":           {Printforward, "", []string{"x"}, 100},
		"a mistake":          {Main, "x", []string{dir + "/x", dir + "/y"}, 111},
		"a program":          {Setmaillist, "|x", []string{dir + "/x", dir + "/y"}, 111},
		"no directory":       {Main, "x: y@z;", []string{dir + "/x", dir + "/no/y"}, 111},
		"not a table":        {Printforward, "x", nil, 111},
		"not a list":         {Printmaillist, "x", nil, 111},
		"no list to be made": {Setmaillist, "", nil, 100},
	} {
		if out, code := call(t, tt.main, []byte(tt.input), tt.args...); code != tt.code || out != "" {
			t.Errorf("%s: %d %q", name, code, out)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
