package sasl

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// book is a few users; everybody else is unknown.
type book struct {
	passwords map[string]string
	asked     []string
	err       error
}

func (b *book) Password(login, password string) error {
	b.asked = append(b.asked, login)
	if b.err != nil {
		return b.err
	}
	if want, ok := b.passwords[login]; !ok || want != password {
		return ErrRefused
	}
	return nil
}

func (b *book) Verifier(mechanism, login string) (Verifier, error) {
	b.asked = append(b.asked, login)
	if b.err != nil {
		return Verifier{}, b.err
	}
	password, ok := b.passwords[login]
	if !ok {
		hash, _ := hashOf(mechanism)
		n := hash().Size()
		return Verifier{Salt: []byte("made up " + login), Iterations: minIterations, StoredKey: make([]byte, n), ServerKey: make([]byte, n)}, nil
	}
	return NewVerifier(mechanism, password, []byte("salt"), minIterations)
}

func users() *book {
	return &book{passwords: map[string]string{"alice@test.example": "correct horse", "bob": "pencil", "j\u00fcrgen": "pa\u00dfwort,=x"}}
}

var bound = []Binding{{tlsExporter, []byte("exporter's 32 bytes, more or less")}, {tlsEndpoint, []byte("hash of a certificate")}}

// talk lets a client and a server talk, and returns whom the server takes the client for.
func talk(c *Client, s *Server) (string, error) {
	response, err := c.Start()
	for range 10 {
		if err != nil {
			return "", fmt.Errorf("client: %w", err)
		}
		challenge, done, err2 := s.Next(response)
		if err2 != nil {
			return "", err2
		}
		if done {
			return s.Login, c.Finish()
		}
		response, err = c.Next(challenge)
		if response == nil {
			response = []byte{}
		}
	}
	return "", errors.New("it does not end")
}

func TestEveryMechanismLetsTheRightOneIn(t *testing.T) {
	for _, mechanism := range []string{Plain, Login, ScramSHA1, ScramSHA1Plus, ScramSHA256, ScramSHA256Plus} {
		for _, tt := range []struct {
			name, login, password string
			want                  error
		}{
			{"the right password", "alice@test.example", "correct horse", nil},
			{"a name beyond ASCII", "j\u00fcrgen", "pa\u00dfwort,=x", nil},
			{"a wrong password", "alice@test.example", "wrong", ErrRefused},
			{"another's password", "alice@test.example", "pencil", ErrRefused},
			{"an unknown name", "nouser", "pencil", ErrRefused},
		} {
			t.Run(mechanism+"/"+tt.name, func(t *testing.T) {
				for i := range bound {
					c, err := NewClient(mechanism, tt.login, tt.password, Options{Binding: &bound[i], Offered: []string{mechanism, ScramSHA1Plus}})
					if err != nil {
						t.Fatal(err)
					}
					if !plus(mechanism) { // of those that say nothing of bindings
						c, _ = NewClient(mechanism, tt.login, tt.password, Options{})
					}
					s, err := NewServer(mechanism, bound, users())
					if err != nil {
						t.Fatal(err)
					}
					login, err := talk(c, s)
					if !errors.Is(err, tt.want) || err == nil && login != tt.login || err != nil && (login != "" || s.Login != "") {
						t.Errorf("%q, %v", login, err)
					}
				}
			})
		}
	}
}

