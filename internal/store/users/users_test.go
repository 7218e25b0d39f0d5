package users

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"qmail/internal/format/address"
	"qmail/internal/format/cdb"
	"qmail/internal/format/reply"
)

// assign compiles lines of users/assign as qmail-newu does.
func assign(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := cdb.NewWriter(f)
	wild := ""
	for line := range strings.Lines(text) {
		if line == ".\n" {
			break
		}
		p := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 8)
		key := "!" + address.Lower(p[0][1:])
		if line[0] != '+' {
			key += "\x00"
		} else if n := len(p[0]); n > 1 {
			wild += strings.ToLower(p[0][n-1:])
		}
		if err := w.Add([]byte(key), []byte(strings.Join(p[1:7], "\x00"))); err != nil {
			t.Fatal(err)
		}
	}
	w.Add(nil, []byte(wild))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAssignment(t *testing.T) {
	dir := t.TempDir()
	assign(t, dir+"/cdb", `=Joe:joe:501:100:/home/joe:::
+joe-:joe:501:100:/home/joe:-::
+joe-list-:lists:502:100:/home/lists:-:pre-:
+ls.:dots:503:100:/home/dots:-::
+:all:504:100:/home/all:-::
=low:low:505:100:relative:::
=root:root:0:0:/root:::
.
`)
	passwd := write(t, dir+"/passwd", "")
	tests := []struct {
		name, local, want string
	}{
		{"an exact name, whatever its case", "jOE", "joe 501 100 /home/joe  "},
		{"a wildcard leaves the tail as it came", "Joe-ExT", "joe 501 100 /home/joe - ExT"},
		{"the longest wildcard wins, and its own text stands before the tail", "joe-list-X", "lists 502 100 /home/lists - pre-X"},
		{"a wildcard without a tail has an empty extension", "joe-", "joe 501 100 /home/joe - "},
		{"a wildcard may end in any byte", "ls.q", "dots 503 100 /home/dots - q"},
		{"the empty wildcard catches the rest", "who", "all 504 100 /home/all - who"},
		{"an exact name does not match its beginning", "jo", "all 504 100 /home/all - jo"},
		{"a relative home is our bug or the administrator's: later", "low", "ZInternal qmail-lspawn bug."},
		{"root is nobody to deliver to", "root", "ZNot allowed to perform deliveries as root."},
		{"a NUL cannot end the name early", "joe\x00x", "ZInternal qmail-lspawn bug."},
	}
	tables := New(dir+"/cdb", passwd)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := answer(tables.Find(tt.local)); got != tt.want {
				t.Errorf("Find(%q) = %q, want %q", tt.local, got, tt.want)
			}
		})
	}
}

func answer(a Account, err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return strings.TrimSuffix(e.Report, "\n")
	}
	if err != nil {
		return "unclassified: " + err.Error()
	}
	return fmt.Sprintf("%s %d %d %s %s %s", a.User, a.UID, a.GID, a.Home, a.Dash, a.Ext)
}

