package authd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qmail/internal/proto/checker"
	"qmail/internal/proto/sasl"
	"qmail/internal/store/passwd"
	"qmail/internal/system/env"
	"qmail/internal/system/ipc"
)

const (
	bcrypted = "$2y$05$teX8NeqPGQVcIsaa0Ux7UuaiMPQY1LP5KBRFGF.H033UeM61p9O4O" // correct horse
	secret   = "correct horse"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// user is a line of users/passwd; verifiers for SCRAM are cheap.
func user(t testing.TB, login string, scram bool) string {
	t.Helper()
	u := passwd.User{Login: login, Hash: bcrypted}
	for _, m := range []string{sasl.ScramSHA256, sasl.ScramSHA1} {
		if !scram {
			break
		}
		v, err := sasl.NewVerifier(m, secret, []byte("salt of "+login), 4096)
		if err != nil {
			t.Fatal(err)
		}
		u.Verifiers = append(u.Verifiers, passwd.Verifier{Mechanism: m, Salt: v.Salt, Iterations: v.Iterations, StoredKey: v.StoredKey, ServerKey: v.ServerKey})
	}
	return string(u.Append(nil))
}

// newTestRole is a role with these files below its home.
func newTestRole(t testing.TB, files map[string]string) (*role, *lockedBuffer) {
	t.Helper()
	home := t.TempDir()
	for _, dir := range []string{"users", "control"} {
		if err := os.Mkdir(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := &lockedBuffer{}
	r := newRole(&env.Env{Home: home, Stderr: log, Now: time.Now, Ready: func() error { return nil }})
	r.load(true)
	return r, log
}

var who = checker.Who{Service: "submission", IP: "192.0.2.7", Secure: true}

// ask makes one guess by PLAIN.
func ask(r *role, from checker.Who, login, password string) checker.Answer {
	return r.Begin("smtpd", from, sasl.Plain).Next(context.Background(), []byte("\x00"+login+"\x00"+password))
}

// linkTo does what an order of the supervisor does.
func linkTo(t *testing.T, r *role, name string, link *ipc.Conn) {
	orders := make(chan env.Order)
	go r.keeper().Obey(t.Context(), orders)
	orders <- env.Order{Kind: env.Link, Name: name, Link: link}
}

func TestEachMechanismOverALink(t *testing.T) {
	r, log := newTestRole(t, map[string]string{"users/passwd": user(t, "Alice@test.example", true) + user(t, "bob", true)})
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	linkTo(t, r, "smtpd", theirs)
	var agent checker.Agent
	agent.Connect(ours)
	defer agent.Connect(nil)
	binding := sasl.Binding{Type: "tls-exporter", Data: []byte("of this connection")}
	from := who
	from.Bindings = []checker.Binding{checker.Binding(binding)}
	offered := []string{sasl.ScramSHA256Plus, sasl.ScramSHA256, sasl.ScramSHA1Plus, sasl.ScramSHA1, sasl.Plain, sasl.Login}
	for _, mechanism := range offered {
		o := sasl.Options{Offered: offered}
		if strings.HasSuffix(mechanism, "-PLUS") {
			o.Binding = &binding
		}
		c, err := sasl.NewClient(mechanism, "alice@Test.example", secret, o)
		if err != nil {
			t.Fatal(err)
		}
		first, err := c.Start()
		if err != nil {
			t.Fatal(err)
		}
		x, answer := agent.Begin(t.Context(), from, mechanism, first)
		for answer.Verdict == checker.More {
			next, err := c.Next(answer.Challenge)
			if err != nil {
				t.Fatal(mechanism, err)
			}
			answer = x.Next(t.Context(), next)
		}
		if answer.Verdict != checker.Yes || answer.Login != "alice@test.example" || c.Finish() != nil {
			t.Errorf("%s: %+v, %v", mechanism, answer, c.Finish())
		}
	}
	if got := strings.Count(log.String(), "login service=submission ip=192.0.2.7 mechanism="); got != len(offered) {
		t.Errorf("%d logins on the log:\n%s", got, log)
	}
}

func TestWhatIsOffered(t *testing.T) {
	all := "[SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1-PLUS SCRAM-SHA-1 PLAIN LOGIN]"
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nobody", nil, "[]"},
		{"all have verifiers", map[string]string{"users/passwd": user(t, "a", true)}, all},
		{"one has none", map[string]string{"users/passwd": user(t, "a", true) + user(t, "b", false)}, "[PLAIN LOGIN]"},
		{"another source", map[string]string{"users/passwd": user(t, "a", true), "control/dovecotauth": "/nowhere\n"}, "[PLAIN LOGIN]"},
		{"another source alone", map[string]string{"control/checkpassword": "/bin/checkpassword\n"}, "[PLAIN LOGIN]"},
		{"what is allowed", map[string]string{"users/passwd": user(t, "a", true), "control/authmechanisms": "scram-sha-256 plain\n"}, "[SCRAM-SHA-256 PLAIN]"},
	}
	for _, tt := range tests {
		r, _ := newTestRole(t, tt.files)
		if got := fmt.Sprint(r.Mechanisms("smtpd")); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A client that could bind, and is not told that we could, says so; that is no attack if it was us who left it out.
func TestBindingThatIsNotOfferedIsNotMissed(t *testing.T) {
	r, _ := newTestRole(t, map[string]string{"users/passwd": user(t, "a", true), "control/authmechanisms": "SCRAM-SHA-256\n"})
	from := who
	from.Bindings = []checker.Binding{{Type: "tls-exporter", Data: []byte("x")}}
	c, _ := sasl.NewClient(sasl.ScramSHA256, "a", secret, sasl.Options{Binding: &sasl.Binding{Type: "tls-exporter", Data: []byte("x")}, Offered: []string{sasl.ScramSHA256}})
	first, _ := c.Start()
	if got := r.Begin("smtpd", from, sasl.ScramSHA256).Next(t.Context(), first); got.Verdict != checker.More {
		t.Errorf("%+v", got)
	}
}

func TestWhoMayNotAskIsNotAnswered(t *testing.T) {
	r, _ := newTestRole(t, map[string]string{"users/passwd": user(t, "a", false)})
	right := []byte("\x00a\x00" + secret)
	from := who
	if got := r.Begin("smtpd", from, sasl.Plain).Next(t.Context(), right); got.Verdict != checker.Yes {
		t.Errorf("%+v", got)
	}
	for name, x := range map[string]checker.Conversation{
		"another role":           r.Begin("rspawn", from, sasl.Plain),
		"another's service":      r.Begin("popup", from, sasl.Plain),
		"a mechanism not there":  r.Begin("smtpd", from, "EXTERNAL"),
		"one that is not usable": r.Begin("smtpd", from, sasl.ScramSHA256),
	} {
		if got := x.Next(t.Context(), right); got.Verdict != checker.Malformed {
			t.Errorf("%s: %+v", name, got)
		}
	}
	ours, theirs, err := ipc.LocalPair()
	if err != nil {
		t.Fatal(err)
	}
	linkTo(t, r, "qmtpd", theirs)
	if _, err := ours.Read(); err == nil {
		t.Error("a role without rights keeps its link")
	}
}

// Whether a user is known, what his hash costs and what is wrong make no difference to the time of an answer.
func TestWrongAnswersTakeTheSameTime(t *testing.T) {
	tests := map[string]string{
		"a wrong password": "\x00alice\x00guess", "an unknown name": "\x00nouser\x00guess", "no password": "\x00alice\x00",
		"a name that is none": "\x00\xff\x00guess", "another to act for": "bob\x00alice\x00" + secret, "the name of a verifier only": "\x00carol\x00guess",
	}
	verifier := strings.SplitN(user(t, "carol", true), ":", 3)
	file := user(t, "alice", true) + user(t, "bob", true) + verifier[0] + ":" + verifier[2]
	for name, response := range tests {
		r, _ := newTestRole(t, map[string]string{"users/passwd": file})
		synctest.Test(t, func(t *testing.T) {
			for _, want := range []time.Duration{1, 2, 4, 8, 16, 16} {
				began := time.Now()
				got := r.Begin("smtpd", who, sasl.Plain).Next(t.Context(), []byte(response))
				if took := time.Since(began); got.Verdict != checker.No || took != want*time.Second {
					t.Errorf("%s: %+v after %v, want %d s", name, got, took, want)
				}
			}
		})
	}
}

func TestGuessesAreBounded(t *testing.T) {
	r, log := newTestRole(t, map[string]string{"users/passwd": user(t, "alice", true) + user(t, "bob", true)})
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan checker.Answer)
		for i := range 200 { // all at once
			go func() { ended <- ask(r, who, "alice", fmt.Sprint("guess", i)) }()
		}
		verdicts := map[checker.Verdict]int{}
		for range 200 {
			verdicts[(<-ended).Verdict]++
		}
		if verdicts[checker.No] != 15 || verdicts[checker.Later] != 185 {
			t.Errorf("%v", verdicts)
		}
		if got := ask(r, who, "bob", secret); got.Verdict != checker.Later || !strings.Contains(got.Text, "too many failed logins") {
			t.Errorf("the right password from there: %+v", got)
		}
		elsewhere := who
		elsewhere.IP = "2001:db8::1"
		if got := ask(r, elsewhere, "alice", secret); got.Verdict != checker.Yes {
			t.Errorf("from elsewhere: %+v", got)
		}
	})
	if strings.Contains(log.String(), "guess1") {
		t.Errorf("a guess is on the log:\n%s", log)
	}
}

// SCRAM asked for somebody who is not there goes as for others, twice the same, and lets nobody in.
func TestMadeUpUsers(t *testing.T) {
	file := "#secret c2VjcmV0IG9mIHRoZSBmaWxl\n" + user(t, "alice", true)
	challenge := func(r *role, login string) string {
		x := r.Begin("smtpd", who, sasl.ScramSHA256)
		got := x.Next(t.Context(), []byte("n,,n="+login+",r=abc"))
		_, rest, _ := strings.Cut(string(got.Challenge), ",")
		if got.Verdict != checker.More || rest == "" {
			t.Fatalf("%s: %+v", login, got)
		}
		return rest
	}
	r, _ := newTestRole(t, map[string]string{"users/passwd": file})
	again, _ := newTestRole(t, map[string]string{"users/passwd": file})
	a, b, c := challenge(r, "nouser"), challenge(r, "nouser2"), challenge(again, "NoUser")
	alice := challenge(r, "alice")
	if a == b || a != c || len(a) != len(alice) || a[strings.LastIndex(a, "i="):] != alice[strings.LastIndex(alice, "i="):] {
		t.Errorf("%s, %s, %s; alice %s", a, b, c, alice)
	}
}

func TestAChangedFileCounts(t *testing.T) {
	r, log := newTestRole(t, map[string]string{"users/passwd": user(t, "alice", false)})
	write := func(text string, mode os.FileMode) {
		t.Helper()
		path := passwd.Path(r.env.Home)
		if err := os.WriteFile(path+".new", []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		r.load(false)
	}
	write(user(t, "bob", false), 0o600)
	if got := ask(r, who, "bob", secret); got.Verdict != checker.Yes {
		t.Errorf("%+v", got)
	}
	write("nonsense that is secret\n", 0o600)
	r.load(false)
	if got := ask(r, who, "bob", secret); got.Verdict != checker.Yes {
		t.Errorf("after a bad file: %+v", got)
	}
	if n := strings.Count(log.String(), "unable to read users/passwd"); n != 1 || strings.Contains(log.String(), "nonsense") {
		t.Errorf("%d lines:\n%s", n, log)
	}
	write(user(t, "carol", false), 0o600)
	if got := ask(r, who, "carol", secret); got.Verdict != checker.Yes {
		t.Errorf("%+v", got)
	}
}

func TestTroubleOfASourceIsNoRefusal(t *testing.T) {
	r, _ := newTestRole(t, map[string]string{"users/passwd": user(t, "alice", false), "control/dovecotauth": "/nowhere/socket\n", "control/checkpassword": "x\n"})
	if got := ask(r, who, "dave", secret); got.Verdict != checker.Later {
		t.Errorf("%+v", got)
	}
	if got := ask(r, who, "alice", secret); got.Verdict != checker.Yes {
		t.Errorf("who is known here: %+v", got)
	}
}

// What people type where a name belongs may be a password, and what is wrong may be nearly right: neither is logged.
func TestNoSecretIsLogged(t *testing.T) {
	r, log := newTestRole(t, map[string]string{"users/passwd": user(t, "alice", false)})
	stop := r.refusals.Start()
	synctest.Test(t, func(t *testing.T) {
		ask(r, who, "alice", "hunter2")
		ask(r, who, "hunter2", "alice")
		ask(r, who, "alice", secret)
	})
	stop()
	text := log.String()
	if strings.Contains(text, "hunter2") || strings.Contains(text, secret) || !strings.Contains(text, `"submission login alice": wrong name or password`) ||
		!strings.Contains(text, "a name that is not known") || !strings.Contains(text, "user=\"alice\"") {
		t.Errorf("the log:\n%s", text)
	}
}