func TestChannelBindingFindsTheManInTheMiddle(t *testing.T) {
	elsewhere := Binding{tlsExporter, []byte("of another connection")}
	tests := []struct {
		name, mechanism string
		o               Options
		bindings        []Binding
		want            error
	}{
		{"two connections in the place of one", ScramSHA256Plus, Options{Binding: &elsewhere}, bound, ErrRefused},
		{"a list from which the binding mechanisms were taken", ScramSHA256, Options{Binding: &bound[0], Offered: []string{ScramSHA256}}, bound, ErrMalformed},
		{"a server that cannot bind", ScramSHA256, Options{Binding: &bound[0], Offered: []string{ScramSHA256}}, nil, nil},
		{"a client that cannot bind", ScramSHA256, Options{}, bound, nil},
		{"a kind of binding that the server has not", ScramSHA256Plus, Options{Binding: &Binding{tlsUnique, []byte("x")}}, bound, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := NewClient(tt.mechanism, "bob", "pencil", tt.o)
			if err != nil {
				t.Fatal(err)
			}
			s, err := NewServer(tt.mechanism, tt.bindings, users())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := talk(c, s); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	if _, err := NewServer(ScramSHA256Plus, nil, users()); err != ErrMechanism {
		t.Errorf("binding without a binding: %v", err)
	}
	if _, err := NewClient(ScramSHA256Plus, "bob", "pencil", Options{}); err != ErrMechanism {
		t.Errorf("binding without a binding: %v", err)
	}
}

func TestResponsesThatAreNone(t *testing.T) {
	tests := []struct {
		name, mechanism string
		responses       []string
		want            error
	}{
		{"another's name to act for", Plain, []string{"bob\x00alice@test.example\x00correct horse"}, ErrRefused},
		{"one's own name to act for", Plain, []string{"bob\x00bob\x00pencil"}, nil},
		{"no name", Plain, []string{"\x00\x00pencil"}, ErrRefused},
		{"no password", Plain, []string{"\x00bob\x00"}, ErrRefused},
		{"one field", Plain, []string{"bob"}, ErrMalformed},
		{"two fields", Plain, []string{"bob\x00pencil"}, ErrMalformed},
		{"four fields", Plain, []string{"\x00bob\x00pencil\x00x"}, ErrMalformed},
		{"a name that is no text", Plain, []string{"\x00\xff\xfe\x00x"}, ErrRefused},
		{"a name of two lines", Plain, []string{"\x00bob\nx\x00pencil"}, ErrRefused},
		{"a name too long", Plain, []string{"\x00" + strings.Repeat("a", 256) + "\x00x"}, ErrRefused},
		{"a password too long", Plain, []string{"\x00bob\x00" + strings.Repeat("a", 513)}, ErrRefused},
		{"a message too long", Plain, []string{"\x00bob\x00" + strings.Repeat("a", MaxMessage)}, ErrMalformed},
		{"a name with the command", Login, []string{"bob", "pencil"}, nil},
		{"a NUL in the name", Login, []string{"bob\x00", "pencil"}, ErrRefused},
		{"a NUL in the password", Login, []string{"bob", "pencil\x00"}, ErrRefused},
		{"binding without -PLUS", ScramSHA256, []string{"p=tls-exporter,,n=bob,r=x"}, ErrMalformed},
		{"-PLUS without binding", ScramSHA256Plus, []string{"n,,n=bob,r=x"}, ErrMalformed},
		{"an extension that must be known", ScramSHA256, []string{"n,,m=x,n=bob,r=x"}, ErrMalformed},
		{"nothing", ScramSHA256, []string{""}, ErrMalformed},
		{"no proof", ScramSHA256, []string{"n,,n=bob,r=x", "c=biws,r=x"}, ErrMalformed},
		{"a short proof", ScramSHA256, []string{"n,,n=bob,r=x", "c=biws,r=x,p=AAAA"}, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.mechanism+"/"+tt.name, func(t *testing.T) {
			s, err := NewServer(tt.mechanism, bound, users())
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range tt.responses {
				_, done, err := s.Next([]byte(r))
				if !done && i+1 < len(tt.responses) {
					continue
				}
				if !done || err != tt.want || (s.Login == "bob") != (err == nil) {
					t.Errorf("done %v, %v, login %q; want %v", done, err, s.Login, tt.want)
				}
			}
			if _, done, err := s.Next([]byte("\x00bob\x00pencil")); !done || err != ErrMalformed {
				t.Errorf("after its end the exchange goes on: %v", err)
			}
		})
	}
}

func TestWhoIsRefusedIsAskedForAllTheSame(t *testing.T) {
	for _, response := range []string{"\x00\xff\x00x", "bob\x00alice@test.example\x00x", "\x00\x00x", "\x00bob\x00"} {
		b := users()
		s, _ := NewServer(Plain, nil, b)
		s.Next([]byte(response))
		if len(b.asked) != 1 {
			t.Errorf("%q: %q were asked for", response, b.asked)
		}
	}
}

func TestTroubleIsNotARefusal(t *testing.T) {
	trouble := errors.New("disk")
	for _, mechanism := range []string{Plain, Login, ScramSHA1, ScramSHA256Plus} {
		b := users()
		b.err = trouble
		c, _ := NewClient(mechanism, "bob", "pencil", Options{Binding: &bound[0], Offered: []string{ScramSHA1Plus}})
		if mechanism == ScramSHA1 {
			c, _ = NewClient(mechanism, "bob", "pencil", Options{})
		}
		s, _ := NewServer(mechanism, bound, b)
		if _, err := talk(c, s); !errors.Is(err, trouble) {
			t.Errorf("%s: %v", mechanism, err)
		}
	}
}

func TestChoose(t *testing.T) {
	tests := []struct {
		name    string
		offered string
		bound   bool
		want    string
	}{
		{"the strongest", "LOGIN PLAIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256", true, ScramSHA256},
		{"binding before a better hash", "SCRAM-SHA-256 SCRAM-SHA-1-PLUS", true, ScramSHA1Plus},
		{"no binding without one", "SCRAM-SHA-256-PLUS SCRAM-SHA-1", false, ScramSHA1},
		{"CRAM-MD5 last", "CRAM-MD5 LOGIN", false, Login},
		{"CRAM-MD5 where there is nothing else", "CRAM-MD5 NTLM", false, CRAMMD5},
		{"small letters", "plain login", false, Plain},
		{"nothing of ours", "GSSAPI XOAUTH2", true, ""},
	}
	for _, tt := range tests {
		if got := Choose(strings.Fields(tt.offered), tt.bound); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// The example of RFC 2195 2.
func TestCRAMMD5(t *testing.T) {
	c, err := NewClient(CRAMMD5, "tim", "tanstaaftanstaaf", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := c.Start(); first != nil || err != nil {
		t.Fatal(first, err)
	}
	got, err := c.Next([]byte("<1896.697170952@postoffice.reston.mci.net>"))
	if string(got) != "tim b913a602c7eda7a495b4e6e7334d3890" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Next([]byte("again")); err == nil {
		t.Error("a second challenge is answered")
	}
}

// The example of RFC 7677 3: what we keep of the password fits both sides' proofs.
func TestVerifierOfTheRFC(t *testing.T) {
	salt, _ := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	v, err := NewVerifier(ScramSHA256, "pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	nonce := "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	message := []byte("n=user,r=rOprNGfwEbeRWgbNEkqO,r=" + nonce + ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=" + nonce)
	sum := func(key []byte) []byte { h := hmac.New(sha256.New, key); h.Write(message); return h.Sum(nil) }
	if got := base64.StdEncoding.EncodeToString(sum(v.ServerKey)); got != "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("the server's proof is %s", got)
	}
	key, _ := base64.StdEncoding.DecodeString("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	for i, b := range sum(v.StoredKey) {
		key[i] ^= b
	}
	if got := sha256.Sum256(key); !bytes.Equal(got[:], v.StoredKey) {
		t.Error("the client's proof does not fit")
	}
}

func TestAServerHasToProveItself(t *testing.T) {
	c, _ := NewClient(ScramSHA256, "bob", "pencil", Options{})
	first, _ := c.Start()
	if c.Finish() == nil {
		t.Error("a server that says yes at once is believed")
	}
	_, nonce, _ := strings.Cut(string(first), "r=")
	if _, err := c.Next([]byte("r=" + nonce + "abc,s=c2FsdA==,i=2000001")); err != ErrServer {
		t.Errorf("work without an end: %v", err)
	}
	c, _ = NewClient(ScramSHA256, "bob", "pencil", Options{})
	first, _ = c.Start()
	_, nonce, _ = strings.Cut(string(first), "r=")
	if _, err := c.Next([]byte("r=" + nonce + "abc,s=c2FsdA==,i=1")); err != ErrServer {
		t.Errorf("too little work: %v", err)
	}
	c, _ = NewClient(ScramSHA256, "bob", "pencil", Options{})
	first, _ = c.Start()
	_, nonce, _ = strings.Cut(string(first), "r=")
	if _, err := c.Next([]byte("r=" + nonce + "abc,s=c2FsdA==,i=4096")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next([]byte("v=" + base64.StdEncoding.EncodeToString(make([]byte, 32)))); err != ErrServer || c.Finish() == nil {
		t.Errorf("a wrong proof: %v", err)
	}
}

// messages cuts fuzzed input into messages.
func messages(in []byte) [][]byte {
	list := bytes.Split(in, []byte("\n"))
	return list[:min(len(list), 5)]
}

// Whatever a client says that does not know the password, it is let in as nobody.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{"\x00bob\x00x", "bob\nx", "n,,n=bob,r=x\nc=biws,r=x,p=AAAA", "p=tls-exporter,,n=bob,r=x\n\n", "y,a=bob,n=bob,r=x,e=1"} {
		for kind := range byte(6) {
			f.Add(kind, []byte(seed))
		}
	}
	mechanisms := [...]string{Plain, Login, ScramSHA1, ScramSHA1Plus, ScramSHA256, ScramSHA256Plus}
	f.Fuzz(func(t *testing.T, kind byte, in []byte) {
		b := users()
		s, err := NewServer(mechanisms[int(kind)%len(mechanisms)], bound, b)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages(in) {
			challenge, done, err := s.Next(m)
			if len(challenge) > 2*MaxMessage {
				t.Fatalf("a challenge of %d bytes", len(challenge))
			}
			if done && err == nil {
				if password, ok := b.passwords[s.Login]; !ok || !bytes.Contains(in, []byte(password)) {
					t.Fatalf("%q let somebody in as %q", in, s.Login)
				}
			}
			if (s.Login != "") != (done && err == nil) {
				t.Fatalf("login %q, done %v, %v", s.Login, done, err)
			}
			if done {
				return
			}
		}
	})
}

// Whatever a server says that does not know the password, SCRAM's client does not believe it.
func FuzzClient(f *testing.F) {
	f.Add([]byte("r=NONCEx,s=c2FsdA==,i=4096\nv=AAAA"))
	f.Add([]byte("e=other-error"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if bytes.Contains(in, []byte("i=")) && len(in) > 0 {
			for _, field := range bytes.FieldsFunc(in, func(r rune) bool { return r == ',' || r == '\n' }) {
				if bytes.HasPrefix(field, []byte("i=")) && len(field) > 6 {
					t.Skip("that much work is for others")
				}
			}
		}
		c, err := NewClient(ScramSHA256, "bob", "pencil", Options{})
		if err != nil {
			t.Fatal(err)
		}
		first, err := c.Start()
		if err != nil {
			t.Fatal(err)
		}
		_, nonce, _ := strings.Cut(string(first), "r=")
		for _, m := range messages(bytes.ReplaceAll(in, []byte("NONCE"), []byte(nonce))) {
			if _, err := c.Next(m); err != nil {
				break
			}
		}
		if c.Finish() == nil {
			t.Fatalf("%q is believed", in)
		}
	})
}
