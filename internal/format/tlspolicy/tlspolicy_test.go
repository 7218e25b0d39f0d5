package tlspolicy

import (
	"reflect"
	"strings"
	"testing"
)

func TestPolicies(t *testing.T) {
	zero := strings.Repeat("00", 32)
	for line, want := range map[string]Policy{
		"none":                              {},
		"may":                               {Level: May},
		" encrypt ":                         {Level: Encrypt},
		"verify":                            {Level: Verify},
		"verify mx.a.example .b.example":    {Level: Verify, Names: []string{"mx.a.example", ".b.example"}},
		"fingerprint sha256:" + zero:        {Level: Fingerprint, Prints: [][32]byte{{}}},
		"fingerprint sha256:00:" + zero[2:]: {Level: Fingerprint, Prints: [][32]byte{{}}},
	} {
		if got, err := Parse(line); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", line, got, err)
		}
	}
	for _, line := range []string{
		"", "  ", "Encrypt", "must", "may not", "none x", "encrypt a.example", "verify a..", "verify .", "verify ..b", "verify *.b", "verify a/b",
		"fingerprint", "fingerprint " + zero, "fingerprint sha256:00", "fingerprint sha1:" + zero, "fingerprint sha256:" + zero + "00",
	} {
		if got, err := Parse(line); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestWhatIsRequired(t *testing.T) {
	for level, want := range map[Level]bool{None: false, May: false, Encrypt: true, Verify: true, Fingerprint: true} {
		if got := (Policy{Level: level}).Required(); got != want {
			t.Errorf("%v: %v", level, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("verify mx.a.example .b.example")
	f.Add("fingerprint sha256:" + strings.Repeat("ab", 32))
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		line := p.Level.String()
		for _, n := range p.Names {
			line += " " + n
		}
		if p.Level == Fingerprint {
			return
		}
		if again, err := Parse(line); err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("%q: %+v, then %+v, %v", s, p, again, err)
		}
	})
}
