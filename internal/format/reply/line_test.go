package reply

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestLine(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"a text with its status", Permanent("5.1.1", "no such user (#5.1.1)", nil), "Dno such user (#5.1.1)"},
		{"a text without", Temporary("4.3.0", "disk full", nil), "Zdisk full (#4.3.0)"},
		{"an error nobody classified", errors.New("open /var/qmail: secret"), "Ztemporary local problem (#4.3.0)"},
		{"a text that would break the line", Permanent("5.0.0", "a\r\n1:K,\xff", nil), "Da??1:K,? (#5.0.0)"},
		{"a text without end", Permanent("5.0.0", strings.Repeat("x", 1000), nil), "D" + strings.Repeat("x", 480)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Line(tt.err); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	if got := Accepted(time.Unix(1800000000, 5), 7); got != "ok 1800000000 qp 7" {
		t.Errorf("%q", got)
	}
}
