package getpw

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"qmail/internal/system/env"
)

func TestGetpw(t *testing.T) {
	dir := t.TempDir()
	passwd := dir + "/passwd"
	if err := os.WriteFile(passwd, []byte("alias:x:64010:64011::/var/qmail/alias:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	empty := dir + "/empty"
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, passwd string
		args         []string
		exit         int
		want         string
	}{
		{"who is nobody's goes to alias", passwd, []string{"Who-X"}, 0, "alias\x0064010\x0064011\x00/var/qmail/alias\x00-\x00Who-X\x00"},
		{"after --", passwd, []string{"--", "x"}, 0, "alias\x0064010\x0064011\x00/var/qmail/alias\x00-\x00x\x00"},
		{"without a question", passwd, nil, 100, ""},
		{"without an alias", empty, []string{"x"}, 116, ""},
		{"without a passwd", dir + "/none", []string{"x"}, 118, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := run(&env.Env{Stdout: &out}, tt.passwd, tt.args); code != tt.exit || out.String() != tt.want {
				t.Errorf("exit %d, %q", code, out.String())
			}
		})
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestAnAnswerThatCannotBeWrittenIsNone(t *testing.T) {
	passwd := t.TempDir() + "/passwd"
	if err := os.WriteFile(passwd, []byte("alias:x:1:1::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := run(&env.Env{Stdout: full{}}, passwd, []string{"x"}); code != 111 {
		t.Errorf("exit %d", code)
	}
}
