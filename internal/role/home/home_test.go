package home

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmail/internal/store/users"
	"qmail/internal/system/env"
)

// world is a machine whose accounts are in memory.
type world struct {
	users    map[string]*user.User
	groups   map[string]*user.Group
	commands []string
	owned    map[string]account // by path below the home
	home     string
	full     bool // no more files can be given away
	warnings []string
}

func newWorld(home string) *world {
	return &world{users: map[string]*user.User{}, groups: map[string]*user.Group{}, owned: map[string]account{}, home: home}
}

func (w *world) machine(root bool) machine {
	return machine{now: time.Now,
		root: root, us: account{1000, 1000},
		findUser: func(name string) (*user.User, error) {
			if u := w.users[name]; u != nil {
				return u, nil
			}
			return nil, user.UnknownUserError(name)
		},
		findGroup: func(name string) (*user.Group, error) {
			if g := w.groups[name]; g != nil {
				return g, nil
			}
			return nil, user.UnknownGroupError(name)
		},
		run: func(program string, args ...string) error {
			w.commands = append(w.commands, program+" "+strings.Join(args, " "))
			name := args[len(args)-1]
			if program == "groupadd" {
				w.groups[name] = &user.Group{Gid: fmt.Sprint(200 + len(w.groups))}
				return nil
			}
			home := args[slices.Index(args, "--home-dir")+1]
			w.users[name] = &user.User{Uid: fmt.Sprint(300 + len(w.users)), Gid: w.groups[args[slices.Index(args, "--gid")+1]].Gid, HomeDir: home}
			return nil
		},
		chown: func(path string, a account) error {
			if w.full && strings.HasSuffix(path, "drop") {
				return errors.New("no more room")
			}
			rel, _ := filepath.Rel(w.home, path)
			w.owned[rel] = a
			return nil
		},
		complaints: func(text string) { w.warnings = append(w.warnings, text) },
	}
}

// newPlan parses arguments as one who is root or not.
func newPlan(t *testing.T, home string, root bool, domain string, listen, names []string) *plan {
	t.Helper()
	p := &plan{home: home, domain: domain, users: names}
	if err := p.check(listen, root); err != nil {
		t.Fatal(err)
	}
	return p
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWithoutRootEverythingIsTheCallers(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	p := newPlan(t, home, false, "mail.test.example", []string{"smtp=127.0.0.1:2600", "smtp=[::1]:2600"}, []string{"Alice", "bob"})
	p.machine = newWorld(home).machine(false)
	if err := p.make(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"control/me":              "mail.test.example\n",
		"control/locals":          "mail.test.example\n",
		"control/rcpthosts":       "mail.test.example\n",
		"control/defaultdomain":   "mail.test.example\n",
		"control/plusdomain":      "test.example\n",
		"control/defaultdelivery": "./Maildir/\n",
		"control/relayclients":    "127.0.0.0/8\n::1/128\n",
		"control/listen":          "smtp 127.0.0.1:2600\nsmtp [::1]:2600\n",
		"alias/.qmail-postmaster": "&alice@mail.test.example\n",
		"alias/.qmail-root":       "&alice@mail.test.example\n",
		"users/assign": strings.ReplaceAll(`=alice:alice:1000:1000:HOME/mail/alice:::
+alice-:alice:1000:1000:HOME/mail/alice:-::
=bob:bob:1000:1000:HOME/mail/bob:::
+bob-:bob:1000:1000:HOME/mail/bob:-::
+:alias:1000:1000:HOME/alias:-::
.
`, "HOME", home),
	} {
		if got := read(t, home, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	tables := users.New(filepath.Join(home, "users/cdb"), "/nonexistent")
	for local, want := range map[string]users.Account{
		"ALICE":      {User: "alice", UID: 1000, GID: 1000, Home: home + "/mail/alice"},
		"alice-List": {User: "alice", UID: 1000, GID: 1000, Home: home + "/mail/alice", Dash: "-", Ext: "List"},
		"postmaster": {User: "alias", UID: 1000, GID: 1000, Home: home + "/alias", Dash: "-", Ext: "postmaster"},
		"alicex":     {User: "alias", UID: 1000, GID: 1000, Home: home + "/alias", Dash: "-", Ext: "alicex"},
	} {
		if got, err := tables.Find(local); err != nil || got != want {
			t.Errorf("%s is %+v (%v), not %+v", local, got, err, want)
		}
	}
	modes(t, home, map[string]fs.FileMode{
		".": 0o755, "control": 0o755, "queue": 0o711, "queue/journal": 0o700, "queue/drop": 0o733 | fs.ModeSticky,
		"mail/alice": 0o700, "mail/alice/Maildir/new": 0o700, "mail/bob/Maildir/tmp": 0o700,
	})
}

// modes compares what is asked for, and looks at everything for bits that must be nowhere.
func modes(t *testing.T, home string, want map[string]fs.FileMode) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(home, path)
		mode := info.Mode() &^ fs.ModeDir
		if m, ok := want[rel]; ok {
			seen++
			if mode != m {
				t.Errorf("%s has mode %v, not %v", rel, mode, m)
			}
		}
		if mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 || mode.Perm()&0o022 != 0 && rel != "queue/drop" {
			t.Errorf("%s has mode %v", rel, mode)
		}
		return nil
	})
	if err != nil || seen != len(want) {
		t.Errorf("%d of %d paths seen, %v", seen, len(want), err)
	}
}