func TestAccounts(t *testing.T) {
	dir := t.TempDir()
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 { // root is never a mail user, so the homes must belong to somebody else
		uid, gid = 7790, 7791
	}
	for _, home := range []string{"ann", "bob-x", "foreign", "x2345678901234567890123456789012"} {
		os.Mkdir(dir+"/"+home, 0o755)
		if os.Getuid() == 0 {
			os.Chown(dir+"/"+home, uid, gid)
		}
	}
	line := func(name, home string, uid int) string {
		return fmt.Sprintf("%s:x:%d:%d:Some One:%s:/bin/sh\n", name, uid, gid, home)
	}
	passwd := write(t, dir+"/passwd", line("root", dir, 0)+
		"broken:x\n"+
		"alsobroken:x:-1:5:gecos:/home:/bin/sh\n"+
		line("ann", dir+"/ann", uid)+
		line("ann", dir+"/second", uid)+
		line("bob-x", dir+"/bob-x", uid)+
		line("bob", dir+"/missing", uid)+
		line("Cap", dir+"/ann", uid)+
		line("foreign", dir+"/foreign", uid+1)+
		line("x234567890123456789012345678901", dir+"/ann", uid)+
		line("x2345678901234567890123456789012", dir+"/ann", uid)+
		line("alias", "/var/qmail/alias", 64010))
	alias := fmt.Sprintf("alias 64010 %d /var/qmail/alias - ", gid)
	ids := fmt.Sprintf(" %d %d ", uid, gid)
	tests := []struct {
		name, local, want string
	}{
		{"an account", "ann", "ann" + ids + dir + "/ann  "},
		{"an account in another case", "ANN", "ann" + ids + dir + "/ann  "},
		{"an account and an extension in its own case", "ann-List-X", "ann" + ids + dir + "/ann - List-X"},
		{"an empty extension has a dash", "ann-", "ann" + ids + dir + "/ann - "},
		{"the longest name wins", "bob-x-y", "bob-x" + ids + dir + "/bob-x - y"},
		{"who has no home is not here", "bob", alias + "bob"},
		{"a home must be the account's own", "foreign", alias + "foreign"},
		{"accounts with capitals are not found", "Cap", alias + "Cap"},
		{"root goes to alias", "root", alias + "root"},
		{"a name of 31 bytes is looked for", "x234567890123456789012345678901", "x234567890123456789012345678901" + ids + dir + "/ann  "},
		{"a longer one is not", "x2345678901234567890123456789012", alias + "x2345678901234567890123456789012"},
		{"a name that only begins like an account", "annex", alias + "annex"},
		{"a leading dash", "-ann", alias + "-ann"},
	}
	tables := New(dir+"/no-cdb", passwd)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := answer(tables.Find(tt.local)); got != tt.want {
				t.Errorf("Find(%q) = %q, want %q", tt.local, got, tt.want)
			}
		})
	}
}

func TestTroubleDefers(t *testing.T) {
	dir := t.TempDir()
	good := write(t, dir+"/passwd", "alias:x:64010:64010::/nonexistent:/bin/sh\n")
	noAlias := write(t, dir+"/noalias", "other:x:64010:64010::/nonexistent:/bin/sh\n")
	short := write(t, dir+"/short", "not a cdb")
	noWild := write(t, dir+"/nowild", strings.Repeat("\x00", 2048))
	if err := syscall.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name        string
		cdb, passwd string
		exit        int
		report      string
	}{
		{"a cdb too short to be one", short, good, 117, "ZTrouble reading users/cdb in qmail-lspawn.\n"},
		{"a cdb without the record of wildcards", noWild, good, 117, "ZTrouble reading users/cdb in qmail-lspawn.\n"},
		{"a directory in the place of the cdb", dir, good, 117, "ZTrouble reading users/cdb in qmail-lspawn.\n"},
		{"a FIFO in the place of the cdb", dir + "/fifo", good, 117, "ZTrouble reading users/cdb in qmail-lspawn.\n"},
		{"no passwd", dir + "/none", dir + "/none", 118, "ZTemporary failure in qmail-lspawn.\n"},
		{"no alias account", dir + "/none", noAlias, 116, "ZUnable to find alias user!\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.cdb, tt.passwd).Find("box")
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Exit != tt.exit || e.Report != tt.report || reply.Letter(err) != 'Z' {
				t.Errorf("Find: %v, want %d %q", err, tt.exit, tt.report)
			}
		})
	}
}

func TestNewFilesCountAtOnce(t *testing.T) {
	dir := t.TempDir()
	tables := New(dir+"/cdb", dir+"/passwd")
	for i := range 5 { // each time by rename, as qmail-newu and useradd do
		write(t, dir+"/passwd.tmp", fmt.Sprintf("alias:x:%d:1::/a:/bin/sh\n", 100+i))
		os.Rename(dir+"/passwd.tmp", dir+"/passwd")
		if a, err := tables.Find("who"); err != nil || a.UID != 100+i {
			t.Fatalf("passwd %d: %+v, %v", i, a, err)
		}
	}
	for i := range 5 {
		assign(t, dir+"/cdb.tmp", fmt.Sprintf("=who:w:%d:1:/w:::\n.\n", 200+i))
		os.Rename(dir+"/cdb.tmp", dir+"/cdb")
		if a, err := tables.Find("who"); err != nil || a.UID != 200+i {
			t.Fatalf("cdb %d: %+v, %v", i, a, err)
		}
	}
	os.Remove(dir + "/cdb")
	if a, err := tables.Find("who"); err != nil || a.UID != 104 {
		t.Errorf("after cdb is gone: %+v, %v", a, err)
	}
}

func lines(t *testing.T, path string, each func(line []byte)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		each(s.Bytes())
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
}

