package passwd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Hashes and verifiers of "correct horse" that other programs made: openssl passwd, crypt(3), and doveadm pw.
const (
	md5Hash      = "$1$abcdefgh$y6iHhJNbuC0xpbk0w9pm80"
	sha256Hash   = "$5$abcdefgh$ruMep1ijHnJPZbETDNiumskxcX3kN4lzZd5VlsqE7eB"
	sha512Hash   = "$6$abcdefgh$yIZAF3gQPvtKZO/9qOJKffAKKbtS3ef3qmwyugk4uWVjX8YZf/GV3A8SkFxEPY0T56CcilGrHKLffBsp6dLMG."
	roundsHash   = "$6$rounds=2000$abcdefgh$XwC/tkC/3qDSZqHKWK9NFYvoVXx3BzByeFoopS1MLlVByYrVJCmfBKfDcMK/9lwEIukNwTqvE3w.mCXsZHC8S."
	bcryptHash   = "$2y$05$teX8NeqPGQVcIsaa0Ux7UuaiMPQY1LP5KBRFGF.H033UeM61p9O4O"
	argonHash    = "$argon2id$v=19$m=65536,t=3,p=1$ptS9ISP6ssBa24MVv+r9yA$b8R3LbNbmXVTxqD/vQoYBfjkNWKkppYrZttyReKF92U"
	verifier256  = "{SCRAM-SHA-256}4096,9f1LcWkfgFoPBJVxHYEGIw==,2H4fCU0Nr0mIuURhVzWN8mwgoQjUo6QAmfBbQ8axNSY=,tiOjbXyFh3gf9CZXnf7Zmii5c5zDCAq9WMgO2dO4l0I="
	verifierSHA1 = "{SCRAM-SHA-1}4096,3BTUDiv/UmbQYmQlBuYV6Q==,/SC7kozFCC3Fo6ZzQoLap2p3mBs=,Gjbm9RFXPSRGJCoairkpL7g8bl0="
)

func TestHashesOfOtherPrograms(t *testing.T) {
	for kind, hash := range map[string]string{
		"md5crypt": md5Hash, "sha256crypt": sha256Hash, "sha512crypt": sha512Hash, "bcrypt": bcryptHash, "argon2id": argonHash,
	} {
		if err := CheckHash(hash); err != nil || Kind(hash) != kind {
			t.Errorf("%s is %s: %v", hash, Kind(hash), err)
		}
		if !Match(hash, "correct horse") || Match(hash, "correct hors") || Match(hash, "") {
			t.Errorf("%s: right and wrong passwords are not told apart", hash)
		}
	}
	if !Match(roundsHash, "correct horse") {
		t.Error("a hash with rounds does not match")
	}
}

func TestANewHash(t *testing.T) {
	a, b := Hash("correct horse"), Hash("correct horse")
	if a == b || !Match(a, "correct horse") || Match(a, "Correct horse") || CheckHash(a) != nil {
		t.Errorf("%s and %s", a, b)
	}
}

func TestHashesThatCannotBeUsed(t *testing.T) {
	for name, hash := range map[string]string{
		"nothing":                "",
		"DES":                    "abJnggxhB/yWI",
		"a locked account":       "!" + sha512Hash,
		"plain text":             "correct horse",
		"yescrypt":               "$y$j9T$abc$def",
		"too much memory":        strings.Replace(argonHash, "m=65536", "m=4194304", 1),
		"no memory":              strings.Replace(argonHash, "m=65536", "m=0", 1),
		"no lanes":               strings.Replace(argonHash, "p=1", "p=0", 1),
		"too many fields":        strings.Replace(argonHash, "p=1", "p=1,p=1", 1),
		"another version":        strings.Replace(argonHash, "v=19", "v=16", 1),
		"another argon":          strings.Replace(argonHash, "argon2id", "argon2d", 1),
		"a short key":            argonHash[:len(argonHash)-30],
		"too many rounds":        strings.Replace(roundsHash, "2000", "2000000000", 1),
		"too few rounds":         strings.Replace(roundsHash, "2000", "1", 1),
		"a bcrypt cost of weeks": strings.Replace(bcryptHash, "$05$", "$31$", 1),
		"a colon":                md5Hash + ":",
	} {
		if CheckHash(hash) == nil || Match(hash, "correct horse") {
			t.Errorf("%s: %q is taken", name, hash)
		}
	}
}

