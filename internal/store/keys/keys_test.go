package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const life = 100 * 24 * time.Hour

// pemOf is a key and its certificate, apart.
func pemOf(t testing.TB, name string) (chain, key string) {
	t.Helper()
	text, err := SelfSigned(name, time.Now(), life)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(text), "-----BEGIN CERTIFICATE")
	return string(text[i:]), string(text[:i])
}

func block(t testing.TB, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func makeHome(t testing.TB, files map[string]string) string {
	t.Helper()
	home := t.TempDir()
	for path, text := range files {
		path = filepath.Join(home, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return home
}

func TestPairsAreWhereTheyHaveEverBeen(t *testing.T) {
	chainA, keyA := pemOf(t, "a.example")
	chainB, keyB := pemOf(t, "b.example")
	chainC, keyC := pemOf(t, "c.example")
	home := makeHome(t, map[string]string{
		"keys/b.pem": keyB + chainB + chainA, "keys/a.key": keyA, "keys/a.crt": chainA, "keys/README": "x", "keys/.x.pem": "x",
		"control/servercert.pem": chainC + keyC,
	})
	pairs, troubles, err := Load(home)
	if err != nil || len(troubles) > 0 {
		t.Fatal(err, troubles)
	}
	var got []string
	for _, p := range pairs {
		got = append(got, p.Name+" "+p.Path+" "+p.Leaf.DNSNames[0])
		if p.Prefer != (p.Name == "servercert") {
			t.Errorf("%s: preferred is %v", p.Name, p.Prefer)
		}
	}
	want := "a keys/a.crt a.example, b keys/b.pem b.example, servercert control/servercert.pem c.example"
	if strings.Join(got, ", ") != want || len(pairs[1].Chain) != 2 {
		t.Errorf("%s; wanted %s", strings.Join(got, ", "), want)
	}
	if pairs, troubles, err := Load(t.TempDir()); len(pairs)+len(troubles) > 0 || err != nil {
		t.Errorf("an empty home: %v %v %v", pairs, troubles, err)
	}
}

func TestAPairThatCannotBeUsedIsNamedAndTouchesNoOther(t *testing.T) {
	chain, key := pemOf(t, "a.example")
	_, other := pemOf(t, "a.example")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der224, err224 := x509.MarshalECPrivateKey(p224)
	tests := []struct {
		name, text, want string
		mode             os.FileMode
	}{
		{"a key that everybody can read", key + chain, "everybody can read the key in it", 0o644},
		{"a key that the group can change", key + chain, "or others change it", 0o620},
		{"another key", other + chain, "the key is not that of the first certificate", 0},
		{"no key", chain, "no private key in it", 0},
		{"no certificate", key, "no certificate in it", 0},
		{"nothing", "", "no certificate in it", 0},
		{"a broken certificate", key + block(t, "CERTIFICATE", []byte("x"), nil), "certificate 1: ", 0},
		{"a broken key", block(t, "PRIVATE KEY", []byte("x"), nil) + chain, "private key: ", 0},
		{"a short RSA key", block(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small), nil) + chain, "an RSA key of 1024 bits", 0},
		{"a short curve", block(t, "EC PRIVATE KEY", der224, err224) + chain, "an ECDSA key of 224 bits", 0},
		{"an encrypted key", block(t, "ENCRYPTED PRIVATE KEY", []byte("x"), nil) + chain, "encrypted", 0},
		{"an encrypted key of the old kind", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\neA==\n-----END RSA PRIVATE KEY-----\n" + chain, "encrypted", 0},
		{"too many certificates", key + strings.Repeat(chain, 200), "too many certificates", 0},
		{"a file without an end", key + chain + strings.Repeat("x", maxFile), "larger than", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			home := makeHome(t, map[string]string{"keys/bad.pem": tt.text, "keys/good.pem": key + chain})
			if tt.mode != 0 {
				if err := os.Chmod(filepath.Join(home, "keys/bad.pem"), tt.mode); err != nil {
					t.Fatal(err)
				}
			}
			pairs, troubles, err := Load(home)
			if err != nil || len(pairs) != 1 || pairs[0].Name != "good" {
				t.Fatalf("%v %v", pairs, err)
			}
			if len(troubles) != 1 || troubles[0].Name != "bad" || !strings.Contains(troubles[0].Err.Error(), tt.want) {
				t.Errorf("%v, wanted %q", troubles, tt.want)
			}
			if text := troubles[0].Err.Error(); strings.Contains(text, strings.Fields(key)[4]) {
				t.Errorf("the key is told: %s", text)
			}
		})
	}
}

func TestADirectoryThatIsNoFileIsNoKey(t *testing.T) {
	home := makeHome(t, map[string]string{"keys/dir.pem/x": "", "keys/alone.key": "x"})
	pairs, troubles, err := Load(home)
	if err != nil || len(pairs) != 0 || len(troubles) != 2 {
		t.Errorf("%v %v %v", pairs, troubles, err)
	}
}

func TestCertificatesHaveABoundAltogether(t *testing.T) {
	chain, key := pemOf(t, "a.example")
	files := map[string]string{}
	for i := range 80 {
		files[fmt.Sprintf("keys/%02d.pem", i)] = key + strings.Repeat(chain, 130)
	}
	pairs, troubles, err := Load(makeHome(t, files))
	if err != nil || len(pairs) == 0 || len(troubles) == 0 || len(pairs)+len(troubles) != 80 || troubles[0].Err != errTotal {
		t.Errorf("%d pairs, %d troubles, %v", len(pairs), len(troubles), err)
	}
	for i := range maxPairs {
		files[fmt.Sprintf("keys/x%d.pem", i)] = ""
	}
	if _, _, err := Load(makeHome(t, files)); err == nil {
		t.Error("any number of files is looked at")
	}
}

func TestDaysThatAreLeft(t *testing.T) {
	chain, key := pemOf(t, "a.example")
	p, err := parse("a", "a", []byte(chain), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	for _, tt := range []struct {
		left time.Duration
		days int
		due  bool
	}{{31 * day, 0, false}, {30 * day, 30, true}, {8 * day, 30, true}, {7 * day, 7, true}, {25 * time.Hour, 7, true}, {day, 1, true}, {time.Second, 1, true}, {0, -1, true}, {-day, -1, true}} {
		if days, due := p.Expires(p.Leaf.NotAfter.Add(-tt.left)); days != tt.days || due != tt.due {
			t.Errorf("%v before: %d, %v", tt.left, days, due)
		}
	}
}

func TestASelfSignedCertificateIsOneForItsName(t *testing.T) {
	long := strings.Repeat("a.", 40) + "example"
	for _, name := range []string{"a.example", long} {
		chain, key := pemOf(t, name)
		p, err := parse("a", "a", []byte(chain), []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(p.Leaf)
		if _, err := p.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Error(err)
		}
	}
}

// FuzzParse: what is taken for a pair has a key that is its certificate's.
func FuzzParse(f *testing.F) {
	chain, key := pemOf(f, "a.example")
	f.Add([]byte(key + chain))
	f.Add([]byte(chain + key))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parse("x", "x", in, in)
		if err != nil {
			return
		}
		a, err1 := x509.MarshalPKIXPublicKey(p.Key.Public())
		b, err2 := x509.MarshalPKIXPublicKey(p.Leaf.PublicKey)
		if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Error("two keys")
		}
	})
}
