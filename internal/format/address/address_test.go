package address

import "testing"

func TestQuoteAddress(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"a@b", "a@b"},
		{"a b@c", `"a b"@c`},
		{`a"b\c@d`, `"a\"b\\c"@d`},
		{"a\r\nb@c", "\"a\\\r\\\nb\"@c"},
		{"@at@@x", `"@at@"@x`},
		{".a@b", `".a"@b`},
		{"a.@b", `"a."@b`},
		{"a..b@c", `"a..b"@c`},
		{"a.b@c d", "a.b@c d"},
		{"@b", `""@b`},
		{"noat", "noat"},
		{"no at", `"no at"`},
		{"caf\xe9@b", "\"caf\xe9\"@b"},
	}
	for _, tt := range tests {
		if got := QuoteAddress(tt.in); got != tt.want {
			t.Errorf("QuoteAddress(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestFold(t *testing.T) {
	if Lower("AbC\xc9") != "abc\xc9" || Lower("abc") != "abc" {
		t.Error("Lower touches more or less than ASCII")
	}
	if !EqualFold("AbC", "aBc") || EqualFold("\xc9", "\xe9") || EqualFold("a", "ab") {
		t.Error("EqualFold")
	}
}
