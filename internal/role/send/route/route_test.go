package route

import (
	"strings"
	"testing"

	"qmail/internal/format/address"
	"qmail/internal/role/send/schedule"
	"qmail/internal/store/control"
)

func table() *Table {
	return &Table{
		Locals:   control.NewSet([]string{"local.test"}),
		Percent:  control.NewSet([]string{"local.test", "hack.test"}),
		NoAtHost: "noat.test",
		Virtual: control.NewMap([]string{
			"virt.test:joe-virt", "special@virt.test:joe-special", "exc@virt.test:", ".wild.test:joe-wild",
			"not.wild.test:", "DUP.test:joe-first", "dup.test:joe-second", "nocolon",
		}),
	}
}

func TestRewrite(t *testing.T) {
	tests := []struct {
		name, in string
		channel  schedule.Channel
		out, key string
	}{
		{"a virtual domain", "x@virt.test", schedule.Local, "joe-virt-x@virt.test", "joe"},
		{"a virtual address goes before its domain", "special@VIRT.test", schedule.Local, "joe-special-special@VIRT.test", "joe"},
		{"an address that is an exception", "exc@virt.test", schedule.Remote, "exc@virt.test", "virt.test"},
		{"a domain that is an exception", "a@not.wild.test", schedule.Remote, "a@not.wild.test", "not.wild.test"},
		{"a dot entry is not for the domain itself", "a@wild.test", schedule.Remote, "a@wild.test", "wild.test"},
		{"a dot entry", "a@b.wild.test", schedule.Local, "joe-wild-a@b.wild.test", "joe"},
		{"a dot entry, two labels up", "a@b.c.wild.test", schedule.Local, "joe-wild-a@b.c.wild.test", "joe"},
		{"the last of equal keys", "a@dup.test", schedule.Local, "joe-second-a@dup.test", "joe"},
		{"the percent hack", "u%local.test@hack.test", schedule.Local, "u@local.test", "u"},
		{"the percent hack takes the last percent", "x%y%z@local.test", schedule.Remote, "x%y@z", "z"},
		{"no at sign", "noat", schedule.Remote, "noat@noat.test", "noat.test"},
		{"nothing at all", "", schedule.Remote, "@noat.test", "noat.test"},
		{"an empty domain", "u@", schedule.Remote, "u@", ""},
		{"a local domain in capitals", "U@LOCAL.Test", schedule.Local, "U@LOCAL.Test", "u"},
		{"the domain is after the last at sign", "a@local.test@far.test", schedule.Remote, "a@local.test@far.test", "far.test"},
		{"a percent without the hack", "a%local.test@far.test", schedule.Remote, "a%local.test@far.test", "far.test"},
		{"a hack into a virtual domain", "x%virt.test@hack.test", schedule.Local, "joe-virt-x@virt.test", "joe"},
		{"a hack that uncovers an older at sign", "a%b@far.test@hack.test", schedule.Remote, "a@b@far.test", "far.test"},
		{"an extension shares the user's turns", "Joe-list-x@local.test", schedule.Local, "Joe-list-x@local.test", "joe"},
		{"a domain keeps its case but not its key", "a@Far.Test", schedule.Remote, "a@Far.Test", "far.test"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := Target{tt.channel, tt.out, tt.key}
			if got := table().Rewrite(tt.in); got != want {
				t.Errorf("Rewrite(%q) = %+v, want %+v", tt.in, got, want)
			}
		})
	}
}

func TestRewriteEmptyKeys(t *testing.T) {
	all := &Table{Virtual: control.NewMap([]string{":all", "not.test:"})}
	for in, want := range map[string]string{"u@": "all-u@", "a@b": "all-a@b", "a@not.test": "a@not.test", "": "all-@"} {
		if got := all.Rewrite(in).Address; got != want {
			t.Errorf("a catch-all: Rewrite(%q) = %q, want %q", in, got, want)
		}
	}
	if got := (&Table{Locals: control.NewSet([]string{""})}).Rewrite("u@"); got.Channel != schedule.Local {
		t.Errorf("the empty domain can be local: %+v", got)
	}
	if got := (&Table{}).Rewrite("u@x"); got != (Target{schedule.Remote, "u@x", "x"}) {
		t.Errorf("an empty table sends all mail away: %+v", got)
	}
}

