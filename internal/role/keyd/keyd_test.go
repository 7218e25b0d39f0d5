package keyd

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"qmail/internal/proto/keyd"
	"qmail/internal/store/keys"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

// running is a qmail-keyd with a role linked to it.
type running struct {
	t      *testing.T
	home   string
	orders chan env.Order
	agent  keyd.Agent
	lists  chan []keyd.Certificate
	log    lockedBuffer
	now    time.Time
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func put(t *testing.T, home, name string, life time.Duration) {
	t.Helper()
	text, err := keys.SelfSigned(name, time.Now(), life)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(home, "keys", name+".pem"), text)
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, home string) *running {
	r := &running{t: t, home: home, orders: make(chan env.Order), lists: make(chan []keyd.Certificate, 10), now: time.Now()}
	r.agent.Changed = func(list []keyd.Certificate) { r.lists <- list }
	e := &env.Env{Home: home, Stderr: &r.log, Now: func() time.Time { return r.now }, Orders: r.orders, Ready: func() error { return nil }}
	ended := make(chan int)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- Main(ctx, e, nil) }()
	t.Cleanup(func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d", code)
		}
		r.agent.Connect(nil)
	})
	return r
}

func (r *running) link(role string) {
	r.t.Helper()
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		r.t.Fatal(err)
	}
	r.orders <- env.Order{Kind: env.Link, Name: role, Link: theirs}
	r.agent.Connect(ours)
}

// names are those of the next list of certificates.
func (r *running) names() string {
	r.t.Helper()
	select {
	case list := <-r.lists:
		var names []string
		for _, c := range list {
			names = append(names, c.Leaf.DNSNames[0])
		}
		return strings.Join(names, " ")
	case <-time.After(20 * time.Second):
		r.t.Fatalf("no certificates come; log:\n%s", r.log.String())
		return ""
	}
}

func (r *running) logged(want string) {
	r.t.Helper()
	if log := r.log.String(); !strings.Contains(log, want) {
		r.t.Errorf("the log does not say %q:\n%s", want, log)
	}
}

const long = 100 * 24 * time.Hour

func TestServersGetCertificatesAndSignatures(t *testing.T) {
	for _, role := range []string{"smtpd", "qmtpd", "qmqpd", "popup"} {
		home := t.TempDir()
		put(t, home, "a.example", long)
		r := run(t, home)
		r.link(role)
		list := <-r.lists
		digest := sha256.Sum256(nil)
		if _, err := list[0].Signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
}

func TestWhoIsNoServerGetsNothing(t *testing.T) {
	for _, role := range []string{"send", "rspawn", "lspawn", "resolve", "", "smtpd2"} {
		home := t.TempDir()
		put(t, home, "a.example", long)
		r := run(t, home)
		ours, theirs, err := ipc.LocalPair()
		if err != nil {
			t.Fatal(err)
		}
		r.orders <- env.Order{Kind: env.Link, Name: role, Link: theirs}
		ours.SetReadDeadline(time.Now().Add(20 * time.Second))
		if f, err := ours.Read(); err == nil {
			t.Errorf("%q got %q", role, f.Kind)
		}
		ours.Close()
	}
}

func TestAReloadTakesOverWhatIsGoodAndKeepsWhatWas(t *testing.T) {
	home := t.TempDir()
	put(t, home, "a.example", long)
	r := run(t, home)
	r.link("smtpd")
	if got := r.names(); got != "a.example" {
		t.Fatalf("at first: %s", got)
	}
	put(t, home, "b.example", long)
	r.orders <- env.Order{Kind: env.Reload}
	if got := r.names(); got != "a.example b.example" {
		t.Errorf("one more: %s", got)
	}
	write(t, filepath.Join(home, "keys/a.example.pem"), []byte("half a file"))
	r.orders <- env.Order{Kind: env.Reload}
	if got := r.names(); got != "b.example a.example" {
		t.Errorf("one that has become unusable: %s", got)
	}
	r.logged("unable to use a key; keeping what was before key=a.example")
	if err := os.Remove(filepath.Join(home, "keys/a.example.pem")); err != nil {
		t.Fatal(err)
	}
	r.orders <- env.Order{Kind: env.Reload}
	if got := r.names(); got != "b.example" {
		t.Errorf("one that was taken away: %s", got)
	}
	write(t, filepath.Join(home, "keys/c.pem"), []byte("never was one"))
	r.orders <- env.Order{Kind: env.Reload}
	if got := r.names(); got != "b.example" {
		t.Errorf("one that never was: %s", got)
	}
	r.logged("unable to use a key key=c")
}

func TestWithoutKeysItRunsAllTheSame(t *testing.T) {
	home := t.TempDir()
	r := run(t, home)
	r.link("smtpd")
	if got := r.names(); got != "" {
		t.Errorf("%s", got)
	}
	write(t, filepath.Join(home, "keys"), nil) // no directory at all
	r.orders <- env.Order{Kind: env.Reload}
	put2 := filepath.Join(home, "keys")
	r.orders <- env.Order{Kind: env.Reload} // the first one has been done by the time the second is taken
	r.logged("unable to read the keys; keeping what was before")
	if err := os.Remove(put2); err != nil {
		t.Fatal(err)
	}
}

func TestTheLogHearsInTimeOfCertificatesThatExpire(t *testing.T) {
	home := t.TempDir()
	put(t, home, "a.example", long)
	e := &env.Env{Home: home, Stderr: &bytes.Buffer{}}
	now := time.Now()
	e.Now = func() time.Time { return now }
	r := newRole(e)
	r.load()
	log := e.Stderr.(*bytes.Buffer)
	told := func() (lines int) {
		lines = strings.Count(log.String(), "\n")
		log.Reset()
		return lines
	}
	began := now
	for _, tt := range []struct {
		day  float64
		want int
	}{{0, 0}, {69, 0}, {70.5, 1}, {80, 0}, {93.5, 1}, {95, 0}, {99.2, 1}, {99.5, 0}, {100.1, 1}, {200, 0}} {
		now = began.Add(time.Duration(tt.day * 24 * float64(time.Hour)))
		r.warn()
		if got := told(); got != tt.want {
			t.Errorf("on day %v: %d lines, wanted %d", tt.day, got, tt.want)
		}
	}
	now = began
	put(t, home, "a.example", 5*24*time.Hour)
	r.load()
	if got := told(); got != 1 {
		t.Errorf("a new one that expires soon: %d lines", got)
	}
}

func TestItIsNoProgramForPeople(t *testing.T) {
	var said bytes.Buffer
	if code := Main(t.Context(), &env.Env{Stderr: &said}, nil); code != 100 || !strings.Contains(said.String(), "usage") {
		t.Errorf("%d %s", code, said.String())
	}
}