// Damaged records must defer: never found, never root.
func TestAdversarial(t *testing.T) {
	ran := 0
	lines(t, "testdata/adversarial.jsonl", func(line []byte) {
		var c struct {
			Name   string
			Setup  struct{ File string }
			Input  []byte `json:"input_b64"`
			Expect struct{ Class string }
		}
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		if c.Setup.File != "users/cdb" {
			return
		}
		ran++
		t.Run(c.Name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/cdb", string(c.Input))
			a, err := New(dir+"/cdb", dir+"/passwd").Find("alice")
			switch {
			case c.Expect.Class == "accept" && (err != nil || a.User != "alice" || a.UID != 1000):
				t.Errorf("%+v, %v", a, err)
			case c.Expect.Class == "reject" && (err == nil || reply.Letter(err) != 'Z'):
				t.Errorf("%+v, %v; want to be told to wait", a, err)
			}
		})
	})
	if ran < 10 {
		t.Errorf("only %d cases", ran)
	}
}

// The recorded answers of qmail-lspawn. Each .qmail file there printed the account it was reached by.
func TestRecordedLookups(t *testing.T) {
	ran := 0
	lines(t, "testdata/lookup.jsonl", func(line []byte) {
		var c struct {
			Name   string
			Users  struct{ Assign string }
			Rcpts  []string
			Expect struct{ Reports []string }
		}
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		t.Run(c.Name, func(t *testing.T) {
			dir := t.TempDir()
			assign(t, dir+"/cdb", strings.ReplaceAll(c.Users.Assign, "{{TMP}}", dir))
			passwd := write(t, dir+"/passwd", "alias:x:7790:7790::/nonexistent:/bin/sh\n")
			tables := New(dir+"/cdb", passwd)
			for i, rcpt := range c.Rcpts {
				local, _, ok := address.Split(rcpt)
				want := c.Expect.Reports[i]
				if !ok || local == "" {
					continue // answered before anybody is looked up
				}
				a, err := tables.Find(local)
				switch {
				case strings.HasPrefix(want, "K.qmail"):
					got := fmt.Sprintf("u=%s e=%s d", a.User, a.Ext)
					end := fmt.Sprintf(" %d:%d %s\n", a.UID, a.GID, filepath.Base(a.Home))
					if err != nil || !strings.Contains(want, got) || !strings.Contains(want, end) {
						t.Errorf("%s: %+v, %v; want %q", rcpt, a, err, want)
					}
				case strings.HasPrefix(want, "Kdefault"):
					if err != nil || a.Dash != "" || a.Ext != "" {
						t.Errorf("%s: %+v, %v", rcpt, a, err)
					}
				case strings.HasPrefix(want, "D"): // no .qmail file of alias
					if err != nil || a.User != "alias" || a.Ext != local {
						t.Errorf("%s: %+v, %v", rcpt, a, err)
					}
				default:
					if e, ok := errors.AsType[*Error](err); !ok || e.Report != want {
						t.Errorf("%s: %v, want %q", rcpt, err, want)
					}
				}
				ran++
			}
		})
	})
	if ran < 15 {
		t.Errorf("only %d lookups", ran)
	}
}

// The laws: an account that is found may be started; everything else is an Error that defers.
func FuzzRecord(f *testing.F) {
	f.Add([]byte("joe\x00501\x00100\x00/home/joe\x00-\x00"), "joe")
	f.Add([]byte("joe\x000\x000\x00/\x00\x00"), "joe")
	f.Fuzz(func(t *testing.T, record []byte, local string) {
		a, ok := parse(record)
		if !ok {
			return
		}
		if err := a.Check(); err != nil {
			if reply.Letter(err) != 'Z' {
				t.Errorf("%v bounces", err)
			}
			return
		}
		if a.UID <= 0 || a.UID > maxID || a.Home[0] != '/' || a.User == "" {
			t.Errorf("accepted %+v", a)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	dir := b.TempDir()
	var text strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&text, "=user%d:u%d:1000:1000:/home/u:::\n+user%d-:u%d:1000:1000:/home/u:-::\n", i, i, i, i)
	}
	assign(b, dir+"/cdb", text.String()+".\n")
	tables := New(dir+"/cdb", dir+"/passwd")
	b.ReportAllocs()
	for b.Loop() {
		if a, err := tables.Find("user4711-list"); err != nil || a.User != "u4711" {
			b.Fatal(a, err)
		}
	}
}
