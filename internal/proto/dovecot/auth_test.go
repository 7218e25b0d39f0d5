package dovecot

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// script is a Dovecot that says what it says, whatever it hears.
type script struct {
	io.Reader
	heard bytes.Buffer
}

func (s *script) Write(p []byte) (int, error) { return s.heard.Write(p) }

const hello = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\tabc\nDONE\n"

var question = Question{Login: "alice\tx", Password: "correct\nhorse", Service: "smtp", IP: "192.0.2.7", Secure: true}

func TestAsk(t *testing.T) {
	tests := []struct {
		name, says, user string
		want             error
	}{
		{"yes", hello + "OK\t1\tuser=alice@test.example\toriginal_user=x\n", "alice@test.example", nil},
		{"a name with an escape", hello + "OK\t1\tuser=a\x01tb\n", "a\tb", nil},
		{"no", hello + "FAIL\t1\tuser=alice\n", "", ErrRefused},
		{"trouble", hello + "FAIL\t1\tuser=alice\ttemp\n", "", ErrTrouble},
		{"trouble by its code", hello + "FAIL\t1\tuser=alice\tcode=temp_fail\n", "", ErrTrouble},
		{"yes to nobody", hello + "OK\t1\n", "", errProtocol},
		{"an answer to another question", hello + "OK\t2\tuser=alice\n", "", errProtocol},
		{"more questions", hello + "CONT\t1\t\n", "", errProtocol},
		{"another version", strings.Replace(hello, "VERSION\t1", "VERSION\t2", 1), "", errProtocol},
		{"no PLAIN", strings.Replace(hello, "PLAIN\t", "X\t", 1), "", errProtocol},
		{"the end", hello, "", io.EOF},
		{"lines without end", strings.Repeat("x\n", maxLines+1), "", errProtocol},
		{"a line without end", strings.Repeat("x", maxLine+1), "", errProtocol},
	}
	for _, tt := range tests {
		s := &script{Reader: strings.NewReader(tt.says)}
		user, err := ask(s, question)
		if user != tt.user || !errors.Is(err, tt.want) {
			t.Errorf("%s: %q, %v", tt.name, user, err)
		}
		if heard := s.heard.String(); err == nil && (strings.Count(heard, "\n") != 3 ||
			!strings.HasSuffix(heard, "AUTH\t1\tPLAIN\tservice=smtp\tnologin\tsecured\trip=192.0.2.7\tresp=AGFsaWNlCXgAY29ycmVjdApob3JzZQ==\n")) {
			t.Errorf("%s: it heard %q", tt.name, heard)
		}
	}
	if _, err := Check(t.Context(), "/nowhere", Question{Login: "a\x00b", Password: "x"}); err != ErrRefused {
		t.Errorf("a NUL in the name: %v", err)
	}
}

// Whatever is said, nobody is let in without an OK to question 1 that names him.
func FuzzAsk(f *testing.F) {
	f.Add([]byte(hello + "OK\t1\tuser=alice\n"))
	f.Add([]byte(hello + "FAIL\t1\ttemp\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		user, err := ask(&script{Reader: bytes.NewReader(says)}, question)
		if (err == nil) != (user != "") || err == nil && !bytes.Contains(says, []byte("OK\t1\t")) {
			t.Fatalf("%q lets %q in: %v", says, user, err)
		}
	})
}
