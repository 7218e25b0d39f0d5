package relay

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
	"qmail/internal/format/reply"
	"qmail/internal/store/control"
)

// home makes a control directory of files; a name that ends in .cdb gets its lines as keys.
func home(t *testing.T, files map[string]string) control.Dir {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, "control", name)
		if keys, ok := strings.CutPrefix(text, "cdb:"); ok {
			writeCDB(t, path, strings.Fields(keys))
		} else if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return control.Open(dir)
}

func writeCDB(t *testing.T, path string, keys []string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := cdb.NewWriter(f)
	for _, k := range keys {
		if err := w.Add([]byte(k), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, files map[string]string) *Policy {
	t.Helper()
	p, err := Load(home(t, files), []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func path(t *testing.T, s string) address.Path {
	t.Helper()
	p, rest, err := address.CutPath("<" + s + ">")
	if err != nil || rest != "" {
		t.Fatalf("%q: %v", s, err)
	}
	return p
}

func TestRecipient(t *testing.T) {
	p := load(t, map[string]string{
		"me":                "mx.here.example\n",
		"rcpthosts":         "here.example\n.Sub.example\n#no.example\n[192.0.2.9]\n",
		"morercpthosts.cdb": "cdb:more.example .wide.example",
		"percenthack":       "here.example\n",
		"badmailfrom":       "spam@bad.example\n@evil.example\n",
		"localiphost":       "here.example\n",
	})
	tests := []struct {
		name, sender, rcpt string
		relay              bool
		stored, status     string
	}{
		{"a domain of rcpthosts", "s@x", "a@HERE.example", false, "a@HERE.example", ""},
		{"another domain", "s@x", "a@there.example", false, "", "5.7.1"},
		{"any domain for a relay client", "s@x", "a@there.example", true, "a@there.example", ""},
		{"a wildcard covers what is below it", "s@x", "a@a.b.sub.example", false, "a@a.b.sub.example", ""},
		{"and not itself", "s@x", "a@sub.example", false, "", "5.7.1"},
		{"and ends at a label", "s@x", "a@xsub.example", false, "", "5.7.1"},
		{"a longer name is another name", "s@x", "a@here.example.evil.example", false, "", "5.7.1"},
		{"a dot at the end is another name", "s@x", "a@here.example.", false, "", "5.7.1"},
		{"a comment is no entry", "s@x", "a@no.example", false, "", "5.7.1"},
		{"the cdb is asked too", "s@x", "a@More.Example", false, "a@More.Example", ""},
		{"with its wildcards", "s@x", "a@x.wide.example", false, "a@x.wide.example", ""},
		{"and says no", "s@x", "a@wide.example", false, "", "5.7.1"},
		{"our own literal", "s@x", "a@[192.0.2.1]", false, "a@here.example", ""},
		{"our own IPv6 literal", "s@x", "a@[IPv6:2001:db8::1]", false, "a@here.example", ""},
		{"our own mapped literal", "s@x", "a@[IPv6:::ffff:192.0.2.1]", false, "a@here.example", ""},
		{"loopback is our own", "s@x", "a@[127.0.0.1]", false, "a@here.example", ""},
		{"a literal in rcpthosts", "s@x", "a@[192.0.2.9]", false, "a@[192.0.2.9]", ""},
		{"a foreign literal", "s@x", "a@[192.0.2.55]", false, "", "5.7.1"},
		{"percenthack leads outside", "s@x", "a%there.example@here.example", false, "", "5.7.1"},
		{"percenthack leads outside in two steps", "s@x", "a%there.example%here.example@here.example", false, "", "5.7.1"},
		{"percenthack leads outside through our literal", "s@x", "a%there.example@[127.0.0.1]", false, "", "5.7.1"},
		{"percenthack leads inside", "s@x", "a%more.example@here.example", false, "a%more.example@here.example", ""},
		{"no percenthack for this domain", "s@x", "a%there.example@more.example", false, "a%there.example@more.example", ""},
		{"postmaster needs no domain", "s@x", "PostMaster", false, "PostMaster", ""},
		{"others do", "s@x", "alice", false, "", "5.1.3"},
		{"a percent sign without a domain", "s@x", "a%there.example", false, "", "5.1.3"},
		{"a relay client's address may lack it", "s@x", "alice", true, "alice", ""},
		{"badmailfrom names an address", "SPAM@Bad.example", "a@here.example", false, "", "5.7.1"},
		{"and a domain", "x@evil.example", "a@here.example", true, "", "5.7.1"},
		{"but not what is below it", "x@a.evil.example", "a@here.example", false, "a@here.example", ""},
		{"the null sender is never bad", "", "a@here.example", false, "a@here.example", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stored, err := p.Recipient(tt.relay, tt.sender, path(t, tt.rcpt))
			status := ""
			if err != nil {
				status = reply.Of(err).Status
			}
			if status != tt.status || err == nil && stored != tt.stored {
				t.Errorf("%q, %v", stored, err)
			}
		})
	}
}

func TestRaw(t *testing.T) {
	p := load(t, map[string]string{
		"me": "mx.here.example\n", "rcpthosts": "here.example\n.sub.example\n", "morercpthosts.cdb": "cdb:more.example",
		"percenthack": "here.example\nmx.here.example\n", "badmailfrom": "@evil.example\n", "localiphost": "here.example\n",
	})
	tests := []struct {
		name, rcpt string
		relay, ok  bool
	}{
		{"a domain of rcpthosts", "a@HERE.example", false, true},
		{"a domain of morercpthosts", "a@more.example", false, true},
		{"another domain", "a@there.example", false, false},
		{"any domain for a relay client", "a@there.example", true, true},
		{"no domain", "alice", false, true},
		{"nothing at all", "", false, true},
		{"an empty domain", "a@", false, false},
		{"blanks and at signs are bytes like others", "a b@there.example@here.example", false, true},
		{"our own literal is none of rcpthosts", "a@[127.0.0.1]", false, false},
		{"percenthack leads outside", "a%there.example@here.example", false, false},
		{"percenthack leads inside", "a%more.example@here.example", false, true},
		{"percenthack leads outside from where addresses without a domain belong", "a%there.example", false, false},
		{"and inside", "a%here.example", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stored, err := p.Raw(tt.relay, tt.rcpt)
			if (err == nil) != tt.ok || err == nil && stored != tt.rcpt {
				t.Errorf("%q, %v", stored, err)
			}
		})
	}
	if _, err := load(t, map[string]string{"me": "here.example\n"}).Raw(false, "alice"); err == nil {
		t.Error("welcome without rcpthosts")
	}
}

func TestSender(t *testing.T) {
	p := load(t, map[string]string{"me": "mx.here.example\n"})
	tests := []struct {
		name, sender string
		relay        bool
		stored       string
		refused      bool
	}{
		{"an address", "a@b.example", false, "a@b.example", false},
		{"the null sender", "", false, "", false},
		{"our literal becomes me", "a@[127.0.0.1]", false, "a@mx.here.example", false},
		{"a stranger's name without a domain", "root", false, "", true},
		{"a relay client's", "root", true, "root", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stored, err := p.Sender(tt.relay, path(t, tt.sender))
			if stored != tt.stored || (err != nil) != tt.refused {
				t.Errorf("%q, %v", stored, err)
			}
		})
	}
}

func TestWithoutRcpthostsNobodyRelays(t *testing.T) {
	p := load(t, map[string]string{"me": "here.example\n", "morercpthosts.cdb": "cdb:here.example"})
	if _, err := p.Recipient(false, "", path(t, "a@here.example")); err == nil {
		t.Error("a stranger may send")
	}
	if _, err := p.Recipient(true, "", path(t, "a@there.example")); err != nil {
		t.Error("a relay client may not send")
	}
}

func TestClient(t *testing.T) {
	p := load(t, map[string]string{"relayclients": "# ours\n192.0.2.7\n10.0.0.0/8\n2001:db8::/32\n::ffff:198.51.100.0/120\nfe80::/10\n"})
	tests := []struct {
		ip   string
		want bool
	}{
		{"192.0.2.7", true}, {"192.0.2.8", false}, {"::ffff:192.0.2.7", true}, {"10.255.0.1", true}, {"11.0.0.1", false},
		{"2001:db8:ffff::1", true}, {"2001:db9::1", false}, {"198.51.100.9", true}, {"198.51.101.9", false},
		{"::ffff:10.1.2.3", true}, {"::10.1.2.3", false}, {"fe80::1%eth0", true}, {"127.0.0.1", false},
	}
	for _, tt := range tests {
		if got := p.Client(netip.MustParseAddr(tt.ip)); got != tt.want {
			t.Errorf("%s: %v", tt.ip, got)
		}
	}
	if p.Client(netip.Addr{}) {
		t.Error("nobody is a client")
	}
}

func TestLoadNamesFileAndLine(t *testing.T) {
	tests := []struct {
		name, file, text, want string
	}{
		{"CRLF line ends", "rcpthosts", "a.example\nb.example\r\n", "rcpthosts:2:"},
		{"a star", "rcpthosts", "*\n", "rcpthosts:1:"},
		{"a lone dot", "rcpthosts", ".\n", "rcpthosts:1:"},
		{"an address where a domain should be", "rcpthosts", "a@b.example\n", "rcpthosts:1:"},
		{"a leading blank", "rcpthosts", " a.example\n", "rcpthosts:1:"},
		{"bits beyond a network's length", "relayclients", "10.0.0.0/8\n\n10.0.0.1/8\n", "relayclients:3:"},
		{"no network", "relayclients", "10.\n", "relayclients:1:"},
		{"a network of all mapped addresses", "relayclients", "::ffff:0.0.0.0/80\n", "relayclients:1:"},
		{"a name", "relayclients", "client.example\n", "relayclients:1:"},
		{"a control byte", "badmailfrom", "a\x00b@c.example\n", "badmailfrom:1:"},
		{"an expression that is none", "badrcptto", "a@b.example\n(\n", "badrcptto:2:"},
		{"a repetition of nothing", "badmailfrom", "!*x\n", "badmailfrom:1:"},
		{"a line that never ends", "badhelo", strings.Repeat("x", 2000) + "\n", "badhelo:1:"},
		{"a bad percenthack domain", "percenthack", "a b\n", "percenthack:1:"},
		{"a damaged cdb", "morercpthosts.cdb", "x", "morercpthosts.cdb:"},
		{"an empty cdb", "morercpthosts.cdb", "", "morercpthosts.cdb:"},
		{"a cdb that is cut short", "morercpthosts.cdb", strings.Repeat("\xff", 2048), "morercpthosts.cdb:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"me": "here.example\n", "rcpthosts": "here.example\n"}
			files[tt.file] = tt.text
			_, err := Load(home(t, files), nil)
			if err == nil || !strings.Contains(err.Error(), "control/"+tt.want) {
				t.Errorf("got %v, want one that names %s", err, tt.want)
			}
		})
	}
}

