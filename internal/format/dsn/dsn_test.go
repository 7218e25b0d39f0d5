package dsn

import (
	"strings"
	"testing"
)

func TestNotify(t *testing.T) {
	tests := []struct {
		name, value string
		want        Notify
		ok          bool
	}{
		{"never stands alone", "NEVER", Never, true},
		{"one wish", "SUCCESS", Success, true},
		{"case does not matter", "delay,Failure", Delay | Failure, true},
		{"all wishes", "SUCCESS,FAILURE,DELAY", Success | Failure | Delay, true},
		{"never with another", "NEVER,FAILURE", 0, false},
		{"nothing", "", 0, false},
		{"a comma too many", "SUCCESS,", 0, false},
		{"twice the same", "SUCCESS,success", 0, false},
		{"a blank", "SUCCESS, DELAY", 0, false},
		{"something else", "ALWAYS", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := ParseNotify(tt.value)
			if ok != tt.ok || ok && got != tt.want {
				t.Errorf("%v %v", got, ok)
			}
			if again, ok2 := ParseNotify(got.String()); ok && (!ok2 || again != got) {
				t.Errorf("%q is read as %v", got.String(), again)
			}
		})
	}
}

func TestWishesOfASilentSender(t *testing.T) {
	if n := Notify(0); n.Wants(Success) || !n.Wants(Failure) || !n.Wants(Delay) {
		t.Error("RFC 3461 4.1 has failures and delays where nothing is said")
	}
	if Never.Wants(Failure) || Never.Wants(Success) || Never.Wants(Delay) || Success.Wants(Failure) {
		t.Error("a notice that nobody wants")
	}
}

func TestValues(t *testing.T) {
	envelopeID := func(v string) (string, bool) { return ParseEnvelopeID(v) }
	original := func(v string) (string, bool) {
		kind, addr, ok := ParseOriginal(v)
		return kind + "|" + addr, ok
	}
	tests := []struct {
		name, value string
		parse       func(string) (string, bool)
		want        string
		ok          bool
	}{
		{"an envelope id", "QQ314159", envelopeID, "QQ314159", true},
		{"with an encoded byte", "a+2Bb+3D+20c", envelopeID, "a+b= c", true},
		{"lower-case hex is no hex", "a+2bb", envelopeID, "", false},
		{"half a byte", "a+2", envelopeID, "", false},
		{"a line end", "a+0D+0ABcc:+20x", envelopeID, "", false},
		{"a bare equals sign", "a=b", envelopeID, "", false},
		{"no ASCII", "a+C3+BC", envelopeID, "", false},
		{"100 bytes", strings.Repeat("x", 100), envelopeID, strings.Repeat("x", 100), true},
		{"101 bytes", strings.Repeat("x", 101), envelopeID, "", false},
		{"nothing", "", envelopeID, "", false},

		{"an address", "rfc822;Carol@Ivory.EDU", original, "rfc822|Carol@Ivory.EDU", true},
		{"an encoded address", "rfc822;a+2Bb@c.example", original, "rfc822|a+b@c.example", true},
		{"another type", "x400;/c=us/", original, "", false},
		{"another type, encoded", "x400;/c+3Dus/", original, "x400|/c=us/", true},
		{"no type", ";a@b", original, "", false},
		{"no semicolon", "a@b.example", original, "", false},
		{"no address", "rfc822;", original, "", false},
		{"a type with a blank", "rfc 822;a@b", original, "", false},
		{"a line end in an address", "rfc822;a+0Ab@c", original, "", false},
		{"too long", "rfc822;" + strings.Repeat("x", 494), original, "", false},
		{"UTF-8 as it is", "utf-8;ü@bücher.example", original, "utf-8|ü@bücher.example", true},
		{"UTF-8 in ASCII", `utf-8;\x{FC}@b\x{FC}cher.example`, original, "utf-8|ü@bücher.example", true},
		{"a backslash", `UTF-8;a\x{5C}b@c`, original, `UTF-8|a\b@c`, true},
		{"what could stand for itself", `utf-8;\x{41}@c`, original, "", false},
		{"digits to spare", `utf-8;\x{0FC}@c`, original, "", false},
		{"half a pair", `utf-8;\x{D800}@c`, original, "", false},
		{"a control", `utf-8;\x{0A}@c`, original, "", false},
		{"no end", `utf-8;\x{FC`, original, "", false},
		{"xtext in the wrong place", "utf-8;a+2Bb@c", original, "", false},
		{"broken UTF-8", "utf-8;\xff@c", original, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := tt.parse(tt.value)
			if ok != tt.ok || ok && got != tt.want {
				t.Errorf("%q %v, want %q %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	m := OfMessage([]string{"BODY=8BITMIME", "ret=hdrs", "ENVID=a+2Bb", "ENVID=a=b"})
	if !m.Headers || m.Full || m.ID != "a+b" || m.XID != "a+2Bb" {
		t.Errorf("%+v", m)
	}
	r := OfRecipient([]string{"NOTIFY=SUCCESS", "ORCPT=rfc822;a@b", "ORCPT=rfc822;a@b\r\nRSET"})
	if r.Notify != Success || r.Original != "rfc822;a@b" {
		t.Errorf("%+v", r)
	}
	if r := OfRecipient([]string{"NOTIFY=SUCCESS\r\nDATA", "ORCPT="}); r != (Recipient{}) {
		t.Errorf("%+v", r)
	}
	if got := ASCIIOriginal("utf-8;ü@x"); got != `utf-8;\x{FC}@x` {
		t.Error(got)
	}
}

func FuzzXtext(f *testing.F) { // laws: what is written is read; what is read has one spelling in each form
	f.Add("a+2Bb")
	f.Add(`ü\x{5C}`)
	f.Fuzz(func(t *testing.T, s string) {
		if got, ok := ParseXtext(string(AppendXtext(nil, s))); !ok || got != s {
			t.Errorf("%q became %q", s, got)
		}
		if got, ok := ParseXtext(s); ok && len(s) == len(got) && got != s {
			t.Errorf("%q is read as %q", s, got)
		}
		addr, ok := parseUnitext(s)
		if !ok {
			return
		}
		for _, raw := range []bool{false, true} {
			written := appendUnitext(nil, addr, raw)
			if again, ok := parseUnitext(string(written)); !ok || again != addr || !raw && !ascii(written) {
				t.Errorf("%q is written %q, which is read as %q", addr, written, again)
			}
		}
	})
}

func FuzzParameters(f *testing.F) { // law: what a parser takes stays on its line, as one word, and is printable
	for _, s := range []string{"NEVER", "SUCCESS,DELAY", "FULL", "rfc822;a+2Bb@c", `utf-8;\x{FC}@x`, "utf-8;ü@x", "a+0Ab"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, notify := ParseNotify(s)
		_, ret := ParseReturn(s)
		id, envelope := ParseEnvelopeID(s)
		_, addr, original := ParseOriginal(s)
		if !notify && !ret && !envelope && !original {
			return
		}
		for _, c := range []byte(s) {
			if c <= ' ' || c == 0x7f {
				t.Fatalf("%q taken with %q in it", s, c)
			}
		}
		if envelope && (!printable(id) || !ascii(id)) || original && !printable(addr) {
			t.Errorf("%q means %q, %q", s, id, addr)
		}
		if original && !ascii(ASCIIOriginal(s)) {
			t.Errorf("%q for the old world: %q", s, ASCIIOriginal(s))
		}
	})
}
