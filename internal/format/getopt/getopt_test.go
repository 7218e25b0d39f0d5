package getopt

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, args, want, rest, err string
	}{
		{"letters may be bundled", "-ab x", "a b", "x", ""},
		{"an argument may be attached", "-afx y", "a f=x", "y", ""},
		{"or be the next word", "-af x y", "a f=x", "y", ""},
		{"whatever that is", "-f -- -a", "f=-- a", "", ""},
		{"a word that is no option ends them", "x -a", "", "x -a", ""},
		{"so does a lone dash, which stays", "-a - -b", "a", "- -b", ""},
		{"so does a double dash, which goes", "-a -- -b", "a", "-b", ""},
		{"an unknown letter", "-aZb", "a", "", "illegal option -- Z"},
		{"a colon is no letter", "-:", "", "", "illegal option -- :"},
		{"a missing argument", "-f", "", "", "option requires an argument -- f"},
		{"the rest of a word, or nothing", "-Eab -E a", "E=ab E", "a", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			options, rest, err := Parse(strings.Fields(tt.args), "abf:E?")
			var got []string
			for _, o := range options {
				s := string(o.Letter)
				if o.Arg != "" {
					s += "=" + o.Arg
				}
				got = append(got, s)
			}
			if strings.Join(got, " ") != tt.want || strings.Join(rest, " ") != tt.rest || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("%q: %q %q %v", tt.args, got, rest, err)
			}
		})
	}
	if o, _, err := Parse([]string{"-f", "", "x"}, "f:"); err != nil || !slices.Equal(o, []Option{{'f', ""}}) {
		t.Errorf("an empty word is an argument: %v %v", o, err)
	}
}
