package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	login  = "alice@test.example"
	secret = "correct horse"
)

// office is a house whose users log in to send mail.
type office struct {
	*house
	submission, submissions string
}

// newOffice makes one; nothing runs yet. files are control files, add says who is in users/passwd.
func newOffice(t *testing.T, files map[string]string, add ...string) *office {
	t.Helper()
	h := newHouse(t)
	o := &office{h, freeAddress(t), freeAddress(t)}
	h.write("control/listen", "smtp "+h.address+"\nsubmission "+o.submission+"\nsubmissions "+o.submissions+"\n")
	for name, text := range files {
		h.write("control/"+name, text)
	}
	for _, who := range add {
		o.passwd(secret+"\n", "add", who)
	}
	return o
}

// passwd runs qmail-passwd.
func (o *office) passwd(input string, args ...string) string {
	o.t.Helper()
	cmd := o.command(append([]string{"qmail-passwd"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		o.t.Fatalf("passwd %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// enter connects to a listener for submissions by TLS.
func (o *office) enter() *client {
	o.t.Helper()
	conn, err := tls.Dial("tcp", o.submissions, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		o.t.Fatal(err)
	}
	c := newClient(conn)
	for _, step := range []func() (int, error){
		func() (int, error) { code, _, err := c.reply(); return code - 220, err },
		func() (int, error) { code, err := c.say("EHLO client.example\r\n"); return code - 250, err },
	} {
		if code, err := step(); code != 0 || err != nil {
			o.t.Fatal(code, err)
		}
	}
	return c
}

// auth tries a password and returns the code.
func (c *client) auth(t *testing.T, login, password string) int {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	code, err := c.say("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+login+"\x00"+password)) + "\r\n")
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// peer runs somebody else's program with input, and skips the test if it is not there.
func peer(t *testing.T, input string, argv ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		t.Skipf("%s is not installed", argv[0])
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"HOME=" + cmd.Dir, "PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Programs that users send mail with log in, and what they send comes in as submitted by TLS and a login.
func TestOtherPeoplesClientsSubmitMail(t *testing.T) {
	o := newOffice(t, nil, login)
	o.start()
	defer o.stop()
	_, port, _ := net.SplitHostPort(o.submission)
	_, sport, _ := net.SplitHostPort(o.submissions)
	cert := filepath.Join(t.TempDir(), "cert")
	pem, err := os.ReadFile(filepath.Join(o.home, "keys", "test.example.pem"))
	if err == nil {
		_, after, _ := bytes.Cut(pem, []byte("-----BEGIN CERTIFICATE-----"))
		err = os.WriteFile(cert, append([]byte("-----BEGIN CERTIFICATE-----"), after...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	message := "From: " + login + "\nTo: bob@test.example\nSubject: %s\n\nhi\n"
	msmtp := func(auth string, port string, start string) []string {
		return []string{"msmtp", "--host=127.0.0.1", "--port=" + port, "--tls=on", "--tls-starttls=" + start, "--tls-certcheck=off", "--auth=" + auth,
			"--user=" + login, "--passwordeval=echo " + secret, "--from=" + login, "bob@test.example"}
	}
	swaks := func(auth, port, how string) []string {
		return []string{"swaks", "--server", "127.0.0.1:" + port, how, "--auth", auth, "--auth-user", login, "--auth-password", secret, "--from", login,
			"--to", "bob@test.example", "--helo", "client.example", "--data", "-"}
	}
	tests := map[string][]string{
		"swaks, PLAIN":               swaks("PLAIN", port, "-tls"),
		"swaks, LOGIN, TLS at once":  swaks("LOGIN", sport, "-tlsc"),
		"msmtp, PLAIN":               msmtp("plain", port, "on"),
		"msmtp, LOGIN":               msmtp("login", port, "on"),
		"msmtp, SCRAM-SHA-1":         msmtp("scram-sha-1", port, "on"),
		"msmtp, SCRAM-SHA-256":       msmtp("scram-sha-256", sport, "off"),
		"msmtp, what it thinks best": msmtp("on", sport, "off"),
		"mutt, SCRAM-SHA-256":        {"mutt", "-n", "-F", "/dev/null", "-e", "set smtp_url=\"smtps://alice%40test.example@127.0.0.1:" + sport + "/\" smtp_pass=\"" + secret + "\" ssl_verify_host=no certificate_file=" + cert + " from=" + login + " use_envelope_from=yes smtp_authenticators=scram-sha-256 record=\"\" sendmail_wait=0", "-s", "mutt, SCRAM-SHA-256", "bob@test.example"},
		"s-nail, PLAIN":              {"s-nail", "-:/", "-S", "v15-compat", "-S", "mta=submissions://alice%40test.example:correct%20horse@127.0.0.1:" + sport, "-S", "smtp-auth=plain", "-S", "tls-verify=ignore", "-S", "hostname=client.example", "-S", "from=" + login, "-s", "s-nail, PLAIN", "bob@test.example"},
		"gsasl, SCRAM-SHA-256-PLUS":  {"gsasl", "--smtp", "--connect=127.0.0.1:" + port, "--mechanism=SCRAM-SHA-256-PLUS", "--authentication-id=" + login, "--password=" + secret, "--no-client-first", "--x509-ca-file=", "--starttls"},
	}
	for name, argv := range tests {
		t.Run(name, func(t *testing.T) {
			input := fmt.Sprintf(message, name)
			switch argv[0] {
			case "mutt", "s-nail":
				input = "hi\n"
			case "gsasl":
				input = ""
			}
			out, err := peer(t, input, argv...)
			if strings.Contains(out, "TLS not available") {
				t.Skip("swaks has no TLS: libnet-ssleay-perl is not installed")
			}
			if argv[0] == "gsasl" {
				if !strings.Contains(out, "235 2.7.0") {
					t.Errorf("%v\n%s\n%s", err, out, o.tail())
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, out, o.tail())
			}
			var got string
			o.until("the message is there", func() bool {
				for _, m := range o.mail("bob") {
					if strings.Contains(m, "\nSubject: "+name+"\n") {
						got = m
					}
				}
				return got != ""
			})
			for _, want := range []string{" with ESMTPSA ", "\nReturn-Path: <" + login + ">\n", "\nDate: ", "\nMessage-"} {
				if !strings.Contains("\n"+got, want) {
					t.Errorf("no %q in\n%s", want, got)
				}
			}
			if strings.Contains(got, secret) || strings.Contains(o.read(), secret) || strings.Contains(o.read(), base64.StdEncoding.EncodeToString([]byte(secret))) {
				t.Error("the password is where it should not be")
			}
		})
	}
}

// What a login allows: to send anywhere as oneself. Nothing else does on these listeners.
func TestOnlyALoginLetsMailThrough(t *testing.T) {
	far := newFarHost(t)
	o := newOffice(t, map[string]string{"smtproutes": "far.example:" + far.route() + "\n", "relayclients": "127.0.0.0/8\n", "tlspolicy": ":none\n"}, login)
	o.start()
	defer o.stop()
	plain, err := dial(o.submission)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if code := plain.auth(t, login, secret); code != 538 {
		t.Errorf("AUTH without TLS is answered %d", code)
	}
	if code, _, _ := plain.send(login, "x@far.example", "\r\n"); code != 530 {
		t.Errorf("a client of relayclients is answered %d", code)
	}
	c := o.enter()
	if code, _, _ := c.send(login, "x@far.example", "\r\n"); code != 530 {
		t.Errorf("without a login: %d", code)
	}
	for password, want := range map[string]int{"correct hors": 535, "": 535} {
		if code := c.auth(t, login, password); code != want {
			t.Errorf("%q is answered %d", password, code)
		}
	}
	if code, _, _ := c.send(login, "x@far.example", "\r\n"); code != 530 {
		t.Errorf("after wrong passwords: %d", code)
	}
	if code := c.auth(t, login, secret); code != 235 {
		t.Fatalf("the right password is answered %d\n%s", code, o.tail())
	}
	if code, _, _ := c.send("bob@test.example", "x@far.example", "\r\n"); code != 553 {
		t.Errorf("as bob: %d", code)
	}
	if code, _, err := c.send("alice-list", "x@far.example", "Subject: out\r\n\r\nhi\r\n"); code != 250 || err != nil {
		t.Errorf("as an extension: %d, %v", code, err)
	}
	o.until("it has gone out", func() bool { return len(far.mail()) == 1 })
	got := far.mail()[0]
	for _, want := range []string{" with ESMTPSA ", "\nDate: ", "\nMessage-ID: <"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "alice@") {
		t.Errorf("the login is shown to the world:\n%s", got)
	}
	o.logged("from <alice-list@test.example>")
}

// Whoever sends too much loses nothing: it is held, he and the postmaster are told, and it goes out when released.
func TestTooMuchMailIsHeldAndItsOwnerTold(t *testing.T) {
	o := newOffice(t, map[string]string{"submitlimit": "2\n"}, "bob@test.example")
	o.start()
	defer o.stop()
	c := o.enter()
	if code := c.auth(t, "bob@test.example", secret); code != 235 {
		t.Fatal(code)
	}
	for i := range 4 {
		if code, _, err := c.send("bob@test.example", "alice@test.example", fmt.Sprintf("Subject: number %d\r\n\r\n", i)); code != 250 {
			t.Fatalf("message %d: %d, %v", i, code, err)
		}
	}
	count := func(user, text string) (n int) {
		for _, m := range o.mail(user) {
			n += strings.Count(m, text)
		}
		return n
	}
	o.until("bob and the postmaster, who is alice, are told", func() bool {
		return count("bob", "Subject: your mail is on hold\n") == 1 && count("alice", "Subject: your mail is on hold\n") == 1
	})
	if n := count("alice", "Subject: number"); n != 2 {
		t.Errorf("%d messages came through", n)
	}
	list := func() []string {
		out, err := o.command("qmail-queuetool", "list", "-state", "held").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var ids []string
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 0 && strings.Trim(f[0], "0123456789") == "" {
				ids = append(ids, f[0])
			}
		}
		return ids
	}
	held := list()
	if len(held) != 2 {
		t.Fatalf("held: %q", held)
	}
	for _, id := range held {
		if out, err := o.command("qmail-queuetool", "release", id).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	o.until("what was released is there", func() bool { return count("alice", "Subject: number") == 4 })
}

// A program with the checkpassword interface is asked, by a process of its own.
func TestACheckpasswordProgramIsASource(t *testing.T) {
	dir, err := os.MkdirTemp("", "qmail-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "checkpassword")
	script := `#!/bin/sh
record=$(tr '\000' '|' <&3)
case "$record" in
"carol@virt.example|correct horse||") exec "$@" ;;
"slow@virt.example|"*) exit 111 ;;
esac
exit 1
`
	if err := errors.Join(os.WriteFile(program, []byte(script), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	o := newOffice(t, map[string]string{"checkpassword": program + "\n"}, login)
	o.start()
	defer o.stop()
	c := o.enter()
	if _, err := io.WriteString(c, "EHLO x\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, text, err := c.reply(); err != nil || !strings.Contains(text, "250-AUTH PLAIN LOGIN\r\n") {
		t.Errorf("%v: %s", err, text)
	}
	for _, tt := range []struct {
		who  string
		want int
	}{{"nobody@virt.example", 535}, {"slow@virt.example", 454}, {"carol@virt.example", 235}} {
		if code := c.auth(t, tt.who, secret); code != tt.want {
			t.Errorf("%s is answered %d, want %d", tt.who, code, tt.want)
		}
	}
	if code := o.enter().auth(t, login, secret); code != 235 {
		t.Errorf("who is in users/passwd is answered %d", code)
	}
}

// A real Dovecot is asked over its auth socket.
func TestDovecotIsASource(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a Dovecot of our own has to be started by root")
	}
	dovecot, err := exec.LookPath("dovecot")
	if err != nil {
		t.Skip("dovecot is not installed")
	}
	dir, err := os.MkdirTemp("", "qmail-dovecot-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	config := filepath.Join(dir, "dovecot.conf")
	text := fmt.Sprintf(`base_dir = %[1]s
log_path = %[2]s/log
protocols =
ssl = no
auth_mechanisms = plain login
default_internal_user = nobody
default_login_user = nobody
default_internal_group = nogroup
passdb {
  driver = passwd-file
  args = %[2]s/users
}
service auth {
  chroot =
  unix_listener %[3]s {
    mode = 0666
  }
}
`, filepath.Join(dir, "run"), dir, socket)
	for name, content := range map[string]string{config: text, filepath.Join(dir, "users"): "dave@test.example:{PLAIN}" + secret + "\n"} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dovecot, "-F", "-c", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }()
	o := newOffice(t, map[string]string{"dovecotauth": socket + "\n"})
	o.start()
	defer o.stop()
	o.until("Dovecot listens", func() bool { _, err := os.Stat(socket); return err == nil })
	c := o.enter()
	for _, tt := range []struct {
		password string
		want     int
	}{{"wrong", 535}, {secret, 235}} {
		if code := c.auth(t, "dave@test.example", tt.password); code != tt.want {
			b, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Errorf("%s is answered %d, want %d\n%s\n%s", tt.password, code, tt.want, o.tail(), b)
		}
	}
}

// A user who is added, whose password is changed, or who is deleted while everything runs, is so at once.
func TestUsersComeAndGo(t *testing.T) {
	o := newOffice(t, nil, login)
	o.start()
	defer o.stop()
	becomes := func(who, password string, want int) {
		t.Helper()
		o.until(fmt.Sprintf("%s with %q is answered %d", who, password, want), func() bool {
			c := o.enter()
			defer c.Close()
			return c.auth(t, who, password) == want
		})
	}
	becomes(login, secret, 235)
	o.passwd("another one\n", "set", login)
	becomes(login, "another one", 235)
	becomes(login, secret, 535)
	o.passwd(secret+"\n", "add", "-n", "bob@test.example")
	becomes("bob@test.example", secret, 235)
	if out := o.passwd("", "list"); out != "alice@test.example argon2id SCRAM-SHA-256 SCRAM-SHA-1\nbob@test.example argon2id\n" {
		t.Errorf("the list is %q", out)
	}
	o.passwd("", "delete", login)
	becomes(login, "another one", 535)
}