func TestRootMakesUsersAndGivesEachHisPart(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	if err := os.MkdirAll(filepath.Join(home, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld(home)
	p := newPlan(t, home, true, "test.example", nil, nil)
	p.machine = w.machine(true)
	if err := p.make(); err != nil {
		t.Fatal(err)
	}
	if len(w.groups) != 2 || len(w.users) != 9 || len(w.commands) != 11 || len(w.warnings) != 0 {
		t.Errorf("%d groups, %d users, warnings %v, commands:\n%s", len(w.groups), len(w.users), w.warnings, strings.Join(w.commands, "\n"))
	}
	want := "useradd --system --no-create-home --gid nofiles --home-dir " + home + "/alias --shell /usr/sbin/nologin alias"
	if !slices.Contains(w.commands, want) {
		t.Errorf("no %q among\n%s", want, strings.Join(w.commands, "\n"))
	}
	id := func(name string) account {
		var a account
		fmt.Sscan(w.users[name].Uid, &a.uid)
		fmt.Sscan(w.users[name].Gid, &a.gid)
		return a
	}
	for path, a := range map[string]account{
		"control": {1000, 1000}, "queue": {1000, 1000}, "queue/journal": id("qmails"), "queue/drop": id("qmails"), "alias": id("alias"), "alias/Maildir/new": id("alias"),
	} {
		if w.owned[path] != a {
			t.Errorf("%s belongs to %v, not %v", path, w.owned[path], a)
		}
	}
	if got := read(t, home, "alias/.qmail-postmaster"); got != "./Maildir/\n" {
		t.Errorf("postmaster: %q", got)
	}
	if got := read(t, home, "control/listen"); got != "smtp :25\n" {
		t.Errorf("listen: %q", got)
	}
	if _, err := os.Stat(filepath.Join(home, "users/cdb")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("users/cdb, where passwd should count: %v", err)
	}
	modes(t, home, map[string]fs.FileMode{"queue": 0o711, "alias": 0o755})

	w.commands = nil
	home = filepath.Join(t.TempDir(), "second")
	p = newPlan(t, home, true, "test.example", nil, nil)
	p.machine = w.machine(true)
	if err := p.make(); err != nil || len(w.commands) != 0 {
		t.Errorf("users that exist were made again: %v %v", err, w.commands)
	}
	if len(w.warnings) == 0 || !strings.HasPrefix(w.warnings[0], "the home of alias is ") {
		t.Errorf("that alias lives elsewhere is not said: %v", w.warnings)
	}
}

func TestAUserThatIsRootInDisguiseIsRefused(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	w := newWorld(home)
	w.users["qmails"] = &user.User{Uid: "0", Gid: "0", HomeDir: home}
	p := newPlan(t, home, true, "test.example", nil, nil)
	p.machine = w.machine(true)
	if err := p.make(); err == nil || err.Error() != "qmails is another name of root" {
		t.Errorf("%v", err)
	}
}

func TestAnExistingHomeIsLeftAlone(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(home)
	p := newPlan(t, home, true, "test.example", nil, nil)
	p.machine = w.machine(true)
	if err := p.make(); err == nil || err.Error() != home+" is not empty: it has precious" {
		t.Errorf("%v", err)
	}
	if entries, _ := os.ReadDir(home); len(entries) != 1 || len(w.commands) > 0 {
		t.Errorf("it has %v now, and ran %v", entries, w.commands)
	}
}

func TestWhatFailsHalfwayIsTakenAway(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	w := newWorld(home)
	w.full = true
	p := newPlan(t, home, false, "test.example", nil, []string{"alice"})
	p.machine = w.machine(false)
	if err := p.make(); err == nil || err.Error() != "no more room" {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(home); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	w.full = false
	if err := p.make(); err != nil {
		t.Errorf("the next try: %v", err)
	}
}

func TestArguments(t *testing.T) {
	tests := []struct {
		name string
		args []string
		root bool
		want string // the error
	}{
		{"a domain is enough", []string{"test.example"}, false, ""},
		{"a domain is needed", nil, false, "flag: help requested"},
		{"one domain only", []string{"a.example", "b.example"}, false, "flag: help requested"},
		{"an unknown option", []string{"-x", "a.example"}, false, "flag: help requested"},
		{"an empty label", []string{"a..example"}, false, `not a domain name: "a..example" (`},
		{"a hyphen in front", []string{"-home=/x", "a.-example"}, false, `not a domain name: "a.-example" (`},
		{"a final dot", []string{"a.example."}, false, `not a domain name: "a.example." (`},
		{"an underscore", []string{"a_b.example"}, false, `not a domain name: "a_b.example" (`},
		{"a name not in ASCII", []string{"bücher.example"}, false, `not a domain name: "bücher.example" (`},
		{"a line end", []string{"a\nb.example"}, false, `not a domain name: "a\nb.example" (`},
		{"a label too long", []string{strings.Repeat("a", 64) + ".example"}, false, `not a domain name: "aaa`},
		{"a relative home", []string{"-home", "here", "a.example"}, false, `the home must be an absolute path: "here"`},
		{"a home with a colon", []string{"-home", "/a:b", "a.example"}, false, "the home's path must not hold colons"},
		{"no address to listen at", []string{"-listen", "smtp", "a.example"}, false, `not of the form SERVICE=ADDRESS:PORT: "smtp"`},
		{"a second line in a socket", []string{"-listen", "smtp=:25\nx", "a.example"}, false, `not of the form SERVICE=ADDRESS:PORT: "smtp=:25\nx"`},
		{"a user that needs quoting", []string{"-user", "a:b", "a.example"}, false, `not a user name: "a:b" (`},
		{"a user that is a path", []string{"-user", "../x", "a.example"}, false, `not a user name: "../x" (`},
		{"users as root", []string{"-user", "alice", "a.example"}, true, "-user is for those who are not root"},
		{"a postmaster without domain", []string{"-postmaster", "joe", "a.example"}, false, `not an address: "joe"`},
		{"a second line in the postmaster", []string{"-postmaster", "a@b.example\n|x", "a.example"}, false, `not an address: "a@b.example\n|x"`},
		{"a postmaster elsewhere", []string{"-postmaster", "joe@b.example", "a.example"}, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var said bytes.Buffer
			_, err := parse(&env.Env{Home: "/var/qmail", Stderr: &said}, tt.args, tt.root)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)):
				t.Errorf("%v, wanted %s", err, tt.want)
			}
		})
	}
}
