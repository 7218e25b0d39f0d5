package check

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmail/internal/store/keys"
	"qmail/internal/system/env"
)

func TestWhatAStrangerSees(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		name   string
		life   time.Duration // of the certificate; 0 for none
		listen string
		want   []string
		code   int
	}{
		{"a good certificate", 100 * day, "smtp :25\nsubmissions :465\nqmtp 127.0.0.1:209\n", []string{
			"keys/a.pem is for mx.a.example, ECDSA, until ", "signed by itself",
			"smtp at :25: anybody can hand in mail for the domains in control/rcpthosts, by SMTP; encrypted if the client asks for it (STARTTLS)",
			"submissions at :465: who logs in can send mail anywhere; always encrypted",
			"qmtp at 127.0.0.1:209, from this machine only: ", "never encrypted",
		}, 0},
		{"no certificate", 0, "smtp :25\npop3s :995\n", []string{
			"! there is none", "smtp at :25: anybody can hand in mail for the domains in control/rcpthosts, by SMTP; not encrypted, for want of a certificate",
			"! pop3s needs a certificate: every client is turned away",
		}, 1},
		{"one that is about to expire", 20 * day, "smtp :25\n", []string{"! keys/a.pem expires in less than 30 days"}, 1},
		{"one that has expired", -day, "smtp :25\n", []string{"! keys/a.pem has expired"}, 1},
		{"a door that there is not", 100 * day, "imap :143\nsmtp\n", []string{`unknown service "imap"`, `not of the form SERVICE ADDRESS:PORT: "smtp"`}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			home := t.TempDir()
			files := map[string][]byte{"control/listen": []byte(tt.listen)}
			if tt.life != 0 {
				text, err := keys.SelfSigned("mx.a.example", time.Now(), tt.life)
				if err != nil {
					t.Fatal(err)
				}
				files["keys/a.pem"] = text
			}
			for name, text := range files {
				path := filepath.Join(home, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			code := Main(t.Context(), &env.Env{Home: home, Stdout: &out, Stderr: &out, Now: time.Now}, nil)
			if code != tt.code {
				t.Errorf("exit %d", code)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("it does not say %q:\n%s", want, &out)
				}
			}
		})
	}
}

// TestAllServicesAreKnown: what the supervisor binds, check can speak of.
func TestAllServicesAreKnown(t *testing.T) {
	table, err := os.ReadFile("../../super/table.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(table)) {
		_, rest, ok := strings.Cut(line, "services: []string{")
		if !ok {
			continue
		}
		list, _, _ := strings.Cut(rest, "}")
		for name := range strings.SplitSeq(list, ", ") {
			found++
			if _, known := kinds[strings.Trim(name, `"`)]; !known {
				t.Errorf("%s is not known", name)
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d services found", found)
	}
}
