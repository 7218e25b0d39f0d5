package envelope

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRoundTrip(t *testing.T) {
	e := &Envelope{
		UID: 1000, QP: 77, Birth: time.Unix(1700000000, 5), Sender: "", Options: []string{"BODY=8BITMIME"},
		Recipients: []string{"a@b", "", "c"}, RecipientOptions: map[int][]string{1: {"NOTIFY=NEVER", "ORCPT=rfc822;x"}},
	}
	if err := e.Check(); err != nil {
		t.Fatal(err)
	}
	got, err := Parse(e.Append(nil, true), true, 0)
	if err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, e)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ name, in string }{
		{"nothing", ""},
		{"no sender", "Ta@b\x00"},
		{"two senders", "Fa\x00Fb\x00"},
		{"a cut record", "Fa\x00Tb"},
		{"who injected, from a stranger", "u0\x00Fa\x00"},
		{"an unknown letter", "Fa\x00x\x00"},
		{"a recipient's option without recipient", "Fa\x00rNOTIFY=NEVER\x00"},
		{"a message option after a recipient", "Fa\x00Tb\x00mSMTPUTF8\x00"},
		{"an address too long", "F" + strings.Repeat("x", MaxAddress+1) + "\x00"},
		{"too many recipients", "Fa\x00" + strings.Repeat("Tb\x00", 4)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if e, err := Parse([]byte(tt.in), false, 3); err == nil {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func FuzzParse(f *testing.F) { // what Parse takes, Append writes back to the byte
	f.Add([]byte("u5\x00p6\x00t7\x00Fa\x00mSMTPUTF8\x00Tb@c\x00rNOTIFY=NEVER\x00"), true)
	f.Add([]byte("F\x00T\x00"), false)
	f.Add([]byte("F\x00"), true)
	f.Fuzz(func(t *testing.T, in []byte, trusted bool) {
		e, err := Parse(in, trusted, 0)
		if err != nil {
			return
		}
		if err := e.Check(); err != nil {
			t.Fatalf("parsed what cannot be written: %v", err)
		}
		again, err := Parse(e.Append(nil, trusted), trusted, 0)
		if err != nil || !reflect.DeepEqual(e, again) {
			t.Fatalf("%q: %v", in, err)
		}
		if !trusted && !bytes.Equal(e.Append(nil, false), in) {
			t.Fatalf("%q is a second spelling", in)
		}
	})
}