func TestAnUnreadableFileIsAnError(t *testing.T) {
	for _, name := range []string{"rcpthosts", "morercpthosts.cdb", "relayclients", "badmailfrom", "badmailfromnorelay", "badrcptto", "badrcpttonorelay", "badhelo",
		"badhelonorelay", "percenthack", "localiphost", "envnoathost"} {
		dir := home(t, map[string]string{"me": "here.example\n", "rcpthosts": "here.example\n"})
		os.Remove(dir.Path(name))
		if err := os.Mkdir(dir.Path(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is a directory: %v", name, err)
		}
	}
}

func TestADamagedTableIsTemporary(t *testing.T) {
	dir := home(t, map[string]string{"rcpthosts": "here.example\n", "morercpthosts.cdb": "cdb:more.example"})
	data, err := os.ReadFile(dir.Path("morercpthosts.cdb"))
	if err != nil {
		t.Fatal(err)
	}
	h := cdb.Hash([]byte("more.example")) // its table's position, out of the file now
	data[h&255*8+3] = 0xff
	if err := os.WriteFile(dir.Path("morercpthosts.cdb"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := Load(dir, nil)
	if err != nil {
		return // found at once: as good
	}
	_, err = p.Recipient(false, "", path(t, "a@more.example"))
	if e := (*reply.Error)(nil); !errors.As(err, &e) || e.Letter() != 'Z' {
		t.Errorf("got %v", err)
	}
}

// Whatever the address, a stranger's recipient is stored with a domain of rcpthosts, or is postmaster.
func FuzzNeverARelay(f *testing.F) {
	p := &Policy{
		hosts: control.NewSet([]string{"here.example", ".sub.example"}), percentHack: control.NewSet([]string{"here.example"}),
		localIPHost: "here.example", own: map[netip.Addr]bool{},
		badSenders: unwanted{&patterns{}, &patterns{}}, badRcpts: unwanted{&patterns{}, &patterns{}}, badHelos: unwanted{&patterns{}, &patterns{}},
	}
	for _, s := range []string{"<a@here.example>", `<"a@b"@x.sub.example>`, "<@x:a@here.example>", "<a%b@here.example>", "<a@[127.0.0.1]>", "<postmaster>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		path, _, err := address.CutPath(in)
		if err != nil {
			return
		}
		stored, err := p.Recipient(false, "", path)
		if err != nil || address.EqualFold(stored, "postmaster") {
			return
		}
		for { // what qmail-send makes of it
			local, domain, _ := address.Split(stored)
			if !address.EqualFold(domain, "here.example") && !strings.HasSuffix(address.Lower(domain), ".sub.example") {
				t.Fatalf("%q goes to %q", in, stored)
			}
			i := strings.LastIndexByte(local, '%')
			if i < 0 || !address.EqualFold(domain, "here.example") {
				return
			}
			stored = local[:i] + "@" + local[i+1:]
		}
	})
}