func TestLines(t *testing.T) {
	tests := []struct {
		name, line string
		hash       string
		mechanisms int
		good       bool
	}{
		{"a hash", "alice:" + bcryptHash, bcryptHash, 0, true},
		{"a hash and verifiers", "a@b.example:" + argonHash + ":" + verifier256 + ":" + verifierSHA1, argonHash, 2, true},
		{"verifiers alone", "a:" + verifier256, "", 1, true},
		{"verifiers first", "a:" + verifier256 + ":" + md5Hash, md5Hash, 1, true},
		{"a name in UTF-8", "j\u00fcrgen:" + md5Hash, md5Hash, 0, true},
		{"no login", ":" + md5Hash, "", 0, false},
		{"a blank in the login", "a b:" + md5Hash, "", 0, false},
		{"a login too long", strings.Repeat("a", 256) + ":" + md5Hash, "", 0, false},
		{"no field", "alice", "", 0, false},
		{"an empty field", "alice:", "", 0, false},
		{"two hashes", "alice:" + md5Hash + ":" + bcryptHash, "", 0, false},
		{"a verifier twice", "alice:" + verifier256 + ":" + verifier256, "", 0, false},
		{"a verifier of another mechanism", "alice:{SCRAM-SHA-512}4096,AA==,AA==,AA==", "", 0, false},
		{"keys of the wrong size", "alice:" + strings.Replace(verifierSHA1, "-1}", "-256}", 1), "", 0, false},
		{"no iterations", "alice:" + strings.Replace(verifier256, "4096", "0", 1), "", 0, false},
		{"iterations of hours", "alice:" + strings.Replace(verifier256, "4096", "2000001", 1), "", 0, false},
	}
	for _, tt := range tests {
		u, err := ParseLine(tt.line)
		if (err == nil) != tt.good || u.Hash != tt.hash || len(u.Verifiers) != tt.mechanisms {
			t.Errorf("%s: %+v, %v", tt.name, u, err)
		}
		if err != nil && strings.Contains(err.Error(), "$") && strings.Contains(err.Error(), "abcdefgh") {
			t.Errorf("%s: the error shows a hash: %v", tt.name, err)
		}
	}
}

func TestBook(t *testing.T) {
	b, err := Parse([]byte("# people\n\nAlice@Test.Example:" + argonHash + ":" + verifier256 + "\nbob:" + md5Hash + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	u, ok := b.Find("ALICE@test.example")
	if !ok || u.Login != "alice@test.example" || b.Len() != 2 {
		t.Errorf("%+v, %v", u, ok)
	}
	if _, ok := b.Find("nouser"); ok || b.All("SCRAM-SHA-256") {
		t.Error("who is not there is found, or what not all have is said to be there for all")
	}
	bob, _ := ParseLine("BOB:" + verifier256)
	b.Put(bob)
	if !b.All("SCRAM-SHA-256") || b.All("SCRAM-SHA-1") || b.Len() != 2 {
		t.Error("bob has a verifier now")
	}
	want := "alice@test.example:" + argonHash + ":" + verifier256 + "\nbob:" + verifier256 + "\n"
	if got := string(b.Append(nil)); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if b.Delete("nouser") || !b.Delete("Bob") || b.Delete("bob") || fmt.Sprint(b.Logins()) != "[alice@test.example]" {
		t.Errorf("%q are left", b.Logins())
	}
	for name, text := range map[string]string{
		"line 2: the same login twice": "a:" + md5Hash + "\nA:" + md5Hash + "\n",
		"line 3: not a line":           "\n# x\nnonsense secret\n",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v, want %s", err, name)
		}
	}
	if empty, err := Parse(nil); err != nil || empty.All("SCRAM-SHA-256") {
		t.Error("an empty book has verifiers for all")
	}
}

func home(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "users"), 0o755); err != nil {
		t.Fatal(err)
	}
	return home
}

// put makes the file as its owner, without asking the machine for qmailk.
func put(t *testing.T, home, text string) {
	t.Helper()
	if err := os.WriteFile(Path(home), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestChangesTakeTurns(t *testing.T) {
	home := home(t)
	put(t, home, "")
	_, before, err := Read(home)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := Change(home, func(b *Book) error {
				b.Put(User{Login: fmt.Sprint("user", i), Hash: md5Hash})
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	b, after, err := Read(home)
	if err != nil || b.Len() != 20 || before == after {
		t.Fatalf("%v, %v", b, err)
	}
	if now, err := Look(home); now != after || err != nil {
		t.Errorf("%v, %v, %v", now, after, err)
	}
	if info, err := os.Stat(Path(home)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	refused := errors.New("no")
	if err := Change(home, func(b *Book) error { b.Delete("user1"); return refused }); err != refused {
		t.Error(err)
	}
	if b, _, _ := Read(home); b.Len() != 20 {
		t.Error("a change that was refused counts")
	}
}

func TestAFileThatOthersCanReadIsNotUsed(t *testing.T) {
	home := home(t)
	put(t, home, "a:"+md5Hash+"\n")
	if err := os.Chmod(Path(home), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(home); err == nil || !strings.Contains(err.Error(), "others") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(Path(home)); err != nil {
		t.Fatal(err)
	}
	if b, stamp, err := Read(home); err != nil || b.Len() != 0 || stamp != (Stamp{}) {
		t.Errorf("without a file: %v, %v", stamp, err)
	}
	if err := os.Symlink("/etc/passwd", Path(home)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(home); err == nil {
		t.Error("a link is followed")
	}
}

// What is read is written as it was, and read again as the same; and no line is read in two ways.
func FuzzParse(f *testing.F) {
	f.Add([]byte("alice:" + argonHash + ":" + verifier256 + "\nBob:" + bcryptHash + "\n"))
	f.Add([]byte("a:" + sha512Hash + ":" + verifierSHA1 + "\n#\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := Parse(in)
		if err != nil {
			return
		}
		out := b.Append(nil)
		again, err := Parse(out)
		if err != nil || !bytes.Equal(again.Append(nil), out) || again.Len() != b.Len() {
			t.Fatalf("%q is written as %q: %v", in, out, err)
		}
	})
}
