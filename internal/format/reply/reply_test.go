package reply

import (
	"fmt"
	"io"
	"testing"
)

func TestLetter(t *testing.T) {
	noHost := Permanent("5.1.2", "no such host", nil)
	tests := []struct {
		name string
		err  error
		want byte
	}{
		{"no error is done", nil, 'K'},
		{"a wrapped refusal keeps its class", fmt.Errorf("mx 1: %w", noHost), 'D'},
		{"an unclassified error waits", io.ErrUnexpectedEOF, 'Z'},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Letter(tt.err); got != tt.want {
				t.Errorf("Letter(%v) = %c, want %c", tt.err, got, tt.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, in, letter, status, text string
	}{
		{"done", "Kaccepted", "K", "", ""},
		{"permanent with status", "DSorry, no mailbox here by that name. (#5.1.1)\n", "D", "5.1.1", "Sorry, no mailbox here by that name."},
		{"temporary with status", "Zqq timeout (#4.3.0)", "Z", "4.3.0", "qq timeout"},
		{"no status", "Dgo away", "D", "5.0.0", "go away"},
		{"an empty status is text", "Dgo (#)", "D", "5.0.0", "go (#)"},
		{"empty is later", "", "Z", "4.3.0", "report mangled"},
		{"an unknown letter is later", "xyz", "Z", "4.0.0", "yz"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Parse(tt.in)
			if got := string(Letter(err)); got != tt.letter {
				t.Fatalf("letter %s, want %s", got, tt.letter)
			}
			if err == nil {
				return
			}
			if e := Of(err); e.Status != tt.status || e.Text != tt.text {
				t.Errorf("got %q %q, want %q %q", e.Status, e.Text, tt.status, tt.text)
			}
		})
	}
}

func TestReportRoundTrip(t *testing.T) {
	for _, e := range []*Error{Temporary("4.3.0", "later", nil), Permanent("5.1.1", "never", nil)} {
		got := Of(Parse(e.Report()))
		if got.Status != e.Status || got.Text != e.Text || got.Code != e.Code {
			t.Errorf("%q became %+v", e.Report(), got)
		}
	}
}