func TestPercentHackEnds(t *testing.T) {
	in := strings.Repeat("%", 100000) + "@local.test" // every round leaves an empty domain
	tab := table()
	tab.Percent = control.NewSet([]string{"local.test", ""})
	if got := tab.Rewrite(in).Address; got != "@" {
		t.Errorf("ends as %.40q", got)
	}
	in = strings.Repeat("%local.test", 1000) + "@local.test"
	if got := tab.Rewrite(in).Address; got != "@local.test" {
		t.Errorf("ends as %.40q", got)
	}
}

func TestExpand(t *testing.T) {
	tests := []struct{ name, sender, recipient, want string }{
		{"the recipient's last at sign counts", "s-@h.test-@[]", "a@b@c.test", "s-a@b=c.test@h.test"},
		{"no dash before the at sign", "s@h.test-@[]", "r@c.test", "sr=c.test@h.test"},
		{"no host", "noat-@[]", "r@c.test", "noat-@[]"},
		{"an empty host", "x@-@[]", "r@c", "xr=c@"},
		{"only the suffix", "-@[]", "r@c", "-@[]"},
		{"a recipient without domain", "s-@h-@[]", "r", "s-@h-@[]"},
		{"a usual sender", "s@h", "r@c", "s@h"},
		{"the null sender", "", "r@c", ""},
		{"a double bounce", "#@[]", "r@c", "#@[]"},
		{"the sender's last at sign counts", "a@b@h-@[]", "r@c", "a@br=c@h"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Expand(tt.sender, tt.recipient); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if IsVERP(tt.sender) != (Expand(tt.sender, "r@c") != tt.sender) {
				t.Error("IsVERP and Expand disagree")
			}
		})
	}
}

func TestStrip(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"a virtual domain", "joe-virt-x@virt.test", "x@virt.test"},
		{"an entry for an address is not consulted", "joe-special-special@virt.test", "joe-special-special@virt.test"},
		{"a dot entry", "joe-wild-a@B.wild.test", "a@B.wild.test"},
		{"the prefix keeps its case", "JOE-virt-x@virt.test", "JOE-virt-x@virt.test"},
		{"an exception", "joe-wild-a@not.wild.test", "joe-wild-a@not.wild.test"},
		{"a prefix without its dash", "joe-virtx@virt.test", "joe-virtx@virt.test"},
		{"nothing left", "joe-virt-@virt.test", "@virt.test"},
		{"no at sign", "joe-virt-x", "joe-virt-x"},
		{"another domain", "joe-virt-x@far.test", "joe-virt-x@far.test"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := table().Strip(tt.in); got != tt.want {
				t.Errorf("Strip(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

// FuzzRewrite: what comes out always has an @, a remote address is never at a local domain, and what a
// domain entry prefixed, Strip takes off.
func FuzzRewrite(f *testing.F) {
	for _, s := range []string{"x@virt.test", "x%y%z@local.test", "", "u@", "a%b@far.test@hack.test", "special@virt.test"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		tab := table()
		got := tab.Rewrite(in)
		_, domain, ok := address.Split(got.Address)
		if !ok {
			t.Fatalf("%q became %q", in, got.Address)
		}
		if got.Channel == schedule.Remote {
			if tab.Locals.Has(domain) || got.Destination != address.Lower(domain) {
				t.Fatalf("%q became %+v", in, got)
			}
			if again := tab.Rewrite(got.Address); again != got && !strings.Contains(got.Address, "%") {
				t.Fatalf("%q became %+v, then %+v", in, got, again)
			}
			return
		}
		prefix, _, virtual := tab.Virtual.Domain(domain)
		if _, special := tab.Virtual.Get(in); special || !virtual || tab.Locals.Has(domain) {
			return
		}
		if rest := tab.Strip(got.Address); prefix+"-"+rest != got.Address && !strings.HasPrefix(got.Address, "joe-special-") {
			t.Fatalf("%q became %q, stripped %q", in, got.Address, rest)
		}
	})
}

func BenchmarkRewrite(b *testing.B) {
	tab := table()
	for b.Loop() {
		tab.Rewrite("someone@far.example")
	}
}
